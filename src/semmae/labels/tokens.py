"""Images → reduced tokens of a frozen encoder, stored; and labels that are made of stored tokens.

An encoder that does not learn says the same of an image each time: it looks once, and the part learner goes over what
it said, hundreds of images a second. Where the tokens of all images are stored, their labels come from these; and if an
autoencoder is to predict what the encoder says, the same look gives that too.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from semmae.data.attention import attention_ranks, stored_side
from semmae.data.loaders import WholeDataset, make_loader
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.data.token_file import Array, Column
from semmae.data.token_store import TokenStore
from semmae.errors import UserError, reason
from semmae.files import explained
from semmae.filters import guides
from semmae.formats.folders import digest, save_tensors
from semmae.models.parts import PartLearner, PartsSpec, PartTokens, images_to_fit
from semmae.models.vit import Encoder, Features, TokenViews, check_finite
from semmae.options.shared import Precision
from semmae.progress import Progress
from semmae.sizes import Grid, Size, patch_grid
from semmae.train.frozen import most_rows, one_thread_an_operation, through_encoder, usual_device
from semmae.train.precision import resolve_precision
from semmae.train.teacher_tokens import keep_tokens, same_look

REDUCTIONS = "reductions.safetensors"

Made = TypeVar("Made")


@dataclass(frozen=True)
class Looking:
    """A frozen encoder, and how it looks at images."""

    encoder: Encoder
    size: Size  # pixels that images are stretched to
    grid: int  # cells a side of the labels to come
    batch_size: int
    workers: int
    precision: Precision

    @property
    def block(self) -> int:
        """Images that are looked at together: always the same ones, so that a resumed run sees the same numbers."""
        return min(self.batch_size, most_rows())

    @property
    def patches(self) -> Grid:
        """Rows and columns of an image's patches."""
        return patch_grid(self.size, self.encoder.patch_size)

    def at(
        self, images: ImageSet, rows: Sequence[int], work: Callable[[Tensor, Tensor, Tensor], Made], progress: Progress
    ) -> Iterator[Made]:
        """`work` of images in blocks of rows, as `through_encoder` calls it."""
        loader = make_loader(WholeDataset(images, self.size), self.block, sampler=rows, workers=self.workers)
        batches = ((batch["row"], batch["image"]) for batch in loader)
        done = 0
        for made, waited in through_encoder(
            batches, self.encoder, work,
            precision=resolve_precision(self.precision), threads=torch.get_num_threads(), device=usual_device(),
        ):  # fmt: skip
            progress.waited(waited)
            progress.update(min(self.block, len(rows) - done))
            done += self.block
            yield made

    def views(self, pixels: Tensor, images: Tensor) -> tuple[TokenViews, Tensor, dict[str, Array]]:
        """Patch tokens and class token in half precision, and what labels need beside them.

        That is the images at the labels' resolution, and ranks of the attention.
        """
        views, cls, heads = self.encoder.token_views(pixels, attention=True)
        assert heads is not None, "it was asked for"
        found = {"image": guides(images, self.grid), "attention": attention_ranks(heads.mean(1), self.patches)}
        beside = {name: values.cpu().numpy() for name, values in found.items()}
        return TokenViews(*(view.half() for view in views)), cls.half(), beside


def collect_tokens(
    folder: Path, images: ImageSet, learner: PartLearner, looking: Looking, *,
    fit: bool = True, targets: TokenStore | None = None,
) -> TokenStore:  # fmt: skip
    """Tokens of every image, reduced by the learner, whose reductions are fitted first; begun, or gone on with.

    Beside the tokens there are "image", uint8 (3, grid, grid), and "attention", uint8 (a, a), for labels. Without `fit`
    the learner's reductions are taken as they are. `targets`, a `token_store` that was begun, gets what is seen as
    well, unless it is for another look: of other images, another size or precision.
    """
    store = parts_store(folder, images, learner.spec, looking)
    reserved = 0 if targets is None else targets.to_come()
    if store.begin(reserved):
        with explained(folder / REDUCTIONS):
            (folder / REDUCTIONS).unlink(missing_ok=True)
    targets = same_look(targets, images, looking.encoder, looking.size, looking.precision)
    fitted = _spread(len(images), images_to_fit(looking.encoder, looking.size))
    others = np.setdiff1d(np.arange(len(images)), fitted)
    device = usual_device()
    learner = learner.to(device).eval()
    with Progress(len(store.missing()), "images", "tokens") as progress:
        if fit and (folder / REDUCTIONS).is_file():
            _read_reductions(learner, folder / REDUCTIONS)
        elif fit:
            _fit(folder, store, images, fitted, learner, looking, targets, progress)

        def tokens(pixels: Tensor, rows: Tensor, images: Tensor) -> tuple[Array, Features, dict[str, Array]]:
            views, cls, rest = looking.views(pixels, images)
            seen = learner.reduce(views)
            check_finite(looking.encoder, *seen)
            return rows.numpy(), Features(cls, views.last), _arrays(seen) | rest

        missing = store.missing()
        for part in (fitted, others):
            blocks = [part[at : at + looking.block] for at in range(0, len(part), looking.block)]
            left = [row for block in blocks if np.isin(block, missing).any() for row in block.tolist()]
            for rows, said, values in looking.at(images, left, tokens, progress):
                if targets is not None:  # before: a row that is done here is not looked at again
                    keep_tokens(targets, looking.encoder, rows, said)
                store.write(rows, values)
    return store


def parts_store(folder: Path, images: ImageSet, spec: PartsSpec, looking: Looking) -> TokenStore:
    """The store that `collect_tokens` fills for a part learner of this specification."""
    last, keys = spec.kept(spec.width), spec.kept(spec.key_width)
    attention = (stored_side(looking.patches),) * 2
    cells = math.prod(looking.patches)
    columns = [
        Column("last", (cells, last), "float16"),
        Column("keys", (cells, keys), "float16"),
        Column("values", (cells, keys), "float16"),
        Column("attention", attention, "uint8"),
        Column("image", (3, looking.grid, looking.grid), "uint8"),
    ]
    info = {
        "encoder": digest(looking.encoder), "images": images.digest, "image_size": looking.size, "grid": looking.grid,
    }  # fmt: skip
    return TokenStore(folder, len(images), columns, info)


def _fit(
    folder: Path, store: TokenStore, images: ImageSet, rows: Array, learner: PartLearner, looking: Looking,
    targets: TokenStore | None, progress: Progress,
) -> None:  # fmt: skip
    """Fit the learner's reductions to the tokens of these rows, keep them, and store the reduced tokens."""

    def tokens(pixels: Tensor, rows: Tensor, images: Tensor) -> tuple[Array, Tensor, TokenViews, dict[str, Array]]:
        views, cls, rest = looking.views(pixels, images)
        check_finite(looking.encoder, *views)
        return rows.numpy(), cls, TokenViews(*(view.cpu() for view in views)), rest

    seen = []
    for block, cls, found, rest in looking.at(images, rows.tolist(), tokens, progress):
        if targets is not None:
            keep_tokens(targets, looking.encoder, block, Features(cls, found.last))
        seen.append((block, found, rest))
    every = TokenViews(*(torch.cat(some) for some in zip(*(found for _, found, _ in seen), strict=True)))
    learner.fit_reductions(every)
    save_tensors(learner.reductions.state_dict(), folder / REDUCTIONS)
    device = usual_device()
    with one_thread_an_operation():  # as those that follow are reduced
        for block, found, rest in seen:
            store.write(block, _arrays(learner.reduce(TokenViews(*(view.to(device) for view in found)))) | rest)


def _read_reductions(learner: PartLearner, path: Path) -> None:
    try:
        learner.reductions.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: {reason(error)}; remove {path.parent} and resume its run") from error


def tokens_of(store: TokenStore, rows: Sequence[int] | Array | slice, device: torch.device | str = "cpu") -> PartTokens:
    """Tokens of some rows, in memory."""
    return PartTokens(*(torch.from_numpy(np.array(store.read(name)[rows])).to(device) for name in PartTokens._fields))


def label_from_tokens(store: PartStore, tokens: TokenStore, learner: PartLearner, patches: Grid) -> None:
    """Write labels and attention of all images that have none, from their stored tokens, a grid of `patches`."""
    images, attention = tokens.read("image"), tokens.read("attention")
    learner = learner.cpu().eval()
    missing = store.missing()
    starts = np.unique(missing // most_rows()) * most_rows()  # of blocks that are always the same
    blocks = [np.arange(start, min(start + most_rows(), tokens.rows)) for start in starts]
    with Progress(sum(map(len, blocks)), "images", "labelling") as progress:
        for rows in blocks:
            with torch.inference_mode():
                labels = learner.labels(tokens_of(tokens, rows), torch.from_numpy(images[rows]), patches)
            store.write_attention(rows, attention[rows])
            store.write(rows, labels)
            progress.update(len(rows))


def _spread(count: int, most: int) -> Array:
    """At most so many rows, ascending, spread evenly over a data set that may be sorted."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _arrays(tokens: PartTokens) -> dict[str, Array]:
    return {name: values.cpu().numpy() for name, values in tokens._asdict().items()}
