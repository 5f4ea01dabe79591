"""What attacks are made on, and what handling one rightly means."""

import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from forked import Forked, in_a_process
from PIL import Image
from refusals import check_refusal

import semmae
from semmae.cli import run
from semmae.data.part_store import PartStore
from semmae.formats import folders as checkpoint
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec

SECONDS = 20.0  # in which anything is refused, on a slow core that does other work too
CLASSES, IMAGES = ("cat", "dog", "eel"), 8  # of each class
TRAIN = "--model vit_mini --image-size 32 --patch-size 8 --batch-size 8 --workers 0 --precision float32 --epochs 1"


@dataclass(frozen=True)
class Attack:
    """One of them: its section, what is done, and the work that raises where it is not handled rightly."""

    section: str
    name: str
    work: Callable[["Desk"], int | None]  # returns how many inputs it tried, where that is more than one


ATTACKS: list[Attack] = []


def attack(section: str, name: str) -> Callable[[Callable[["Desk"], int | None]], None]:
    """Add a function to the attacks."""
    return lambda work: ATTACKS.append(Attack(section, name, work))


class Desk:
    """A user's folder: photos by class, a run, part labels, a table. The working folder while attacks run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        random = np.random.default_rng(0)
        for label in CLASSES:
            (root / "photos" / label).mkdir(parents=True)
            for number in range(IMAGES):
                picture(random).save(root / "photos" / label / f"{number}.png")
        torch.manual_seed(0)
        mae = MaskedAutoencoder(Encoder(EncoderSpec(32, 8, 48, 2, 3)), DecoderSpec(32, 1, 4))
        checkpoint.save_encoder(mae.encoder, root / "run" / "encoder", {"stage": "pretrain"})
        checkpoint.save_autoencoder(mae, root / "run" / "autoencoder")
        images = semmae.open_images(root / "photos")
        store = PartStore.create(
            root / "parts", images=len(images), grid=4, label_names=["background", "part 1"], teacher_digest="t",
            manifest_digest=images.digest,
        )  # fmt: skip
        store.write(np.arange(len(images)), random.integers(0, 2, (len(images), 4, 4)).astype(np.uint8))
        store.finish()
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted((root / "photos").rglob("*.png"))]
        self.rows = rows
        pq.write_table(pa.table({"image": rows, "label": [n % 3 for n in range(len(rows))]}), root / "x.parquet")

    def listing(self) -> dict[str, tuple[int, int]]:
        """Every file, with its size and time."""
        found = (path for path in self.root.rglob("*") if not path.is_dir())
        return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}

    @contextlib.contextmanager
    def copy(self) -> Iterator["Desk"]:
        """The same desk, to be spoilt."""
        other = object.__new__(Desk)
        with tempfile.TemporaryDirectory(prefix="semmae-attacks-") as folder:
            other.root, other.rows = Path(shutil.copytree(self.root, Path(folder) / "desk")), self.rows
            with contextlib.chdir(other.root):
                yield other


def picture(random: np.random.Generator, side: int = 32) -> Image.Image:
    return Image.fromarray(random.integers(0, 255, (side, side, 3)).astype(np.uint8))


def command(words: str | list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words.split() if isinstance(words, str) else words)
    return code, out.getvalue(), err.getvalue()


def error_line(err: str) -> str:
    """The one line of an error; AssertionError where there are more, or none."""
    lines = [line for line in err.splitlines() if line.startswith("semmae: ")]
    assert "Traceback" not in err, err
    check_refusal("\n".join(lines))
    return lines[0]


def refused(desk: Desk, words: str | list[str], *named: str) -> None:
    before, began = desk.listing(), time.monotonic()
    code, _, err = command(words)
    assert code == 2, f"exit code {code}, {err}"
    check_refusal(error_line(err), *named)
    assert time.monotonic() - began < SECONDS, f"after {time.monotonic() - began:.0f} s"
    after = desk.listing()
    assert after == before, sorted(set(after.items()) ^ set(before.items()))[:4]


def works(words: str | list[str]) -> str:
    code, out, err = command(words)
    assert code == 0, f"exit code {code}, {err}"
    return out + err


def patched(module: ModuleType, name: str, function: Callable[..., object]) -> None:
    """In a process of its own: another function in place of one that must be there."""
    mock.patch.object(module, name, function).start()


def child_of(words: str | list[str], prepare: Callable[[], object] = lambda: None) -> Forked:
    return in_a_process(words.split() if isinstance(words, str) else words, prepare)
