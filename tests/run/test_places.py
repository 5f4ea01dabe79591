"""Where a verb may write is looked at first: a file in the way, or a folder that is not ours, is one line."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from refusals import refused

from semmae.formats import folders as checkpoint
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.run.folder import foreign_files
from semmae.run.places import check_apart, check_place

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


@pytest.fixture
def refuse_place(desk: Path, creatures: Path, refuse: tiny.Refuse) -> Callable[..., str]:
    """A verb refuses to write to a place below the desk in a line with all facts; nothing there is touched."""

    def refuse_place(verb: str, place: str, *facts: object) -> str:
        known = {"DATA": str(creatures / "images"), "RUN": str(desk / "run"), "NEW": str(desk / "new")}
        given = [known.get(word, word) for word in VERBS[verb].split()]
        where = f"{desk / place}{SUFFIX.get(verb, '')}"
        command = [verb, *given, *([] if given[-1] == "--export-png" else ["--out"]), where]
        return refuse(command, desk, where, *facts)

    return refuse_place


@pytest.mark.parametrize("verb", VERBS)
def test_an_address(
    verb: str, desk: Path, creatures: Path, refuse: tiny.Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which a path would make a folder called `s3:`."""
    monkeypatch.chdir(desk)
    known = {"DATA": str(creatures / "images"), "RUN": "run", "NEW": "new"}
    given = [known.get(word, word) for word in VERBS[verb].split()]
    where = f"s3://bucket/out{SUFFIX.get(verb, '')}"
    refuse([verb, *given, *([] if given[-1] == "--export-png" else ["--out"]), where], desk, where, "address")
    (desk / "s3:").mkdir()
    check_place("--out", Path(where))  # a folder of that name


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_in_the_way(verb: str, desk: Path, refuse_place: Callable[..., str]) -> None:
    refuse_place(verb, "file/deep/out", f"{desk / 'file'} is a file")


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_one_may_not_write_in(
    verb: str, desk: Path, refuse_place: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    # As it is for a user of the machine: a test may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != desk / "theirs" and real(path, mode))
    (desk / "theirs").mkdir()
    refuse_place(verb, "theirs/deep/out", f"{desk / 'theirs'} ", "permissions")


def test_places_that_are_still_to_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (Path("a/b"), Path("a"), tmp_path, Path(".")):
        check_place("--out", place)
    assert list(tmp_path.iterdir()) == []
    Path("link").symlink_to("nowhere")
    with refused("--out link", "a file"):
        check_place("--out", Path("link"))


# Output, inputs by option, where images are searched: each refused.
INPUT_IN_THE_WAY = {
    "photos in the run": ("r", {"--data": "r/photos"}, "r/photos"),
    "the photos themselves": ("r/photos", {"--data": "r/photos"}, "r/photos"),
    "below the photos": ("r/photos/runs/a", {}, "r/photos"),
    "a file below the photos": ("r/photos/a.png", {}, "r/photos"),
    "by another way": ("r/../r", {"--data": "./r/photos"}, "./r/photos"),
    "a glob of folders": ("r/photos/cat/run", {"--data": "r/pho*"}, "r/pho*"),
    "a link inside the photos": ("r/parts/x", {"--data": "links"}, "links"),
    "a photo that is a link into the run": ("r", {"--data": "links"}, "links"),
    "weights that are a link into the run": ("r", {"--encoder": "links"}, None),
    "by a link": ("link", {"--parts": "r/parts"}, None),
    "a link among the inputs": ("r", {"--data": "linked"}, "linked"),
    "an encoder": ("r", {"--encoder": "r"}, None),
    "a file of weights": ("r", {"--init": "r/weights.pth"}, None),
    "a table": ("x.parquet", {"--data": "x.parquet"}, "x.parquet"),
    "a glob that matches in it": ("r", {"--data": "r/photos/*.jpg"}, "r/photos/*.jpg"),
    "a glob through it": ("r", {"--data": "*/photos/*.jpg"}, "*/photos/*.jpg"),
    "a glob that will match": ("r/new/x", {}, "r/**/*.png"),
    "a glob at this depth": ("r/new", {}, "r/*/*.png"),
}
APART = {
    "beside": ("runs/a", {"--data": "r/photos"}, "r/photos"),
    "below an encoder's run": ("r/knn", {"--encoder": "r"}, "r/photos"),
    "names that are no paths": ("hf:x", {"--data": "hf:x", "--encoder": "timm:vit"}, "hf:x"),
    "a glob elsewhere": ("r/new", {"--data": "r/photos/*.jpg"}, "r/photos/*.jpg"),
    "a glob not so deep": ("runs/a/b", {}, "*.png"),
    "the folder around the table": ("r2", {"--data": "x.parquet"}, "x.parquet"),
    "nothing given": ("r2", {"--parts": None, "--data": ""}, ""),
}


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("r/photos/a.jpg", "r/parts/parts.json", "r/weights.pth", "x.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to("r")
    (tmp_path / "linked").symlink_to("r/photos")
    (tmp_path / "links/cat").mkdir(parents=True)
    (tmp_path / "links/cat/a.jpg").symlink_to("../../r/photos/a.jpg")
    (tmp_path / "links/more").symlink_to("../r/parts")
    (tmp_path / "links/round").symlink_to("..")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", INPUT_IN_THE_WAY)
def test_an_input_is_never_in_the_way_of_what_is_written(case: str, rooms: Path) -> None:
    out, inputs, images = INPUT_IN_THE_WAY[case]
    with refused(f"--out {out}"):
        check_apart([("--out", Path(out))], {**inputs, "--data": images}, ["--data"])


@pytest.mark.parametrize("case", APART)
def test_what_is_apart_passes(case: str, rooms: Path) -> None:
    out, inputs, images = APART[case]
    check_apart([("--out", Path(out))], {**inputs, "--data": images}, ["--data"])


ATTACKS = [
    "pretrain --data R/photos --out R --overwrite",
    "pretrain --data photos --parts R/parts --out R --overwrite",
    "pretrain --data photos --init R --out R --overwrite",
    "knn --data photos --encoder R --out R --overwrite",
    "knn --data photos --encoder run --out photos/knn",
    "parts --data photos --teacher run --out new --export-png photos/png",
    "parts --data photos --teacher run --masks R/masks --out R --overwrite",
    "embed --data x.parquet --encoder run --out x.parquet --overwrite",
    "embed --data photos --encoder run --out photos/x.npz",
    "reconstruct --data photos --autoencoder run --out photos/new.png",
    "reconstruct --data photos/img.png --autoencoder run --out photos/img.png --overwrite",
    "export --encoder R --to timm --out R --overwrite",
    "evaluate --data photos --encoder run --config R/config.yaml --out R --overwrite",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_verb_overwrites_an_input(
    attack: str, desk: Path, creatures: Path, monkeypatch: pytest.MonkeyPatch, refuse: tiny.Refuse
) -> None:
    shutil.copytree(creatures / "images", desk / "photos")
    shutil.copytree(desk / "run", desk / "R")
    for name in ("photos/a.jpg", "parts/parts.json", "masks/a.png", "config.yaml", "export.json"):
        (desk / "R" / name).parent.mkdir(exist_ok=True)
        (desk / "R" / name).write_text("data: elsewhere\n")
    for name in ("x.parquet", "photos/img.png"):
        (desk / name).write_text("mine")
    monkeypatch.chdir(desk)
    refuse(attack.split(), desk, "--export-png" if "--export-png" in attack else "--out")


# What lies at --out, and the command that is to replace it.
NOT_OURS = {
    "weights in the run": ("run/encoder/model.safetensors", "embed --data photos --encoder run --out {} --overwrite"),
    "a table": ("mine.parquet", "embed --data photos --encoder run --out {} --overwrite"),
    "an archive": ("mine.npz", "embed --data photos --encoder run --out {} --overwrite"),
    "a photo": ("mine.png", "reconstruct --data photos --autoencoder run --out {} --overwrite"),
    "notes in an export": ("ex/notes.md", "export --encoder run --to timm --out ex --overwrite"),
    "a photo in a run": ("old/pictures/holiday.png", "knn --data photos --encoder run --out old --overwrite"),
    "notes beside weights": ("old/encoder/mine.txt", "knn --data photos --encoder run --out old --overwrite"),
    "photos within a run": ("old/parts/photos/a.jpg", "knn --data photos --encoder run --out old --overwrite"),
    "a folder named as ours": ("old/parts.json/a.jpg", "knn --data photos --encoder run --out old --overwrite"),
}


@pytest.mark.parametrize("case", NOT_OURS)
def test_what_semmae_did_not_write_is_never_replaced(
    case: str, desk: Path, creatures: Path, monkeypatch: pytest.MonkeyPatch, refuse: tiny.Refuse
) -> None:
    name, command = NOT_OURS[case]
    shutil.copytree(creatures / "images", desk / "photos")
    for folder, file in (("old", "config.yaml"), ("ex", "export.json")):
        (desk / folder).mkdir()
        (desk / folder / file).write_text("{}")
    if not (desk / name).exists():
        (desk / name).parent.mkdir(parents=True, exist_ok=True)
        (desk / name).write_text("mine")
    monkeypatch.chdir(desk)
    refuse(command.format(name).split(), desk, "--out")


def test_all_that_a_run_writes_may_be_replaced(whole_run: Path) -> None:
    assert foreign_files(whole_run) == []


def test_letters_are_letters_whatever_the_locale_makes_of_them(tmp_path: Path) -> None:
    check_place("--out", tmp_path / "k\udcc3\udcb6")  # as "kö" is read in the locale C
    with refused("--out", "UTF-8"):
        check_place("--out", tmp_path / "k\udcc3")
