"""What may be added to a finished run, by `on_resume="more"`, is there when `--resume` has added it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import yaml
from PIL import Image
from refusals import refused

import semmae
from semmae.data.manifest import open_images
from semmae.formats.folders import save_encoder
from semmae.formats.open import load_encoder
from semmae.models.fresh import fresh_like
from semmae.options import VERBS, kind_of
from semmae.options.fields import with_facts
from semmae.verbs import parts as parts_verb

Given = Mapping[str, Any]


class Places(NamedTuple):
    """What runs are made of."""

    data: Path  # images/ and masks/
    encoder: Path
    tmp: Path

    def wrote(self, name: str, text: str) -> Path:
        """A file of this text."""
        (self.tmp / name).write_text(text)
        return self.tmp / name

    def keypoints(self) -> Path:
        """A point of every image, of two parts in turn."""
        names = open_images(self.data / "images").names
        return self.wrote("points.csv", "image,part,x,y\n" + "".join(f"{n},{i % 2},9,9\n" for i, n in enumerate(names)))


class Added(NamedTuple):
    """What is added to a finished run, and what it is to leave: `found` is the value then, and another one before."""

    given: Callable[[Places], Given]
    found: Callable[[Path], Any]
    value: Any = True


def quality(path: str, *names: str) -> Callable[[Path], Any]:
    def found(out: Path) -> Any:
        value: Any = json.loads((out / path).read_text()) if (out / path).is_file() else {}
        for name in names:
            value = value.get(name, {})
        return bool(value) if isinstance(value, dict) else value

    return found


def untrained(out: Path) -> bool:
    return "untrained" in tiny.results(out)


def png_side(out: Path) -> int:
    pngs = sorted((out.parent / "png").rglob("*.png"))
    return Image.open(pngs[0]).width if pngs else 0


def rows(out: Path) -> list[str]:
    return [row["name"] for row in tiny.results(out)["rows"]]


UNTRAINED = Added(lambda _: {"untrained": True}, untrained)
ADDED = {
    ("knn", "untrained"): UNTRAINED,
    ("probe", "untrained"): UNTRAINED,
    ("finetune", "untrained"): UNTRAINED,
    ("segment", "untrained"): UNTRAINED,
    ("evaluate", "untrained"): UNTRAINED,
    ("segment", "pictures"): Added(lambda _: {"pictures": 2}, lambda out: (out / "predictions.png").is_file()),
    ("evaluate", "masks"): Added(
        lambda at: {"masks": at.data / "masks"}, lambda out: "segment_miou" in tiny.results(out)["this encoder"]
    ),
    ("parts", "masks"): Added(lambda at: {"masks": at.data / "masks"}, quality("quality.json", "learned")),
    ("parts", "keypoints"): Added(
        lambda at: {"keypoints": at.keypoints()}, quality("quality.json", "protocol", "keypoints_measured"), tiny.COUNT
    ),
    ("parts", "quality_images"): Added(
        lambda at: {"masks": at.data / "masks", "quality_images": 5}, quality("quality.json", "protocol", "images"), 5
    ),
    ("parts", "export_png"): Added(lambda at: {"export_png": at.tmp / "png"}, png_side, 32),
    ("parts", "export_size"): Added(lambda at: {"export_png": at.tmp / "png", "export_size": "image"}, png_side, 48),
    ("pretrain", "masks"): Added(lambda at: {"masks": at.data / "masks"}, quality("parts/quality.json", "learned")),
    ("compare", "maskings"): Added(
        lambda _: {"maskings": "block"}, rows, ["block", "random", "semantic-parts=grid"]
    ),
    ("compare", "grid"): Added(
        lambda at: {"grid": at.wrote("more.yaml", "- {masking: random}\n- {masking: block}\n")}, rows,
        ["random", "block"],
    ),
    ("compare", "seeds"): Added(lambda _: {"seeds": 2}, lambda out: len(tiny.results(out)["runs"]), 4),
    ("compare", "measure"): Added(
        lambda at: {"measure": "knn,probe", "grid": at.wrote("one.yaml", "- {masking: random}\n")},
        lambda out: "probe_top1" in tiny.results(out)["runs"][0],
    ),
    ("compare", "finetune_recipe"): Added(
        lambda at: {
            "measure": "finetune", "grid": at.wrote("one.yaml", "- {masking: random}\n"),
            "finetune_recipe": at.wrote("few.yaml", "{epochs: 1, batch_size: 8, augment: none, val_every: 0}\n"),
        },
        lambda out: "finetune_top1" in tiny.results(out)["runs"][0],
    ),
    ("compare", "segment_recipe"): Added(
        lambda at: {
            "measure": "segment", "masks": at.data / "masks", "grid": at.wrote("one.yaml", "- {masking: random}\n"),
            "segment_recipe": at.wrote("few.yaml", "{head: linear, steps: 2, val_steps: 2, batch_size: 8}\n"),
        },
        lambda out: "segment_miou" in tiny.results(out)["runs"][0],
    ),
    ("compare", "masks"): Added(
        lambda at: {"masks": at.data / "masks"}, lambda out: "parts_nmi" in tiny.results(out)["runs"][1]
    ),
}  # fmt: skip
COMMON: dict[str, Any] = {"workers": 0, "precision": "float32"}
TRAINED: dict[str, Any] = {**COMMON, "batch_size": 8, "logger": "none"}
BEGUN: dict[str, dict[str, Any]] = {
    "knn": COMMON,
    "probe": {**TRAINED, "epochs": 1},
    "finetune": {**TRAINED, "epochs": 1, "augment": "none"},
    "segment": {**TRAINED, "head": "linear", "steps": 1, "val_steps": 1, "pictures": 0},
    "evaluate": {**COMMON, "steps": 1, "untrained": False},
    "compare": {**TRAINED, "seeds": 1, "epochs": 1, "measure": "knn", **tiny.SIZE},
}


def begun(verb: str, at: Places, out: Path) -> Any:
    """A finished run, without anything of what may be added."""
    own = dict(BEGUN[verb])
    if verb == "compare":
        own["grid"] = at.wrote("pair.yaml", "- {masking: random}\n- {masking: semantic, parts: grid}\n")
    else:
        own["encoder"] = at.encoder
    data = at.data if verb == "segment" else at.data / "images"
    return getattr(semmae, verb)(data=data, out=out, **own)


def without_masks(run: Path, whole: Path) -> Path:
    """A copy of a run that was begun with annotations, as if it had been begun without."""
    shutil.copytree(whole, run)
    for path in run.rglob("quality.json"):
        path.unlink()
    for path in run.rglob("config.yaml"):
        if "masks" in (kept := yaml.safe_load(path.read_text())):
            path.write_text(yaml.safe_dump(kept | {"masks": None}, sort_keys=False))
    return run


@pytest.fixture(scope="module")
def finished(
    creatures: Path, encoder: Path, whole_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Path], Path]:
    """A finished run of a verb, made once, in a folder of one's own."""
    folder = tmp_path_factory.mktemp("finished")

    def copied(verb: str, out: Path) -> Path:
        if verb in ("parts", "pretrain"):
            return without_masks(out, whole_run / "parts" if verb == "parts" else whole_run)
        if not (folder / verb).exists():
            begun(verb, Places(creatures, encoder, folder), folder / verb)
        return Path(shutil.copytree(folder / verb, out))

    return copied


def test_every_option_that_may_be_added_is_tried() -> None:
    assert {(verb, name) for verb in VERBS for name in with_facts(kind_of(verb), on_resume="more")} == ADDED.keys()


@pytest.mark.parametrize(("verb", "name"), ADDED)
def test_what_is_added_to_a_finished_run_is_there(
    verb: str, name: str, finished: Callable[[str, Path], Path], creatures: Path, encoder: Path, tmp_path: Path
) -> None:
    out, added = finished(verb, tmp_path / "out"), ADDED[verb, name]
    assert added.found(out) != added.value
    given = added.given(Places(creatures, encoder, tmp_path))
    getattr(semmae, verb)(out=out, resume=True, **given)
    assert name in given and added.found(out) == added.value
    assert not (out / ".unfinished").exists()


def test_annotations_measure_the_parts_of_a_run_of_pretrain_once(
    whole_run: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quality is that of a run that had them from the beginning; others are measured again, and nothing is trained."""
    out, masks = without_masks(tmp_path / "out", whole_run), tmp_path / "masks"
    shutil.copytree(creatures / "masks", masks)
    semmae.pretrain(out=out, resume=True, masks=creatures / "masks")
    assert (out / "parts/quality.json").read_bytes() == (whole_run / "parts/quality.json").read_bytes()
    for folder in ("encoder", "parts/learner", "teacher/encoder"):
        tiny.assert_same_weights(out / folder, whole_run / folder)
    assert (out / "parts/parts.npy").read_bytes() == (whole_run / "parts/parts.npy").read_bytes()
    with monkeypatch.context() as patch:
        patch.delattr(parts_verb, "measure")
        semmae.pretrain(out=out, resume=True)
    semmae.pretrain(out=out, resume=True, masks=masks)
    assert quality("parts/quality.json", "protocol", "masks")(out) == str(masks)


def test_parts_are_not_measured_by_another_teacher_than_theirs(
    whole_run: Path, creatures: Path, tmp_path: Path
) -> None:
    """Refused before the finished run is touched."""
    out, teacher = without_masks(tmp_path / "out", whole_run), tmp_path / "teacher"
    for path in (out, out / "parts"):
        kept = yaml.safe_load((path / "config.yaml").read_text())
        (path / "config.yaml").write_text(yaml.safe_dump(kept | {"teacher": str(teacher)}, sort_keys=False))
    save_encoder(fresh_like(load_encoder(whole_run / "teacher"), seed=1), teacher)
    before = tiny.listing(out)
    with refused(out / "parts", "teacher"):
        semmae.pretrain(out=out, resume=True, masks=creatures / "masks")
    assert tiny.listing(out) == before
