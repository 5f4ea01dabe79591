"""How fast images are loaded on one core: JPEG files → random crop of 224 pixels, flip, part labels.

    python benchmarks/loading.py [--images DIR] [--rounds 15] [--workers 2]
    python benchmarks/loading.py --formats [--images DIR] [--rounds 15]     # other formats alone
    python benchmarks/loading.py --packed [--images DIR] [--rounds 15]      # shards of `semmae pack` alone
    python benchmarks/loading.py --views [--images DIR] [--rounds 15]       # a teacher's crops alone

- "bare_decode": torchvision's `decode_jpeg` of the same bytes, nothing else: what no loader of whole images beats.
- "ours": batches of 16 of `CropDataset` with part labels from a store, by `make_loader`.
- "torchvision_pil": `ImageFolder`, PIL's `RandomResizedCrop(224, (0.2, 1), bicubic)`, flip, `ToTensor`; no parts; by
  a `DataLoader` of batches of 16.
- "by_item": both again, item after item, nothing collated.
- "photos": the same works for photos of 12 megapixels, drawn here, which ours decodes at a fraction of their size.
- "workers": ours by so many processes.
- with `--formats`: PNG and WebP files of the same photos through our decoder, which reads them by Pillow, and through
  torchvision's, which must not meet a damaged PNG.
- with `--packed`: our batches from the files, and from tar shards that `semmae pack` would make of them (short side
  256, quality 90), part labels left out; and reading alone, without decoding, from the system's cache.
- with `--views`: what a teacher is trained on, two crops of 224 pixels (`crops_2`), and with eight of 96 beside them
  (`crops_2_8`). "ours": their colours are drawn, and left to the device; "in_loader": the same colours, done where
  images are loaded, view by view, as it was before; "lightly": its `DINOTransform` on PIL; "device_ms" of an image:
  what is left to the device, a GPU where there is one.

But for "workers", all works take turns on one thread of one process, and ratios are medians over rounds of the
seconds in the same turn.
Without `--images`, JPEG files are drawn of a size and weight as ImageNet's (500 × 375, 100 kB).
"pixel_difference" is the mean absolute difference, of 255, between our crop and PIL's of the same box and file.
The last printed line is one JSON object; the same, with command and machine, is in `benchmarks/results/loading.json`,
of `--formats` in `loading_formats.json`, of `--packed` in `loading_packed.json`, of `--views` in `loading_views.json`.
"""

import argparse
import io
import math
import statistics
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import DEVICE, median_ratio, per_second, take_turns, write_results
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, decode_jpeg
from torchvision.transforms.v2 import functional

from semmae.cores import usable_cores
from semmae.data.colour import GLOBAL_CHANCES, Changes, colour_matrices, recoloured, shift_colours
from semmae.data.decode import decode
from semmae.data.loaders import CropDataset, LocalCrops, make_loader
from semmae.data.manifest import ImageSet, build_manifest
from semmae.data.packing import Packing, write_shards
from semmae.data.part_store import PartStore
from semmae.data.sources import open_source
from semmae.memory import keep_freed_memory

SIZE, SIDE, GRID, BATCH, SCALE = 224, 14, 28, 16, (0.2, 1.0)
LOCAL = 96  # pixels of a teacher's small crops
PHOTO = (4000, 3000)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of JPEG files; drawn where none is given")
    parser.add_argument("--rounds", type=int, default=15, help="turns that the works take; the median counts")
    parser.add_argument("--workers", type=int, default=2, help="processes of the loader")
    parser.add_argument("--formats", action="store_true", help="measure PNG and WebP, nothing else")
    parser.add_argument("--packed", action="store_true", help="measure files beside packed shards, nothing else")
    parser.add_argument("--views", action="store_true", help="measure a teacher's crops, nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as in training, for all of them
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = options.images or draw_photos(folder / "drawn", 150, 500, 375)
        figures: dict[str, Any]
        if options.formats:
            figures = {kind: by_format(drawn, kind, options.rounds) for kind in ("png", "webp")}
        elif options.packed:
            figures = beside_shards(drawn, folder / "packed", options.rounds)
        elif options.views:
            figures = {
                name: by_views(drawn, folder / name, local, options.rounds)
                for name, local in (("crops_2", 0), ("crops_2_8", 8))
            }
        else:
            figures = measure(drawn, folder / "images", options.rounds)
            photos = draw_photos(folder / "large", 8, *PHOTO)
            figures["photos"] = measure(photos, folder / "photos", max(3, options.rounds // 3))
            figures["workers"] = by_workers(open_jpegs(drawn), options.workers)
    data = "drawn" if options.images is None else options.images.name
    kinds = {"loading_formats": options.formats, "loading_packed": options.packed, "loading_views": options.views}
    file = next((name for name, asked in kinds.items() if asked), None)
    write_results("loading", {"data": data, **figures}, file)


def measure(images: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Images a second of all works on one folder of JPEG files, and the ratios."""
    source, files = open_jpegs(images), sorted(path for path in images.rglob("*") if path.is_file())
    raws = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in files]
    ours = CropDataset(source, SIZE, scale=SCALE, parts=random_parts(source, folder / "parts"), side=SIDE)
    theirs = torchvision_pil(files, folder / "links")
    works = {
        "bare_decode": lambda: all_of(decode_jpeg(raw) for raw in raws),
        "ours": lambda: all_of(make_loader(ours, BATCH)),
        "torchvision_pil": lambda: all_of(DataLoader(theirs, BATCH)),
        "our_items": lambda: all_of(ours[row] for row in range(len(ours))),
        "their_items": lambda: all_of(theirs[row] for row in range(len(theirs))),
    }
    seconds = take_turns(works, rounds)
    rates = {name: per_second(len(files), found) for name, found in seconds.items()}
    return {
        "images": len(files),
        "ours": rates["ours"],
        "peers": {"torchvision_pil": rates["torchvision_pil"]},
        "bare_decode": rates["bare_decode"],
        "ratios": {
            "torchvision_pil": median_ratio(seconds["torchvision_pil"], seconds["ours"]),
            "share_of_bare_decode": median_ratio(seconds["bare_decode"], seconds["ours"]),
        },
        "by_item": {
            "ours": rates["our_items"],
            "peers": {"torchvision_pil": rates["their_items"]},
            "ratios": {"torchvision_pil": median_ratio(seconds["their_items"], seconds["our_items"])},
        },
        "pixel_difference": pixel_difference(source, files),
    }


def by_format(images: Path, kind: str, rounds: int) -> dict[str, float]:
    """Milliseconds an image of our decoder and of torchvision's, for forty of the photos in another format."""
    raws = []
    for path in sorted(path for path in images.rglob("*") if path.is_file())[:40]:
        encoded = io.BytesIO()
        with Image.open(path) as opened:
            opened.convert("RGB").save(encoded, kind)
        raws.append(encoded.getvalue())
    tensors = [torch.frombuffer(bytearray(raw), dtype=torch.uint8) for raw in raws]
    works = {
        "ours": lambda: all_of(decode(raw) for raw in raws),
        "torchvision": lambda: all_of(decode_image(raw, ImageReadMode.RGB) for raw in tensors),
    }
    seconds = take_turns(works, rounds)
    times = {f"{name}_ms": round(1000 / per_second(len(raws), found), 2) for name, found in seconds.items()}
    return times | {"ours_by_torchvision": median_ratio(seconds["ours"], seconds["torchvision"])}


def beside_shards(images: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Images a second from files and from packed shards, loaded and only read, and bytes an image."""
    folder.mkdir()
    files = open_jpegs(images)
    written = write_shards(folder, "shards", files, None, Packing(256, 90, 128 * 10**6, seed=0), threads=1)
    sets = {"files": files, "packed": open_jpegs(folder)}
    works: dict[str, Any] = {}
    for name, found in sets.items():
        works[name] = partial(lambda crops: all_of(make_loader(crops, BATCH)), CropDataset(found, SIZE, scale=SCALE))
        works[f"{name}_read"] = partial(lambda each: all_of(each.raw(row) for row in range(len(each))), found)
    seconds = take_turns(works, rounds)
    packed = sum(shard.size for shard in written)
    return {
        "images": len(files),
        **{name: per_second(len(files), found) for name, found in seconds.items()},
        "ratios": {
            "loaded": median_ratio(seconds["files"], seconds["packed"]),
            "read": median_ratio(seconds["files_read"], seconds["packed_read"]),
        },
        "bytes_an_image": {"files": int(files.manifest.sizes.mean()), "packed": packed // len(files)},
    }


def by_views(images: Path, folder: Path, local: int, rounds: int) -> dict[str, Any]:
    """Images a second with two crops and so many local ones, whose colours are changed here or on the device."""
    from lightly.transforms import DINOTransform

    files = sorted(path for path in images.rglob("*") if path.is_file())
    scales = (0.25, 1.0), (0.05, 0.25)
    small = LocalCrops(local, LOCAL, scales[1]) if local else None
    ours = CropDataset(
        open_jpegs(images), SIZE, views=2, scale=scales[0], colour=True, local=small, chances=GLOBAL_CHANCES
    )
    theirs = ImageFolder(
        linked(files, folder),
        DINOTransform(
            global_crop_size=SIZE, global_crop_scale=scales[0], local_crop_size=LOCAL, local_crop_scale=scales[1],
            n_local_views=local,
        ),
    )  # fmt: skip
    batch = next(iter(make_loader(ours, BATCH)))
    seconds = take_turns(
        {
            "ours": lambda: all_of(make_loader(ours, BATCH)),
            "in_loader": lambda: all_of(make_loader(Coloured(ours), BATCH)),  # type: ignore[arg-type]
            "lightly": lambda: all_of(DataLoader(theirs, BATCH, collate_fn=list)),
            "device": lambda: on_device(batch),
        },
        rounds,
    )
    rates = {name: per_second(len(files), seconds[name]) for name in ("ours", "in_loader", "lightly")}
    return {
        "ours": rates["ours"],
        "in_loader": rates["in_loader"],
        "peers": {"lightly": rates["lightly"]},
        "ratios": {name: median_ratio(seconds[name], seconds["ours"]) for name in ("in_loader", "lightly")},
        "device_ms": round(1000 * statistics.median(seconds["device"]) / BATCH, 3),
    }


class Coloured:
    """A data set whose items have their colours changed already, view by view, only where something was drawn."""

    def __init__(self, dataset: CropDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        return [
            {
                name: [coloured(*each) for each in zip(item[name], item[drawn], strict=True)]
                for name, drawn in (("images", "changes"), ("local", "local_changes"))
                if name in item
            }
            for item in self.dataset.__getitems__(keys)
        ]


def coloured(view: Tensor, drawn: Tensor) -> Tensor:
    """A view, uint8 (3, S, S), with what was drawn for it (7,), by torchvision where that has it."""
    row = drawn[None]
    if drawn[:5].tolist() != [1, 1, 1, 0, 0]:
        view = shift_colours(view[None], colour_matrices(row[:, :4], row[:, 4]))[0].round_().to(torch.uint8)
    sigma = float(drawn[5]) * view.shape[-1]
    if sigma:
        view = functional.gaussian_blur(view, [2 * math.ceil(2 * sigma) + 1] * 2, [sigma, sigma])
    return functional.solarize(view, 128) if drawn[6] else view


def on_device(batch: dict[str, Any]) -> None:
    """What is left of a batch's colours for the device."""
    for name, drawn in (("images", "changes"), ("local", "local_changes")):
        if name in batch:
            changes = Changes(*(each.flatten(0, 1).to(DEVICE) for each in batch[drawn]))
            recoloured(batch[name].flatten(0, 1).to(DEVICE), changes)


def by_workers(images: ImageSet, workers: int) -> dict[str, float]:
    """Images a second of our loader with so many processes, which an epoch before has started."""
    rows = list(range(len(images))) * 4  # long enough for the start of an epoch not to count
    loader = make_loader(CropDataset(images, SIZE, scale=SCALE), BATCH, sampler=rows, workers=workers)
    seconds = take_turns({"loader": lambda: all_of(loader)}, 5)["loader"]
    rate = per_second(len(rows), seconds)
    return {"processes": workers, "images_per_s": rate, "images_per_s_each": round(rate / max(workers, 1), 2)}


def torchvision_pil(files: list[Path], folder: Path) -> ImageFolder:
    """The usual pipeline on the same files."""
    steps = [
        transforms.RandomResizedCrop(SIZE, SCALE, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    return ImageFolder(linked(files, folder), transforms.Compose(steps))


def linked(files: list[Path], folder: Path) -> str:
    """A folder that holds the files in one for a class, as `ImageFolder` wants them."""
    (folder / "all").mkdir(parents=True)
    for file in files:
        (folder / "all" / file.with_suffix(".jpg").name).symlink_to(file.resolve())
    return str(folder)


def pixel_difference(images: ImageSet, files: list[Path]) -> float:
    """Mean absolute difference between what our data set cuts out of a photo and PIL's crop of the same box."""
    differences = []
    for row, file in enumerate(files):
        item = CropDataset(images, SIZE, scale=SCALE)[row]
        top, left, height, width, flip = item["crops"][0].tolist()
        with Image.open(file) as opened:
            whole = opened.convert("RGB")
        box = (left * whole.width, top * whole.height, (left + width) * whole.width, (top + height) * whole.height)
        cut = np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))
        cut = cut[:, ::-1] if flip else cut
        differences.append(np.abs(cut.astype(int) - item["images"][0].permute(1, 2, 0).numpy()).mean())
    return round(statistics.mean(differences), 3)


def random_parts(images: ImageSet, folder: Path) -> PartStore:
    """A store of 7 labels by chance: speed does not depend on them."""
    store = PartStore.create(
        folder, images=len(images), grid=GRID, label_names=[f"part {number}" for number in range(7)],
        teacher_digest="", manifest_digest=images.digest,
    )  # fmt: skip
    store.write(np.arange(len(images)), np.random.default_rng(0).integers(0, 7, (len(images), GRID, GRID)))
    store.finish()
    return PartStore.open(folder)


def open_jpegs(folder: Path) -> ImageSet:
    """The images of a folder, checked, nothing kept."""
    source = open_source(folder)
    return ImageSet(source, build_manifest(source, workers=1, cache=None))


def draw_photos(folder: Path, count: int, width: int, height: int) -> Path:
    """So many JPEG files of smooth colours under fine noise, which weigh as much as photos do."""
    folder.mkdir()

    def draw(number: int) -> None:
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 6, (height, width, 1)).astype(np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=90)

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(draw, range(count)))
    return folder


def all_of(things: Iterable[object]) -> None:
    """Go through all of them, keep none."""
    for _ in things:
        pass


if __name__ == "__main__":
    main()
