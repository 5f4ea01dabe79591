"""`semmae embed`: what it writes and how that is read; that a run stopped anywhere goes on to the same bytes."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from forked import in_a_process, suicide
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import semmae
from semmae.cli import run
from semmae.data.loaders import WholeDataset, normalise
from semmae.data.manifest import open_images
from semmae.data.part_store import PartStore
from semmae.data.token_file import TokenFile, _write_texts
from semmae.evaluation import embedding
from semmae.evaluation.tokens import TOKENS, image_tokens
from semmae.formats.folders import save_encoder

KINDS = (".parquet", ".npz", ".safetensors")
SIZE, SIDE, WIDTH, PARTS = 32, 4, 24, 5
SHAPES = {
    "cls": (WIDTH,),
    "mean": (WIDTH,),
    "patch": (SIDE**2, WIDTH),
    "parts": (PARTS, WIDTH),
    "parts_count": (PARTS,),
}


@pytest.fixture(scope="module")
def parts(creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of the creatures, drawn by chance; the fourth occurs nowhere."""
    return labelled(tmp_path_factory.mktemp("parts") / "run", creatures / "images")


def labelled(folder: Path, data: Path, seed: int = 0) -> Path:
    images = open_images(data)
    names = [f"part {number}" for number in range(PARTS)]
    store = PartStore.create(
        folder, images=len(images), grid=7, label_names=names, teacher_digest=str(seed), manifest_digest=images.digest
    )
    labels = np.random.default_rng(seed).choice([0, 1, 2, 4], (len(images), 7, 7))
    store.write(np.arange(len(images)), labels)
    store.finish()
    return folder


@pytest.fixture(scope="module")
def command(creatures: Path, encoder: Path, parts: Path) -> list[str]:
    given = {"data": creatures / "images", "encoder": encoder, "parts": parts, "workers": 0, "batch-size": 5}
    return ["embed", "--tokens", ",".join(TOKENS), *(str(x) for name, v in given.items() for x in (f"--{name}", v))]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.KIND of every kind, each of a run never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in KINDS:
        assert run([*command, "--out", str(folder / f"a{kind}")]) == 0
    return folder


def read(path: Path) -> dict[str, Any]:
    """Arrays, paths and labels, as the documentation reads them."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name != "semmae"}
    if path.suffix == ".safetensors":
        with path.with_suffix(".paths.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {**load_file(path), **{name: np.array([row[name] for row in rows]) for name in rows[0]}}
    table = pq.read_table(path)
    found = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        shape = SHAPES.get(name, ())
        for _ in shape:
            column = column.flatten()
        found[name] = column.to_numpy(zero_copy_only=False).reshape(len(table), *shape)
    return found


def info(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        return dict(json.loads(str(np.load(path)["semmae"])))
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            return dict(json.loads(file.metadata()["semmae"]))
    return dict(json.loads(pq.read_schema(path).metadata[b"semmae"]))


def test_all_tokens_in_all_files(whole: Path, creatures: Path, encoder: Path, parts: Path) -> None:
    """The slow way: one image at a time, its labels found pixel by pixel."""
    model, images, store = semmae.load_encoder(encoder), open_images(creatures / "images"), PartStore.open(parts)
    dataset = WholeDataset(images, SIZE, fit="centre")
    cells = (np.arange(SIDE) + 0.5) / SIDE * 7  # the drawings are square: the centre is all of them
    files = {kind: read(whole / f"a{kind}") for kind in KINDS}
    for row in range(len(images)):
        labels = store.labels[row][cells.astype(int)[:, None], cells.astype(int)[None]].reshape(1, -1)
        with torch.inference_mode():
            features = model(normalise(dataset[row]["image"], model.spec.mean, model.spec.std)[None])
        expected = image_tokens(features, TOKENS, torch.from_numpy(labels), PARTS)
        for arrays in files.values():
            for name, values in expected.items():
                np.testing.assert_allclose(arrays[name][row], values[0].numpy(), atol=1e-5)
    for arrays in files.values():
        assert tuple(arrays["path"]) == images.names and tuple(arrays["label"]) == images.labels
        assert {name: arrays[name].shape[1:] for name in SHAPES} == SHAPES
        assert (arrays["parts_count"].sum(1) == SIDE**2).all()
        absent = arrays["parts_count"] == 0
        assert absent[:, 3].all() and (arrays["parts"][absent] == 0).all()
        for name in SHAPES:
            assert np.array_equal(arrays[name], files[".npz"][name]) and arrays[name].dtype == files[".npz"][name].dtype


def test_a_file_gives_what_it_was_made_of(whole: Path, creatures: Path) -> None:
    found = info(whole / "a.npz")
    assert info(whole / "a.parquet") == found and info(whole / "a.safetensors") == found
    assert found["images_digest"] == open_images(creatures / "images").digest
    assert (found["image_size"], found["patch_size"], found["tokens"]) == (SIZE, SIZE // SIDE, "cls,mean,patch,parts")
    assert found["parts"] == [f"part {number}" for number in range(PARTS)]
    assert sorted(path.name for path in whole.iterdir()) == ["a.npz", "a.parquet", "a.paths.csv", "a.safetensors"]


def test_labels_follow_the_centre_crop(tmp_path: Path) -> None:
    """A photo whose cells are painted by their label: the colour at a patch's centre says which it must get."""
    labels = np.random.default_rng(0).integers(0, 5, (5, 5), np.uint8)
    (tmp_path / "photos").mkdir()
    for name, (height, width) in {"wide": (60, 100), "tall": (100, 60)}.items():
        painted = labels.repeat(height // 5, 0).repeat(width // 5, 1)
        Image.fromarray(50 * painted[:, :, None].repeat(3, 2)).save(tmp_path / "photos" / f"{name}.png")
    images = open_images(tmp_path / "photos")
    given = {"teacher_digest": "", "manifest_digest": images.digest, "label_names": list("abcde")}
    store = PartStore.create(tmp_path / "parts", images=2, grid=5, **given)
    store.write(np.arange(2), np.stack([labels, labels]))
    store.finish()
    for crop_pct in (1.0, 0.875):
        dataset = WholeDataset(images, 160, "centre", crop_pct, PartStore.open(tmp_path / "parts"), 4)
        for row in range(2):
            item = dataset[row]
            colours = item["image"][0, 20::40, 20::40].float() / 50
            assert item["parts"].tolist() == colours.round().int().flatten().tolist()


def test_half_precision(whole: Path, command: list[str], tmp_path: Path) -> None:
    for kind in KINDS:
        assert run([*command, "--out", str(tmp_path / f"a{kind}"), "--dtype", "float16"]) == 0
        found, full = read(tmp_path / f"a{kind}"), read(whole / f"a{kind}")
        for name in ("cls", "mean", "patch", "parts"):
            assert found[name].dtype == np.float16 and np.array_equal(found[name], full[name].astype(np.float16))
        assert found["parts_count"].dtype == np.int32
    assert (tmp_path / "a.safetensors").stat().st_size < 0.6 * (whole / "a.safetensors").stat().st_size


def test_numbers_that_a_file_cannot_hold(encoder: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse) -> None:
    for scale, named in ((1e6, ("65504", "--dtype float32")), (float("nan"), ("norm.weight",))):
        model = semmae.load_encoder(encoder)
        with torch.no_grad():
            model.vit.norm.weight.mul_(scale)
        save_encoder(model, tmp_path / "loud")
        given = ["--encoder", str(tmp_path / "loud"), "--data", str(creatures / "images"), "--dtype", "float16"]
        command = ["embed", *given, "--out", str(tmp_path / "a.npz"), "--workers", "0", "--overwrite"]
        refuse(command, tmp_path / "a.npz", *named)


def test_images_without_classes_and_odd_names(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    pictures = sorted((creatures / "images").rglob("*.png"))[:3]
    names = ["ä b.png", os.fsdecode(b"\xff.png"), 'c,"d.png']
    (tmp_path / "flat").mkdir()
    try:
        for picture, name in zip(pictures, names, strict=True):
            shutil.copy(picture, tmp_path / "flat" / name)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    for kind in KINDS:
        semmae.embed(encoder=encoder, data=tmp_path / "flat", out=tmp_path / "below" / f"a{kind}", workers=0)
        found = read(tmp_path / "below" / f"a{kind}")
        assert sorted(found["path"]) == sorted(["ä b.png", "\\xff.png", 'c,"d.png']) and "label" not in found


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_and_then_only_out_and_resume(
    kind: str,
    command: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, starts = tmp_path / f"a{kind}", rows_written(monkeypatch, stop_at=15)
    assert run([*command, "--out", str(out)]) == 130
    assert f"semmae embed --out {out} --resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [f"a{kind}.partial"]
    monkeypatch.undo()
    again = rows_written(monkeypatch)
    assert run(["embed", "--out", str(out), "--resume"]) == 0
    assert (starts, again) == ([0, 5, 10], [15, 20, 25, 30])
    assert_as_whole(out, whole)


def rows_written(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """The first row of each batch written from now on; Ctrl-C when that of `stop_at` should be."""
    starts: list[int] = []
    real = TokenFile.write

    def write(file: TokenFile, start: int, values: dict[str, Any]) -> None:
        if start == stop_at:
            raise KeyboardInterrupt
        starts.append(start)
        real(file, start, values)

    monkeypatch.setattr(TokenFile, "write", write)
    return starts


def assert_as_whole(out: Path, whole: Path) -> None:
    names = [f"a{out.suffix}"] + (["a.paths.csv"] if out.suffix == ".safetensors" else [])
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(names)
    for name in names:
        assert (out.parent / name).read_bytes() == (whole / name).read_bytes()


def at_the_fourth_batch() -> None:
    """Its rows are on the disk, but not noted."""
    embedding._KEEP_EVERY = 0.0
    real = TokenFile.write

    def dying(file: TokenFile, start: int, values: dict[str, Any]) -> None:
        real(file, start, values)
        if start == 15:
            suicide()

    TokenFile.write = dying  # type: ignore[method-assign]


def at_the_last_renaming(after: bool) -> Callable[[], None]:
    def prepare() -> None:
        real = os.replace

        def dying(source: Any, target: Any) -> None:
            last = Path(target).suffix in KINDS
            if last and not after:
                suicide()
            real(source, target)
            if last:
                suicide()

        os.replace = dying  # type: ignore[assignment]

    return prepare


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", [at_the_fourth_batch, at_the_last_renaming(after=False)], ids=["batch", "renaming"])
def test_killed_and_the_same_command_again(
    kind: str,
    moment: Callable[[], None],
    command: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [*command, "--out", str(tmp_path / f"a{kind}")]
    child = in_a_process(arguments, moment)
    assert child.ended(120) == -signal.SIGKILL, child.output
    assert not (tmp_path / f"a{kind}").exists()
    starts = rows_written(monkeypatch)
    assert run(arguments) == 0
    assert starts == ([15, 20, 25, 30] if moment is at_the_fourth_batch else [])
    assert_as_whole(tmp_path / f"a{kind}", whole)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_when_all_was_done(
    kind: str, command: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"a{kind}"
    child = in_a_process([*command, "--out", str(out)], at_the_last_renaming(after=True))
    assert child.ended(120) == -signal.SIGKILL, child.output
    code = run([*command, "--out", str(out), "--resume"])
    assert code == 0 or "is whole" in capsys.readouterr().err
    assert_as_whole(out, whole)


@pytest.fixture
def stopped(
    command: list[str], creatures: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The command of a run stopped after 15 images, on images, parts and an encoder of its own."""
    shutil.copytree(creatures / "images", tmp_path / "images")
    shutil.copytree(encoder, tmp_path / "encoder")
    labelled(tmp_path / "parts", tmp_path / "images")
    own = {name: str(tmp_path / name) for name in ("images", "encoder", "parts")}
    arguments = ["embed", "--data", own["images"], "--encoder", own["encoder"], "--parts", own["parts"]]
    arguments += ["--workers", "0", "--tokens", "parts", "--batch-size", "5", "--out", str(tmp_path / "a.npz")]
    with monkeypatch.context() as patch:
        rows_written(patch, stop_at=15)
        assert run(arguments) == 130
    return arguments


def test_a_stopped_run_goes_on_only_with_the_same(stopped: list[str], tmp_path: Path, refuse: tiny.Refuse) -> None:
    go_on = ["embed", "--out", str(tmp_path / "a.npz"), "--resume"]
    refuse([*go_on, "--tokens", "cls"], tmp_path, "--tokens cls", "a.npz.partial", "began with parts")
    refuse([*stopped, "--dtype", "float16"], tmp_path, "a.npz.partial", "not empty", "--resume")

    model = semmae.load_encoder(tmp_path / "encoder")
    with torch.no_grad():
        model.vit.norm.bias.add_(1)
    shutil.move(tmp_path / "encoder", tmp_path / "first")
    save_encoder(model, tmp_path / "encoder")
    refuse(go_on, tmp_path, "another encoder", "--overwrite")
    shutil.rmtree(tmp_path / "encoder")
    shutil.move(tmp_path / "first", tmp_path / "encoder")

    shutil.rmtree(tmp_path / "parts")
    labelled(tmp_path / "parts", tmp_path / "images", seed=1)
    refuse(go_on, tmp_path, "other part labels")

    next((tmp_path / "images").rglob("*.png")).unlink()
    refuse(go_on, tmp_path, "part labels", "images")
    shutil.rmtree(tmp_path / "parts")
    labelled(tmp_path / "parts", tmp_path / "images")
    refuse(go_on, tmp_path, "other images")
    assert run([*stopped, "--overwrite"]) == 0
    assert len(read(tmp_path / "a.npz")["path"]) == tiny.COUNT - 1 and not (tmp_path / "a.npz.partial").exists()


def test_only_a_file_of_its_own_is_replaced_and_only_when_asked_to(
    encoder: Path, creatures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refuse: tiny.Refuse
) -> None:
    for name in ("a.npz", "b.paths.csv"):
        (tmp_path / name).write_text("mine")
    given = ["embed", "--encoder", str(encoder), "--data", str(creatures / "images"), "--workers", "0", "--limit"]
    for out, named in (("a.npz", "a.npz"), ("b.safetensors", "b.paths.csv")):
        for more in ((), ("--overwrite",), ("--resume",)):
            refuse([*given, "4", "--out", str(tmp_path / out), *more], tmp_path, Path(named).stem[0])
        (tmp_path / named).unlink()
        command = [*given, "4", "--out", str(tmp_path / out)]
        assert run(command) == 0
        whole = (tmp_path / out).read_bytes()
        assert run(command) == 0 and "already finished" in capsys.readouterr().out
        assert run([*command, "--resume"]) == 0 and "already finished" in capsys.readouterr().out
        assert (tmp_path / out).read_bytes() == whole
        fewer = [*given, "3", "--out", str(tmp_path / out)]
        refuse(fewer, tmp_path, out, "--overwrite")
        assert run([*fewer, "--overwrite"]) == 0
        assert len(read(tmp_path / out)["path"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.paths.csv", "b.safetensors"]
    (tmp_path / "b.paths.csv").unlink()
    refuse(fewer, tmp_path, "b.safetensors", "b.paths.csv", "--overwrite")
    assert run([*fewer, "--overwrite"]) == 0 and (tmp_path / "b.paths.csv").is_file()


def test_a_disk_too_small(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: tiny.Refuse
) -> None:
    room = shutil.disk_usage(tmp_path)._replace(free=80_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    refuse([*command, "--out", str(tmp_path / "a.npz")], tmp_path, "--dtype float16", code=1)
    assert run([*command, "--out", str(tmp_path / "a.safetensors")]) == 0  # in place: half the room


_WRITE = """
import sys
from pathlib import Path
import numpy as np
from semmae.data import token_file
from semmae.data.token_file import Column, TokenFile, finish

token_file._BLOCK = 2**20
column = Column("patch", (64, 768), "float32")
batch = np.random.default_rng(0).random((20, 64, 768), np.float32)
out = Path(sys.argv[1])


def write(rows):
    file = TokenFile(out.with_name("features.safetensors"), rows, [column], {})
    file.create()
    for start in range(0, rows, 20):
        file.write(start, {"patch": batch})
    finish(file, [f"{row}.jpg" for row in range(rows)], None, out)


def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


write(20)  # libraries load what they need
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = peak()
write(300)
print(peak() - before)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_that_of_a_block(kind: str, tmp_path: Path) -> None:
    """59 MB of tokens are written and copied in 25 MB at most, once the libraries are loaded.

    Counted in an interpreter of its own: in a fork of this one the garbage of all tests before would count too.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs the system's peak of a process's memory, which Linux reports")
    out = tmp_path / f"a{kind}"
    output = subprocess.run([sys.executable, "-c", _WRITE, str(out)], check=True, capture_output=True, text=True)
    assert int(output.stdout) < 25e6
    assert np.array_equal(read_patches(out)[40:60], np.random.default_rng(0).random((20, 64, 768), np.float32))


def read_patches(path: Path) -> Any:
    if path.suffix == ".parquet":
        assert pq.ParquetFile(path).num_row_groups == 60
        column = pq.read_table(path)["patch"].combine_chunks()
        return column.flatten().flatten().to_numpy().reshape(-1, 64, 768)
    return read(path)["patch"]


def test_texts_in_npz_are_numpy_s_own_and_never_all_in_memory() -> None:
    texts = [f"class/{number}.jpg" for number in range(20000)] + ["é" * 1000]  # one long name widens all: 80 MB
    wanted = hashlib.sha256()
    tracemalloc.start()

    found = Sink()
    _write_texts(found, texts)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<U1000", "fortran_order": False, "shape": (20001,)})
    wanted.update(header.getvalue())
    wanted.update(np.array(texts).tobytes())
    assert found.sha.digest() == wanted.digest()
    assert found.size == len(header.getvalue()) + 20001 * 4000
    assert peak < 72e6, f"{peak / 1e6:.0f} MB"  # a block of 34 MB, twice


class Sink(io.BytesIO):
    """Keeps the digest of what is written alone."""

    def __init__(self) -> None:
        super().__init__()
        self.sha, self.size = hashlib.sha256(), 0

    def write(self, content: Any) -> int:
        self.sha.update(content)
        self.size += len(content)
        return len(content)
