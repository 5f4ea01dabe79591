"""What a folder, a file or a pattern means."""

import glob
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refused

from semmae.data.selection import Selection
from semmae.data.sources import has_split, open_source

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


def test_a_missing_split_is_named(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "shirt/1.jpg", "test/2.jpg")
    assert not has_split(tmp_path) and open_source(tmp_path).labels == ["shirt", "test"]
    with refused("'train'", "shirt, test"):
        open_source(tmp_path, "train")


def test_globs(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "pool", "2023/a/1.jpg", "2024/a/2.jpg", "2024/b/3.png", "2025/c/4.jpg")
    folders = open_source(f"{tmp_path}/pool/202[34]")
    assert folders.names == ["2023/a/1.jpg", "2024/a/2.jpg", "2024/b/3.png"]
    assert folders.root == tmp_path / "pool"
    files = open_source(f"{tmp_path}/pool/**/*.jpg")
    assert files.names == ["2023/a/1.jpg", "2024/a/2.jpg", "2025/c/4.jpg"]
    assert files.read(2) == (tmp_path / "pool/2025/c/4.jpg").read_bytes()
    with refused("pool/*.gif"):
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


def test_links_in_circles_end_also_in_patterns(tmp_path: Path, write_images: WriteImages) -> None:
    """Two circles: `glob` would go through 2 to the power of 40 paths."""
    root = write_images(tmp_path / "root", "a/1.jpg", "b/2.jpg", "b/cats/3.png")
    for name in ("a/loop", "b/loop", "a/other"):
        (root / name).symlink_to(root)
    assert open_source(root).names == ["a/1.jpg", "b/2.jpg", "b/cats/3.png"]
    assert open_source(f"{root}/**/*.jpg").names == ["a/1.jpg", "b/2.jpg"]
    assert open_source(f"{root}/**/cats").names == ["b/cats/3.png"]


def test_patterns_mean_what_they_mean_to_glob(tmp_path: Path, write_images: WriteImages) -> None:
    names = ["1.jpg", "x/2.jpg", "x/y/3.jpg", "y/4.png", "x/y/z/5.jpg", "y.jpg/6.jpg"]
    root = write_images(tmp_path / "[1]", *names)
    escaped = glob.escape(str(root))
    for pattern in (
        "*",
        "*.jpg",
        "x/*",
        "*/y",
        "**",
        "**/*",
        "**/*.jpg",
        "x/**",
        "**/y/*",
        "**/y/**",
        "*/**/*.jpg",
        "[xy]*",
    ):
        expected = set()
        for match in map(Path, glob.glob(f"{escaped}/{pattern}", recursive=True)):
            expected |= {match} if match.is_file() else {path for path in match.rglob("*") if path.is_file()}
        source = open_source(f"{escaped}/{pattern}")
        assert {source.root / name for name in source.names} == expected, pattern


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
    for data, named in (
        (tmp_path / "phtos", ["phtos", '"photos"']),
        (tmp_path / "nothing" / "like" / "it", [tmp_path / "nothing" / "like" / "it"]),
        (f"{tmp_path}/shards-{{000..009}}.tar", ["10 shards", "missing"]),
    ):
        with refused(*named):
            open_source(data)
    (tmp_path / "empty").mkdir()
    with refused(tmp_path / "empty", "nothing"):
        open_source(tmp_path / "empty")
    (tmp_path / "empty" / "a.txt").write_text("a")
    with refused("1 files (1 .txt)"):
        open_source(tmp_path / "empty")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").write_bytes(b"")
    for data in (tmp_path / "shards", tmp_path / "shards" / "0.tar"):
        with refused("0.tar", "empty"):
            open_source(data)
    write_table(tmp_path / "photos" / "t.parquet", 2)
    with refused("1 image files", "1 Parquet files"):
        open_source(tmp_path / "photos")


def test_what_can_be_no_place_of_images(tmp_path: Path, write_images: WriteImages) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    for name in ("a.txt", "a.md"):
        (tmp_path / name).write_text("a")
    for name in ("a.zip", "a.tar.gz", "a.7z", "a.rar"):
        (tmp_path / name).write_bytes(b"PK")
    for data, named in (
        ("", ["empty"]),
        ("a\0b", ["'a\\x00b'", "NUL"]),
        ("a" * 300, ["a" * 77 + "…", "too long"]),
        ("/".join(["a" * 200] * 40), ["too long"]),
        (tmp_path / "circle", ["circle"]),
        ("~nobody-of-this-name/x", ["~nobody-of-this-name"]),
        ("/proc/x", ["/proc/x"]),
        (tmp_path / "a.txt" / "b", ["a.txt/b"]),
        (tmp_path / "pipe", ["pipe", "folder"]),
        ("/dev/null", ["device", "folder"]),
        (tmp_path / "a.md", ["1 files (1 .md)"]),
        *((tmp_path / name, [name, "unpack"]) for name in ("a.zip", "a.tar.gz", "a.7z", "a.rar")),
        (tmp_path, ["4 archives", "a.7z"]),
        ("https://example.org/photos.zip", ["address", "download"]),
        ("s3://bucket/photos", ["address", "download"]),
        (Path("s3://bucket/photos"), ["no path", "://"]),
        ("hf://datasets/owner/name", ["hf:NAME"]),
        ("https://example.org/" + "a" * 5000, ["address", "download"]),
    ):
        with refused(*named):
            open_source(data)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(
    tmp_path: Path, write_images: WriteImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, scandir = write_images(tmp_path, "a/1.jpg", "b/2.jpg"), os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with refused("/b", "permission denied"):
        open_source(root)


def test_what_is_passed_over_is_counted_by_its_ending(
    tmp_path: Path, write_images: WriteImages, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(tmp_path, "a/1.jpg", "b/2.jpg", "b/3.JXL")
    for name in ("a/1.txt", "b/2.TXT", "a/notes", "x.json", ".hidden"):
        (root / name).write_text("x")
    with caplog.at_level("INFO"):
        source = open_source(root)
    assert "2 .txt, 1 without an ending, 1 .json" in caplog.text
    # One that is not decoded is an image, which the manifest will miss.
    assert source.names == ["a/1.jpg", "b/2.jpg", "b/3.JXL"] and source.labels == ["a", "b", "b"]
    with pytest.raises(OSError, match="JPEG XL.*convert"):
        source.read(2)


def test_pictures_that_are_not_decoded_take_no_classes_away(tmp_path: Path, write_images: WriteImages) -> None:
    source = open_source(write_images(tmp_path, "a/1.jpg", "b/2.jpg", "logo.svg"))
    assert source.labels is not None and source.labels[:2] == ["a", "b"]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, write_images: WriteImages) -> None:
    root = write_images(tmp_path, "folder.jpg/1.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / "zero.jpg").symlink_to("/dev/zero")
    (root / "gone.jpg").symlink_to(root / "nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        place = os.getcwd()
        os.chdir(root)  # the path of a socket is short
        try:
            listener.bind("socket.jpg")
        finally:
            os.chdir(place)
        source = open_source(root)
        assert source.names == ["folder.jpg/1.jpg", "gone.jpg", "pipe.jpg", "socket.jpg", "zero.jpg"]
        assert len(source.read(0)) == source.sizes[0]
        for row in range(1, 5):
            with pytest.raises(OSError):
                source.read(row)


def test_why_there_are_no_classes(tmp_path: Path, write_images: WriteImages) -> None:
    flat = write_images(tmp_path / "flat", "train/a/1.jpg", "train/b/2.jpg", "val/3.jpg", "val/4.jpg")
    assert open_source(flat, "train").class_note == ""
    val = open_source(flat, "val")
    assert val.labels is None and "val" in val.class_note
    assert Selection(val, [0]).class_note == val.class_note
    some = open_source(write_images(tmp_path / "some", "a/1.jpg", "b/2.jpg", "3.jpg"))
    assert some.labels is None and "1 of 3 images" in some.class_note and "3.jpg" in some.class_note
    assert open_source(write_images(tmp_path / "none", "1.jpg", "2.jpg")).class_note == ""


def test_why_there_is_a_single_class(tmp_path: Path, write_images: WriteImages) -> None:
    """Class folders one level deeper, and the remedy that is given is one."""
    deep = write_images(tmp_path / "deep", "images/a/1.jpg", "images/b/2.jpg")
    source = open_source(deep)
    assert source.labels == ["images"] * 2 and "images in --data" in source.class_note
    assert open_source(deep / "images").labels == ["a", "b"]
    split = write_images(
        tmp_path / "split", *(f"{part}/images/{kind}/1.jpg" for part in ("train", "val") for kind in "ab")
    )
    assert "train/images, in 2 folders" in open_source(split, "train").class_note
    assert open_source(write_images(tmp_path / "one", "a/1.jpg", "a/x/2.jpg")).class_note == ""


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


def test_masks_are_no_images_to_learn_from(tmp_path: Path, write_images: WriteImages) -> None:
    root = write_images(tmp_path, "images/a/1.jpg", "images/b/2.jpg", "annotations/a/1.png")
    with refused("annotations", root / "images"):
        open_source(root)
    assert open_source(root / "images").labels == ["a", "b"]
    assert open_source(write_images(tmp_path, "shoes/3.jpg")).labels is not None  # classes of these names
