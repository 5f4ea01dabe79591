"""summary.json and skipped.csv: what a stage of a run was trained on, for how long, and whether it came to its end."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from semmae.data.manifest import ImageSet, write_skipped
from semmae.errors import DiskError, UserError
from semmae.files import Fields, read_json, write_json
from semmae.names import short
from semmae.run.ranks import is_rank_zero


@contextmanager
def summarised(
    out: Path, stage: str, images: ImageSet, also: Sequence[ImageSet] = (), /, **facts: Any
) -> Iterator[None]:
    """Write skipped.csv before, and summary.json before and after, one stage of a run; minutes add up over resumes.

    In skipped.csv are those of `also` too, the images that the stage is measured on. A stage that was begun with other
    images is refused; so it is with every fact named `…_digest`.
    """
    path, started = out / "summary.json", time.monotonic()
    facts = {"manifest": images.digest, **facts}
    earlier = Fields(path, read_json(path) if path.exists() else {})
    _check_unchanged(out, earlier, facts)
    before = earlier.get("minutes", int | float, 0.0)
    counts = {"images": len(images), "skipped": len(images.manifest.skipped), "classes": len(set(images.labels or ()))}

    def write(finished: bool) -> None:
        if is_rank_zero():
            minutes = round(before + (time.monotonic() - started) / 60, 3)
            write_json(path, {"stage": stage, **counts, **facts, "finished": finished, "minutes": minutes})

    write(finished=False)  # already now: a killed run, too, knows what it was begun with
    if is_rank_zero():
        write_skipped([images, *also], out / "skipped.csv")
    try:
        yield
    except BaseException:
        with suppress(DiskError):  # on a full disk it is the first fault that counts
            write(finished=False)
        raise
    write(finished=True)


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
