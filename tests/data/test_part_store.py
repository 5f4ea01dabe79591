"""The store keeps rows over restarts, and refuses what does not belong to it."""

import hashlib
import json
import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused

from semmae.data import part_store
from semmae.data.part_store import PartStore
from semmae.errors import UserError

NAMES = ["background", "head", "body"]


def create(path: Path, **changes: object) -> PartStore:
    values = {"images": 6, "grid": 4, "label_names": NAMES, "teacher_digest": "t1", "manifest_digest": "m1"}
    return PartStore.create(path, **(values | changes))  # type: ignore[arg-type]


def random_labels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, (count, 4, 4)).astype(np.uint8)


def test_written_in_two_goes_and_read_back(tmp_path: Path) -> None:
    labels = random_labels(6)
    store = create(tmp_path / "p", extra={"seed": 3})
    assert store.missing().tolist() == [0, 1, 2, 3, 4, 5]
    store.write(np.array([4, 1]), labels[[4, 1]])
    del store
    resumed = create(tmp_path / "p")
    assert resumed.missing().tolist() == [0, 2, 3, 5] and not resumed.complete
    resumed.write(torch.tensor([0, 2, 3, 5]), torch.from_numpy(labels[[0, 2, 3, 5]]).long())
    resumed.finish()
    opened = PartStore.open(tmp_path / "p", manifest_digest="m1")
    assert np.array_equal(opened.labels, labels) and opened.labels.dtype == np.uint8
    assert (opened.num_labels, opened.label_names, opened.grid, opened.images) == (3, NAMES, 4, 6)
    assert opened.teacher_digest == "t1" and opened.extra == {"seed": 3} and opened.complete
    assert opened.has_background and not create(tmp_path / "q", label_names=["part 1", "background"]).has_background


def test_two_writers_of_disjoint_rows(tmp_path: Path) -> None:
    labels = random_labels(6)
    first, second = create(tmp_path / "p"), create(tmp_path / "p")
    first.write(np.arange(0, 6, 2), labels[0::2])
    second.write(np.arange(1, 6, 2), labels[1::2])
    first.finish()
    assert np.array_equal(PartStore.open(tmp_path / "p", manifest_digest=None).labels, labels)


def test_a_row_written_in_part_is_missing(tmp_path: Path) -> None:
    store = create(tmp_path / "p")
    store.write(np.arange(6), random_labels(6))
    store.labels[3, 2, 1] = 255
    assert store.missing().tolist() == [3]
    with pytest.raises(ValueError, match="1 of 6"):
        store.finish()


def test_unfinished_store_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "p").write(np.array([0]), random_labels(1))
    with refused("5 of 6 images"):
        PartStore.open(tmp_path / "p")


def test_other_images_are_refused_with_both_digests(tmp_path: Path) -> None:
    store = create(tmp_path / "p")
    store.write(np.arange(6), random_labels(6))
    store.finish()
    with refused("m1", "m2"):
        PartStore.open(tmp_path / "p", manifest_digest="m2")
    with refused("manifest_digest m1, not m2"):
        create(tmp_path / "p", manifest_digest="m2")
    with refused("grid 4, not 8"):
        create(tmp_path / "p", grid=8)


def whole(path: Path, **changes: object) -> Path:
    """A complete store with attention, made of `random_labels` and `random_attention`."""
    store = create(path, attention_grid=2, **changes)
    store.write(np.arange(6), random_labels(6))
    store.write_attention(np.arange(6), random_attention(6))
    store.finish()
    return path


def other_array(path: Path, seed: int = 9) -> None:
    np.save(path / "parts.npy", random_labels(6, seed))


def cut(path: Path, size: int) -> None:
    (path / "parts.npy").write_bytes((path / "parts.npy").read_bytes()[:size])


def one_value(path: Path, name: str, value: int) -> None:
    rows = np.load(path / name, mmap_mode="r+")
    rows[3, 1, 1] = value
    rows.flush()


def by_columns(path: Path) -> None:
    np.save(path / "parts.npy", np.asfortranarray(random_labels(6)))


def fifo(path: Path) -> None:
    (path / "parts.npy").unlink()
    os.mkfifo(path / "parts.npy")


def header(path: Path, text: str) -> None:
    head = text.encode().ljust(117) + b"\n"
    (path / "parts.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)


def archive(path: Path) -> None:
    np.savez(path / "parts", random_labels(6))
    (path / "parts.npz").rename(path / "parts.npy")


ARRAYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another of the same form": (other_array, "parts.npy is not the array"),
    "another label at one place": (lambda path: one_value(path, "parts.npy", 1), "parts.npy is not the array"),
    "other attention": (lambda path: one_value(path, "attention.npy", 77), "attention.npy is not the array"),
    "a label without a name": (lambda path: one_value(path, "parts.npy", 3), "parts.npy holds 3, where"),
    "a cell not computed": (lambda path: one_value(path, "parts.npy", 255), "parts.npy holds 255, where"),
    "attention not computed": (lambda path: one_value(path, "attention.npy", 255), "attention.npy holds 255, where"),
    "empty": (lambda path: cut(path, 0), "parts.npy cannot be read"),
    "half a header": (lambda path: cut(path, 60), "parts.npy cannot be read"),
    "a header alone": (lambda path: cut(path, 128), "parts.npy cannot be read (128 bytes, 224 by its header)"),
    "a row less": (lambda path: cut(path, -16), "parts.npy cannot be read (208 bytes, 224 by its header)"),
    "no array": (lambda path: (path / "parts.npy").write_bytes(b"no array"), "parts.npy cannot be read"),
    "an archive": (archive, "parts.npy cannot be read"),
    "other numbers": (lambda path: np.save(path / "parts.npy", np.zeros((6, 4, 4))), "holds float64 (6, 4, 4)"),
    "objects": (
        lambda path: np.save(path / "parts.npy", np.array([None] * 6), allow_pickle=True),
        "parts.npy cannot be read",
    ),
    "fewer images": (lambda path: np.save(path / "parts.npy", random_labels(5)), "holds uint8 (5, 4, 4), parts.json"),
    "by columns": (by_columns, "holds uint8 (6, 4, 4) by columns, parts.json says"),
    "a FIFO": (fifo, "parts.npy cannot be read"),
    "a folder": (lambda path: ((path / "parts.npy").unlink(), (path / "parts.npy").mkdir()), "cannot be read"),
    "missing": (lambda path: (path / "parts.npy").unlink(), "parts.npy cannot be read"),
    "a header of no literal": (lambda path: header(path, "(" * 110), "parts.npy cannot be read"),
    "a header of other keys": (lambda path: header(path, "{1: 2, 'a': 3}"), "parts.npy cannot be read"),
    "a header of a huge shape": (
        lambda path: header(path, "{'descr': '|u1', 'fortran_order': False, 'shape': (10**9,) }"),
        "parts.npy cannot be read",
    ),
    "a header of many images": (
        lambda path: header(path, "{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999, 4, 4)}"),
        "parts.npy cannot be read",
    ),
}


@pytest.mark.parametrize("damage", ARRAYS)
def test_an_array_that_is_not_its_own_is_refused(damage: str, tmp_path: Path) -> None:
    """By whoever reads the labels, and by whoever would go on with them and mark them complete anew."""
    act, named = ARRAYS[damage]
    path = whole(tmp_path / "p")
    act(path)
    size = (path / "parts.npy").stat().st_size if (path / "parts.npy").exists() else 0
    for use in (lambda: PartStore.open(path), lambda: create(path, attention_grid=2)):
        with pytest.raises(UserError) as caught:
            use()
        message = str(caught.value)
        assert str(path) in message and named in message and "\n" not in message and len(message) < 500
        assert f"semmae parts --out {path} --labels-only" in message
    assert size == ((path / "parts.npy").stat().st_size if (path / "parts.npy").exists() else 0)
    # The remedy helps.
    (path / "parts.json").unlink()
    if (path / "parts.npy").is_dir():
        (path / "parts.npy").rmdir()
    whole(path)
    assert np.array_equal(PartStore.open(path).labels, random_labels(6))


def test_a_begun_store_with_labels_that_nobody_wrote_is_refused(tmp_path: Path) -> None:
    store = create(tmp_path / "p")
    store.write(np.array([3]), random_labels(1))
    assert create(tmp_path / "p").missing().tolist() == [0, 1, 2, 4, 5]
    store.labels[3, 1, 1] = 3
    with refused("parts.npy", "3", "0 to 2"):
        create(tmp_path / "p")


FACTS: dict[str, tuple[object, str]] = {
    "images": ("6", "images is '6'"),
    "grid": (4.0, "grid is 4.0"),
    "label_names": ({"a": 1}, "label_names is {'a': 1}"),
    "teacher_digest": (None, "teacher_digest is None"),
    "learner_digest": ([1] * 1000, "learner_digest is [1, 1"),
    "manifest_digest": (True, "manifest_digest is True"),
    "attention_grid": (-1, "attention_grid is -1"),
    "extra": ("x", "extra is 'x'"),
    "complete": (1, "complete is 1"),
    "arrays": ({"parts.npy": 3}, "arrays is {'parts.npy': 3}"),
}


@pytest.mark.parametrize("name", FACTS)
def test_edited_facts_are_refused_with_their_value(name: str, tmp_path: Path) -> None:
    path = whole(tmp_path / "p")
    file, meta = path / "parts.json", json.loads((path / "parts.json").read_text())
    value, named = FACTS[name]
    for content, words in (
        (meta | {name: value}, named),
        ({key: fact for key, fact in meta.items() if key != name}, f"lacks {name}"),
    ):
        file.write_text(json.dumps(content))
        for use in (lambda: PartStore.open(path), lambda: create(path, attention_grid=2)):
            with refused(file, words):
                use()


@pytest.mark.parametrize(
    "change", [{"images": 0}, {"images": 10**30}, {"grid": 10**9}, {"label_names": []}, {"label_names": ["a"] * 256},
               {"label_names": ["a", 1, "b"]}, {"arrays": {}}, {"label_names": ["a", "b"]}]
)  # fmt: skip
def test_facts_out_of_bounds_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = whole(tmp_path / "p")
    meta = json.loads((path / "parts.json").read_text())
    (path / "parts.json").write_text(json.dumps(meta | change))
    with refused():
        PartStore.open(path)


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff\xfe{", b'{"a":' * 50_000, b'{"images": NaN}'])
def test_facts_that_are_no_object_are_refused(content: bytes, tmp_path: Path) -> None:
    path = whole(tmp_path / "p")
    (path / "parts.json").write_bytes(content)
    with refused("parts.json"):
        PartStore.open(path)
    with refused(tmp_path / "none"):
        PartStore.open(tmp_path / "none")


def test_a_run_of_pretrain_that_made_parts_stands_for_them(tmp_path: Path) -> None:
    path = whole(tmp_path / "run" / "parts")
    store = PartStore.open(tmp_path / "run")
    assert store.path == path and np.array_equal(store.labels, PartStore.open(path).labels)
    assert np.array_equal(pickle.loads(pickle.dumps(store)).labels, store.labels)


def test_the_digest_is_that_of_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_store, "_BLOCK", 4)
    path = whole(tmp_path / "p")
    parts = hashlib.sha256(random_labels(6)[:4].tobytes()).digest(), hashlib.sha256(random_labels(6)[4:]).digest()
    wanted = json.loads((path / "parts.json").read_text())["arrays"]["parts.npy"]
    assert wanted == hashlib.sha256(b"".join(parts)).hexdigest()
    one_value(path, "parts.npy", 1)
    with refused("parts.npy"):
        PartStore.open(path)


def test_labels_beyond_the_names_are_refused(tmp_path: Path) -> None:
    store = create(tmp_path / "p")
    for bad in (3, -1, 255):
        with pytest.raises(ValueError, match="0 to 2"):
            store.write(np.array([0]), np.full((1, 4, 4), bad))
    assert len(store.missing()) == 6
    with pytest.raises(ValueError, match="256 labels"):
        create(tmp_path / "q", label_names=[str(i) for i in range(256)])


def test_read_only_and_picklable_without_its_array(tmp_path: Path) -> None:
    store = create(tmp_path / "p")
    store.write(np.arange(6), random_labels(6))
    store.finish()
    opened = PartStore.open(tmp_path / "p")
    with pytest.raises(ValueError, match="read-only"):
        opened.labels[0] = 0
    raw = pickle.dumps(opened)
    assert len(raw) < 1000 and np.array_equal(pickle.loads(raw).labels, opened.labels)


def test_every_change_is_named_in_one_line(tmp_path: Path) -> None:
    create(tmp_path / "p", learner_digest="l1")
    with refused("images 6, not 7", "manifest_digest m1, not m2", "teacher_digest t1, not t2", "l1, not l2"):
        create(tmp_path / "p", images=7, manifest_digest="m2", teacher_digest="t2", learner_digest="l2")
    assert create(tmp_path / "p", learner_digest="l1").digests == {
        "teacher_digest": "t1", "learner_digest": "l1", "manifest_digest": "m1",
    }  # fmt: skip


def random_attention(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 2, 2)).astype(np.uint8)


def test_attention_lies_beside_the_labels(tmp_path: Path) -> None:
    labels, attention = random_labels(6), random_attention(6)
    store = create(tmp_path / "p", attention_grid=2)
    store.write_attention(torch.tensor([0, 2, 3]), torch.from_numpy(attention[[0, 2, 3]]))
    store.write(np.arange(6), labels)
    resumed = create(tmp_path / "p", attention_grid=2)
    assert resumed.missing().tolist() == [1, 4, 5] and not resumed.unlabelled(slice(0, 6)).any()
    resumed.write_attention(np.arange(6), attention)
    resumed.attention[3, 1, 1] = 255
    with pytest.raises(ValueError, match="1 of 6"):
        resumed.finish()
    resumed.write_attention(np.array([3]), attention[3:4])
    resumed.finish()
    opened = pickle.loads(pickle.dumps(PartStore.open(tmp_path / "p")))
    assert np.array_equal(opened.attention, attention) and opened.attention.dtype == np.uint8
    with refused("attention_grid 2, not 3"):
        create(tmp_path / "p", attention_grid=3)
    np.save(tmp_path / "p" / "attention.npy", np.zeros((6, 3, 3), np.uint8))
    with refused("attention.npy", "(6, 3, 3)", "parts.json", "(6, 2, 2)"):
        PartStore.open(tmp_path / "p")


def test_a_store_made_without_attention_gets_it_and_keeps_its_labels(tmp_path: Path) -> None:
    store, labels = create(tmp_path / "p"), random_labels(6)
    store.write(np.arange(6), labels)
    store.finish()
    old = PartStore.open(tmp_path / "p")
    assert np.array_equal(old.labels, labels)
    with refused("--labels-only"):
        old.attention  # noqa: B018
    with refused("grid 4, not 8"):
        create(tmp_path / "p", attention_grid=2, grid=8)
    assert PartStore.open(tmp_path / "p").complete  # what was refused has changed nothing
    store = create(tmp_path / "p", attention_grid=2)
    assert store.missing().tolist() == [0, 1, 2, 3, 4, 5] and not store.unlabelled(slice(0, 6)).any()
    with refused("6 of 6 images"):
        PartStore.open(tmp_path / "p")
    store.write_attention(np.arange(6), random_attention(6))
    store.finish()
    assert np.array_equal(PartStore.open(tmp_path / "p").labels, labels)


def test_a_store_killed_as_it_was_made_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files come one after the other; `parts.json`, the last, says that there is a store."""
    for survived in range(3):
        renamed = []

        def replace(source: Path, target: Path, survived: int = survived, renamed: list[Path] = renamed) -> None:
            if len(renamed) == survived:
                raise KeyboardInterrupt
            renamed.append(target)
            source.rename(target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.replace", replace)
            create(tmp_path / str(survived), attention_grid=2)
        assert not (tmp_path / str(survived) / "parts.json").exists()
        assert len(create(tmp_path / str(survived), attention_grid=2).missing()) == 6


def test_a_worker_process_reads_no_row(tmp_path: Path) -> None:
    """1.3 million rows, none of them on the disk: reading them would bring in 250,000 pages, mapped 130 at a time."""
    store = create(tmp_path / "p")
    store.write(np.arange(6), random_labels(6))
    store.finish()
    path, meta = tmp_path / "p" / "parts.npy", json.loads((tmp_path / "p" / "parts.json").read_text())
    with open(path, "wb") as file:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (1_300_000, 28, 28)}
        np.lib.format.write_array_header_1_0(file, shape)
        file.truncate(file.tell() + 1_300_000 * 28 * 28)
    opened = PartStore(tmp_path / "p", meta | {"images": 1_300_000, "grid": 28}, writable=False)
    assert path.stat().st_size <= 800 * 1_300_000
    sent = pickle.dumps(opened)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    there = pickle.loads(sent)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 500
    assert there.labels[1_299_999].sum() == 0
