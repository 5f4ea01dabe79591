"""What is refused before anything is written: objects that are not known again, options in the wrong place, outputs."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
from PIL import Image
from refusals import refused

import semmae
from semmae.options.pretrain import PretrainOptions
from semmae.options.teacher import TeacherOptions
from semmae.run.config import CONFIG
from semmae.run.finished import is_finished
from semmae.run.start import check_start
from semmae.train.batches import Training


@pytest.fixture
def photos(creatures: Path) -> list[Any]:
    return [Image.open(path).convert("RGB") for path in sorted((creatures / "images").glob("*/*.png"))[:8]]


def test_a_finished_run_of_an_object_is_not_known_again(photos: list[Any], tmp_path: Path) -> None:
    given: dict[str, Any] = {"out": tmp_path / "run", "epochs": 1, "knn_every": 0, **tiny.SIZE, **tiny.TRAIN}
    semmae.teacher(data=photos, **given)
    before = tiny.listing(tmp_path / "run")
    for again in ({}, {"resume": True}):
        with refused("--out", "data= list of 8 images", "--overwrite"):
            semmae.teacher(data=photos[::-1], **given, **again)
    assert tiny.listing(tmp_path / "run") == before
    (tmp_path / "run" / ".unfinished").touch()
    assert not is_finished(tmp_path / "run")
    semmae.teacher(data=photos, **given, resume=True)  # as a run that was killed
    semmae.teacher(data=photos, **given, overwrite=True)


def test_features_of_an_object_are_known_again_by_their_numbers(
    whole_run: Path, photos: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"encoder": whole_run, "out": tmp_path / "x.npz", "workers": 0}
    semmae.embed(data=photos, **given)
    before = (tmp_path / "x.npz").read_bytes()
    for again in ({"data": photos, **given, "resume": True}, {"out": tmp_path / "x.npz", "resume": True}):
        semmae.embed(**again)
        assert "already finished" in capsys.readouterr().out
    with refused("--out", "exists"):
        semmae.embed(data=photos[:4], **given, resume=True)
    assert (tmp_path / "x.npz").read_bytes() == before


@pytest.mark.parametrize("line", ["overwrite: true", "resume: true", "config: a.yaml", "callbacks: [3]"])
def test_how_to_begin_is_not_said_in_a_file(line: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(f"{line}\n")
    with refused("file.yaml", line.partition(":")[0]):
        semmae.pretrain(data=tmp_path, out=tmp_path / "out", config=tmp_path / "file.yaml")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [3, [3], pl.Callback, "early", [pl.Callback(), None]])
def test_callbacks_are_those_of_lightning(wrong: Any, creatures: Path, tmp_path: Path) -> None:
    with refused("callbacks", "pytorch_lightning.Callback"):
        semmae.teacher(data=creatures / "images", out=tmp_path / "out", callbacks=wrong, **tiny.SIZE, **tiny.TRAIN)
    assert not (tmp_path / "out").exists()
    Training(callbacks=(pl.Callback(),), resume=False).check()


def test_a_single_callback_needs_no_list(creatures: Path, tmp_path: Path) -> None:
    class Counted(pl.Callback):
        ended = 0

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.ended += 1

    counted, out = Counted(), tmp_path / "out"
    given = {"epochs": 1, "limit": 8, "knn_every": 0, **tiny.SIZE, **tiny.TRAIN}
    semmae.teacher(data=creatures / "images", out=out, callbacks=counted, **given)
    assert counted.ended == 1


def test_an_output_that_is_the_input_is_called_so(creatures: Path) -> None:
    before = tiny.listing(creatures)
    with refused("--out", "--data"):
        semmae.teacher(data=creatures / "images", out=creatures / "images")
    assert tiny.listing(creatures) == before


def test_a_run_is_no_folder_of_images(tmp_path: Path) -> None:
    """Its pictures are drawn by us; a file of that name may be anybody's."""
    options = TeacherOptions(data=str(tmp_path), out=tmp_path / "out")
    for content in ("verb: eat\n", "- a\n", "epochs: 3\n", "verb: [1\n"):
        (tmp_path / CONFIG).write_text(content)
        check_start(options, ())
    (tmp_path / CONFIG).write_text("verb: knn\n")
    with refused(f"--data {tmp_path}", "a run of semmae knn"):
        check_start(options, ())


@pytest.mark.parametrize(("given", "meant"), [("AUTO", "auto"), ("auto ", "auto"), ("Own", "own"), ("owm", "own")])
def test_a_word_that_is_nearly_written_is_named(given: str, meant: str) -> None:
    """No path that ends like one; and where nothing is near, all that may be given."""
    with refused(f"--teacher {given}: no such file", f'did you mean "{meant}"?'):
        check_start(PretrainOptions(data="hf:photos", out=Path("out"), teacher=given), ())
    for far in (f"runs/{meant}", "none at all"):
        with refused(f"--teacher {far}: no such file", "give auto, own, a run of semmae, timm:NAME, hf:NAME"):
            check_start(PretrainOptions(data="hf:photos", out=Path("out"), teacher=far), ())


def test_a_mask_function_that_fails_is_named(creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where it always fails; else in the middle of a run, which can be gone on with."""
    (tmp_path / "own_masks.py").write_text(
        "def broken(context):\n    raise KeyError('scores')\n"
        "def leaves(context):\n    hidden = context.uniform().argsort(1) < 8\n"
        "    return hidden if context.progress < 0.3 else exit(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = {"data": creatures / "images", "out": tmp_path / "out", "epochs": 1, **tiny.SIZE, **tiny.TRAIN}
    with refused("--masking own_masks:broken", "own_masks.py, line 2", "KeyError", "'scores'"):
        semmae.pretrain(masking="own_masks:broken", **given)
    assert not (tmp_path / "out").exists()
    with refused("--masking own_masks:leaves", "own_masks.py, line 5", "SystemExit: 3"):
        semmae.pretrain(masking="own_masks:leaves", **given)
    assert (tmp_path / "out" / ".unfinished").exists()
