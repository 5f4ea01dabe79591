"""Images with classes, changed by chance as a classifier's training wants them.

timm's policies (RandAugment, AutoAugment, AugMix) draw from the random numbers of Python and numpy, which all of a
process shares. Here an item seeds them for itself and puts them back: it stays a pure function of (seed, epoch, row).
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    posterize,
    rand_augment_transform,
)
from torch import Tensor
from torch.utils.data import Dataset

from semmae.data.crop import crop_image, least_side, random_crop
from semmae.data.loaders import picture_bytes
from semmae.data.manifest import ImageSet
from semmae.data.samplers import Key, epoch_and_row, row_ahead
from semmae.errors import UserError
from semmae.names import shown
from semmae.sizes import Size, sides

Policy = Callable[[Image.Image], Image.Image]

NO_POLICY = "none"
_TRANSLATION = 0.45  # share of the image that policies which count in pixels move it by at most: timm's
_RAND_AUGMENT = re.compile(r"rand(-(m|n|p|mstd|mmax|inc)\d+(\.\d+)?|-t[a-z0-9]+)*")


class LabelledCrops(Dataset[dict[str, Any]]):
    """Random crops of images whose classes are known, for training.

    Item: "images" uint8 (3, *size), "targets" the class's number, "row". `scale`: share of the image's area that a
    crop shows, from and to; `policy`: what is done to a crop beside mirroring it, see `augmentation`.
    """

    def __init__(
        self,
        images: ImageSet,
        targets: Sequence[int] | Tensor,
        size: Size,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        seed: int = 0,
        policy: Policy | None = None,
    ) -> None:
        if len(targets) != len(images):
            raise ValueError(f"{len(images)} images, but {len(targets)} targets; give one to each image")
        self.images, self.targets, self.size = images, [int(target) for target in targets], size
        self.scale, self.seed, self.policy = scale, seed, policy

    def __len__(self) -> int:
        return len(self.images)

    @property
    def item_bytes(self) -> int:
        """Of its picture, which is nearly all of it."""
        return picture_bytes(self.size, self.images.channels)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        if (ahead := row_ahead(key)) is not None:
            self.images.copy_soon(ahead)
        epoch, row = epoch_and_row(key)
        rng = np.random.default_rng((self.seed, epoch, row))
        image = self.images.read(row, least_side(self.size, self.scale[0]))
        view = crop_image(image, random_crop(image.shape[1], image.shape[2], rng, self.scale, self.size), self.size)
        if self.policy is not None:
            view = changed(view, self.policy, int(rng.integers(2**32)))
        return {"images": view, "targets": self.targets[row], "row": row}


def augmentation(name: str, size: Size, mean: Sequence[float]) -> Policy | None:
    """A policy by timm's name for it, for crops of that size; None for "none".

    Such as "rand-m9-mstd0.5-inc1", "original", "3a", "augmix-m3-w3"; UserError where timm knows none such. `mean`, of
    the encoder's normalisation, is the colour of what is moved in from outside.
    """
    if name == NO_POLICY:
        return None
    settings = {
        "translate_const": int(_TRANSLATION * min(sides(size))),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": Image.Resampling.BICUBIC,
    }
    made: Policy
    try:
        if name.startswith("rand"):
            if not _RAND_AUGMENT.fullmatch(name):
                raise ValueError("not a list of settings")  # of which timm overlooks those that it does not know
            made = rand_augment_transform(name, settings)
        elif name.startswith("augmix"):
            made = augment_and_mix_transform(name, {**settings, "translate_pct": 0.3})
        else:
            made = auto_augment_transform(name, settings)
        _keep_a_bit(made)
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"--augment {shown(name)}: timm knows no such policy; give one such as rand-m9-mstd0.5-inc1, or {NO_POLICY}"
        ) from error
    return made


def changed(view: Tensor, policy: Policy, seed: int) -> Tensor:
    """What a policy makes of a picture, uint8 (3, H, W), with the random numbers of this seed."""
    pixels = np.ascontiguousarray(view.permute(1, 2, 0).numpy())
    with seeded(seed):
        image = policy(Image.fromarray(pixels))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _keep_a_bit(policy: Any) -> None:
    """At its full strength timm posterises to 0 bits, a black picture, which newer Pillows refuse: 1 at least."""
    for operation in getattr(policy, "ops", None) or [step for steps in policy.policy for step in steps]:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    found: Image.Image = posterize(image, max(1, bits), **settings)  # type: ignore[no-untyped-call]
    return found


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, Python's and numpy's shared random numbers are those of this seed; afterwards they continue as before."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
