"""A training whose lines nobody reads comes to its end; and its train.log holds them all, from the first on."""

import io
import logging
import shutil
import sys
from pathlib import Path

import pytest
import tiny

from semmae.cli import run


def test_a_training_whose_lines_nobody_reads(
    creatures: Path, tmp_path: Path, unread: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = shutil.copytree(creatures / "images", tmp_path / "images"), tmp_path / "out"
    (data / "damaged.png").write_bytes(b"no picture")
    (data / "notes.txt").write_text("x")
    monkeypatch.setattr(sys, "stderr", unread)
    monkeypatch.setattr(sys, "stdout", unread)
    level = logging.getLogger("semmae").level
    logging.getLogger("semmae").setLevel(logging.DEBUG)  # as the command does
    try:
        few = ["--epochs", "1", "--local-crops", "0", "--prototypes", "16"]
        assert run(["teacher", "--data", str(data), "--out", str(out), *tiny.SMALL, *few]) == 0
    finally:
        logging.getLogger("semmae").setLevel(level)
    assert not (out / ".unfinished").exists() and (out / "encoder").is_dir() and tiny.metrics(out)
    log = (out / "train.log").read_text()
    for each in ("1 file ", "1 of 33 images (3.0 %)", "epoch 1/1, loss"):
        assert log.count(each) == 1, log
