"""Broken files are found before a run; nothing that was checked is decoded again."""

import csv
import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from refusals import refused

from semmae.data import manifest as module
from semmae.data.checked import cache_file, stamps
from semmae.data.compact import Labels, Names
from semmae.data.decode import decode
from semmae.data.manifest import ImageSet, Manifest, build_manifest, open_images, write_skipped
from semmae.data.sources import open_source
from semmae.files import write_csv

Write = Callable[..., Path]
MANY = [f"c{i % 2}/{i:02}.jpg" for i in range(40)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what was decoded, in place of a count of calls."""
    seen: list[int] = []

    def counting(raw: bytes, least: int | None = None, **how: Any) -> torch.Tensor:
        seen.append(len(raw))
        return decode(raw, least, **how)

    monkeypatch.setattr(module, "decode", counting)
    return seen


def test_a_few_broken_files_are_skipped_and_listed(
    tmp_path: Path, write_images: Write, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(tmp_path / "photos", *MANY)
    (root / "c1/01.jpg").write_bytes((root / "c1/01.jpg").read_bytes()[:500])
    (root / "c1/03.jpg").write_text("a text, renamed")
    images = open_images(root)
    assert len(images) == 38 and "c1/01.jpg" not in images.names
    assert images.manifest.skipped == (("c1/01.jpg", "truncated"), ("c1/03.jpg", "not an image"))
    assert images.labels == tuple(name[:2] for name in images.names)
    assert "2 of 40 images (5.0 %)" in caplog.text and "c1/01.jpg (truncated)" in caplog.text
    for row in (0, 20, 37):
        assert torch.equal(images.read(row), decode((root / images.names[row]).read_bytes()))
    write_skipped([images], tmp_path / "skipped.csv")
    with open(tmp_path / "skipped.csv", newline="") as file:
        assert list(csv.reader(file)) == [["name", "reason"], *map(list, images.manifest.skipped)]
    assert pickle.loads(pickle.dumps(images)).digest == images.digest


def test_above_five_percent_the_user_is_warned(tmp_path: Path, write_images: Write) -> None:
    root = write_images(tmp_path / "photos", *MANY)
    for name in ("c0/00.jpg", "c0/02.jpg", "c0/04.jpg", "c0/06.jpg"):
        (root / name).write_bytes(b"")
    named = [f"c0/0{number}.jpg (empty file)" for number in (0, 2, 4)]
    with refused(root, "4 of 40 images (10.0 %)", "limit 5 %", ", ".join(named), "1 more"):
        open_images(root)


def test_images_of_formats_that_are_not_decoded_count(
    tmp_path: Path, write_images: Write, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(tmp_path / "phone", "1.jpg", "2.jpg", *(f"{i}.JXL" for i in range(30)))
    (root / "notes.txt").write_text("x")
    with refused("30 of 32 images (93.8 %)", "30 .jxl", "limit 5 %", "convert") as caught:
        open_images(root)
    assert "convert" in str(caught.value)
    write_images(root, *(f"{i}.jpg" for i in range(60)))
    for i in range(3, 30):
        (root / f"{i}.JXL").unlink()
    images = open_images(root)
    assert len(images) == 60 and "3 .jxl among them" in caplog.text
    assert [name for name, _ in images.manifest.skipped] == ["0.JXL", "1.JXL", "2.JXL"]
    write_skipped([images], tmp_path / "skipped.csv")
    assert (tmp_path / "skipped.csv").read_text().count("convert") == 3


ODD = [b"c\xff/1.jpg", b"c\xff/\xfe.jpg", "ä/猫.jpg".encode(), b"b/2.jpg"]
_C_LOCALE = """
import os, sys
from pathlib import Path
from typing import Any
from semmae.data.checked import cache_file, stamps
from semmae.data.sources import open_source
from semmae.files import write_csv
assert sys.getfilesystemencoding() == "ascii"
source = open_source(sys.argv[1])
write_csv(Path(sys.argv[2]), [[name, label] for name, label in zip(source.names, source.labels, strict=True)])
assert all(len(source.read(row)) == source.sizes[row] for row in range(len(source)))
print(cache_file(Path(), source.key), stamps(source.names, source.sizes, source.modified).tolist())
"""


@pytest.fixture
def odd(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Path:
    """A folder whose name, folders and files are no UTF-8; of 61 images one is broken."""
    root = os.fsencode(tmp_path) + b"/photos \xff"
    for seed, name in enumerate([*ODD, *(b"b/%d.jpg" % i for i in range(100, 156))]):
        os.makedirs(os.path.dirname(root + b"/" + name), exist_ok=True)
        Path(os.fsdecode(root + b"/" + name)).write_bytes(jpeg(seed))
    Path(os.fsdecode(root + b"/c\xff/broken \xfd.jpg")).write_bytes(b"x")
    return Path(os.fsdecode(root))


def test_names_that_are_no_utf8_are_names(odd: Path, tmp_path: Path) -> None:
    images = open_images(odd)
    assert {os.fsencode(name) for name in images.names} >= set(ODD) and len(images) == 60
    assert set(images.labels or ()) == {"b", "ä", "c\udcff"}
    assert images.manifest.skipped == (("c\udcff/broken \udcfd.jpg", "not an image"),)
    assert all(images.read(row).shape == (3, 20, 28) for row in range(60))
    expected = hashlib.sha256()
    for name, size in zip(images.names, images.manifest.sizes, strict=True):
        expected.update(os.fsencode(name) + b"\0%d\n" % size)
    assert images.digest == expected.hexdigest()
    assert open_images(odd).manifest == images.manifest  # now from the cache
    copy = pickle.loads(pickle.dumps(images))
    assert copy.names == images.names and torch.equal(copy.read(3), images.read(3))
    write_skipped([images], tmp_path / "skipped.csv")
    assert b"c\xff/broken \xfd.jpg" in (tmp_path / "skipped.csv").read_bytes()


def test_the_locale_changes_nothing(odd: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", _C_LOCALE, os.fsencode(odd), tmp_path / "theirs.csv"]
    output = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert output.returncode == 0, output.stderr.decode(errors="replace")
    source = open_source(odd)
    write_csv(tmp_path / "ours.csv", zip(source.names, source.labels or (), strict=True))
    assert (tmp_path / "theirs.csv").read_bytes() == (tmp_path / "ours.csv").read_bytes()
    found = stamps(source.names, source.sizes, source.modified).tolist()
    assert output.stdout.decode().strip() == f"{cache_file(Path(), source.key)} {found}"


def test_what_is_no_file_is_a_row_of_skipped(tmp_path: Path, write_images: Write) -> None:
    root = write_images(tmp_path / "photos", *(f"{i}.jpg" for i in range(60)))
    os.mkfifo(root / "pipe.jpg")
    (root / "zero.jpg").symlink_to("/dev/zero")
    (root / "gone.jpg").symlink_to(root / "nowhere")
    images = open_images(root)
    assert len(images) == 60
    assert images.manifest.skipped == (
        ("gone.jpg", "No such file or directory"),
        ("pipe.jpg", "not a regular file"),
        ("zero.jpg", "not a regular file"),
    )


def test_only_new_changed_and_broken_files_are_decoded_again(
    tmp_path: Path, write_images: Write, decoded: list[int]
) -> None:
    root, cache = write_images(tmp_path / "photos", *MANY), tmp_path / "cache"

    def build() -> Manifest:
        decoded.clear()
        return build_manifest(open_source(root), 2, cache)

    first = build()
    assert len(decoded) == 40
    assert build() == first and decoded == []
    write_images(root, "c0/new.jpg")
    (root / "c1/01.jpg").write_bytes(b"broken")
    os.utime(root / "c1/03.jpg", ns=(1, 1))  # same size, other time
    assert len(build()) == 40 and len(decoded) == 3
    assert len(build()) == 40 and len(decoded) == 1  # what cannot be read may have been mended meanwhile
    assert [file.suffix for file in cache.iterdir()] == [".npy"]


def test_splits_share_one_cache(tmp_path: Path, write_images: Write, decoded: list[int]) -> None:
    root = write_images(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "val/b/3.jpg")
    assert len(open_images(root)) == 3
    decoded.clear()
    assert open_images(root, split="val").names == ("val/a/2.jpg", "val/b/3.jpg") and decoded == []


def test_a_check_that_was_interrupted_goes_on(tmp_path: Path, write_images: Write, decoded: list[int]) -> None:
    root, cache = write_images(tmp_path / "photos", *MANY), tmp_path / "cache"
    source = open_source(root)
    read = source.read

    def interrupted(i: int) -> bytes:
        if i == 20:
            raise KeyboardInterrupt
        return read(i)

    source.read = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        build_manifest(source, 1, cache)
    decoded.clear()
    assert len(build_manifest(open_source(root), 1, cache)) == 40 and len(decoded) == 20


def test_the_place_of_the_cache_is_a_path_like_others_and_costs_only_time(
    tmp_path: Path, write_images: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(tmp_path / "photos", *MANY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SEMMAE_CACHE", "~/cache")
    first = build_manifest(open_source(root), 1)
    assert len(list((tmp_path / "home/cache/readable").iterdir())) == 1
    for odd in ("x" * 3000, "~nobody_of_that_name/x", "/dev/null/x", "x/" * 2500):
        caplog.clear()
        monkeypatch.setenv("SEMMAE_CACHE", odd)
        assert build_manifest(open_source(root), 1) == first
        assert len([record for record in caplog.records if "checked again" in record.getMessage()]) == 1


def test_a_damaged_or_unwritable_cache_costs_only_time(
    tmp_path: Path, write_images: Write, caplog: pytest.LogCaptureFixture
) -> None:
    root, cache = write_images(tmp_path / "photos", *MANY), tmp_path / "cache"
    first = build_manifest(open_source(root), 1, cache)
    next(cache.iterdir()).write_bytes(b"damaged")
    assert build_manifest(open_source(root), 1, cache) == first and "not readable" in caplog.text
    (tmp_path / "file").write_text("in the way")
    assert build_manifest(open_source(root), 1, tmp_path / "file") == first and "not written" in caplog.text
    assert build_manifest(open_source(root), 1, None) == first


def listed(names: Sequence[str], sizes: Sequence[int], labels: Sequence[str] | None = None) -> Manifest:
    return Manifest(Names(names), np.array(sizes, dtype=np.int64), None if labels is None else Labels(labels))


def test_digest_is_over_names_and_sizes_in_their_order() -> None:
    # Golden: a changed digest would make every part store of earlier runs refuse its images.
    manifest = listed(("a/1.jpg", "b/2.jpg"), (10, 20))
    assert manifest.digest == "53491f28ee77292f64151906847c066c0109a19f0a587eb3912976c8359cef21"
    assert listed(("a/1.jpg", "b/2.jpg"), (10, 20), ("a", "b")).digest == manifest.digest
    others = [(("b/2.jpg", "a/1.jpg"), (20, 10)), (("a/1.jpg", "b/2.jpg"), (10, 21)), (("a/1.jpg",), (10,))]
    assert all(listed(names, sizes).digest != manifest.digest for names, sizes in others)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]) | st.just("\udcff")), st.integers(0, 2**62)))
)
def test_digest_is_that_of_the_formula_in_text(rows: list[tuple[str, int]]) -> None:
    text = "".join(f"{name}\0{size}\n" for name, size in rows)
    expected = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    assert listed([name for name, _ in rows], [size for _, size in rows]).digest == expected


def test_equal_are_manifests_of_equal_rows() -> None:
    rows = ("a/1.jpg", "b/2.jpg"), (10, 20), ("a", "b")
    others = [(("a/1.jpg", "b/3.jpg"), *rows[1:]), (rows[0], (10, 21), rows[2]), (*rows[:2], ("a", "a")), rows[:2]]
    assert listed(*rows) == listed(*rows) != dataclasses.replace(listed(*rows), skipped=(("x", "y"),))
    assert all(listed(*rows) != listed(*other) for other in others)


def test_rows_are_found_in_the_source_that_holds_more(tmp_path: Path, write_images: Write) -> None:
    source = open_source(write_images(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg"))
    whole = build_manifest(source, 1, None)
    some = ImageSet(source, whole.select([0, 2]))
    assert torch.equal(some.read(1), decode(source.read(2)))
    turned = some.select([1, 0])
    assert turned.names == ["a/3.jpg", "a/1.jpg"] and torch.equal(turned.read(0), decode(source.read(2)))
    for strange in (whole.select([2, 0]), listed(["b.jpg"], [1])):
        with pytest.raises(ValueError, match="order"):
            ImageSet(source, strange)


def test_limit_draws_a_seeded_sample_in_order(tmp_path: Path, write_images: Write, decoded: list[int]) -> None:
    root = write_images(tmp_path, *MANY)
    some = open_images(root, limit=7, seed=3)
    assert len(some) == 7 and len(decoded) == 7 and list(some.names) == sorted(some.names)
    assert open_images(root, limit=7, seed=3).digest == some.digest
    assert open_images(root, limit=7, seed=4).names != some.names
    assert open_images(root, limit=99).names == open_images(root).names
    subset = open_images(root).manifest.subset(7, 3)
    assert (subset.names, subset.labels, subset.digest) == (some.names, some.labels, some.digest)
    with refused("limit 0"):
        open_images(root, limit=0)


def test_a_file_that_goes_missing_later_is_named(tmp_path: Path, write_images: Write) -> None:
    images = open_images(write_images(tmp_path, "a/1.jpg", "a/2.jpg"))
    (tmp_path / "a/2.jpg").unlink()
    with refused("a/2.jpg"):
        images.read(1)


def test_tables_are_checked_too(tmp_path: Path, write_table: Write) -> None:
    images = open_images(write_table(tmp_path / "t.parquet", 5, label=list("abcab")))
    assert isinstance(images, ImageSet) and images.labels == tuple("abcab")
    assert images.read(3).shape == (3, 20, 28) and images.manifest.skipped == ()
