"""Where a verb may write is looked at first: a file in the way, or a folder that is not ours, is one line."""

import os
from pathlib import Path

import pytest
import tiny

from semmae import checkpoint
from semmae.cli import run
from semmae.commands.places import check_place
from semmae.errors import UserError
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec

# What each verb that writes was given; OUT is the place.
VERBS = {
    "teacher": "--data DATA",
    "knn": "--data DATA --encoder RUN",
    "embed": "--data DATA --encoder RUN",
    "export": "--encoder RUN --to timm",
    "reconstruct": "--data DATA --autoencoder RUN",
    "parts": "--data DATA --teacher RUN --out NEW --export-png",
}
SUFFIX = {"embed": ".npz", "reconstruct": ".png"}


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A run, and a file where folders are asked for."""
    mae = MaskedAutoencoder(Encoder(EncoderSpec(32, 8, 48, 2, 3)), DecoderSpec(32, 1, 4))
    checkpoint.save_encoder(mae.encoder, tmp_path / "run/encoder")
    checkpoint.save_autoencoder(mae, tmp_path / "run/autoencoder")
    (tmp_path / "file").write_text("mine")
    return tmp_path


def told(verb: str, place: Path, desk: Path, creatures: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a verb refuses to write to `place`; nothing on the desk was touched."""
    known = {"DATA": str(creatures / "images"), "RUN": str(desk / "run"), "NEW": str(desk / "new")}
    given = [known.get(word, word) for word in VERBS[verb].split()]
    place = place.with_name(place.name + SUFFIX.get(verb, ""))
    before = tiny.listing(desk)
    assert run([verb, *given, *([] if given[-1] == "--export-png" else ["--out"]), str(place)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert str(place) in error
    assert tiny.listing(desk) == before
    return error


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_in_the_way(verb: str, desk: Path, creatures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{desk / 'file'} is a file; give a" in told(verb, desk / "file/deep/out", desk, creatures, capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_one_may_not_write_in(
    verb: str, desk: Path, creatures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    # As it is for a user of the machine: a test may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != desk / "theirs" and real(path, mode))
    (desk / "theirs").mkdir()

    error = told(verb, desk / "theirs/deep/out", desk, creatures, capsys)

    assert f"{desk / 'theirs'} cannot be written in; change its permissions, or choose another place" in error


def test_places_that_are_still_to_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (Path("a/b"), Path("a"), tmp_path, Path(".")):
        check_place("--out", place)
    assert list(tmp_path.iterdir()) == []
    Path("link").symlink_to("nowhere")
    with pytest.raises(UserError, match="^--out link: is a file; give a folder$"):
        check_place("--out", Path("link"))
