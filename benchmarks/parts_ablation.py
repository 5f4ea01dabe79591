"""What each choice of stage 1 does to part quality: one row a choice, the mean over seeds, beside all baselines.

    python benchmarks/parts_ablation.py --learn DIR --data DIR --masks DIR --teacher T --image-size 224 --cache DIR

The encoder's tokens of both folders are computed once, and kept in `--cache`; each row is learned from those of
`--learn` as `semmae parts` does, and measured on `--data`.
"""

import argparse
import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import write_results
from torch.nn import functional

from semmae.data.loaders import make_loader
from semmae.data.manifest import ImageSet, open_images
from semmae.data.samplers import StepSampler
from semmae.data.token_store import TokenDataset, TokenStore
from semmae.evaluation.parts import Truth, measure_encoder, measure_grids, read_truth, score
from semmae.formats.folders import digest
from semmae.formats.open import load_encoder
from semmae.labels.tokens import Looking, collect_tokens, tokens_of
from semmae.models.parts import PartLearner, PartsSpec, PartTokens, Prototypes
from semmae.options.parts import PartsOptions, PartsRecipe
from semmae.train.optimizer import adamw, warmup_cosine_rate
from semmae.train.parts import BETAS, parts_losses

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row changes of the defaults."""

    recipe: PartsRecipe = dataclasses.field(default_factory=PartsRecipe)
    num_parts: int = PartsOptions.num_parts
    refine: bool = True
    steps: int = PartsOptions.steps
    learned: int | None = None  # images
    mapped: bool = True
    tokens: Callable[[PartTokens], PartTokens] = lambda tokens: tokens
    change: Callable[[PartLearner], object] = lambda learner: None  # of the learner before it learns
    also: Callable[[PartLearner, PartTokens], torch.Tensor] = lambda learner, tokens: torch.zeros(())  # one more loss


class _Products(Prototypes):
    """Dot products in place of cosines; as long on the average."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        assert self.map is not None
        tokens = tokens @ self.map
        tokens, vectors = tokens / tokens.norm(dim=-1).mean(), self.vectors / self.vectors.norm(dim=1).mean()
        return (10 * self.temperature * tokens @ vectors.T + self.bias).softmax(-1)


class _Centred(Prototypes):
    """Logits less a share of their mean over the image: of all, every part has a place in every image."""

    share: torch.Tensor

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        assert self.map is not None
        cosines = functional.normalize(tokens @ self.map, dim=-1) @ functional.normalize(self.vectors, dim=1).T
        return (10 * self.temperature * (cosines - self.share * cosines.mean(1, keepdim=True)) + self.bias).softmax(-1)


def _products(learner: PartLearner) -> None:
    learner.parts.__class__ = _Products


def _centred(learner: PartLearner, share: float = 1.0, learned: bool = False) -> None:
    learner.parts.__class__ = _Centred
    learner.parts.share = torch.nn.Parameter(torch.tensor(share), requires_grad=learned)


def _inside(learner: PartLearner, tokens: PartTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares of the parts (B, L, K), and of the object (B, L, 1)."""
    shares, parts = learner(tokens)
    return parts, shares[:, :, 1:].detach()


def _entropy(learner: PartLearner, tokens: PartTokens) -> torch.Tensor:
    """Of each patch of the object (PDiscoFormer), 1 where it is shared equally."""
    parts, inside = _inside(learner, tokens)
    each = -(parts * parts.clamp_min(1e-6).log()).sum(-1, keepdim=True) / math.log(parts.shape[-1])
    return (each * inside).sum() / inside.sum()


def _absence(learner: PartLearner, tokens: PartTokens) -> torch.Tensor:
    """What every part lacks of a patch of its own somewhere in the batch (PDiscoFormer)."""
    parts, inside = _inside(learner, tokens)
    return 1 - (parts * inside).amax((0, 1)).mean()


def _unequal(learner: PartLearner, tokens: PartTokens) -> torch.Tensor:
    """How far the parts' shares of the objects of a batch are from equal ones, in nats."""
    parts, inside = _inside(learner, tokens)
    shares = (parts * inside).sum((0, 1)) / inside.sum()
    return (shares * (shares * parts.shape[-1]).clamp_min(1e-6).log()).sum()


def _strayed(learner: PartLearner, tokens: PartTokens) -> torch.Tensor:
    """Whether a part's mean key in an image is nearest to its prototype of all (SCOPS; Choudhury et al.)."""
    parts, inside = _inside(learner, tokens)
    assert learner.parts.map is not None
    weights = (parts * inside).transpose(1, 2)
    means = weights @ (tokens.keys.float() @ learner.parts.map) / weights.sum(-1, keepdim=True).clamp_min(1e-3)
    cosines = functional.normalize(means, dim=-1) @ functional.normalize(learner.parts.vectors, dim=1).T
    own = torch.arange(parts.shape[-1]).expand(len(parts), -1)
    return functional.cross_entropy((10 * cosines).flatten(0, 1), own.flatten())


def _weighted(
    weight: float, term: Callable[[PartLearner, PartTokens], torch.Tensor]
) -> Callable[[PartLearner, PartTokens], torch.Tensor]:
    return lambda learner, tokens: weight * term(learner, tokens)


def _random(learner: PartLearner) -> None:
    torch.nn.init.normal_(learner.parts.vectors)


def _fixed_map(learner: PartLearner) -> None:
    assert learner.parts.map is not None
    learner.parts.map.requires_grad_(False)


def _only(name: str) -> Callable[[PartLearner], object]:
    other = {"object": "parts", "parts": "object"}[name]
    return lambda learner: getattr(learner, other).requires_grad_(False)


ROWS = {
    "default": Row(),
    "nothing learned: as it starts": Row(steps=0),
    "nothing learned: k-means in two steps": Row(steps=0, mapped=False),
    "the same, borders not refined": Row(steps=0, mapped=False, refine=False),
    "object learned, parts not": Row(change=_only("object")),
    "parts learned, object not": Row(change=_only("parts")),
    "borders not refined": Row(refine=False),
    "no total variation": Row(PartsRecipe(total_variation=0.0)),
    **{f"total variation {weight}": Row(PartsRecipe(total_variation=weight)) for weight in (0.2, 0.3, 0.4, 0.6, 1.0)},
    "5 parts": Row(num_parts=5),
    "7 parts": Row(num_parts=7),
    "7 parts: k-means in two steps": Row(num_parts=7, steps=0, mapped=False),
    "50 steps": Row(steps=50),
    "150 steps": Row(steps=150),
    "300 steps": Row(steps=300),
    "200 images": Row(learned=200),
    "parts start at random": Row(change=_random),
    "clusters of keys that are not mapped": Row(mapped=False),
    "keys never mapped": Row(mapped=False, change=_fixed_map),
    "the map not learned any further": Row(change=_fixed_map),
    "values less the mean of their place": Row(
        tokens=lambda tokens: tokens._replace(values=(tokens.values - tokens.values.float().mean(0)).half())
    ),
    "logits from values": Row(tokens=lambda tokens: tokens._replace(keys=tokens.values)),
    "logits from last tokens": Row(tokens=lambda tokens: tokens._replace(keys=tokens.last)),
    "dot products, not cosines": Row(change=_products),
    "logits centred in each image": Row(change=_centred),
    "logits centred in each image by a learned share": Row(change=lambda learner: _centred(learner, 0.0, learned=True)),
    **{f"entropy {weight}": Row(also=_weighted(weight, _entropy)) for weight in (0.1, 1.0)},
    **{f"presence {weight}": Row(also=_weighted(weight, _absence)) for weight in (0.1, 1.0)},
    **{f"equal use {weight}": Row(also=_weighted(weight, _unequal)) for weight in (0.1, 1.0)},
    **{f"descriptors find prototypes {weight}": Row(also=_weighted(weight, _strayed)) for weight in (0.1, 1.0)},
    "keys rebuilt": Row(tokens=lambda tokens: tokens._replace(values=tokens.keys)),
    "last tokens rebuilt": Row(tokens=lambda tokens: tokens._replace(values=tokens.last)),
}


def main() -> None:
    """Tokens, learners, table, file."""
    options = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    measured = open_images(options.data)
    truth = read_truth(measured, masks=options.masks, limit=options.measured, seed=0)
    encoder = load_encoder(options.teacher, image_size=options.image_size).eval().requires_grad_(False)
    looking = Looking(encoder, options.image_size, options.grid, 32, 0, "auto")
    images = open_images(options.learn)
    images = ImageSet(images.source, images.manifest.subset(options.learned, 0))
    reductions = PartLearner(PartsSpec.of(encoder))
    known, asked = cached_tokens(options.cache, images, measured, reductions, looking)
    guides = torch.from_numpy(asked.read("image")[truth.rows])
    tokens, seen = tokens_of(known, slice(None)), tokens_of(asked, truth.rows)
    found: dict[str, list[Figures]] = {}
    for seed in range(options.seeds):
        for name in options.rows or ROWS:
            started, row = time.process_time(), ROWS[name]
            learner = learn(reductions, tokens, row, seed)
            figures = measure(learner, row.tokens(seen), guides, truth)
            found.setdefault(name, []).append(figures)
            seconds = time.process_time() - started
            print(f"seed {seed}, {name}: {figures}, {seconds:.0f} s", flush=True)
        if not options.rows:
            for name, figures in baselines(encoder, measured, truth, options, seed).items():
                found.setdefault(f"baseline: {name}", []).append(figures)
    write_results("parts_ablation", {"rows": {name: summary_of(rows) for name, rows in found.items()}}, options.name)


def cached_tokens(
    cache: Path, images: ImageSet, measured: ImageSet, reductions: PartLearner, looking: Looking
) -> tuple[TokenStore, TokenStore]:
    """Tokens of the images to learn from, to which the reductions are fitted, and of those to measure, reduced alike.

    Each in a folder named after what it is of: those of other images, encoders or sizes stay, and are not mixed with.
    """
    of_encoder = f"{digest(looking.encoder)[:8]}-{looking.size}"
    known = collect_tokens(cache / f"{of_encoder}-{images.digest[:8]}", images, reductions, looking)
    place = cache / f"{of_encoder}-{measured.digest[:8]}-{digest(reductions.reductions)[:8]}"
    return known, collect_tokens(place, measured, reductions, looking, fit=False)


def learn(reductions: PartLearner, tokens: PartTokens, row: Row, seed: int) -> PartLearner:
    """A learner, trained as `semmae parts` does, with what a row changes."""
    torch.manual_seed(seed)
    tokens = row.tokens(tokens)
    if row.learned is not None:
        chosen = torch.linspace(0, len(tokens.last) - 1, row.learned).round().long()
        tokens = PartTokens(*(own[chosen] for own in tokens))
    spec = dataclasses.replace(reductions.spec, num_parts=row.num_parts, refine=row.refine)
    learner = PartLearner(spec)
    learner.start_from_clusters(tokens, seed, mapped=row.mapped)
    row.change(learner)
    if row.steps:
        sampler = StepSampler(len(tokens.last), seed, steps=row.steps, batch_size=PartsOptions.batch_size)
        loader = make_loader(TokenDataset(tokens._asdict()), PartsOptions.batch_size, sampler=sampler)
        optimizer = adamw(learner, lr=row.recipe.lr, betas=BETAS, weight_decay=row.recipe.weight_decay)
        warmup = round(row.recipe.warmup_share * row.steps)
        rate = warmup_cosine_rate(optimizer, total_steps=row.steps, warmup_steps=warmup)
        for batch in loader:
            optimizer.zero_grad()
            tokens = PartTokens(**batch)
            (parts_losses(learner, row.recipe, tokens)["loss"] + row.also(learner, tokens)).backward()
            optimizer.step()
            rate.step()
    return learner.eval().requires_grad_(False)


def measure(learner: PartLearner, seen: PartTokens, guides: torch.Tensor, truth: Truth) -> Figures:
    """The figures of a learner's labels."""
    labels = [
        learner.labels(PartTokens(*(own[at : at + 32] for own in seen)), guides[at : at + 32])
        for at in range(0, len(guides), 32)
    ]
    return score(torch.cat(labels).numpy(), truth)


def baselines(
    encoder: Any, images: ImageSet, truth: Truth, options: argparse.Namespace, seed: int
) -> dict[str, Figures]:
    """Everything but learned parts, as `semmae parts` measures it."""
    labels = PartsOptions.num_parts + 1
    found, _ = measure_encoder(
        encoder, images, truth, labels=labels, grid=options.grid, size=options.image_size, batch_size=32, workers=0,
        seed=seed,
    )  # fmt: skip
    return found | measure_grids(truth, labels=labels, grid=options.grid)


def summary_of(rows: list[Figures]) -> dict[str, Any]:
    """Means over seeds, and what each seed had."""
    means = {key: round(statistics.mean(row[key] for row in rows), 2) for key in rows[0]}
    return means | {
        f"{key}_of_seeds": [round(row[key], 2) for row in rows] for key in ("nmi", "ari", "nmi_all", "ari_all")
    }


def arguments(description: str | None, learned: int) -> argparse.ArgumentParser:
    """What such a script is asked; `learned`: images that are learned from by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", required=True, help="folder of images to learn from")
    parser.add_argument("--data", required=True, help="folder of images to measure")
    parser.add_argument("--masks", type=Path, required=True, help="folder of their true parts")
    parser.add_argument("--teacher", required=True, help="as for semmae parts")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--grid", type=int, default=PartsOptions.grid)
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N")
    parser.add_argument("--learned", type=int, default=learned, help="images that are learned from, at most")
    parser.add_argument("--measured", type=int, default=400, help="images that are measured, at most")
    parser.add_argument("--cache", type=Path, required=True, help="folder for tokens, which another call reads again")
    return parser


def _arguments() -> argparse.Namespace:
    assert PartsOptions.sample is not None
    parser = arguments(__doc__, PartsOptions.sample)
    parser.add_argument("--rows", nargs="*", choices=ROWS, metavar="ROW", help=f"some of: {', '.join(ROWS)}")
    parser.add_argument("--name", default="parts_ablation", help="of the file below results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
