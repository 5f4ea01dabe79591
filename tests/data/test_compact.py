"""Names and classes in one buffer behave as a list of texts, and cost what their bytes do."""

import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from semmae.data.compact import Labels, Names

# Names of files may hold bytes that are no UTF-8, which Python writes as lone surrogates.
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.just("\udcff"), max_size=5), max_size=12)
KINDS = pytest.mark.parametrize("kind", [Names, Labels])


@KINDS
@settings(deadline=None)
@given(listed=texts, data=st.data())
def test_both_read_as_the_list_that_they_were_made_of(
    kind: type[Names] | type[Labels], listed: list[str], data: st.DataObject
) -> None:
    compact = kind(iter(listed))

    assert len(compact) == len(listed) and list(compact) == listed
    assert [compact[row] for row in range(-len(listed), len(listed))] == listed * 2
    for row in (len(listed), -len(listed) - 1):
        with pytest.raises(IndexError):
            compact[row]
    cut = data.draw(st.slices(len(listed)))
    assert type(compact[cut]) is kind and list(compact[cut]) == listed[cut]
    rows = data.draw(st.lists(st.integers(0, max(len(listed) - 1, 0)), max_size=9 if listed else 0))
    assert list(compact.take(rows)) == list(compact.take(np.array(rows, dtype=np.int64))) == [listed[i] for i in rows]
    assert [compact.index(text) for text in listed] == [listed.index(text) for text in listed]
    copy = pickle.loads(pickle.dumps(compact))
    assert type(copy) is kind and copy == compact and list(copy) == listed


@KINDS
@settings(deadline=None)
@given(first=texts, second=texts)
def test_both_are_equal_to_what_holds_the_same_texts(
    kind: type[Names] | type[Labels], first: list[str], second: list[str]
) -> None:
    same = first == second
    for other in (kind(second), second, tuple(second)):
        assert (kind(first) == other) == (other == kind(first)) == same
    assert kind(["a", "b"]) != kind(["ab"]) and kind(["a"]) != "a" and kind(["1"]) != [1]


def test_the_same_bytes_cut_elsewhere_are_other_names() -> None:
    assert Names(["a", "bc"]) != Names(["ab", "c"])
    assert Names(["", "a"]) != Names(["a", ""])


def test_the_same_classes_numbered_otherwise_are_the_same_labels() -> None:
    assert Labels(["a", "b"]).take([1, 0]) == Labels(["b", "a"])


def test_what_a_process_is_sent_grows_by_bytes_not_by_objects() -> None:
    listed = [f"train/n{number % 10:08}/n{number % 10:08}_{number}.JPEG" for number in range(10_000)]
    names, labels = Names(listed), Labels(name[6:15] for name in listed)

    # Eight bytes say where a name begins, four which class it is.
    assert len(pickle.dumps(names)) < sum(map(len, listed)) + 8 * len(listed) + 1000
    assert len(pickle.dumps(labels)) < 4 * len(listed) + 1000


@KINDS
def test_reading_leaves_no_trace_in_what_is_kept(kind: type[Names] | type[Labels]) -> None:
    """Every object that Python counts is one that a forked process gets a copy of; these are a few, whatever N is."""
    compact = kind(f"n{number % 3}" for number in range(1000))
    parts = [getattr(compact, name) for name in kind.__slots__]

    def counts() -> list[int]:
        return [sys.getrefcount(part) for part in parts]

    before = counts()
    read = [compact[row] for row in range(1000)]

    assert counts() == before and len(read) == 1000
    assert all(isinstance(part, bytes | np.ndarray) or len(part) == 3 for part in parts)


def test_what_is_shown_is_short() -> None:
    assert repr(Names(["a", "b"])) == "Names(['a', 'b'], 2 in all)"
    assert repr(Labels("abcab")) == "Labels(['a', 'b', 'c', …], 5 in all)"
