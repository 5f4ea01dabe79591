"""Tar shards give the very bytes that were put in, in their order, with their classes; what is odd is refused."""

import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import as_command
from refusals import refused

from semmae.data import shard_index
from semmae.data.manifest import build_manifest, open_images
from semmae.data.samplers import EpochSampler, by_window
from semmae.data.selection import InShards
from semmae.data.sources import has_split, open_source, split_names
from semmae.names import braced

Jpeg = Callable[[int], bytes]


def write_tar(path: Path, members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path, jpeg: Jpeg) -> Path:
    """Three shards of four images, classes by number."""
    for shard in range(3):
        members: dict[str, bytes] = {}
        for row in range(4 * shard, 4 * shard + 4):
            members |= {f"{row:06}.jpg": jpeg(row), f"{row:06}.cls": str(row % 2).encode()}
        write_tar(tmp_path / "shards" / f"shards-{shard:03}.tar", members)
    return tmp_path / "shards"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_bytes_names_sizes_and_classes(tmp_path: Path, jpeg: Jpeg, form: int) -> None:
    long = "a/" + "b" * 90 + "/1.jpg" if form == tarfile.USTAR_FORMAT else "ä/" + "b" * 150 + "/1.jpg"
    members = {"./0.jpg": jpeg(0), "./0.cls": b"7\n", long: jpeg(1), f"{long[:-4]}.cls": b"8"}
    source = open_source(write_tar(tmp_path / "x.tar", members, form))
    assert source.names == ["x.tar/0.jpg", f"x.tar/{long}"] and source.labels == ["7", "8"]
    assert [source.read(i) for i in range(2)] == [jpeg(0), jpeg(1)]
    assert source.sizes.tolist() == [len(jpeg(0)), len(jpeg(1))]
    assert pickle.loads(pickle.dumps(source)).read(1) == jpeg(1)


def test_a_folder_a_pattern_and_braces_mean_the_same(shards: Path, jpeg: Jpeg) -> None:
    whole = open_source(shards)
    assert [whole.read(i) for i in range(12)] == [jpeg(i) for i in range(12)]
    for data in (f"{shards}/shards-{{000..002}}.tar", f"{shards}/*.tar", f"{shards}/shards-{{000,001,002}}.tar"):
        other = open_source(data)
        assert other.names == whole.names and other.key == whole.key
        assert build_manifest(other, 1, cache=None).digest == build_manifest(whole, 1, cache=None).digest
    some = open_source(f"{shards}/shards-{{001..002}}.tar")
    assert some.names == whole.names[4:] and some.read(0) == jpeg(4)


def test_classes_are_those_of_cls_of_json_or_of_folders(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tmp_path / "d" / "x.tar"
    by_json = {"a.jpg": jpeg(0), "a.json": b'{"label": "cat"}', "b.jpg": jpeg(1), "b.json": b'{"label": 3}'}
    assert open_source(write_tar(path, by_json)).labels == ["cat", "3"]
    by_number = {"a.jpg": jpeg(0), "a.cls": b"1", "a.json": b"[]", "b.jpg": jpeg(1), "b.cls": b"0"}
    write_tar(path, by_number)
    os.utime(path, ns=(1, 1))
    assert open_source(path).labels == ["1", "0"]
    (path.parent / "classes.json").write_text('["cat", "dog"]')
    assert open_source(path).labels == ["dog", "cat"] and open_source(path.parent).labels == ["dog", "cat"]
    (path.parent / "classes.json").write_text('{"cat": 0}')
    with refused("classes.json", "list of names"):
        open_source(path)
    (path.parent / "classes.json").write_text('["cat"]')
    assert open_source(path).labels is None and "label 1" in open_source(path).class_note
    folders = write_tar(tmp_path / "y.tar", {"cat/1.jpg": jpeg(0), "dog/1.jpg": jpeg(1)})
    assert open_source(folders).labels == ["cat", "dog"]
    split = write_tar(tmp_path / "z.tar", {"train/cat/1.jpg": jpeg(0), "val/dog/1.jpg": jpeg(1)})
    assert open_source(split).labels == ["cat", "dog"]
    some = write_tar(tmp_path / "w.tar", {"1.jpg": jpeg(0), "1.cls": b"1", "2.jpg": jpeg(1)})
    source = open_source(some)
    assert source.labels is None and "1 of 2 rows have no label, such as w.tar/2.jpg" in source.class_note
    unknown = {"1.jpg": jpeg(0), "1.cls": b"-1", "2.jpg": jpeg(1), "2.cls": b"-1"}
    assert "no row has a label" in open_source(write_tar(tmp_path / "u.tar", unknown)).class_note
    bare = open_source(write_tar(tmp_path / "v.tar", {"1.jpg": jpeg(0)}))
    assert bare.labels is None and ".cls" in bare.class_remedy


def test_one_image_under_a_key(tmp_path: Path, jpeg: Jpeg) -> None:
    members = {
        "1.png": b"labels", "1.jpg": jpeg(0), "1.mask.png": b"x", "1.txt": b"a cat", "1.cls": b"0",
        "IMG.2020.01.jpg": jpeg(1), "IMG.2020.01.cls": b"1", "IMG.2020.02.jpg": jpeg(2), "IMG.2020.02.cls": b"1",
        ".hidden.jpg": b"x", "d/.jpg": b"x", "3.JPEG": jpeg(3), "3.cls": b"0",
    }  # fmt: skip
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert source.names == ["x.tar/1.jpg", "x.tar/IMG.2020.01.jpg", "x.tar/IMG.2020.02.jpg", "x.tar/3.JPEG"]
    assert source.labels == ["0", "1", "1", "0"]
    assert [source.read(i) for i in range(4)] == [jpeg(i) for i in range(4)]


def test_arrays_are_images_in_shards_of_their_own(tmp_path: Path, jpeg: Jpeg) -> None:
    """As in folders: beside pictures, under the same key or another, they are something else."""
    file = io.BytesIO()
    np.save(file, np.arange(120, dtype=np.uint16).reshape(4, 6, 5))
    array = {"a/1.npy": file.getvalue(), "a/1.cls": b"7", "a/1.txt": b"five bands", "a/2.npy": file.getvalue()}
    source = open_source(write_tar(tmp_path / "x.tar", {**array, "a/2.cls": b"8"}))
    assert source.names == ["x.tar/a/1.npy", "x.tar/a/2.npy"] and source.labels == ["7", "8"]
    assert source.read(1) == file.getvalue()
    beside = write_tar(tmp_path / "y.tar", {**array, "a/1.jpg": jpeg(0)})
    assert open_source(beside).names == ["y.tar/a/1.jpg"]


def test_splits_are_in_the_names_of_shards(tmp_path: Path, jpeg: Jpeg) -> None:
    for name in ("imagenet-train-000.tar", "imagenet-train-001.tar", "imagenet-validation-0.tar", "extra.tar"):
        write_tar(tmp_path / name, {f"{name[:-4]}.jpg": jpeg(0)})
    assert split_names(tmp_path) == {"train", "validation"} and has_split(tmp_path)
    train = [f"imagenet-train-00{n}" for n in (0, 1)]
    assert open_source(tmp_path, "train").names == [f"{name}.tar/{name}.jpg" for name in train]
    assert len(open_source(tmp_path, "val")) == 1 and len(open_source(tmp_path)) == 4
    both = f"{tmp_path}/imagenet-{{train-000,validation-0}}.tar"
    assert has_split(both) and len(open_source(both, "val")) == 1
    with refused("extra.tar", "val"):
        open_source(tmp_path / "extra.tar", "val")


def damaged(content: bytes, kind: str) -> bytes:
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512  # the mark of the end begins here
    return {
        "in an image": content[: end - 700],
        "between two": content[:end],
        "in a header": content[: content.index(b"000001.jpg") + 100],
        "a header": content.replace(b"000002.jpg", b"000009.jpg"),
        "empty": b"",
        "text": b"no tar at all",
        "zipped": b"\x1f\x8b" + bytes(2000),
        "zeros": bytes(10240),
    }[kind]


@pytest.mark.parametrize("kind", ["in an image", "between two", "in a header", "a header", "empty", "text", "zipped"])
def test_what_is_cut_off_or_no_tar_is_refused(shards: Path, kind: str) -> None:
    path = shards / "shards-000.tar"
    path.write_bytes(damaged(path.read_bytes(), kind))
    for data in (shards, path, f"{shards}/shards-{{000..002}}.tar"):
        with refused(path):
            open_source(data)


@pytest.fixture
def whole(tmp_path: Path, jpeg: Jpeg) -> Path:
    """A shard of 120 kB, some of whose members are longer than a record."""
    rng = np.random.default_rng(0)
    members = {f"{row}.jpg": jpeg(row) + rng.bytes(900 * row) for row in range(16)}
    return write_tar(tmp_path / "whole.tar", members)


def test_half_a_shard_in_room_for_all_of_it_is_refused(whole: Path, tmp_path: Path) -> None:
    """Wherever it stops, but within what may be padding, or in its last member, which decoding judges."""
    content, path = whole.read_bytes(), tmp_path / "half.tar"
    size, end = len(content), len(content.rstrip(b"\0"))
    for stop in range(1024, size - 30_000, 1000):
        path.write_bytes(content[:stop] + bytes(size - stop))
        with refused(path, f"of {size}"):
            open_source(path)
    assert size % 10240 == 0 and size - end < 11_000
    for more in (512, 10_240, 2**20, 3 * 2**20):
        path.write_bytes(content + bytes(size) + bytes(more))
        with refused(path, f"of {size * 2 + more}"):
            open_source(path)


@pytest.mark.parametrize("gap", [0, 512, 20_000, 2**21])
def test_more_behind_the_end_of_a_shard_is_refused(whole: Path, tmp_path: Path, jpeg: Jpeg, gap: int) -> None:
    second = write_tar(tmp_path / "second.tar", {"z.jpg": jpeg(99)}).read_bytes()
    path, content = tmp_path / "both.tar", whole.read_bytes() + bytes(gap)
    for more in (second, second[512:], b"x"):
        path.write_bytes(content + more)
        with refused(path, f"of {len(content + more)}"):
            open_source(path)


@pytest.mark.parametrize("blocks", [1, 2, 20, 32, 64, 128, 512, 2048])
def test_a_shard_is_whole_however_much_its_writer_pads(whole: Path, tmp_path: Path, blocks: int) -> None:
    """GNU tar writes records of any size; some writers no more than the mark of the end, or half of that."""
    names = [f"{row}.jpg" for row in range(16)]
    with tarfile.open(whole) as tar:
        for name in names:
            member = tar.extractfile(name)
            assert member is not None
            (tmp_path / name).write_bytes(member.read())
    path = tmp_path / "x.tar"
    tool = ["tar", "-C", str(tmp_path), "-b", str(blocks), "-cf", str(path)]
    for count in (1, 2, 15, 16):  # they end at different places in a record
        subprocess.run([*tool, *names[-count:]], check=True)
        assert path.stat().st_size % (512 * blocks) == 0
        assert len(open_source(path)) == count
        if blocks == 1:
            path.write_bytes(path.read_bytes()[:-512])
            assert len(open_source(path)) == count


def test_what_holds_no_images_or_lacks_shards_is_refused(shards: Path, jpeg: Jpeg) -> None:
    write_tar(shards.parent / "empty" / "a.tar", {})
    write_tar(shards.parent / "text" / "a.tar", {"1.txt": b"a"})
    for folder in ("empty", "text"):
        with refused(shards.parent / folder / "a.tar", "without images"):
            open_source(shards.parent / folder)
        shutil.copy(shards.parent / folder / "a.tar", shards / "shards-003.tar")
        with refused(shards / "shards-003.tar", "without images"):
            open_source(shards)
    (shards / "shards-003.tar").unlink()
    with refused("shards-000.tar 2 times"):
        open_source(f"{shards}/shards-{{000,000}}.tar")
    with refused("{000..004}", "shards-003.tar, shards-004.tar of 5", "missing"):
        open_source(f"{shards}/shards-{{000..004}}.tar")
    with refused(shards.parent / "gz", "archive", "unpack"):
        (shards.parent / "gz").mkdir()
        (shards.parent / "gz" / "shards-000.tar.gz").write_bytes(b"")
        open_source(shards.parent / "gz")


@pytest.mark.parametrize("name", ["/etc/1.jpg", "../1.jpg", "a/../../1.jpg"])
def test_names_that_lead_out_of_the_tar_are_refused(tmp_path: Path, jpeg: Jpeg, name: str) -> None:
    with refused(tmp_path / "x.tar", name):
        open_source(write_tar(tmp_path / "x.tar", {"1.jpg": jpeg(0), name: jpeg(1)}))


def test_a_name_that_comes_twice_is_refused(tmp_path: Path, jpeg: Jpeg) -> None:
    path = write_tar(tmp_path / "x.tar", {"1.jpg": jpeg(0), "./1.jpg": jpeg(1)})
    with refused(path, "'1.jpg' twice"):
        open_source(path)
    path = write_tar(tmp_path / "y.tar", {"1.jpg": jpeg(0), "1.json": b"{"})
    with refused(path, "1.json"):
        open_source(path)


def test_links_and_folders_are_passed_over(tmp_path: Path, jpeg: Jpeg, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind, name in ((tarfile.DIRTYPE, "d.jpg"), (tarfile.SYMTYPE, "l.jpg"), (tarfile.FIFOTYPE, "f.jpg")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("1.jpg")
        member.size = len(jpeg(0))
        tar.addfile(member, io.BytesIO(jpeg(0)))
    assert open_source(tmp_path / "x.tar").names == ["x.tar/1.jpg"]
    assert "2 links or devices" in caplog.text


def test_what_is_passed_over_is_said_once_for_all_shards(
    tmp_path: Path, jpeg: Jpeg, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        members = {"1.jpg": jpeg(0), "1.cls": b"1", "1.json": b"{}", "1.npy": b"x", "1.txt": b"a", "2.txt": b"b"}
        write_tar(tmp_path / f"{number}.tar", members)
    with caplog.at_level("INFO", "semmae"):
        assert len(open_source(tmp_path)) == 3
    (said,) = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert "6 .txt" in said and "3 .npy" in said and ".cls" not in said and ".json" not in said


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"Z"])
def test_a_member_of_negative_size_is_refused(tmp_path: Path, jpeg: Jpeg, kind: bytes) -> None:
    """Of an unknown kind too, behind which a reader would go back to where it was."""
    path = write_tar(tmp_path / "x.tar", {"0.jpg": jpeg(0), "h.jpg": jpeg(1)}, tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    header = content.index(b"h.jpg")
    content[header + 124 : header + 136] = (-1024).to_bytes(12, "big", signed=True)
    content[header + 156 : header + 157] = kind
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
    path.write_bytes(content)
    with refused(path, "h.jpg", -1024):
        open_source(path)


def test_a_strangers_name_is_no_line_and_no_command_of_a_terminal(tmp_path: Path, jpeg: Jpeg) -> None:
    name = "a\nsemmae: fake\x1b[31m\x9b.jpg"
    write_tar(tmp_path / "x.tar", {name: b"no image"} | {f"{row}.jpg": jpeg(row) for row in range(40)})
    write_tar(tmp_path / "y.tar", {name: b"no image"})
    for data, code in (("x.tar", 0), ("y.tar", 2)):
        packed = ["pack", "--data", str(tmp_path / data), "--out", str(tmp_path / f"{data}-packed"), "--workers", "1"]
        child = as_command(packed)
        assert child.ended(60) == code and r"\nsemmae: fake\x1b[31m\x9b.jpg" in child.output, child.output
        assert not {"\x1b", "\x9b"} & {*child.output} and "\nsemmae: fake" not in child.output


# The index


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose headers are read."""
    names: list[str] = []
    real = shard_index._Reader.members

    def members(reader: shard_index._Reader) -> shard_index.Members:
        names.append(reader.shard.name)
        return real(reader)

    monkeypatch.setattr(shard_index._Reader, "members", members)
    return names


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEMMAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_index_is_made_once_and_of_changed_shards_anew(
    shards: Path, cache: Path, read: list[str], jpeg: Jpeg
) -> None:
    first = open_source(shards)
    assert sorted(read) == [f"shards-{n:03}.tar" for n in range(3)]
    (file,) = (cache / "index").iterdir()
    assert file.suffix == ".npy" and np.load(file).dtype == np.int64
    read.clear()
    again = open_source(shards)
    assert read == [] and again.names == first.names and again.labels == first.labels
    assert [again.read(i) for i in range(12)] == [jpeg(i) for i in range(12)]
    write_tar(shards / "shards-001.tar", {"x.jpg": jpeg(50), "x.cls": b"5"})
    write_tar(shards / "shards-003.tar", {"y.jpg": jpeg(51), "y.cls": b"6"})
    changed = open_source(shards)
    assert sorted(read) == ["shards-001.tar", "shards-003.tar"]
    assert changed.names[4] == "shards-001.tar/x.jpg" and changed.read(4) == jpeg(50) and changed.labels[4] == "5"  # type: ignore[index]
    read.clear()
    assert len(open_source(f"{shards}/shards-{{000,002}}.tar")) == 8 and len(open_source(shards)) == 10 and read == []


@pytest.mark.parametrize(
    ("column", "values"),
    [((0, 1), (2**62, 2**62)), ((0, 1), (2**63 - 1, 1)), (0, -1), (1, 2**40), (2, 2), (2, -2)],
    ids=["sum overflows", "sum is one too large", "offset", "size", "label", "label below none"],
)
def test_an_index_that_leads_out_of_its_shards_is_made_anew(
    shards: Path, cache: Path, read: list[str], jpeg: Jpeg, column: Any, values: Any
) -> None:
    open_source(shards)
    (file,) = (cache / "index").iterdir()
    with file.open("rb") as content:
        arrays = [np.load(content) for _ in range(9)]
    assert arrays[2].shape == (12, 3)
    arrays[2][5, column] = values
    with file.open("wb") as content:
        for each in arrays:
            np.save(content, each)
    read.clear()
    source = open_source(shards)
    assert len(read) == 3 and [source.read(i) for i in range(12)] == [jpeg(i) for i in range(12)]


@pytest.mark.parametrize("damage", ["cut", "noise", "of others", "empty"])
def test_a_damaged_index_or_one_of_other_shards_is_made_anew(
    shards: Path, cache: Path, read: list[str], jpeg: Jpeg, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_source(shards)
    (file,) = (cache / "index").iterdir()
    content = file.read_bytes()
    if damage == "of others":
        write_tar(shards.parent / "other" / "a.tar", {"x.jpg": jpeg(50)})
        open_source(shards.parent / "other")
        (other,) = set((cache / "index").iterdir()) - {file}
        content = other.read_bytes()
    file.write_bytes(
        {"cut": content[:-9], "noise": content[:300] + b"\xff" * 40 + content[340:], "empty": b""}.get(damage, content)
    )
    read.clear()
    source = open_source(shards)
    assert len(read) == 3 and [source.read(i) for i in range(12)] == [jpeg(i) for i in range(12)]
    assert ("index of the shards not readable" in caplog.text) == (damage != "of others")
    read.clear()
    assert open_source(shards).names == source.names and read == []


def test_one_that_is_refused_does_not_cost_the_others(shards: Path, cache: Path, read: list[str]) -> None:
    content = (shards / "shards-002.tar").read_bytes()
    (shards / "shards-002.tar").write_bytes(content[:3000])
    with refused("shards-002.tar"):
        open_source(shards)
    (shards / "shards-002.tar").write_bytes(content)
    read.clear()
    assert len(open_source(shards)) == 12 and read == ["shards-002.tar"]


def test_without_a_cache_it_is_made_each_time(
    shards: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEMMAE_CACHE", str(tmp_path / "file"))
    assert len(open_source(shards)) == len(open_source(shards)) == 12 and len(read) == 6


def test_a_shard_that_changes_under_a_run_is_not_read(shards: Path, jpeg: Jpeg) -> None:
    images, path = open_images(shards, workers=1), shards / "shards-000.tar"
    sent = pickle.loads(pickle.dumps(images))  # has opened nothing yet
    content = path.read_bytes()
    (shards / "new").write_bytes(content[:2048] + b"\xff" + content[2049:])
    os.replace(shards / "new", path)
    assert images.source.read(0) == jpeg(0)  # the file that it has open
    with refused("shards-000.tar", "changed"):
        sent.read(0)
    assert sent.source.read(4) == jpeg(4)
    path.unlink()
    with refused("shards-000.tar"):
        pickle.loads(pickle.dumps(images)).read(1)


def test_more_shards_than_are_kept_open(shards: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semmae.data.shards._OPEN", 2)
    source, before = open_source(shards), len(os.listdir("/proc/self/fd"))
    rows = np.random.default_rng(0).integers(0, 12, 60).tolist()
    assert [source.read(i) for i in rows] == [jpeg(i) for i in rows]
    assert len(os.listdir("/proc/self/fd")) <= before + 2


# The order


def test_images_are_shuffled_by_shard_and_window() -> None:
    shards, sizes = np.repeat(np.arange(20), 10), np.full(200, 1000)
    order = by_window(shards, sizes, np.random.default_rng(0), window=4000)
    assert sorted(np.concatenate(order).tolist()) == list(range(200)) and {len(rows) for rows in order} == {40}
    windows = [sorted(set(shards[rows].tolist())) for rows in order]
    assert [len(window) for window in windows] == [4] * 5 and sorted(sum(windows, [])) == list(range(20))
    assert (np.diff(shards[order[0]]) != 0).sum() > 20  # in a window one shard does not follow the other
    assert windows[0] != list(range(4))
    again = by_window(shards, sizes, np.random.default_rng(0), window=4000)
    other = by_window(shards, sizes, np.random.default_rng(1), window=4000)
    assert np.array_equal(order, again) and not np.array_equal(order, other)


def test_where_all_fit_into_a_window_the_order_is_that_of_files() -> None:
    shards = InShards(np.repeat(np.arange(20), 10), np.full(200, 1000), ())
    of_files, of_shards = EpochSampler(200, 3), EpochSampler(200, 3, shards=shards)
    assert list(of_files) == list(of_shards)


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(by_window, "__defaults__", (2000,))
    yield


@pytest.mark.usefixtures("small_window")
def test_the_order_goes_on_where_it_stopped_and_on_other_ranks() -> None:
    shards = InShards(np.repeat(np.arange(20), 10), np.full(200, 1000), ())

    def sampler(ranks: int, rank: int) -> EpochSampler:
        made = EpochSampler(200, 3, num_replicas=ranks, rank=rank, shards=shards)
        made.set_epoch(5)
        return made

    whole = list(sampler(1, 0))
    assert whole != list(EpochSampler(200, 3)) and len(set(whole)) == 200
    resumed = sampler(1, 0)
    resumed.begin_at(5, 77)
    assert list(resumed) == whole[77:]
    pairs = zip(sampler(2, 0), sampler(2, 1), strict=True)
    assert [each for pair in pairs for each in pair] == whole


def test_few_images_of_many_shards_are_taken_by_shard_too(
    tmp_path: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(6):
        members = {f"{row}.jpg": jpeg(row) for row in range(20 * shard, 20 * shard + 20)}
        write_tar(tmp_path / "shards" / f"shards-{shard}.tar", members)
    images = open_images(tmp_path / "shards", limit=30).select(range(28))
    assert images.shards is not None
    numbers, sizes, _ = images.shards
    monkeypatch.setattr(by_window, "__defaults__", (2 * int(sizes.max()),))
    assert images.manifest.sizes.sum() < 2 * sizes.min()  # these alone would fit into a window
    shown = numbers[[row for _, row in EpochSampler(len(images), 3, shards=images.shards)]]
    last = {shard: place for place, shard in enumerate(shown.tolist())}
    opened = [sum(last[shard] >= place for shard in set(shown[: place + 1].tolist())) for place in range(len(shown))]
    assert set(numbers.tolist()) == set(range(6)) and max(opened) <= 3


# Braces


def test_braces_stand_for_what_a_shell_makes_of_them() -> None:
    assert braced("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert braced("a-{8..11}.tar") == ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]
    assert braced("{a,b}{0..1}") == ["a0", "a1", "b0", "b1"] and braced("a.tar") == ["a.tar"]
    faults = {"{a}.tar": "{a}", "{3..1}.tar": "down", "{0..999999}.tar": "1000000", "{0..9}" * 6: "limit"}
    for pattern, fact in faults.items():
        with refused(pattern, fact):
            braced(pattern)


def test_packed_labels_are_json_of_any_kind(tmp_path: Path, jpeg: Jpeg) -> None:
    content = {"label": None, "caption": ["a", {"b": 1}]}
    path = write_tar(tmp_path / "x.tar", {"1.jpg": jpeg(0), "1.json": json.dumps(content).encode()})
    assert open_source(path).labels is None
