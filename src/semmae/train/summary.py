"""summary.json and skipped.csv: what a stage of a run was trained on, for how long, and whether it came to its end."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semmae.data.manifest import ImageSet, write_skipped
from semmae.errors import DiskError, UserError
from semmae.files import Fields, guarded, read_json, write_json
from semmae.models.vit import IMAGENET, EncoderSpec
from semmae.names import short
from semmae.run.ranks import is_rank_zero

_LENGTHS, _PLANNED = ("epochs", "steps"), "_planned"


@dataclass(frozen=True)
class Trained:
    """How many of its planned optimiser steps a training has done: all, unless a callback has ended it."""

    steps: int
    planned: int

    @property
    def stopped(self) -> bool:
        """Whether it was ended early."""
        return self.steps < self.planned

    def of(self, count: float) -> float:
        """How many of the planned epochs, or of whatever they are counted in, were done; whole ones as an int."""
        done = round(count * self.steps / self.planned, 2)
        return int(done) if done == int(done) else done


class Summary:
    """summary.json of a stage; minutes add up over resumes.

    Epochs or steps among the `facts` are those planned. Of a training that a callback has ended, here or before the
    run was resumed, they are those done, and beside them stands `epochs_planned`.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self._started = time.monotonic()
        earlier = Fields(path, read_json(path) if path.exists() else {})
        _check_unchanged(path.parent, earlier, facts)
        self._before = earlier.get("minutes", int | float, 0.0)
        for name in _LENGTHS:
            if name in facts and (planned := earlier.get(name + _PLANNED, int)) is not None:
                facts |= {name: earlier.need(name, int | float), name + _PLANNED: planned}

    def trained(self, trained: Trained) -> None:
        """Note how long a training really was."""
        for name in _LENGTHS:
            if name in self.facts:
                planned = self.facts.pop(name + _PLANNED, self.facts[name])
                self.facts |= {name: trained.of(planned)} | ({name + _PLANNED: planned} if trained.stopped else {})
        self.write()  # now: a run that is resumed may not train again

    @property
    def length(self) -> dict[str, float]:
        """How long was trained, for the description of a protocol."""
        names = [each for name in _LENGTHS for each in (name, name + _PLANNED)]
        return {name: self.facts[name] for name in names if name in self.facts}

    def write(self, *, finished: bool = False) -> None:
        """Write it as it now is; the first process does."""
        if is_rank_zero():
            minutes = round(self._before + (time.monotonic() - self._started) / 60, 3)
            write_json(self.path, {**self.facts, "finished": finished, "minutes": minutes})


def colour_facts(spec: EncoderSpec) -> dict[str, Any]:
    """Mean and deviation that an encoder normalises by, where they are not ImageNet's: a run not finished has them."""
    return {} if (spec.mean, spec.std) == IMAGENET else {"mean": list(spec.mean), "std": list(spec.std)}


@contextmanager
def summarised(
    out: Path, stage: str, images: ImageSet, also: Sequence[ImageSet] = (), /, **facts: Any
) -> Iterator[Summary]:
    """Write skipped.csv before, and summary.json before and after, one stage of a run.

    In skipped.csv are those of `also` too, the images that the stage is measured on. A stage that was begun with other
    images is refused; so it is with every fact named `…_digest`.
    """
    counts = {"images": len(images), "skipped": len(images.manifest.skipped), "classes": len(set(images.labels or ()))}
    summary = Summary(out / "summary.json", {"stage": stage, **counts, "manifest": images.digest, **facts})
    summary.write()  # already now: a killed run, too, knows what it was begun with
    if is_rank_zero():
        write_skipped([images, *also], out / "skipped.csv")
    with guarded(out):
        try:
            yield summary
        except BaseException:
            with suppress(DiskError, UserError):  # on a full disk, or without the folder, the first fault counts
                summary.write()
            raise
        summary.write(finished=True)


def check_same_inputs(out: Path, images: ImageSet, **digests: str) -> None:
    """Refuse to go on with a stage that was begun with other images, or other `…_digest`, before anything is made."""
    path = out / "summary.json"
    if path.exists():
        _check_unchanged(out, Fields(path, read_json(path)), {"manifest": images.digest, **digests})


def _check_unchanged(out: Path, earlier: Fields, facts: dict[str, Any]) -> None:
    digests = [name for name in facts if name == "manifest" or name.endswith("_digest")]
    before = {name: earlier.get(name, str) for name in digests}
    changed = [
        f"{name.removesuffix('_digest')} {short(digest)}, now {short(str(facts[name]))}"
        for name, digest in before.items()
        if digest is not None and digest != facts[name]
    ]
    if changed:
        raise UserError(f"{out}: was begun with {'; '.join(changed)}; restore what has changed, or use another --out")
