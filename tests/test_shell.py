"""Commands to paste: a shell reads from each word just what was meant, on one line."""

import os
import subprocess

from semmae.shell import command, quoted

WORDS = [
    "plain",
    "a b",
    "it's",
    'say "$HOME"',
    "ö",
    "\udcc3\udcb6",
    "\udcff\\x",
    "two\nlines\t'",
    "",
    "-",
    "\x1b[31m",
    "日本",
]


def test_bash_reads_every_word_as_it_was() -> None:
    line = "printf '%s\\0' " + " ".join(map(quoted, WORDS))
    assert len(line.splitlines()) == 1 and "\x1b" not in line
    output = subprocess.run([b"bash", b"-c", os.fsencode(line)], capture_output=True, check=True, timeout=60).stdout
    assert output.split(b"\0")[:-1] == [word.encode("utf-8", "surrogateescape") for word in WORDS]


def test_letters_stay_letters() -> None:
    assert quoted("fö tos") == "'fö tos'" and quoted("\udcff") == r"$'\377'"


def test_options_that_are_not_given_are_left_out() -> None:
    found = command("knn", data="a b", num_heads=None, eval_only=True, resume=False, k=20)
    assert found == "semmae knn --data 'a b' --eval-only --k 20"
