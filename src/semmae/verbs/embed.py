"""`semmae embed`: features of every image in one file, for search, clustering or a model of one's own.

Until the file is whole, the work lies beside it in OUT.partial/, a run's folder like any other (`verbs/run.py`):
what was computed is kept when the run is stopped or killed, and the same command goes on.
"""

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.data.loaders import WholeDataset, make_loader, normalise
from semmae.data.manifest import ImageSet, open_images
from semmae.data.part_store import PartStore
from semmae.data.token_file import Column, TokenFile, finish, paths_beside, read_info
from semmae.errors import DiskError, UserError
from semmae.evaluation.features import evaluating
from semmae.evaluation.tokens import COUNTS, TOKENS, image_tokens
from semmae.files import Fields, bytes_shown, read_json, sweep_beside, write_json
from semmae.formats.folders import digest
from semmae.formats.pooling import pooling_of
from semmae.models.vit import Encoder
from semmae.options.embed import EmbedOptions
from semmae.options.values import check_choice, check_values
from semmae.progress import Progress, say
from semmae.reporting.ending import lines
from semmae.run.config import PARTIAL
from semmae.run.folder import check_inputs, claimed, run_folder
from semmae.run.places import check_place
from semmae.shell import python, text
from semmae.verbs.features import feature_size, open_encoder

_log = logging.getLogger("semmae")

_AUTO = "auto"
_FEATURES, _STATE = "features.safetensors", "state.json"
_KEEP_EVERY = 5.0  # seconds: what a power failure costs at most
# What a file goes on with only where it is the same, and how it is told.
_MADE_OF = {
    "images_digest": "other images",
    "encoder_digest": "another encoder",
    "parts_digest": "other part labels",
}


def embed(options: EmbedOptions) -> Path:
    """Write features of every image to a .parquet, .npz or .safetensors file."""
    check_values(options)
    check_inputs(options)
    _check_file(options)
    partial = Path(f"{options.out}{PARTIAL}")
    if options.resume and options.out.exists() and not partial.is_dir():
        return _already_whole(options.out)
    with claimed(dataclasses.replace(options, out=partial)) as run:
        sweep_beside(options.out)
        return _embed(options, run)


def _embed(options: EmbedOptions, run: EmbedOptions) -> Path:
    """As `embed`; `run` are the options of the run that works beside --out."""
    tokens = _tokens(options)
    encoder = open_encoder(options)
    tokens = [pooling_of(options.encoder)] if tokens == [_AUTO] else tokens
    images = open_images(options.data, limit=options.limit, seed=options.seed, workers=options.workers)
    store = None if options.parts is None else _open_parts(options.parts, images)
    info = _info(options, tokens, encoder, images, store)
    if _is_whole(options, run):
        if read_info(options.out) != info:
            raise UserError(
                f"--out {options.out}: exists, of other numbers; replace it with --overwrite, or choose another"
            )
        return _already_whole(options.out)
    file = TokenFile(run.out / _FEATURES, len(images), _columns(options, encoder, tokens, store), info)
    if run.resume:
        _check_same(run.out, info)
    _check_room(options, file)
    with run_folder(run):
        _fill(run, encoder, images, store, file)
        finish(file, images.names, images.labels, options.out)
    shutil.rmtree(run.out, ignore_errors=True)
    shapes = ", ".join(f"{column.name} {_shape(column.shape)}" for column in file.columns)
    made = f"{options.out} ({len(images)} images, {shapes} in {options.dtype}, {file.size / 1e6:.1f} MB)"
    say(lines(made=[made], step=_loading(options.out)))
    return options.out


def _already_whole(out: Path) -> Path:
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


def _check_file(options: EmbedOptions) -> None:
    """Refuse a place for the file that is none, or where another's file lies: only `embed`'s own are replaced."""
    out = options.out
    check_place("--out", out.absolute().parent, out)
    if os.path.lexists(out) and read_info(out) is None:
        raise UserError(f"--out {out}: exists, and was not written by semmae embed; choose another place")
    partial, listed = Path(f"{out}{PARTIAL}"), paths_beside(out)
    if out.exists() and (partial / _STATE).is_file() and not (partial / _FEATURES).exists():
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed when its file was whole
    if listed is not None and listed.exists() and not (out.exists() or partial.is_dir()):
        raise UserError(f"--out {out}: {listed} exists, where its paths would be listed; choose another place")


def _is_whole(options: EmbedOptions, run: EmbedOptions) -> bool:
    """Whether the file is there, to be neither replaced nor gone on with."""
    return options.out.exists() and not options.overwrite and not run.resume


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


def _open_parts(folder: Path, images: ImageSet) -> PartStore:
    """The part labels of --parts, which must be of these images."""
    if not (folder / "parts.json").exists() and (folder / "parts" / "parts.json").exists():
        folder = folder / "parts"  # of a run of pretrain
    return PartStore.open(folder, manifest_digest=images.digest)


def _info(
    options: EmbedOptions, tokens: Sequence[str], encoder: Encoder, images: ImageSet, store: PartStore | None
) -> dict[str, Any]:
    """What must be known of the numbers, kept in the file; all of it the same, the numbers are the same."""
    told = {
        "version": version("semmae"),
        "encoder": options.encoder,
        "encoder_digest": digest(encoder),
        "images_digest": images.digest,
        "image_size": feature_size(options, encoder),
        "crop_pct": options.crop_pct,
        "patch_size": encoder.patch_size,
        "tokens": ",".join(tokens),
        "dtype": options.dtype,
        "batch_size": options.batch_size,
    }
    if store is not None:
        told |= {"parts": store.label_names, "parts_digest": "/".join(store.digests.values())}
    return told


def _columns(options: EmbedOptions, encoder: Encoder, tokens: Sequence[str], store: PartStore | None) -> list[Column]:
    width, parts = encoder.width, 0 if store is None else store.num_labels
    patches = (feature_size(options, encoder) // encoder.patch_size) ** 2
    shapes = {"cls": (width,), "mean": (width,), "patch": (patches, width), "parts": (parts, width)}
    columns = [Column(token, shapes[token], options.dtype) for token in tokens]
    return columns + ([Column(COUNTS, (parts,), "int32")] if "parts" in tokens else [])


def _check_same(partial: Path, info: dict[str, Any]) -> None:
    """Refuse to go on with rows of other images, another encoder or other parts."""
    if not (partial / _STATE).is_file():
        return  # killed before the first row
    begun = _begun(partial).need("info", dict)
    changed = next((words for key, words in _MADE_OF.items() if begun.get(key) != info.get(key)), None)
    if changed is not None:
        raise UserError(f"{partial}: was begun with {changed}; restore what has changed, or give --overwrite")


def _begun(partial: Path) -> Fields:
    """What state.json tells of a file that was begun."""
    return Fields(partial / _STATE, read_json(partial / _STATE))


def _check_room(options: EmbedOptions, file: TokenFile) -> None:
    """Refuse what the disk cannot hold: the rows under way, and their copy where the file is one."""
    copies = 1 if paths_beside(options.out) else 2
    folder = next(path for path in options.out.absolute().parents if path.exists())
    taken = file.path.stat().st_blocks * 512 if file.path.exists() else 0
    needed, free = copies * file.size - taken, shutil.disk_usage(folder).free
    if needed > free:
        less = "--dtype float16, fewer --tokens" + ("" if copies == 1 else ", .safetensors (once the room, not twice)")
        raise DiskError(
            f"--out {options.out}: needs {bytes_shown(needed)}, {bytes_shown(free)} are free there; use {less} "
            "or another disk"
        )


def _fill(run: EmbedOptions, encoder: Encoder, images: ImageSet, store: PartStore | None, file: TokenFile) -> None:
    """Compute the rows that are not there yet."""
    done = 0
    if file.is_begun() and (run.out / _STATE).is_file():
        done = _begun(run.out).need("rows", int)
        if not 0 <= done <= len(images):
            raise UserError(
                f"{run.out / _STATE}: rows is {done}, must be 0 to {len(images)}; restore it, or give --overwrite"
            )
    else:
        if run.resume and (run.out / _STATE).is_file():
            _log.warning("%s: of another version, or damaged; begun anew", run.out)
        file.create()
    size = feature_size(run, encoder)
    dataset = WholeDataset(images, size, "centre", run.crop_pct, store, size // encoder.patch_size)
    # Batches begin where they do in a run never stopped: what is computed together rounds alike.
    loader = make_loader(dataset, run.batch_size, sampler=range(done, len(images)), workers=run.workers)
    label = f"embedding, {done} done before" if done else "embedding"
    kept = time.monotonic()
    with evaluating(encoder), torch.inference_mode(), Progress(len(images) - done, label=label) as progress:
        try:
            for batch in progress.iterate(loader):
                _write(run, encoder, batch, store, file)
                done += len(batch["row"])
                progress.update(len(batch["row"]))
                if time.monotonic() - kept > _KEEP_EVERY:
                    _keep(file, done)
                    kept = time.monotonic()
        finally:
            _keep(file, done)


def _write(
    run: EmbedOptions, encoder: Encoder, batch: dict[str, Tensor], store: PartStore | None, file: TokenFile
) -> None:
    """The rows of a batch, computed and written."""
    device = next(encoder.parameters()).device
    pixels = normalise(batch["image"].to(device, non_blocking=True), encoder.spec.mean, encoder.spec.std)
    labels = None if store is None else batch["parts"].to(device)
    tokens = [column.name for column in file.columns]
    found = image_tokens(encoder(pixels), tokens, labels, 0 if store is None else store.num_labels)
    values = {column.name: found[column.name].to(getattr(torch, column.dtype)) for column in file.columns}
    for name, numbers in values.items():
        if not numbers.isfinite().all():
            if found[name].isfinite().all():
                raise UserError(f"--dtype float16: {name} holds numbers beyond 65504; use --dtype float32")
            raise UserError(f"--encoder {run.encoder}: {name} is not finite; its weights are damaged, use others")
    file.write(int(batch["row"][0]), {name: numbers.cpu().numpy() for name, numbers in values.items()})


def _keep(file: TokenFile, rows: int) -> None:
    """Note how many rows are on the disk."""
    file.sync()
    state = file.path.with_name(_STATE)
    write_json(state, {"rows": rows, "info": file.info}, durable=True)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
