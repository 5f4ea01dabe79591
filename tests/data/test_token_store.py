"""Tokens of images, kept while a run needs them."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from semmae.data.token_file import Column
from semmae.data.token_store import FILE, TokenStore
from semmae.errors import DiskError

COLUMNS = [Column("keys", (4, 3), "float16"), Column("image", (3, 2, 2), "uint8")]


def store(folder: Path, **info: object) -> TokenStore:
    return TokenStore(folder / "tokens", 6, COLUMNS, info)


def values(rows: list[int]) -> dict[str, np.ndarray]:
    keys = np.array(rows, np.float16)[:, None, None] + np.arange(12, dtype=np.float16).reshape(4, 3) / 16
    return {"keys": keys, "image": np.tile(np.array(rows, np.uint8)[:, None, None, None], (1, 3, 2, 2))}


def test_rows_come_back_as_they_were_written_and_the_others_are_missing(tmp_path: Path) -> None:
    tokens = store(tmp_path)
    assert tokens.begin("")
    tokens.write(np.array([0, 1, 4]), values([0, 1, 4]))

    assert tokens.missing().tolist() == [2, 3, 5]
    assert (tokens.read("keys")[[0, 1, 4]] == values([0, 1, 4])["keys"]).all()
    assert (load_file(tmp_path / "tokens" / FILE)["image"][4] == 4).all()


def test_a_store_goes_on_with_its_own_rows_alone(tmp_path: Path) -> None:
    store(tmp_path, images="a").begin("")
    store(tmp_path, images="a").write(np.array([3]), values([3]))

    assert not store(tmp_path, images="a").begin("")
    assert store(tmp_path, images="a").missing().tolist() == [0, 1, 2, 4, 5]
    assert store(tmp_path, images="b").begin("")
    assert store(tmp_path, images="b").missing().tolist() == [0, 1, 2, 3, 4, 5]


def test_what_the_disk_cannot_hold_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    huge = TokenStore(tmp_path / "tokens", 2**50, COLUMNS, {})
    with pytest.raises(DiskError, match="use fewer"):
        huge.begin("use fewer")
    assert not (tmp_path / "tokens" / FILE).exists()


def test_room_that_others_will_need_is_not_free(tmp_path: Path) -> None:
    other = store(tmp_path / "other")
    other.begin("")
    other.write(np.array([2, 3]), values([2, 3]))
    assert other.to_come() == 4 * (4 * 3 * 2 + 3 * 2 * 2 + 4)
    with pytest.raises(DiskError, match=" 0 B are free there; use fewer"):
        store(tmp_path).begin("use fewer", 2**62)
    assert store(tmp_path).begin("", other.to_come())
