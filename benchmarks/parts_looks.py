"""What else of the encoder parts could be learned from, or begin with: its queries, its heads; the mean over seeds.

    python benchmarks/parts_looks.py --learn DIR --data DIR --masks DIR --teacher T --image-size 224 --cache DIR

Beside `parts_ablation.py`, whose rows read what `semmae parts` stores; these need a look of their own, so they learn
from fewer images. Queries are had by exchanging them with keys in the encoder's last block but one; a start from heads
takes as the prototype of a part the mean key of the patches that one head of the last block attends to most.
"""

import copy
import logging

import torch
from harness import write_results
from parts_ablation import Row, arguments, cached_tokens, learn, measure, summary_of
from torch.nn import functional

from semmae.data.loaders import WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet, open_images
from semmae.evaluation.parts import read_truth
from semmae.formats.open import load_encoder
from semmae.labels.tokens import Looking, tokens_of
from semmae.models.parts import PartLearner, PartsSpec, PartTokens
from semmae.models.vit import Encoder


def main() -> None:
    """Tokens, learners, table, file."""
    options = arguments(__doc__, 200).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    measured, images = open_images(options.data), open_images(options.learn)
    images = ImageSet(images.source, images.manifest.subset(options.learned, 0))
    truth = read_truth(measured, masks=options.masks, limit=options.measured, seed=0)
    encoder = load_encoder(options.teacher, image_size=options.image_size).eval().requires_grad_(False)
    found: dict[str, tuple[PartLearner, PartTokens, PartTokens]] = {}
    for name, own in (("keys", encoder), ("queries", with_queries(encoder))):
        looking = Looking(own, options.image_size, options.grid, 32, 0, "auto")
        reductions = PartLearner(PartsSpec.of(own))
        known, asked = cached_tokens(options.cache, images, measured, reductions, looking)
        found[name] = (reductions, tokens_of(known, slice(None)), tokens_of(asked, truth.rows))
    guides = torch.from_numpy(asked.read("image")[truth.rows])
    reductions, known_tokens, seen = found["keys"]
    queries = [own.keys for own in found["queries"][1:]]
    heads = nearest_heads(encoder, images, options.image_size)

    def from_heads(learner: PartLearner) -> None:
        assert learner.parts.map is not None
        keys = functional.normalize(known_tokens.keys.float() @ learner.parts.map.detach(), dim=-1)
        learner.parts.vectors.data = torch.stack([keys[heads == head].mean(0) for head in range(int(heads.max()) + 1)])

    rows = {
        "keys, as it is": (Row(), known_tokens, seen),
        "queries in place of keys": (
            Row(),
            *(each._replace(keys=own) for each, own in zip((known_tokens, seen), queries, strict=True)),
        ),
        "queries rebuilt": (
            Row(),
            *(each._replace(values=own) for each, own in zip((known_tokens, seen), queries, strict=True)),
        ),
        "parts start from heads": (Row(num_parts=int(heads.max()) + 1, change=from_heads), known_tokens, seen),
        "heads, nothing learned": (Row(num_parts=int(heads.max()) + 1, change=from_heads, steps=0), known_tokens, seen),
    }
    results = {}
    for name, (row, own_tokens, own_seen) in rows.items():
        figures = [
            measure(learn(reductions, own_tokens, row, seed), own_seen, guides, truth) for seed in range(options.seeds)
        ]
        results[name] = summary_of(figures)
        print(name, results[name], flush=True)
    write_results("parts_looks", {"rows": results})


def with_queries(encoder: Encoder) -> Encoder:
    """The encoder with queries and keys of its last block but one exchanged: what it stores as keys are its queries.

    Its last tokens are others; what is stored of them is not read.
    """
    other = copy.deepcopy(encoder)
    layer = other.vit.blocks[-2].attn.qkv
    for values in (layer.weight, layer.bias):
        query, key, value = values.data.chunk(3)
        values.data = torch.cat([key, query, value])
    return other


@torch.inference_mode()
def nearest_heads(encoder: Encoder, images: ImageSet, size: int) -> torch.Tensor:
    """Which head of the last block attends to a patch most, each scaled to its own mean over all images: (N, L)."""
    loader = make_loader(WholeDataset(images, size), 32)
    attention = torch.cat(
        [encoder.attention(normalise(batch["image"], encoder.spec.mean, encoder.spec.std)) for batch in loader]
    )
    return (attention / attention.mean((0, 2), keepdim=True)).argmax(1)


if __name__ == "__main__":
    main()
