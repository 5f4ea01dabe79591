"""Tables give the very bytes that were put in, in their order."""

import pickle
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semmae.data.sources import has_split, open_source
from semmae.errors import UserError

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


def test_faults_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"images": [b"x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match='no column "image"; did you mean "images"'):
        open_source(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": ["x.jpg"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="holds string, not bytes"):
        open_source(tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="no rows"):
        open_source(tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"d\.parquet: not a readable Parquet file"):
        open_source(tmp_path / "d.parquet")


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
    with pytest.raises(UserError, match=r"hf:semmae-tests/none: .*check the name and the network"):
        open_source("hf:semmae-tests/none")
