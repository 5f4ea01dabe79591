"""`semmae pack`: the same images in shards, smaller; trained on as a folder is; known again; refusals."""

import io
import json
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from refusals import refused

import semmae
from semmae.cli import run
from semmae.data import packing
from semmae.data.manifest import open_images
from semmae.data.samplers import by_window
from semmae.data.sources import open_source
from semmae.files import PART


def photo(path: Path, width: int, height: int, seed: int = 0, **how: object) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, **how)  # type: ignore[arg-type]
    return path.read_bytes()


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None and member.mtime == member.uid == 0
                found[member.name] = file.read()
    return found


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Large and small, of several formats, two classes."""
    folder = tmp_path / "photos"
    photo(folder / "cat" / "large.jpg", 900, 600)
    photo(folder / "cat" / "tall.png", 300, 800)
    photo(folder / "dog" / "small.jpg", 300, 64)
    photo(folder / "dog" / "small.png", 50, 40)
    photo(folder / "dog" / "small.bmp", 50, 40)
    return folder


def test_images_are_shrunk_and_small_ones_kept(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert semmae.pack(data=photos, out=tmp_path / "packed", short_side=128, workers=1).path == tmp_path / "packed"
    found = members(tmp_path / "packed")
    assert {name: content for name, content in found.items() if name.endswith(".cls")} == {
        "cat/large.cls": b"0", "cat/tall.cls": b"0",
        "dog/small_jpg.cls": b"1", "dog/small_png.cls": b"1", "dog/small_bmp.cls": b"1",
    }  # fmt: skip
    assert json.loads((tmp_path / "packed" / "classes.json").read_text()) == ["cat", "dog"]
    for kind in ("jpg", "png"):
        assert found[f"dog/small_{kind}.{kind}"] == (photos / "dog" / f"small.{kind}").read_bytes()
    with Image.open(io.BytesIO(found["cat/large.jpg"])) as large, Image.open(photos / "cat" / "large.jpg") as before:
        assert large.size == (192, 128)
        expected = np.asarray(before.resize((192, 128), Image.Resampling.BICUBIC), np.int16)
        assert np.abs(np.asarray(large, np.int16) - expected).mean() < 2
    with Image.open(io.BytesIO(found["cat/tall.jpg"])) as tall:
        assert tall.size == (128, 341)
    with Image.open(io.BytesIO(found["dog/small_bmp.jpg"])) as small:
        assert small.size == (50, 40)
    images = open_images(tmp_path / "packed", workers=1)
    assert sorted(images.labels or ()) == ["cat", "cat", "dog", "dog", "dog"]
    said = capsys.readouterr().out
    assert "5 images" in said and "decoding" in said and "1 shard," in said and "semmae pretrain --data" in said


def test_the_same_bytes_whatever_the_threads_and_another_order_by_another_seed(photos: Path, tmp_path: Path) -> None:
    for name, given in {"a": {"workers": 0}, "b": {"workers": 3}, "c": {"workers": 1, "seed": 1}}.items():
        semmae.pack(data=photos, out=tmp_path / name, **given)  # type: ignore[arg-type]
    one, other, third = ((tmp_path / name / "shards-000000.tar").read_bytes() for name in "abc")
    assert one == other and one != third and members(tmp_path / "a") == members(tmp_path / "c")
    assert list(members(tmp_path / "a")) != sorted(members(tmp_path / "a"))


def test_splits_and_shards_of_a_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for row in range(count):
            path = tmp_path / "photos" / split / "ab"[row % 2] / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8)).save(path)  # noise: 360 kB
    semmae.pack(data=tmp_path / "photos", out=tmp_path / "packed", workers=1, shard_size=1, short_side=300)
    names = sorted(path.name for path in (tmp_path / "packed").glob("*.tar"))
    assert names == [*(f"train-{number:06}.tar" for number in range(4)), "val-000000.tar"]
    assert all(path.stat().st_size <= 10**6 for path in (tmp_path / "packed").glob("*.tar"))
    train, val = open_source(tmp_path / "packed", "train"), open_source(tmp_path / "packed", "val")
    assert len(train) == 8 and sorted(val.labels or ()) == ["a", "b"]


def test_images_of_no_split_are_packed_too(tmp_path: Path) -> None:
    for number, name in enumerate(("train/a/1", "train/b/2", "val/a/3", "val/b/4", "test/a/5", "more/6", "more/7")):
        photo(tmp_path / "photos" / f"{name}.jpg", 60, 50, number)
    semmae.pack(data=tmp_path / "photos", out=tmp_path / "packed", workers=1)
    names = [path.name for path in sorted((tmp_path / "packed").glob("*.tar"))]
    assert names == [f"{name}-000000.tar" for name in ("other", "test", "train", "val")]
    assert len(open_source(tmp_path / "packed")) == 7
    assert sorted(open_source(tmp_path / "packed", "val").labels or ()) == ["a", "b"]
    semmae.pack(data=tmp_path / "photos", out=tmp_path / "one", workers=1, limit=1)
    assert len(open_source(tmp_path / "one")) == 4


def test_images_without_classes_have_none_when_they_are_packed(tmp_path: Path) -> None:
    for number in range(3):
        photo(tmp_path / "photos" / "a" / f"{number}.jpg", 60, 50, number)
    photo(tmp_path / "photos" / "0.jpg", 60, 50, 3)
    semmae.pack(data=tmp_path / "photos", out=tmp_path / "packed", workers=1)
    assert set(members(tmp_path / "packed")) == {"0.jpg", "a_0.jpg", "a_1.jpg", "a_2.jpg"}
    assert open_source(tmp_path / "packed").labels is None
    assert not (tmp_path / "packed" / "classes.json").exists()


def test_shards_tables_and_objects_are_packed_too(photos: Path, tmp_path: Path) -> None:
    semmae.pack(data=photos, out=tmp_path / "a", workers=1)
    semmae.pack(data=tmp_path / "a", out=tmp_path / "b", workers=1)
    assert members(tmp_path / "a") == members(tmp_path / "b")
    tensors = [(torch.full((3, 40, 40), 9 * number, dtype=torch.uint8), number % 2) for number in range(4)]
    semmae.pack(data=tensors, out=tmp_path / "c", workers=0)
    images = open_images(tmp_path / "c", workers=0)
    assert images.names == sorted(images.names, key=list(images.names).index) and len(images) == 4
    for row, name in enumerate(images.names):
        number = int(name.rpartition("/")[2][0])
        assert torch.equal(images.read(row), tensors[number][0]) and (images.labels or ())[row] == str(number % 2)


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    for number in range(30):
        photo(tmp_path / "photos" / f"{number}.jpg", 60, 50, number)
    (tmp_path / "photos" / "7.jpg").write_bytes(b"no photo")
    semmae.pack(data=tmp_path / "photos", out=tmp_path / "packed", workers=1)
    assert "7.jpg" not in members(tmp_path / "packed") and len(members(tmp_path / "packed")) == 29
    assert (tmp_path / "packed" / "skipped.csv").read_text().startswith("name,reason\n7.jpg,")


def test_it_is_known_again(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    semmae.pack(data=photos, out=out, workers=1)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    semmae.pack(data=photos, out=out, workers=1)
    assert "already finished" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with refused("--out", "packed otherwise", "--overwrite"):
        semmae.pack(data=photos, out=out, workers=1, quality=80)
    photo(photos / "cat" / "more.jpg", 60, 50, 9)
    with refused("--out", "other images", "--overwrite"):
        semmae.pack(data=photos, out=out, workers=1)
    semmae.pack(data=photos, out=out, workers=1, overwrite=True)
    assert len(open_source(out)) == 6
    (out / "shards-000000.tar").write_bytes(b"")
    with refused("shards-000000.tar", "--overwrite"):
        semmae.pack(data=photos, out=out, workers=1)
    (out / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with refused("mine.txt", "move"):
            semmae.pack(data=photos, out=out, workers=1, overwrite=overwrite)


def test_nothing_is_left_half_written(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real, packed = tmp_path / "packed", packing.Packing.image, []

    def stopping(self: packing.Packing, raw: bytes) -> tuple[str, bytes]:
        packed.append(raw)
        if len(packed) == 3:
            raise KeyboardInterrupt
        return real(self, raw)

    monkeypatch.setattr(packing.Packing, "image", stopping)
    with pytest.raises(semmae.run.signals.Stopped, match="nothing was written") as stopped:  # type: ignore[attr-defined]
        semmae.pack(data=photos, out=out, workers=0)
    assert stopped.value.signum == signal.SIGINT
    assert not out.exists() and list(tmp_path.rglob(f"*{PART}")) == []


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ("--out photos/packed", ["--out photos/packed", "--data photos"]),
        ("--out full", ["--out full", "not empty"]),
        ("--out full --overwrite", ["--out full", "--overwrite will not delete"]),
        ("--out file.txt", ["--out file.txt", "file"]),
        ("--out .", ["--out ."]),
        ("--out a --short-side 4", ["--short-side 4", "8"]),
        ("--out a --quality 101", ["--quality 101", "100"]),
        ("--out a --shard-size 0", ["--shard-size 0", "1"]),
        ("--out a --data empty", ["empty", "nothing"]),
        ("--out a --data shards-{0..3}.tar", ["shards-{0..3}.tar", "missing"]),
        ("--out a --data photoss", ["photoss", '"photos"']),
    ],
)
def test_refusals(
    arguments: str, facts: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch, refuse: tiny.Refuse
) -> None:
    place = photos.parent
    monkeypatch.chdir(place)
    for name in ("full", "empty"):
        (place / name).mkdir()
    for name in ("full/a.jpg", "file.txt"):
        (place / name).write_text("mine")
    words = arguments.split()
    refuse(["pack", *([] if "--data" in words else ["--data", "photos"]), *words], place, *facts)


def test_packed_images_are_trained_on_and_resumed(
    creatures: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts, masks, losses and weights of a stopped and resumed run are those of one that ran through.

    Of eight shards and more, in windows of two or three.
    """
    monkeypatch.setattr(by_window, "__defaults__", (20_000,))

    def pack(seed: int) -> int:
        (tmp_path / "packed").mkdir()
        how = packing.Packing(256, 90, 24_000, seed)
        images = open_images(creatures / "images", workers=1)
        return len(packing.write_shards(tmp_path / "packed", "shards", images, None, how, 1))

    last = pack(seed=0) - 1
    assert last >= 7
    given = {"data": f"{tmp_path}/packed/shards-{{000000..{last:06}}}.tar", "teacher": encoder, "epochs": tiny.EPOCHS}
    with tiny.every_step():
        semmae.pretrain(out=tmp_path / "whole", **given, **tiny.SIZE, **tiny.TRAIN)  # type: ignore[arg-type]
        with tiny.interrupted("pretrain", 6):
            semmae.pretrain(out=tmp_path / "run", **given, **tiny.SIZE, **tiny.TRAIN)  # type: ignore[arg-type]
        semmae.pretrain(out=tmp_path / "run", resume=True)
    assert tiny.losses(tmp_path / "run") == tiny.losses(tmp_path / "whole")
    tiny.assert_same_weights(tmp_path / "run" / "encoder", tmp_path / "whole" / "encoder")
    # Packed anew by another seed, they are other rows.
    shutil.rmtree(tmp_path / "packed")
    pack(seed=3)
    arguments = ["pretrain", "--out", str(tmp_path / "run"), "--data", str(given["data"]), "--resume"]
    assert run(arguments) == 2
