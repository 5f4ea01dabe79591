"""`semmae embed`: features of every image in one file, for search, clustering or a model of one's own.

Until the file is whole, the work lies beside it in OUT.partial/, a run's folder like any other (`run/folder.py`):
what was computed is kept when the run is stopped or killed, and the same command resumes it.
"""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.data.token_file import Column, TokenFile, finish, paths_beside, read_info
from semmae.errors import DiskError, UserError
from semmae.evaluation.embedding import (
    FEATURES,
    STATE,
    check_same,
    columns_of,
    fill,
    help_to_embed,
    looks_at,
    nothing_to_embed,
)
from semmae.evaluation.features import Looks
from semmae.evaluation.tokens import TOKENS
from semmae.files import sweep_beside
from semmae.formats.folders import digest
from semmae.formats.open import load_encoder
from semmae.models.vit import Encoder
from semmae.names import bytes_shown
from semmae.objects import described, recordable
from semmae.options.embed import EmbedOptions
from semmae.options.values import check_choice
from semmae.progress import say
from semmae.reporting.ending import lines
from semmae.run.config import CONFIG, PARTIAL
from semmae.run.folder import claimed, run_folder
from semmae.run.places import check_place
from semmae.run.ranks import SHARED, check_processes, is_rank_zero, sharing, take_rank
from semmae.shell import python, text
from semmae.sizes import Size
from semmae.verbs.channels import seen_by

_AUTO = "auto"


def embed(options: EmbedOptions) -> Path:
    """Write features of every image to a .parquet, .npz or .safetensors file."""
    check_place("--out", options.out.absolute().parent, options.out)
    check_processes(options.nodes, options.devices)
    take_rank(options.nodes, options.devices)
    partial = Path(f"{options.out}{PARTIAL}")
    if options.out.exists() and (partial / STATE).is_file() and not (partial / FEATURES).exists() and is_rank_zero():
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed when its file was whole
    if options.resume and read_info(options.out) is not None and not partial.is_dir():
        if all(recordable(each) is not None for each in (options.data, options.encoder)):
            return _already_whole(options.out)
        # Whether objects are the same, their numbers say.
        options = dataclasses.replace(options, resume=False)
    if not is_rank_zero():
        with sharing(partial, options.nodes, options.devices):
            help_to_embed(_opened(options).looks, options.devices)
        return options.out
    with claimed(dataclasses.replace(options, out=partial), makes=options.out) as run:
        _check_own(options.out, partial)
        sweep_beside(options.out)
        with sharing(partial, options.nodes, options.devices):
            made = _embed(options, run)
        shutil.rmtree(partial / SHARED, ignore_errors=True)
    return made


class Opened(NamedTuple):
    """What is embedded, and into what."""

    images: ImageSet
    columns: list[Column]
    info: dict[str, Any]
    looks: Looks


def _opened(options: EmbedOptions) -> Opened:
    asked = _tokens(options)
    encoder = load_encoder(options.encoder, num_heads=options.num_heads, image_size=options.image_size)
    tokens = [encoder.pooling] if asked == [_AUTO] else asked
    size = options.image_size or encoder.spec.image_size
    with seen_by(encoder, options.encoder):
        images = open_images(
            options.data, limit=options.limit, seed=options.seed, workers=options.num_workers, check=options.check,
            channels=encoder.spec.channels,
        )  # fmt: skip
    store = None if options.parts is None else PartStore.open(options.parts, manifest_digest=images.digest)
    info = _info(options, tokens, encoder, size, images, store)
    columns = columns_of(tokens, encoder, size, 0 if store is None else store.num_labels, options.dtype)
    looks = looks_at(
        images, encoder, columns, store,
        size=size, crop_pct=options.crop_pct, batch_size=options.batch_size, workers=options.num_workers,
    )  # fmt: skip
    return Opened(images, columns, info, looks)


def _embed(options: EmbedOptions, run: EmbedOptions) -> Path:
    """As `embed`, by the first process; `run` are the options of the run that works beside --out."""
    images, columns, info, looks = _opened(options)
    if options.out.exists() and not (options.overwrite or run.resume):
        if read_info(options.out) != info:
            raise UserError(
                f"--out {options.out}: exists, of other numbers; replace it with --overwrite, or choose another"
            )
        nothing_to_embed(looks, options.devices)
        return _already_whole(options.out)
    file = TokenFile(run.out / FEATURES, len(images), columns, info)
    if run.resume:
        check_same(run.out, info)
    _check_room(options.out, file)
    with run_folder(run):
        fill(file, looks, options.devices)
        finish(file, images.names, images.labels, options.out)
    shutil.rmtree(run.out, ignore_errors=True)
    shapes = ", ".join(f"{column.name} {' x '.join(map(str, column.shape))}" for column in file.columns)
    made = f"{options.out} ({len(images)} images, {shapes} in {options.dtype}, {file.size / 1e6:.1f} MB)"
    say(lines(made=[made], step=_loading(options.out)))
    return options.out


def _already_whole(out: Path) -> Path:
    listed = paths_beside(out)
    if listed is not None and not listed.is_file():
        raise UserError(f"--out {out}: exists, but {listed}, which names its images, is gone; use --overwrite")
    if is_rank_zero():
        say(f"{out}: already finished; nothing was computed (--overwrite makes it anew)\n{lines(step=_loading(out))}")
    return out


def _loading(out: Path) -> str:
    """How to load the file, as a command."""
    file = text(out)
    if out.suffix == ".parquet":
        return python(f"import pandas; print(pandas.read_parquet({file}))")
    if out.suffix == ".npz":
        return python(f"import numpy; print({{name: each.shape for name, each in numpy.load({file}).items()}})")
    return python(
        "from safetensors.numpy import load_file; "
        f"print({{name: each.shape for name, each in load_file({file}).items()}})"
    )


def _check_own(out: Path, partial: Path) -> None:
    """Refuse a place where another's file lies: only `embed`'s own are replaced."""
    if os.path.lexists(out) and read_info(out) is None:
        raise UserError(f"--out {out}: exists, and was not written by semmae embed; choose another place")
    listed = paths_beside(out)
    if listed is not None and listed.exists() and not (out.exists() or (partial / CONFIG).exists()):
        raise UserError(f"--out {out}: {listed} exists, where its paths would be listed; choose another place")


def _tokens(options: EmbedOptions) -> list[str]:
    """The kinds of --tokens, in their own order."""
    asked = [token.strip() for token in options.tokens.split(",")]
    for token in asked:
        check_choice("tokens", token, (*TOKENS, _AUTO))
    if _AUTO in asked and len(asked) > 1:
        raise UserError(f"--tokens {options.tokens}: {_AUTO} stands by itself; name what to write, or give it alone")
    if "parts" in asked and options.parts is None:
        raise UserError("--tokens parts: needs the part labels of these images; give them with --parts RUN")
    if "parts" not in asked and options.parts is not None:
        asked_too = f"add it to --tokens {options.tokens}" if _AUTO not in asked else "give --tokens mean,parts"
        raise UserError(f"--parts: is read for part tokens alone; {asked_too}, or leave it out")
    return [token for token in (*TOKENS, _AUTO) if token in asked]


def _info(
    options: EmbedOptions,
    tokens: Sequence[str],
    encoder: Encoder,
    size: Size,
    images: ImageSet,
    store: PartStore | None,
) -> dict[str, Any]:
    """What must be known of the numbers, kept in the file; all of it the same, the numbers are the same."""
    info: dict[str, Any] = {
        "version": version("semmae"),
        "encoder": described(options.encoder),
        "encoder_digest": digest(encoder),
        "images_digest": images.digest,
        "image_size": size,
        "crop_pct": options.crop_pct,
        "patch_size": encoder.patch_size,
        "tokens": ",".join(tokens),
        "dtype": options.dtype,
        "batch_size": options.batch_size,
    }
    if store is not None:
        info |= {"parts": store.label_names, "parts_digest": "/".join(store.digests.values())}
    return info


def _check_room(out: Path, file: TokenFile) -> None:
    """Refuse what the disk cannot hold: the rows under way, and their copy where the file is one."""
    copies = 1 if paths_beside(out) else 2
    folder = next(path for path in out.absolute().parents if path.exists())
    taken = file.path.stat().st_blocks * 512 if file.path.exists() else 0
    needed, free = copies * file.size - taken, shutil.disk_usage(folder).free
    if needed > free:
        less = "--dtype float16, fewer --tokens" + ("" if copies == 1 else ", .safetensors (once the room, not twice)")
        raise DiskError(
            f"--out {out}: needs {bytes_shown(needed)}, {bytes_shown(free)} are free there; use {less} or another disk"
        )
