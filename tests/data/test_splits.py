"""Names of splits."""

import pytest

from semmae.data.splits import are_splits, find_split, pick_split
from semmae.errors import UserError


def test_the_first_of_val_validation_test_is_held_out() -> None:
    assert find_split("val", ["train", "test", "validation", "val"]) == "val"
    assert find_split("val", ["train", "test", "validation"]) == "validation"
    assert find_split("val", ["train", "test"]) == "test"
    assert find_split("val", ["train"]) is None


def test_test_alone_is_no_split() -> None:
    assert not are_splits(["test", "shirt"]) and are_splits(["test", "train"])
    with pytest.raises(UserError, match="no 'val' split, found shirt, test"):
        pick_split("val", ["test", "shirt"], "photos")


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="'dev'"):
        find_split("dev", ["train"])
