"""A finished run that is asked for again: known by its options and its files, so that nothing is computed twice."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from semmae.errors import UserError, listed
from semmae.files import Fields, file_digest, read_json
from semmae.options import VERBS, Verb
from semmae.options.fields import Reads, options_of, verb_of, with_facts
from semmae.options.shared import RunOptions
from semmae.run.config import CONFIG, UNFINISHED, began_alike, is_object, readable_value, saved_options
from semmae.run.places import existing, newest

# Where in a run what an option reads lies.
_INSIDE: dict[Reads | None, tuple[str, ...]] = {
    "network": ("", "encoder", "autoencoder", "classifier", "segmenter", "checkpoints"),
    "labels": ("", "parts"),
    "learner": ("", "learner"),
}
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npy")


def is_finished(run: Path) -> bool:
    """Whether the folder holds a run that came to its good end, by the files that it leaves there."""
    if not (run / CONFIG).is_file() or (run / UNFINISHED).exists():
        return False
    options = saved_options(run)
    row = VERBS.get(options.get("verb", ""), Verb(""))
    if row.within:
        return is_finished(run / row.within)
    if not (options.get("eval_only") or all((run / name).is_file() for name in row.product)):
        return False  # --resume makes it again
    if not _fields(run / "parts.json").get("complete", bool, True):
        return False
    return (run / "results.json").is_file() or _fields(run / "summary.json").get("finished", bool, False)


def _fields(path: Path) -> Fields:
    return Fields(path, read_json(path) if path.is_file() else {})


def is_done(options: RunOptions) -> bool:
    """Whether `options.out` holds this very run, finished; UserError where what it was made of was changed since."""
    if options.overwrite or not is_finished(options.out) or not began_alike(options, leaves_the_same=True):
        return False
    if _asks_for_more(options):
        return False
    begun = (options.out / CONFIG).stat().st_mtime
    last = newest(_made_of(options), options.out)
    if last is not None and last[0] > begun:
        raise UserError(
            f"--out {options.out}: finished, but {last[1]} was changed since it began; use --overwrite to begin it "
            "anew, or another folder"
        )
    return True


def check_known_again(options: RunOptions) -> None:
    """Refuse to resume, or to ask again for, a finished run of an object of Python: another may look the same."""
    saved = saved_options(options.out)
    objects = [name for name, value in saved.items() if is_object(value)]
    if not objects or options.overwrite or _asks_for_more(options) or not is_finished(options.out):
        return
    if began_alike(options):
        name, was = objects[0], readable_value(saved[objects[0]])
        raise UserError(
            f"--out {options.out}: finished, and whether {name}= {was} is the same no file can say; begin it anew with "
            "--overwrite (overwrite=True), or use another folder"
        )


def _asks_for_more(options: RunOptions) -> bool:
    """Whether labels or figures of a finished run are to be made again, or a comparison is no more what it was."""
    if any(getattr(options, name) for name in with_facts(type(options), continues=True) if name != "resume"):
        return True
    many = VERBS[verb_of(type(options))].many
    return bool(many) and not _holds_all(options, many)


def _holds_all(options: RunOptions, many: str) -> bool:
    """Whether the end of a comparison is of the files that say what is compared as they are now, and of runs that lie
    there, with as many seeds; another process may have written it meanwhile, of others.
    """
    results = _fields(options.out / "results.json")
    runs = [Fields(results.path, {"run": run}).need("run", dict) for run in results.get("runs", list, [])]
    places = [options.out / many / str(run.get("name")) / f"seed-{run.get('seed')}" for run in runs]
    if len({run.get("seed") for run in runs}) != getattr(options, "seeds", 0):
        return False
    alike = results.get("files", dict, {}) == what_is_compared(options)
    return alike and all((place / "comparison.json").is_file() for place in places)


def what_is_compared(options: RunOptions) -> dict[str, str]:
    """Digests of the files that say what a comparison is of, by the options that name them."""
    named = {name: getattr(options, name) for name in ("grid", "finetune_recipe", "segment_recipe")}
    return {name: file_digest(Path(file)) for name, file in named.items() if file is not None and Path(file).is_file()}


def _made_of(options: RunOptions) -> Iterator[Path]:
    """The files and folders that a run is made of: images, annotations, and of other runs their weights and labels."""
    for name, option in options_of(type(options)).items():
        value, reads = getattr(options, name), option.facts.reads
        if reads in (None, "file", "rows") or not isinstance(value, str | Path) or option.is_word(value):
            continue
        for root in existing(value):
            if reads not in _INSIDE:
                yield root
                continue
            for place in (root / folder for folder in _INSIDE[reads]):
                files = place.iterdir() if place.is_dir() else [place]
                yield from (file for file in files if file.suffix in _WEIGHTS)


def is_written(
    about: Path, facts: Mapping[str, Any], other: str, damaged: Callable[[Mapping[str, Any]], list[str]]
) -> bool:
    """Whether a folder that is written at once, whole, holds just what is asked for, by its file of facts.

    UserError where it holds something else, or files that `damaged` names: neither is to be replaced unasked.

    Args:
        about: the file of facts; without it nothing is written yet.
        facts: what it must say of what is asked for.
        other: what the folder holds where it says something else.
        damaged: by what it says, files that are gone or were changed.
    """
    if not about.is_file():
        return False
    there = read_json(about)
    begin, remedy = f"--out {about.parent}:", "use --overwrite to replace it, or another folder"
    if any(there.get(name) != value for name, value in facts.items()):
        raise UserError(f"{begin} holds {other}; {remedy}")
    if names := damaged(there):
        raise UserError(f"{begin} {listed(names)} is gone or was changed; {remedy}")
    return True
