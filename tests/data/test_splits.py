"""Names of splits."""

import pytest
from refusals import refused

from semmae.data.splits import are_splits, check_whole, find_split, folds, pick_split


def test_the_first_of_val_validation_test_is_held_out() -> None:
    assert find_split("val", ["train", "test", "validation", "val"]) == "val"
    assert find_split("val", ["train", "test", "validation"]) == "validation"
    assert find_split("val", ["train", "test"]) == "test"
    assert find_split("val", ["train"]) is None


def test_test_alone_is_no_split() -> None:
    assert not are_splits(["test", "shirt"]) and are_splits(["test", "train"])
    with refused("'val'", "shirt, test"):
        pick_split("val", ["test", "shirt"], "photos")


def test_ade20ks_and_roboflows_names_are_splits() -> None:
    assert are_splits(["training", "validation"]) and find_split("train", ["training", "validation"]) == "training"
    assert find_split("val", ["train", "valid", "test"]) == "valid"
    assert not are_splits(["training", "running"]) and not are_splits(["valid", "invalid"])  # classes


@pytest.mark.parametrize(
    "names", [["train", "val"], ["training", "validation", "extra"], ["train"], ["train", "train_mini"], ["a", "test"]]
)
def test_what_is_whole_is_not_refused(names: list[str]) -> None:
    check_whole(names, "photos")


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["val"], ["photos", "no train", "photos/val"]),
        (["validation", "trian"], ["validation", "no train", '"trian"']),
        (["train", "vall"], ["no val", "photos/train", '"vall"']),
        (["train", "bus"], ["no val", "photos/train"]),
    ],
)
def test_a_split_without_its_counterpart_is_refused(names: list[str], named: list[str]) -> None:
    with refused(*named):
        check_whole(names, "photos")


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="'dev'"):
        find_split("dev", ["train"])


def test_folds_hold_every_row_once_and_each_class_evenly() -> None:
    labels = ["a"] * 10 + ["b"] * 7 + ["c"]
    found = folds(labels, 4, seed=0)
    assert sorted(row for fold in found for row in fold) == list(range(18))
    for label, least in (("a", 2), ("b", 1), ("c", 0)):
        counts = [sum(labels[row] == label for row in fold) for fold in found]
        assert least <= min(counts) and max(counts) <= least + 1
    assert found == folds(labels, 4, seed=0) != folds(labels, 4, seed=1)
