"""Tables give the very bytes that were put in, in their order."""

import datetime
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import check_refusal, refused

from semmae.data.manifest import build_manifest, open_images
from semmae.data.sources import has_split, open_source

Write = Callable[..., Path]
Jpeg = Callable[[int], bytes]


@pytest.mark.parametrize("struct", [True, False])
def test_bytes_names_and_sizes(tmp_path: Path, write_table: Write, jpeg: Jpeg, struct: bool) -> None:
    source = open_source(write_table(tmp_path / "t.parquet", 8, struct=struct))
    assert source.names == [f"t.parquet#{row}" for row in range(8)] and source.labels is None
    assert [source.read(i) for i in range(8)] == [jpeg(i) for i in range(8)]
    assert source.sizes.tolist() == [len(jpeg(i)) for i in range(8)]
    assert pickle.loads(pickle.dumps(source)).read(5) == jpeg(5)


def test_folder_of_tables_and_its_splits(tmp_path: Path, write_table: Write, jpeg: Jpeg) -> None:
    write_table(tmp_path / "train-00000-of-00002.parquet", 4, label=["x", "y", "x", "y"])
    write_table(tmp_path / "train-00001-of-00002.parquet", 2, label=["y", "y"])
    write_table(tmp_path / "validation.parquet", 3, label=["x", "x", "y"])
    whole, train, val = open_source(tmp_path), open_source(tmp_path, "train"), open_source(tmp_path, "val")
    assert len(whole) == 9 and len(train) == 6 and has_split(tmp_path)
    assert train.names[4] == "train-00001-of-00002.parquet#0" and train.read(4) == jpeg(0)
    assert train.labels == ["x", "y", "x", "y", "y", "y"]
    assert (val.names[0], val.labels) == ("validation.parquet#0", ["x", "x", "y"])
    assert whole.names == [*train.names, *val.names] and not has_split(tmp_path / "validation.parquet")


def test_classes_come_by_name(tmp_path: Path, jpeg: Jpeg) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": jpeg(i), "path": None} for i in range(3)], "label": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert source.labels == ["dog", "cat", "dog"] and source.read(2) == jpeg(2)


def test_rows_without_label_or_image(tmp_path: Path, write_table: Write, jpeg: Jpeg) -> None:
    assert open_source(write_table(tmp_path / "a.parquet", 2, label=[3, None])).labels is None
    assert open_source(write_table(tmp_path / "b.parquet", 2, label=[3, -1])).labels is None
    assert open_source(write_table(tmp_path / "c.parquet", 2, label=[3, 10])).labels == ["3", "10"]
    pq.write_table(pa.table({"image": [jpeg(0), None]}), tmp_path / "d.parquet")
    source = open_source(tmp_path / "d.parquet")
    assert source.read(1) == b"" and source.sizes[1] == 0


def test_faults_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"images": [b"x"], "id": [1]}), tmp_path / "a.parquet")
    with refused('"image"', '"images"'):
        open_source(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": ["x.jpg"]}), tmp_path / "b.parquet")
    with refused("b.parquet", "paths", "folder"):
        open_source(tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "c.parquet")
    with refused("no rows"):
        open_source(tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 but not really")
    with refused("d.parquet", "Parquet"):
        open_source(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    "entry",
    [
        b"[" * 100_000,
        b"\xff",
        b"null",
        json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": {"a": 1}}}}}).encode(),
        json.dumps({"info": {"features": {"label": {"_type": "Nonsense"}}}}).encode(),
        json.dumps({"info": {"features": {"label": 3}}}).encode(),
        json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": [[], []]}}}}).encode(),
    ],
    ids=range(7),
)
def test_a_damaged_entry_of_datasets_is_refused_in_one_line(tmp_path: Path, jpeg: Jpeg, entry: bytes) -> None:
    table = pa.table({"image": [jpeg(0)], "label": [0]}).replace_schema_metadata({"huggingface": entry})
    pq.write_table(table, tmp_path / "t.parquet")
    with refused("t.parquet"):
        open_source(tmp_path / "t.parquet")


def test_a_hub_set_without_a_name_is_refused() -> None:
    for door in (open_source, has_split):
        with refused("hf:", "hf:NAME"):
            door("hf:")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (["a", "b", "a"], ["a", "b", "a"]),
        ([1, 0, 1], ["1", "0", "1"]),
        ([1.0, 0.0, 1.0], ["1", "0", "1"]),  # as pandas writes whole numbers of which one was missing
        ([True, False, True], ["True", "False", "True"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        ([None, None, None], ("label",)),
        ([1, 2, None], ("1 of 3 rows", "t.parquet#2")),
        ([1.0, float("nan"), float("nan")], ("2 of 3 rows", "t.parquet#1")),
        ([1, -1, 0], ("1 of 3 rows", "t.parquet#1")),
        (["a", "", "b"], ("1 of 3 rows", "t.parquet#1")),
        ([1.0, 0.5, 2.0], ("label 0.5", "t.parquet#1")),
        ([1.0, float("inf"), 2.0], ("label inf", "t.parquet#1")),
        ([[1, 0], [0, 1], [1, 1]], ("label [1, 0]", "t.parquet#0")),
        ([b"a", b"b", b"c"], ("label b'a'", "t.parquet#0")),
        ([{"x": 1}] * 3, ("label {'x': 1}", "t.parquet#0")),
        ([datetime.date(2020, 1, 1)] * 3, ("label datetime", "t.parquet#0")),
    ],
)
def test_every_kind_of_label_is_judged(
    label: list[object], expected: list[str] | tuple[str, ...], tmp_path: Path, jpeg: Jpeg
) -> None:
    pq.write_table(pa.table({"image": [jpeg(i) for i in range(3)], "label": label}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    if isinstance(expected, list):
        assert source.labels == expected and source.class_note == ""
    else:  # learning without classes goes on; what needs them gives this reason
        assert source.labels is None
        check_refusal(source.class_note, *expected)


def test_numbers_of_no_known_class(tmp_path: Path, jpeg: Jpeg) -> None:
    """As a table that was written with another list of classes."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": jpeg(i), "path": None} for i in range(3)], "label": [1, 0, 1]}
    table = datasets.Dataset.from_dict(rows, features=features).with_format("arrow")[:]
    for wrong in (2, 900, -2):
        path = tmp_path / f"{wrong}.parquet"
        pq.write_table(table.set_column(1, table.schema.field("label"), pa.array([1, wrong, 0])), path)
        source = open_source(path)
        assert source.labels is None
        assert f"label {wrong} of {path.name}#1" in source.class_note


def test_a_column_of_labels_that_one_of_the_files_lacks(tmp_path: Path, write_table: Write) -> None:
    write_table(tmp_path / "1.parquet", 2, label=["a", "b"])
    write_table(tmp_path / "2.parquet", 2)
    source = open_source(tmp_path)
    assert source.labels is None and "2.parquet" in source.class_note and "`label`" in source.class_note


@pytest.mark.parametrize("name", [b"a[1].parquet", b"a*.parquet", "ä b.parquet".encode(), b"\xff.parquet"])
def test_names_of_tables_are_no_patterns(name: bytes, tmp_path: Path, write_table: Write, jpeg: Jpeg) -> None:
    write_table(tmp_path / "axx.parquet", 3)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes(write_table(tmp_path / "other", 2, label=["a", "b"]).read_bytes())
    source = open_source(path)
    assert [source.read(i) for i in range(2)] == [jpeg(0), jpeg(1)] and source.labels == ["a", "b"]
    images = open_images(path)
    assert images.names == [f"{os.fsdecode(name)}#{row}" for row in range(2)]
    assert build_manifest(source, 1, tmp_path / "cache").digest == images.digest


def test_images_beside_the_table(tmp_path: Path, write_images: Write, jpeg: Jpeg) -> None:
    root = write_images(tmp_path / "elsewhere", "images/1.jpg", "images/2.jpg")
    cells = [
        {"bytes": None, "path": "images/1.jpg"},
        {"bytes": jpeg(7), "path": "images/2.jpg"},
        {"bytes": None, "path": str(root / "images/2.jpg")},
        {"bytes": None, "path": "images/3.jpg"},
        {"bytes": None, "path": "a\0b"},
        {"bytes": None, "path": "images"},
        {"bytes": None, "path": None},
    ]
    pq.write_table(pa.table({"image": cells}), root / "t.parquet")
    source = open_source(root / "t.parquet")
    assert [source.read(i) for i in range(3)] == [jpeg(0), jpeg(7), jpeg(1)] and source.read(6) == b""
    assert source.sizes[:3].tolist() == [len(jpeg(i)) for i in (0, 7, 1)] and not source.sizes[3]
    assert source.modified[0] == (root / "images/1.jpg").stat().st_mtime_ns
    for row in (3, 4, 5):
        with pytest.raises(OSError, match="no bytes"):
            source.read(row)
    pq.write_table(pa.table({"image": cells[3:4] * 20}), root / "u.parquet")  # paths alone, of files that are not there
    with refused("20 of 20 images", "'images/3.jpg'"):
        open_images(root / "u.parquet")


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.parquet")
    with refused("t.parquet", "Parquet"):
        open_source(tmp_path)


def test_hub_sets_are_joined_over_their_splits(monkeypatch: pytest.MonkeyPatch, jpeg: Jpeg) -> None:
    def fake_hub(name: str) -> datasets.DatasetDict:
        assert name == "owner/set"
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["c", "d"])})
        parts = {"train": [0, 1, 1], "test": [1, 0]}
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(
                    {
                        "image": [{"bytes": jpeg(i), "path": None} for i in range(len(labels))],
                        "label": labels,
                    },
                    features=features,
                )
                for split, labels in parts.items()
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", fake_hub)
    source = open_source("hf:owner/set")
    assert source.names == ["train#0", "train#1", "train#2", "test#0", "test#1"]
    assert source.labels == ["c", "d", "d", "d", "c"] and source.read(4) == jpeg(1)
    assert open_source("hf:owner/set", "val").names == ["test#0", "test#1"] and has_split("hf:owner/set")


def test_hub_out_of_reach() -> None:
    with refused("hf:semmae-tests/none", "network"):
        open_source("hf:semmae-tests/none")
