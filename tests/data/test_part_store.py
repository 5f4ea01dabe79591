"""The store keeps rows over restarts, and refuses what does not belong to it."""

import json
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

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
    with pytest.raises(UserError, match="5 of 6 images are not labelled"):
        PartStore.open(tmp_path / "p")


def test_other_images_are_refused_with_both_digests(tmp_path: Path) -> None:
    store = create(tmp_path / "p")
    store.write(np.arange(6), random_labels(6))
    store.finish()
    with pytest.raises(UserError, match=r"m1.*m2"):
        PartStore.open(tmp_path / "p", manifest_digest="m2")
    with pytest.raises(UserError, match=r"manifest_digest m1, not m2"):
        create(tmp_path / "p", manifest_digest="m2")
    with pytest.raises(UserError, match=r"grid 4, not 8"):
        create(tmp_path / "p", grid=8)


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part labels"):
        PartStore.open(tmp_path / "none")
    store = create(tmp_path / "p")
    store.write(np.arange(6), random_labels(6))
    store.finish()
    np.save(tmp_path / "p" / "parts.npy", np.zeros((5, 4, 4), np.uint8))
    with pytest.raises(UserError, match=r"\(5, 4, 4\)"):
        PartStore.open(tmp_path / "p")
    (tmp_path / "p" / "parts.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="cannot be read"):
        PartStore.open(tmp_path / "p")
    (tmp_path / "p" / "parts.json").write_text(json.dumps({"grid": 4}))
    with pytest.raises(UserError, match="lacks images"):
        PartStore.open(tmp_path / "p")
    (tmp_path / "p" / "parts.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        PartStore.open(tmp_path / "p")


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
    with pytest.raises(UserError) as caught:
        create(tmp_path / "p", images=7, manifest_digest="m2", teacher_digest="t2", learner_digest="l2")
    for change in ("images 6, not 7", "manifest_digest m1, not m2", "teacher_digest t1, not t2", "l1, not l2"):
        assert change in str(caught.value)
    assert "\n" not in str(caught.value)
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
    with pytest.raises(UserError, match="attention_grid 2, not 3"):
        create(tmp_path / "p", attention_grid=3)
    np.save(tmp_path / "p" / "attention.npy", np.zeros((6, 3, 3), np.uint8))
    with pytest.raises(UserError, match=r"attention.npy holds uint8 \(6, 3, 3\), parts.json tells uint8 \(6, 2, 2\)"):
        PartStore.open(tmp_path / "p")


def test_a_store_made_without_attention_gets_it_and_keeps_its_labels(tmp_path: Path) -> None:
    store, labels = create(tmp_path / "p"), random_labels(6)
    store.write(np.arange(6), labels)
    store.finish()
    meta = json.loads((tmp_path / "p" / "parts.json").read_text())
    (tmp_path / "p" / "parts.json").write_text(json.dumps({k: v for k, v in meta.items() if k != "attention_grid"}))
    old = PartStore.open(tmp_path / "p")
    assert np.array_equal(old.labels, labels)
    with pytest.raises(UserError, match="--labels-only") as caught:
        old.attention  # noqa: B018
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="grid 4, not 8"):
        create(tmp_path / "p", attention_grid=2, grid=8)
    assert PartStore.open(tmp_path / "p").complete  # what was refused has changed nothing
    store = create(tmp_path / "p", attention_grid=2)
    assert store.missing().tolist() == [0, 1, 2, 3, 4, 5] and not store.unlabelled(slice(0, 6)).any()
    with pytest.raises(UserError, match="6 of 6 images are not labelled yet"):
        PartStore.open(tmp_path / "p")
    store.write_attention(np.arange(6), random_attention(6))
    store.finish()
    assert np.array_equal(PartStore.open(tmp_path / "p").labels, labels)


def test_a_store_killed_as_it_was_made_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files come one after the other; `parts.json`, the last, tells that there is a store."""
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


def test_opening_reads_no_row(tmp_path: Path) -> None:
    """1.3 million rows, none of them on the disk: reading them would bring in 250,000 pages, mapped 130 at a time."""
    store = create(tmp_path / "p")
    store.write(np.arange(6), random_labels(6))
    store.finish()
    path, meta = tmp_path / "p" / "parts.npy", json.loads((tmp_path / "p" / "parts.json").read_text())
    with open(path, "wb") as file:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (1_300_000, 28, 28)}
        np.lib.format.write_array_header_1_0(file, shape)
        file.truncate(file.tell() + 1_300_000 * 28 * 28)
    (tmp_path / "p" / "parts.json").write_text(json.dumps(meta | {"images": 1_300_000, "grid": 28}))
    assert path.stat().st_size <= 800 * 1_300_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    opened = PartStore.open(tmp_path / "p")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 500
    assert opened.labels[1_299_999].sum() == 0
