"""`semmae pack`: images in tar shards, as `--data` reads them from a disk or a store, and WebDataset too.

The folder is written beside its place, and moved there when it is whole; asked for again, it is known by `pack.json`.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from semmae.data.classes import class_indices
from semmae.data.deep import OWN
from semmae.data.manifest import ImageSet, open_images, sample_rows, write_skipped
from semmae.data.packing import Packing, Written, decoding_gain, write_shards
from semmae.data.shards import CLASSES
from semmae.data.sources import open_source, splits_of
from semmae.data.splits import split_in
from semmae.errors import UserError, listed
from semmae.files import Fields, check_replaceable, read_json, whole_folder, write_json
from semmae.names import bytes_shown
from semmae.options.pack import PackOptions
from semmae.options.values import check_values
from semmae.progress import say
from semmae.reporting.ending import lines
from semmae.run.finished import is_written
from semmae.run.folder import check_inputs, locked_beside
from semmae.run.places import check_place
from semmae.shell import command

ABOUT = "pack.json"  # what was packed, and how
_SKIPPED = "skipped.csv"
_WITHOUT_SPLIT = "shards"  # how the names of shards begin where images have no splits
_OF_NO_SPLIT = "other"  # where the data has splits, and these are in none
_HOW = ("short_side", "quality", "channels", "shard_size", "seed")  # options by which images are packed otherwise
_MEASURED = 32  # images whose decoding is measured


def pack(options: PackOptions) -> Path:
    """Write images into tar shards, smaller and in random order."""
    check_values(options)
    check_place("--out", options.out)
    check_inputs(options)
    check_place("--out", options.out.absolute().parent, options.out)  # it is written beside its place
    check_replaceable(options.out)
    with locked_beside(options.out):
        return _packed(options)


def _packed(options: PackOptions) -> Path:
    _check_there(options, options.out)
    sets = _open_all(options)
    facts = {
        "images": {name: images.digest for name, images in sets.items()},
        **{name: getattr(options, name) for name in _HOW},
    }
    out = options.out
    other = "other images, or the same packed otherwise"
    if not options.overwrite and is_written(out / ABOUT, facts, other, lambda _: _damaged(out)):
        say(f"{options.out}: already finished; nothing was written\n{lines(step=_next(options))}")
        return options.out
    packing = Packing(
        options.short_side, options.quality, options.shard_size * 10**6, options.seed, options.channels or OWN
    )
    # What is put there meanwhile is the user's: packing takes hours.
    check = functools.partial(_check_there, options) if options.overwrite else None
    with whole_folder(options.out, check) as folder:
        written = _write(folder, sets, packing, options.num_workers)
        sizes = {shard.path.name: shard.path.stat().st_size for shard in written}
        kept = _kept(written)
        write_json(folder / ABOUT, {"semmae": version("semmae"), **facts, "images_of": kept, "shards": sizes})
    table = [*_gains(sets, sum(shard.size for shard in written), packing), *_exceptions(kept, options)]
    made = f"{options.out} ({len(written)} shard{'s' if len(written) > 1 else ''}, {bytes_shown(sum(sizes.values()))})"
    say(lines(table=table, made=[made], step=_next(options)))
    return options.out


def _open_all(options: PackOptions) -> dict[str, ImageSet]:
    """All images, by what the names of their shards begin with: both splits, and what belongs to neither of them."""
    given: dict[str, Any] = {
        "limit": options.limit,
        "seed": options.seed,
        "workers": options.num_workers,
        "channels": options.channels or OWN,
    }
    splits = splits_of(options.data)
    sets = {split or _WITHOUT_SPLIT: open_images(options.data, split=split, **given) for split in splits}
    if len(splits) == 1:
        return sets
    whole = open_images(options.data, **{**given, "limit": None})
    chosen = {name for split in splits for name in open_source(options.data, split).names}
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(whole.names):
        if name not in chosen:
            rows.setdefault(split_in(name) or _OF_NO_SPLIT, []).append(row)
    for kind, every in rows.items():
        kept = sample_rows(len(every), options.limit or len(every), options.seed)
        sets[kind] = whole.select([every[row] for row in kept])
    return sets


def _write(folder: Path, sets: Mapping[str, ImageSet], packing: Packing, threads: int) -> list[Written]:
    labelled = {name: images for name, images in sets.items() if images.labels is not None}
    numbers, classes = class_indices(list(labelled.values()))
    targets = dict(zip(labelled, (each.tolist() for each in numbers), strict=True))
    if classes:
        write_json(folder / CLASSES, classes)
    if any(images.manifest.skipped for images in sets.values()):
        write_skipped(sets.values(), folder / _SKIPPED)
    return [
        shard
        for name, images in sets.items()
        for shard in write_shards(folder, name, images, targets.get(name), packing, threads)
    ]


def _kept(written: Sequence[Written]) -> dict[str, int]:
    """Channels that images are kept for → how many are."""
    total = sum((shard.channels for shard in written), Counter[int]())
    return {str(channels): total[channels] for channels in sorted(total)}


def _exceptions(kept: Mapping[str, int], options: PackOptions) -> list[str]:
    """What was not packed as RGB of 8 bits, and how."""
    said = []
    for channels, count in kept.items():
        images = f"{count} image{'s' if count > 1 else ''}"
        if channels == "1":
            said.append(f"{images} of 16-bit grey, kept in 16 bits")
        elif channels != "3":
            said.append(f"{images} of {channels} channels, kept unchanged")
    return [*said, "(as RGB of 8 bits, and smaller: --channels 3)"] if said and options.channels is None else said


def _next(options: PackOptions) -> str:
    kept = read_json(options.out / ABOUT).get("images_of", {})
    channels = options.channels or (next(iter(kept)) if len(kept) == 1 else None)
    return command("pretrain", data=options.out, channels=None if str(channels) == "3" else channels, out="runs/a")


def _gains(sets: Mapping[str, ImageSet], packed: int, packing: Packing) -> list[str]:
    """What packing has gained, as a table: bytes, and the time of decoding, measured on some images."""
    largest = max(sets.values(), key=len)
    count = sum(map(len, sets.values()))
    rows = sample_rows(len(largest), _MEASURED, packing.seed)
    gain = decoding_gain(largest, rows, packing)
    if gain is None:  # what objects give has no bytes
        return [f"{count} images, {bytes_shown(packed / count)} each"]
    before = sum(int(images.manifest.sizes.sum()) for images in sets.values())
    table = [
        ("", "before", "packed"),
        (f"{count} images", bytes_shown(before), bytes_shown(packed)),
        ("an image", bytes_shown(before / count), bytes_shown(packed / count)),
        ("decoding it", f"{1000 * gain.before:.2g} ms", f"{1000 * gain.after:.2g} ms"),
    ]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    shown = [f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}" for row in table]
    return [*shown, f"(decoding: mean of {len(rows)} images, for crops of 224 pixels, on one core)"]


def _check_there(options: PackOptions, there: Path) -> None:
    """Refuse what holds anything but shards of this verb: only these are replaced. It may have been moved aside."""
    out = options.out
    names = sorted(path.name for path in there.iterdir()) if there.is_dir() else []
    if not names:
        return
    if ABOUT not in names:
        fault = "which --overwrite will not delete" if options.overwrite else "and no shards of semmae pack"
        raise UserError(f"--out {out}: not empty: holds {listed(names)}, {fault}; use another folder")
    known = {ABOUT, CLASSES, _SKIPPED, *_shards_in(there)}
    foreign = [name for name in names if name not in known]
    if foreign:
        raise UserError(
            f"--out {out}: holds {listed(foreign)} beside its shards; move that away, or use another folder"
        )


def _damaged(out: Path) -> list[str]:
    """The shards there that have not the size with which they were written."""
    return [name for name, size in _shards_in(out).items() if not _has_size(out / name, size)]


def _shards_in(out: Path) -> Mapping[str, Any]:
    """The shards that were written there, and their sizes."""
    shards: Mapping[str, Any] = Fields(out / ABOUT, read_json(out / ABOUT)).need("shards", dict)
    return shards


def _has_size(path: Path, size: Any) -> bool:
    return path.is_file() and path.stat().st_size == size
