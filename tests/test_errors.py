"""What a message is made of: all of it on one line, and of many names the first few."""

import pickle

import pytest

from semmae.errors import UserError, listed, near, near_only, reason


def test_no_line_of_a_library_s_message_is_lost() -> None:
    error = UserError("runs/a  b: not Parquet (first\n  second\r\n\n third); restore it")

    assert str(error) == "runs/a  b: not Parquet (first second third); restore it"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # between processes


@pytest.mark.parametrize(("count", "expected"), [(0, ""), (1, "a"), (3, "a, b, c"), (5, "a, b, c and 2 more")])
def test_of_many_names_three_and_a_count_are_listed(count: int, expected: str) -> None:
    assert listed("abcde"[:count]) == expected


def test_what_is_known_is_listed_where_it_is_little() -> None:
    few, many = ["vit_tiny", "vit_small"], [f"option_{number}" for number in range(40)]
    assert (
        near("vit_tny", few).startswith('; did you mean "vit_tiny"')
        and near("x", few) == " (known: vit_tiny, vit_small)"
    )
    assert near("x", many) == near_only("x", few) == near_only("x", many) == ""


def test_what_a_library_says_is_cut_between_words() -> None:
    said = "outgoing traffic has been disabled; set an appropriate variable"
    assert reason(ValueError(said), len(said)) == said
    assert reason(ValueError(said), 48) == "outgoing traffic has been disabled; set an…"
    assert reason(ValueError("no file " + "x" * 90), 48) == "no file " + "x" * 39 + "…"
