"""Lists of paths: in Python, in a text file, in a CSV file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refused

from semmae.data.manifest import open_images
from semmae.data.sources import has_split, open_source

Write = Callable[..., Path]
NAMES = ["dog/3.jpg", "cat/1.jpg", "cat/2.jpg"]


@pytest.fixture
def root(tmp_path: Path, write_images: Write) -> Path:
    """Three images, not sorted."""
    return write_images(tmp_path / "photos", *NAMES)


def test_a_text_file_in_its_order(root: Path) -> None:
    (root / "list.txt").write_text("\n".join([NAMES[0], "", str(root / NAMES[1]), f"./cat/../{NAMES[2]}  "]) + "\r\n")
    source = open_source(root / "list.txt")
    assert source.names == NAMES and source.labels is None and source.root.samefile(root)
    assert [source.read(i) for i in range(3)] == [(root / name).read_bytes() for name in NAMES]
    assert not has_split(root / "list.txt")
    (root / "list.txt").write_text("\n".join(sorted(NAMES)))
    assert open_images(root / "list.txt").digest == open_images(f"{root}/*/*.jpg").digest
    with refused("'val'"):
        open_source(root / "list.txt", "val")


def test_names_of_part_of_a_folder_stay(root: Path) -> None:
    (root / "cats.txt").write_text("\n".join(NAMES[1:]))
    assert open_source(root / "cats.txt").names == NAMES[1:]
    (root.parent / "lists").mkdir()
    (root.parent / "lists" / "all.txt").write_text("\n".join(f"../photos/{name}" for name in NAMES))
    elsewhere = open_source(root.parent / "lists" / "all.txt")
    assert elsewhere.names == NAMES and elsewhere.read(1) == (root / NAMES[1]).read_bytes()


def test_a_table_with_labels(root: Path) -> None:
    (root / "list.csv").write_text("label,path\n" + "".join(f'"{name[:3]}s, both", {name}\n' for name in NAMES))
    source = open_source(root / "list.csv")
    assert source.names == NAMES and source.labels == ["dogs, both", "cats, both", "cats, both"]
    (root / "list.csv").write_text("path\n" + "\n".join(NAMES))
    assert open_source(root / "list.csv").labels is None
    (root / "list.csv").write_text(
        "path,label\n" + "\n".join(f"{name},{i}" for name, i in zip(NAMES, "ab ", strict=True))
    )
    source = open_source(root / "list.csv")
    assert source.labels is None and "1 of 3 rows" in source.class_note


def test_paths_in_python(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    whole = open_source([Path(NAMES[0]), str(root / NAMES[1])])
    assert whole.names == NAMES[:2] and whole.root.samefile(root)
    one = open_source((NAMES[1],))
    assert one.names == ["1.jpg"] and one.read(0) == (root / NAMES[1]).read_bytes()


def test_names_that_are_no_utf8(root: Path) -> None:
    odd = os.fsencode(root) + b"/\xff.jpg"
    Path(os.fsdecode(odd)).write_bytes((root / NAMES[0]).read_bytes())
    (root / "list.txt").write_bytes(b"\xff.jpg\n")
    assert open_source(root / "list.txt").read(0) == (root / NAMES[0]).read_bytes()


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("list.txt", "\n \n", ["empty"]),
        ("list.txt", "cat/1.jpg\nno/1.jpg\nno/2.jpg\nno/3.jpg\n", ["'no/1.jpg' (line 2)", "2 more", "missing"]),
        ("list.txt", "cat/1.jpg\nno\0.jpg\n", ["missing"]),
        ("list.txt", "cat/1.jpg\ncat\n", ["'cat' (line 2)", "folder"]),
        ("list.txt", "cat/1.jpg\n./cat/1.jpg\n", ["twice", "line 1", "line 2"]),
        ("list.txt", "a.parquet\n", ["table"]),
        ("list.csv", "cat/1.jpg\ncat/2.jpg\n", ['"path"']),
        ("list.csv", "", ['"path"']),
        ("list.csv", "path\n", ["empty"]),
        ("list.csv", "path,label\ncat/1.jpg,1\ncat/2.jpg\n", ["line 3", "2 values"]),
    ],
)
def test_a_wrong_list_is_one_line(root: Path, file: str, text: str, named: list[str]) -> None:
    (root / file).write_text(text)
    with refused(root / file, *named):
        open_images(root / file)


def test_a_wrong_list_in_python_is_one_line(root: Path) -> None:
    for paths, named in (
        ([root / "cat", root / "dog"], ["folder"]),
        ([root / NAMES[0], root / NAMES[0]], ["twice", "item 0", "item 1"]),
        ([root / NAMES[0], ""], []),
        (["http://a.b/c.jpg"], ["missing"]),
    ):
        with refused(f"list of {len(paths)} path", *named):
            open_images(paths)
