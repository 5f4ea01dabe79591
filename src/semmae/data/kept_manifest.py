"""A manifest in the folder of a run, for all processes to have the one that the first of them made.

One .npz file without pickles: names as bytes and where each begins, sizes, times, classes, places in the source, and
what was left out. Of image files it is all that is needed: no other process lists the folder or asks for a size.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from semmae.data.compact import Labels, Names
from semmae.data.folders import FolderSource, size_and_time
from semmae.data.items import ItemSource
from semmae.data.selection import Selection, Source
from semmae.errors import UserError, reason
from semmae.files import open_regular, whole

if TYPE_CHECKING:
    from semmae.data.manifest import Manifest

_COMPARED = 64  # images


class Kept(NamedTuple):
    """What such a file holds."""

    names: Names
    sizes: npt.NDArray[np.int64]
    labels: Labels | None
    skipped: tuple[tuple[str, str], ...]
    digest: str  # as the first process found it
    positions: npt.NDArray[np.int64]  # of the rows in their source
    source: FolderSource | None  # of image files; None where the data has to be opened again


def write_kept(path: Path, source: Source, manifest: "Manifest", positions: npt.NDArray[np.int64]) -> None:
    """Write the manifest of a source, whose rows are at these positions of it."""
    files = source.within if isinstance(source, Selection) else source
    facts = {
        "digest": manifest.digest,
        "files": isinstance(files, FolderSource),
        "labelled": manifest.labels is not None,
    }
    notes = {"root": str(source.root), "note": source.class_note, "remedy": source.class_remedy}
    labels = manifest.labels or Labels()
    texts = {
        "names": manifest.names, "classes": Names(labels.classes),
        "skipped": Names(name for name, _ in manifest.skipped), "reasons": Names(why for _, why in manifest.skipped),
        "notes": Names(notes.values()),
    }  # fmt: skip
    arrays: dict[str, Any] = {
        f"{name}_{part}": array for name, kept in texts.items() for part, array in zip("bp", kept.arrays, strict=True)
    }
    with whole(path) as beside, beside.open("wb") as file:
        np.savez(
            file, facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8), sizes=manifest.sizes,
            modified=source.modified[positions], codes=labels.codes, positions=positions, **arrays,
        )  # fmt: skip


def read_kept(path: Path) -> Kept:
    """What `write_kept` has written."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            names, classes, skipped, reasons, notes = (
                Names.of_arrays(arrays[f"{name}_b"], arrays[f"{name}_p"])
                for name in ("names", "classes", "skipped", "reasons", "notes")
            )
            sizes, positions, modified = (arrays[name] for name in ("sizes", "positions", "modified"))
            if not len(names) == len(sizes) == len(positions) == len(modified):
                raise ValueError("rows of different numbers")
            labels = Labels.of_codes(arrays["codes"], classes) if facts["labelled"] else None
            source = None
            if facts["files"]:
                root, note, remedy = notes
                source = FolderSource(Path(root), names, labels, sizes, modified, note, remedy)
                positions = np.arange(len(names))
            pairs = tuple(zip(skipped, reasons, strict=True))
            return Kept(names, sizes, labels, pairs, str(facts["digest"]), positions, source)
    except Exception as error:  # of bytes that are no such file
        raise UserError(f"{path}: not readable ({reason(error)}); start all processes again") from error


def check_same(kept: Kept, source: Source) -> None:
    """Refuse other images than the first process has; of some it is asked: of all, that takes as long as listing them.

    What an object gives has no size before it is read.
    """
    for row in np.unique(np.linspace(0, len(kept.names) - 1, _COMPARED).astype(np.int64)).tolist():
        name, place = kept.names[row], int(kept.positions[row])
        same = place < len(source) and source.names[place] == name
        if kept.source is not None:
            same = size_and_time(os.path.join(source.root, name))[0] == kept.sizes[row]
        elif same and not isinstance(source, ItemSource):
            same = source.sizes[place] == kept.sizes[row]
        if not same:
            raise UserError(
                f"{source.root}/{name}: missing here, or another file than for the first process; give all processes "
                "the same images"
            )
