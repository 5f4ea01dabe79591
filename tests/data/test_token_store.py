"""Tokens of images, kept while a run needs them."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
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
    assert tokens.begin()
    tokens.write(np.array([0, 1, 4]), values([0, 1, 4]))

    assert tokens.missing().tolist() == [2, 3, 5]
    assert (tokens.read("keys")[[0, 1, 4]] == values([0, 1, 4])["keys"]).all()
    assert (load_file(tmp_path / "tokens" / FILE)["image"][4] == 4).all()


def test_a_store_goes_on_with_its_own_rows_alone(tmp_path: Path) -> None:
    store(tmp_path, images="a").begin()
    store(tmp_path, images="a").write(np.array([3]), values([3]))

    assert not store(tmp_path, images="a").begin()
    assert store(tmp_path, images="a").missing().tolist() == [0, 1, 2, 4, 5]
    assert store(tmp_path, images="b").begin()
    assert store(tmp_path, images="b").missing().tolist() == [0, 1, 2, 3, 4, 5]


def test_what_the_disk_cannot_hold_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    huge = TokenStore(tmp_path / "tokens", 2**50, COLUMNS, {})
    with refused(tmp_path / "tokens", "are free there; use fewer", error=DiskError):
        huge.check_room("use fewer")
    assert not (tmp_path / "tokens").exists()
    with refused(tmp_path / "tokens", "are free there", "same command again", error=DiskError):
        huge.begin()
    assert not (tmp_path / "tokens" / FILE).exists()


def test_room_of_a_file_that_is_replaced_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    big = [TokenStore(tmp_path / "tokens", 2**12, COLUMNS, {"images": name}) for name in "ab"]
    big[0].begin()
    big[0].write(np.arange(2**12), values([row % 200 for row in range(2**12)]))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    big[0].check_room("")  # every row is there
    big[1].check_room("")
    with pytest.raises(DiskError):
        big[1].check_room("", 2**20)


def test_a_disk_that_fills_up_while_rows_are_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tokens = store(tmp_path)
    with monkeypatch.context() as patch, refused(tmp_path / "tokens" / FILE, "no space left", error=DiskError):
        patch.setattr(os, "fsync", full)
        tokens.begin()
    tokens.begin()
    with monkeypatch.context() as patch, refused(tmp_path / "tokens" / FILE, "no space left", error=DiskError):
        patch.setattr(os, "fsync", full)
        tokens.write(np.array([1]), values([1]))
    assert tokens.missing().tolist() == [0, 1, 2, 3, 4, 5]


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokens" / FILE).mkdir(parents=True)
    with refused(tmp_path / "tokens" / FILE, "is a directory", "move that away"):
        store(tmp_path).begin()


def test_room_that_others_will_need_is_not_free(tmp_path: Path) -> None:
    other = store(tmp_path / "other")
    other.begin()
    other.write(np.array([2, 3]), values([2, 3]))
    assert other.to_come() == 4 * (4 * 3 * 2 + 3 * 2 * 2 + 4)
    with refused(" 0 B are free there", error=DiskError):
        store(tmp_path).begin(2**62)
    assert store(tmp_path).begin(other.to_come())
