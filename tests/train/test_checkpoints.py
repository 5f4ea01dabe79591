"""A checkpoint, and the file of metrics, of a process that was killed as it wrote."""

import json
import os
from pathlib import Path

import pytest
import torch
from refusals import refused

from semmae.train.checkpoints import CheckedCheckpointIO
from semmae.train.meter import truncate_metrics


def test_a_write_that_breaks_off_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, writer = tmp_path / "checkpoints" / "last.ckpt", CheckedCheckpointIO({})
    writer.save_checkpoint({"step": 1}, path)
    real = torch.save

    def torn(checkpoint: object, file: Path) -> None:
        real(checkpoint, file)
        os.truncate(file, file.stat().st_size // 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", torn)
        writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    writer.save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_half_a_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3, 4)]
    path.write_text("".join(lines) + lines[0][:7])
    truncate_metrics(path, 3)
    assert path.read_text() == "".join(lines[:3])
    path.write_text("".join(lines[:2]) + lines[2].rstrip())  # whole, but for the end of the line
    truncate_metrics(path, 3)
    assert path.read_text() == "".join(lines[:3])
    before = path.stat().st_mtime_ns
    truncate_metrics(path, 3)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"loss": 1.0}', '{"step": "3"}', '{"step": null}', "\\xff"])
def test_edited_metrics_are_refused_and_stay(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    content = f'{{"step": 1, "loss": NaN}}\n{line}\n{{"step": 4}}\n'.encode().replace(b"\\xff", b"\xff")
    path.write_bytes(content)
    with refused("metrics.jsonl"):
        truncate_metrics(path, 3)
    assert path.read_bytes() == content
