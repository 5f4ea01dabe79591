"""Whole or not at all, and one reader of each form: what is written, what is left when that fails, what is refused."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from forked import Forked
from hypothesis import given, strategies as st
from refusals import refused
from safetensors.torch import save_file

from semmae import files
from semmae.errors import DiskError, UserError
from semmae.files.yaml import read_yaml

NAMES_NO_UTF8 = os.fsdecode(b"caf\xe9 \xff.jpg")


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises((ValueError, KeyboardInterrupt, DiskError)), files.whole(path) as beside:
        beside.write_text("half")
        raise failure
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a.txt", "old")]


def removed(run: Path) -> None:
    shutil.rmtree(run)


def moved(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def replaced(run: Path) -> None:
    """By another run, whose folder is not to be written to."""
    shutil.rmtree(run)
    run.mkdir()


@pytest.mark.parametrize("taken", [removed, moved, replaced])
@pytest.mark.parametrize("within", ["", "parts"])
def test_nothing_is_written_below_a_folder_that_was_taken_away(
    taken: Callable[[Path], None], within: str, tmp_path: Path
) -> None:
    """Neither by us nor by a library, whose error is explained by it; what lies elsewhere is written as ever."""
    run, stage = tmp_path / "run", tmp_path / "run" / within
    writes: list[Callable[[], object]] = [
        lambda: files.write_text(stage / "a.txt", "new"),
        lambda: files.write_text(stage / "deep" / "er" / "a.txt", "new"),
        lambda: files.make_folder(stage / "folder"),
        lambda: files.whole_folder(stage / "folder").__enter__(),
        lambda: files.check_guarded(stage / "metrics.jsonl"),
        lambda: (stage / "metrics" / "a.txt").open("a"),
    ]
    for write in writes:
        stage.mkdir(parents=True)
        with refused(f"--out {run}", "removed or moved"), files.guarded(run), files.guarded(stage):
            files.write_text(stage / "before.txt", "old")
            taken(run)
            files.write_text(tmp_path / "beside.txt", "new")
            write()
        assert list(run.rglob("*")) == []
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    files.write_text(run / "after.txt", "nobody guards it")


@pytest.mark.parametrize(
    "error", [ValueError("ours"), DiskError("full"), FileNotFoundError("another"), KeyboardInterrupt()]
)
def test_what_fails_while_the_folder_is_there_is_not_explained_by_it(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, files.guarded(tmp_path):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("place", ["/proc/x/a.txt", "/dev/null/a.txt", "x" * 300 + "/a.txt"])
def test_a_place_that_cannot_be_made_is_one_line(place: str) -> None:
    with refused():
        files.write_text(Path(place), "text")


def anything(place: Path) -> None:
    """Lets a folder be replaced, whatever it holds."""


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "encoder"
    with files.whole_folder(folder) as fresh:
        (fresh / "a").write_text("old")
    with pytest.raises(ValueError), files.whole_folder(folder, anything) as fresh:
        (fresh / "b").write_text("half")
        raise ValueError
    real, moves = os.rename, iter([True, False, True])
    with monkeypatch.context() as patch, pytest.raises(OSError), files.whole_folder(folder, anything) as fresh:
        patch.setattr(os, "rename", lambda a, b: real(a, b) if next(moves) else (_ for _ in ()).throw(OSError))
    assert [entry.name for entry in tmp_path.iterdir()] == ["encoder"]
    assert [entry.name for entry in folder.iterdir()] == ["a"]


def only_a(place: Path) -> None:
    if {entry.name for entry in place.iterdir()} - {"a"}:
        raise UserError(f"{place}: holds more than a; move it away")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def a_file_in(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "mine").write_text("mine")


def a_file(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("mine")


def a_link(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    a_file_in(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize("put", [a_file_in, a_file, a_link])
@pytest.mark.parametrize("before", ["nothing", "empty", "replaced"])
def test_what_is_put_in_a_folder_s_place_meanwhile_stays_and_so_does_what_was_made(
    put: Callable[[Path], None], before: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    if before != "nothing":
        folder.mkdir()
    if before == "replaced":
        (folder / "a").write_text("old")
    (tmp_path / "out-new").write_text("another's")
    with (
        refused(folder, tmp_path / "out-new-2"),
        files.whole_folder(folder, only_a if before == "replaced" else None) as fresh,
    ):
        (fresh / "a").write_text("new")
        put(folder)
        there = contents(tmp_path)
        there = {name: text for name, text in there.items() if files.PART not in name}
    assert contents(tmp_path) == there | {"out-new-2/a": "new"}
    assert list(tmp_path.glob(f".*{files.PART}")) == []


@pytest.mark.parametrize("moment", ["before it is out of reach", "in its place", "in its place, a file"])
def test_what_comes_while_a_folder_is_replaced_stays(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the first move; between the moves: then the old folder is kept beside it, too."""
    folder, real = tmp_path / "out", os.rename
    folder.mkdir()
    (folder / "a").write_text("old")

    def rename(source: Path, place: Path) -> None:
        if Path(source) == folder and moment == "before it is out of reach":
            a_file_in(folder)
        real(source, place)
        if Path(source) == folder and moment != "before it is out of reach":
            (a_file if "file" in moment else a_file_in)(folder)

    with refused(folder, tmp_path / "out-new"), files.whole_folder(folder, only_a) as fresh:
        (fresh / "a").write_text("new")
        monkeypatch.setattr(os, "rename", rename)
    old = {"out/a": "old"} if moment == "before it is out of reach" else {"out-old/a": "old"}
    mine = "out" if "file" in moment else "out/mine"
    assert contents(tmp_path) == {"out-new/a": "new", mine: "mine"} | old


def test_a_folder_is_written_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "out")
    for text, check in (("new", None), ("newer", only_a)):
        with files.whole_folder(tmp_path / "link", check) as fresh:
            (fresh / "a").write_text(text)
        assert contents(tmp_path / "elsewhere") == {"out/a": text} and (tmp_path / "link").is_symlink()
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["elsewhere", "link"]


def test_no_folder_is_to_take_the_place_of_a_mount() -> None:
    with refused("/proc", "mounted"):
        files.check_replaceable(Path("/proc"))


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    def killed() -> None:
        with files.whole(tmp_path / "below" / "a.txt") as beside:
            beside.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    child = Forked(killed)
    assert child.ended(60) == -signal.SIGKILL
    mine = [tmp_path / name for name in ("x.tmp", ".x.tmp", "x.semmae-part", "below/.encoder-1")]
    for path in mine:
        path.write_text("mine")
    assert len(list((tmp_path / "below").iterdir())) == 2
    files.sweep(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)


@pytest.mark.parametrize("name", ["last.ckpt", "x" * 200])
@pytest.mark.parametrize("moves", [1, 2])
def test_a_folder_that_was_to_be_replaced_is_put_back_after_a_kill(name: str, moves: int, tmp_path: Path) -> None:
    folder, real, left = tmp_path / name, os.rename, moves
    folder.mkdir()
    (folder / "a").write_text("old")

    def rename(source: Path, place: Path) -> None:
        nonlocal left
        left -= 1
        real(source, place)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        with pytest.MonkeyPatch.context() as patch, files.whole_folder(folder, anything) as fresh:
            (fresh / "a").write_text("new")
            patch.setattr(os, "rename", rename)

    assert Forked(killed).ended(60) == -signal.SIGKILL
    assert folder.exists() == (moves == 2)
    (files.sweep if len(name) < 50 else files.sweep_beside)(tmp_path if len(name) < 50 else folder)
    assert (folder / "a").read_text() == ("old" if moves == 1 else "new")
    if len(name) < 50:
        assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_what_was_written_beside_a_file_goes_with_it_unless_somebody_writes(tmp_path: Path) -> None:
    dead = Forked(lambda: 0)
    dead.ended(60)
    gone = dead.process.pid
    parent = os.getppid()
    kept = [f".ex.{parent}", f".ex.v2.{gone}", f".ex.{gone}x", ".ex.mine", f".other.{gone}"]
    for name in (f".ex.{gone}", *kept):
        (tmp_path / (name + files.PART)).mkdir()
    files.sweep_beside(tmp_path / "ex")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(name + files.PART for name in kept)


@pytest.mark.parametrize("name", ["x" * 255, "\N{PILE OF POO}" * 60, os.fsdecode(b"\xff" * 255)])
def test_long_names_are_written(tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """As on a disk that fills up: no file of this process grows beyond `most` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: path.write_bytes(bytes(100_000)),
    "torch": lambda path: torch.save({"a": torch.zeros(100_000)}, path),
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
}


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path, library: str) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with refused(path, error=DiskError), small_files(5000), files.whole(path) as beside:
        WRITERS[library](beside)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a", "old")]


def test_a_mapped_file_has_its_room_before_it_is_written_to(tmp_path: Path) -> None:
    """Else a full disk kills the process (SIGBUS) in the middle of its work."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1_000_000)
    files.reserve(path)
    assert path.stat().st_blocks * 512 >= 1_000_000


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**64), 2**64)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    content = {"value": value, "name": NAMES_NO_UTF8}
    files.write_json(path, content)
    assert files.read_json(path) == content
    path.read_bytes().decode("utf-8")  # for every other program


def test_csv_and_text_hold_names_as_the_bytes_they_are(tmp_path: Path) -> None:
    files.write_csv(tmp_path / "a.csv", [("name", "why"), (NAMES_NO_UTF8, 'a "b", c')])
    assert os.fsencode(NAMES_NO_UTF8) in (tmp_path / "a.csv").read_bytes()
    files.write_csv(tmp_path / "b.csv", [("name",), ("ä, b",)])
    assert files.read_csv(tmp_path / "b.csv") == [["name"], ["ä, b"]]


BAD = {
    "absent": None,
    "empty": b"",
    "not utf-8": b'{"a": "\xff"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "cut": b'{"a": 1',
    "a list": b"[1, 2]",
    "a number": b"3",
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not finite": b'{"a": NaN}',
    "infinite": b'{"a": -Infinity}',
    "binary": bytes(range(256)),
    "nulls": bytes(1000),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_json_is_one_line(tmp_path: Path, kind: str) -> None:
    path, content = tmp_path / "a.json", BAD[kind]
    if content is not None:
        path.write_bytes(content)
    with refused(path):
        files.read_json(path)


YAML = {
    **{kind: content for kind, content in BAD.items() if kind not in ("not finite", "infinite", "cut", "deep")},
    "cut": b"{a: 1",
    "tab": b"\ta: 1\n",
    "deep": b"a: " + b"[" * 20_000 + b"]" * 20_000,
    "bomb": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "code": b"a: !!python/object/apply:os.system [echo]\n",
    "huge": b"a: " + b"x" * 2_000_000,
    "twice": b"k: 1\na: 2\nk: 5\n",
    "twice, as text too": b"1: a\n'1': b\n",
    "twice below": b"a:\n  - {k: 1, k: 1}\n",
    "a list for a key": b"[a]: 1\n",
}


@pytest.mark.parametrize("kind", YAML)
def test_what_is_no_yaml_of_options_is_one_line(tmp_path: Path, kind: str) -> None:
    path, content = tmp_path / "a.yaml", YAML[kind]
    if content is not None:
        path.write_bytes(content)
    with refused(path):
        read_yaml(path)


def test_numbers_of_yaml_are_those_of_json_and_texts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1:30\nb: 010\nc: 1_000\nd: 190:20:30.15\ne: 0b1\nf: 10\ng: -3\nh: 1.5e-3\ni: 0\nj: 0x10\n")
    texts = {"a": "1:30", "b": "010", "c": "1_000", "d": "190:20:30.15", "e": "0b1", "j": "0x10"}
    assert read_yaml(path) == {**texts, "f": 10, "g": -3, "h": 1.5e-3, "i": 0}
    written = {str(n): text for n, text in enumerate([*texts.values(), "08", "0o7", "10", "1.5", "1e5", "+.inf", "-1"])}
    written |= {"numbers": [0, -7, 2**63, 1e-12, 1e300, 0.1, 123456789.125]}
    path.write_text(yaml.safe_dump(written))
    assert read_yaml(path) == written


def test_only_true_and_false_are_so_in_yaml_and_texts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: off\nb: On\nc: yes\nd: no\ne: true\nf: False\n")
    assert read_yaml(path) == {"a": "off", "b": "On", "c": "yes", "d": "no", "e": True, "f": False}
    written = {"a": "off", "b": "true", "c": "no", "d": True, "e": False}
    path.write_text(yaml.safe_dump(written))
    assert read_yaml(path) == written


def test_half_a_line_at_the_end_is_left_out_and_elsewhere_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a"')
    assert files.read_records(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with refused("line 2"):
        files.read_records(path)


@pytest.mark.parametrize("reader", [files.read_json, read_yaml, files.read_csv, files.read_records, files.read_text])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero")):
        before = time.monotonic()
        with refused(path):
            reader(path)
        assert time.monotonic() - before < 5


def test_a_file_of_terabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(2**41)
    with refused(path):
        files.read_json(path)


def test_fields_of_another_type_are_refused_with_their_name(tmp_path: Path) -> None:
    fields = files.Fields(tmp_path / "a.json", {"epochs": "many", "flag": True, "n": 3, "long": "x" * 1000})
    assert (fields.get("n", int), fields.get("absent", int, 7), fields.get("flag", bool)) == (3, 7, True)
    for name, kind in (("epochs", int), ("flag", int), ("long", int)):
        with refused(name):
            fields.need(name, kind)
    with refused("absent"):
        fields.need("absent", int)


def test_threads_write_one_file_at_a_time_each(tmp_path: Path) -> None:
    """Writers of different files in one process do not meet."""
    paths = [tmp_path / f"{number}.txt" for number in range(32)]
    threads = [threading.Thread(target=files.write_text, args=(path, path.name * 1000)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(path.read_text() == path.name * 1000 for path in paths)


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    code = (
        "import sys; from pathlib import Path; from semmae import files; path = Path(sys.argv[1]); "
        r"files.write_json(path, {'\xe4': 1}); assert files.read_json(path) == {'\xe4': 1}"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True)
    assert '"ä"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "is_utf16"),
    [
        ("name,reason\n".encode("utf-16"), True),
        ("name\n".encode("utf-16-be"), True),
        (b"name,reason\n" + b"\0" * 9, False),
        (b"\0" * 9, False),
    ],
)
def test_zero_bytes_are_another_encoding_or_damage(content: bytes, is_utf16: bool, tmp_path: Path) -> None:
    path = tmp_path / "skipped.csv"
    path.write_bytes(content)
    with refused(path) as raised:
        files.read_csv(path)
    assert ("UTF-16" in str(raised.value)) == is_utf16
