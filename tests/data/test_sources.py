"""What a folder, a file or a pattern means."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from semmae.data.sources import Selection, has_split, open_source
from semmae.errors import UserError

WriteImages = Callable[..., Path]


def test_folder_of_any_depth(tmp_path: Path, write_images: WriteImages) -> None:
    names = ["b/2.JPG", "b/deep/er/1.jpeg", "a/9.png", "a/10.webp", "b/x.TIFF"]
    write_images(tmp_path, *names, "a/.hidden.jpg", ".git/x.jpg")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    assert source.names == ["a/10.webp", "a/9.png", "b/2.JPG", "b/deep/er/1.jpeg", "b/x.TIFF"]
    assert source.labels == ["a", "a", "b", "b", "b"] and len(source) == 5
    for i, name in enumerate(source.names):
        assert source.read(i) == (tmp_path / name).read_bytes() and source.sizes[i] == len(source.read(i))
        assert source.modified[i] == (tmp_path / name).stat().st_mtime_ns
    assert open_source(str(tmp_path) + "/").names == source.names
    assert pickle.loads(pickle.dumps(source)).read(2) == source.read(2)


def test_images_outside_of_class_folders_have_no_classes(tmp_path: Path, write_images: WriteImages) -> None:
    assert open_source(write_images(tmp_path / "flat", "1.jpg", "2.jpg")).labels is None
    assert open_source(write_images(tmp_path / "mixed", "1.jpg", "a/2.jpg")).labels is None


def test_splits_are_not_classes(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "extra/b/4.jpg")
    whole = open_source(tmp_path)
    assert whole.names == ["extra/b/4.jpg", "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg"]
    assert whole.labels == ["b", "a", "b", "a"]
    train, val = open_source(tmp_path, split="train"), open_source(tmp_path, "val")
    assert (train.names, train.labels) == (["train/a/1.jpg", "train/b/2.jpg"], ["a", "b"])
    assert (val.names, val.labels) == (["val/a/3.jpg"], ["a"])
    assert train.key == val.key == whole.key
    assert has_split(tmp_path) and not has_split(tmp_path / "train")


def test_images_directly_in_the_splits(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "unlabelled/1.jpg", "train/2.jpg", "val/3.jpg")
    source = open_source(tmp_path)
    assert len(source) == 3 and source.labels is None
    assert open_source(tmp_path, "val").names == ["val/3.jpg"] and has_split(tmp_path)


def test_a_missing_split_is_told(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "shirt/1.jpg", "test/2.jpg")
    assert not has_split(tmp_path) and open_source(tmp_path).labels == ["shirt", "test"]
    with pytest.raises(UserError, match="no 'train' split, found shirt, test"):
        open_source(tmp_path, "train")


def test_globs(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "pool", "2023/a/1.jpg", "2024/a/2.jpg", "2024/b/3.png", "2025/c/4.jpg")
    folders = open_source(f"{tmp_path}/pool/202[34]")
    assert folders.names == ["2023/a/1.jpg", "2024/a/2.jpg", "2024/b/3.png"]
    assert folders.root == tmp_path / "pool"
    files = open_source(f"{tmp_path}/pool/**/*.jpg")
    assert files.names == ["2023/a/1.jpg", "2024/a/2.jpg", "2025/c/4.jpg"]
    assert files.read(2) == (tmp_path / "pool/2025/c/4.jpg").read_bytes()
    with pytest.raises(UserError, match="nothing matches"):
        open_source(f"{tmp_path}/pool/*.gif")


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path, write_images: WriteImages) -> None:
    assert open_source(write_images(tmp_path / "set[1]", "1.jpg")).names == ["1.jpg"]


def test_links_are_followed_once(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "elsewhere", "1.jpg")
    root = write_images(tmp_path / "root", "a/2.jpg")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = open_source(root)
    assert source.names == ["a/2.jpg", "a/gone.jpg", "b/1.jpg"]
    with pytest.raises(OSError, match="gone"):
        source.read(1)


def test_names_that_are_no_utf8(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "ä b.jpg")
    odd = os.fsencode(tmp_path) + b"/\xff.jpg"
    try:
        Path(os.fsdecode(odd)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    source = open_source(tmp_path)
    assert len(source) == 2 and source.read(source.names.index(os.fsdecode(b"\xff.jpg"))) == b"x"


def test_what_holds_no_images(tmp_path: Path, write_images: WriteImages, write_table: WriteImages) -> None:
    write_images(tmp_path / "photos", "1.jpg")
    for data, message in (
        (tmp_path / "phtos", r'phtos: no such file or folder; did you mean "photos"\?'),
        (tmp_path / "nothing" / "like" / "it", "no such file or folder; check the path"),
        (f"{tmp_path}/shards-{{000..009}}.tar", "tar shards are not supported yet"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images, found nothing"):
        open_source(tmp_path / "empty")
    (tmp_path / "empty" / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"found 1 files \(.txt\)"):
        open_source(tmp_path / "empty")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").write_bytes(b"")
    for data in (tmp_path / "shards", tmp_path / "shards" / "0.tar"):
        with pytest.raises(UserError, match="tar shards are not supported yet"):
            open_source(data)
    write_table(tmp_path / "photos" / "t.parquet", 2)
    with pytest.raises(UserError, match="1 image files and 1 Parquet files"):
        open_source(tmp_path / "photos")


def test_selection(tmp_path: Path, write_images: WriteImages) -> None:
    source = open_source(write_images(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg"))
    part = Selection(source, [0, 2])
    assert (part.names, part.labels, len(part)) == (["a/1.jpg", "b/3.jpg"], ["a", "b"], 2)
    assert part.read(1) == source.read(2) and part.sizes.tolist() == source.sizes[[0, 2]].tolist()


def test_street_fashion(shared: Path) -> None:
    root = shared / "data" / "street-fashion" / "images"
    if not root.is_dir():
        pytest.skip("needs the street-fashion photos, which are absent")
    assert len(open_source(root)) == 1898 and open_source(root).labels is None and has_split(root)
    assert [len(open_source(root, split)) for split in ("train", "val")] == [604, 200]
