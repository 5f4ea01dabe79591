"""The list of images that one process makes for all; and how closely images are looked at before the start."""

import io
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from refusals import refused

from semmae.data import folders, manifest as module
from semmae.data.decode import decode
from semmae.data.manifest import ImageSet, open_images
from semmae.run import ranks
from semmae.run.folder import foreign_files
from semmae.run.ranks import SHARED, made, sharing, wait_for

Write = Callable[..., Path]
MANY = [f"c{i % 2}/{i:02}.jpg" for i in range(40)]


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this process that rank of a start of two."""
    monkeypatch.setattr(ranks, "_size", (1, 1))
    monkeypatch.setattr(ranks, "_PAUSE", 0.01)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def become(rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))

    return become


def opened(out: Path, data: Path, **named: int) -> ImageSet:
    with pytest.MonkeyPatch.context() as patch, sharing(out, 1, 2):
        patch.setattr(ranks, "_start", "this")
        return open_images(data, **named)


@pytest.mark.parametrize("limit", [None, 11])
def test_other_processes_neither_list_nor_decode(
    limit: int | None, tmp_path: Path, write_images: Write, as_rank: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root = write_images(tmp_path / "photos", *MANY)
    (root / "c1/01.jpg").write_text("a text, renamed")
    (out := tmp_path / "run").mkdir()
    as_rank(0)
    first = opened(out, root, limit=limit, seed=1)
    as_rank(1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "decode", None)
        patch.setattr(module, "open_source", None)
        second = opened(out, root, limit=limit, seed=1)
    assert second.manifest == first.manifest and second.digest == first.digest
    assert all(torch.equal(first.read(row), second.read(row)) for row in range(len(first)))


def test_tables_are_opened_by_each(tmp_path: Path, write_table: Write, as_rank: Callable[[int], None]) -> None:
    table = write_table(tmp_path / "t.parquet", 5, label=list("abcab"))
    (out := tmp_path / "run").mkdir()
    as_rank(0)
    first = opened(out, table)
    as_rank(1)
    second = opened(out, table)
    assert second.manifest == first.manifest and torch.equal(first.read(3), second.read(3))
    write_table(tmp_path / "t.parquet", 4, label=list("abca"))
    with refused("t.parquet#4", "first process"):
        opened(out, table)


def test_shards_at_an_address_are_copied_by_no_other_process_before_the_start(
    tmp_path: Path, jpeg: Callable[[int], bytes], as_rank: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("memory")
    for split, rows in (("train", range(6)), ("val", range(6, 9))):
        with tarfile.open(fileobj=(content := io.BytesIO()), mode="w") as tar:
            for row in rows:
                for name, raw in ((f"{row}.jpg", jpeg(row)), (f"{row}.cls", b"01"[row % 2 :][:1])):
                    member = tarfile.TarInfo(name)
                    member.size = len(raw)
                    tar.addfile(member, io.BytesIO(raw))
        files.pipe(f"/kept/{split}-0.tar", content.getvalue())
    (out := tmp_path / "run").mkdir()

    def both_splits() -> list[ImageSet]:
        with pytest.MonkeyPatch.context() as patch, sharing(out, 1, 2):
            patch.setattr(ranks, "_start", "this")
            return [open_images("memory://kept/", split=split) for split in ("train", "val")]

    monkeypatch.setenv("SEMMAE_CACHE", str(tmp_path / "of the first machine"))
    as_rank(0)
    first = both_splits()
    monkeypatch.setenv("SEMMAE_CACHE", str(elsewhere := tmp_path / "of another"))
    as_rank(1)
    second = both_splits()
    assert not list(elsewhere.rglob("*.tar"))
    assert [images.manifest for images in second] == [images.manifest for images in first]
    assert all(torch.equal(first[1].read(row), second[1].read(row)) for row in range(3))
    assert len(list(elsewhere.rglob("*.tar"))) == 1  # that of what was read
    assert foreign_files(out) == []  # --overwrite may delete what is shared
    files.rm("/kept", recursive=True)


def test_other_files_than_those_of_the_first_process_are_refused(
    tmp_path: Path, write_images: Write, as_rank: Callable[[int], None]
) -> None:
    root = write_images(tmp_path / "photos", *MANY)
    (out := tmp_path / "run").mkdir()
    as_rank(0)
    opened(out, root)
    (root / "c1/39.jpg").write_bytes(b"shorter")
    as_rank(1)
    with refused("c1/39.jpg", "first process", "same images"):
        opened(out, root)
    for file in (out / SHARED).glob("*.npz"):
        file.write_bytes(file.read_bytes()[:200])
    with refused(SHARED, "not readable", "start all processes again"):
        opened(out, root)


def test_a_list_of_an_earlier_start_is_waited_out(
    tmp_path: Path, write_images: Write, as_rank: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images(tmp_path / "photos", *MANY)
    (out := tmp_path / "run").mkdir()
    as_rank(0)
    opened(out, root)
    monkeypatch.setattr(ranks, "_SILENCE", 0.1)
    as_rank(1)
    with refused("nothing was heard of the first process", "--out"), sharing(out, 1, 2):
        open_images(root)


def test_a_first_process_that_fails_is_noticed(tmp_path: Path, as_rank: Callable[[int], None]) -> None:
    as_rank(1)
    (alive := tmp_path / SHARED / "first.alive").parent.mkdir()
    with sharing(tmp_path, 1, 2):
        alive.write_text(ranks._start)
        timer = threading.Timer(0.3, alive.unlink)
        timer.start()
        with pytest.raises(SystemExit):  # in silence: a launcher has started all, and the first one says why
            wait_for("x")
        timer.join()


def test_a_refused_start_leaves_nothing(tmp_path: Path, as_rank: Callable[[int], None]) -> None:
    as_rank(0)
    with pytest.raises(RuntimeError), sharing(tmp_path, 1, 2):
        made("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_how_closely_images_are_looked_at(tmp_path: Path, write_images: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that breaks off passes by its header; what is no image does not, unless nothing is looked at."""
    root = write_images(tmp_path / "photos", *MANY)
    (root / "c1/01.jpg").write_bytes((root / "c1/01.jpg").read_bytes()[:-30])
    (root / "c1/03.jpg").write_text("a text, renamed")
    monkeypatch.setattr(module, "decode", None)
    assert len(open_images(root, check="none")) == 40
    headed = open_images(root, check="header")
    assert [name for name, _ in headed.manifest.skipped] == ["c1/03.jpg"]
    monkeypatch.setattr(module, "decode", decode)
    full = open_images(root)  # a header that was read says nothing of the rest
    assert [name for name, _ in full.manifest.skipped] == ["c1/01.jpg", "c1/03.jpg"]
    with refused("c1/01.jpg", "--check full"):
        headed.read(list(headed.names).index("c1/01.jpg"))


def test_headers_are_read_once(tmp_path: Path, write_images: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_images(tmp_path / "photos", *MANY)
    first = open_images(root, check="header")
    monkeypatch.setattr(folders, "read_bytes", None)
    assert open_images(root, check="header").manifest == first.manifest
