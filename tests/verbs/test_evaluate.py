"""`semmae evaluate`: the figures of the single verbs, in one table; what cannot be measured is reported or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from refusals import refused

import semmae
from semmae.data.manifest import open_images
from semmae.evaluation import features
from semmae.evaluation.protocols.knn import Knn
from semmae.evaluation.protocols.parts import Parts
from semmae.evaluation.protocols.probe import Probe
from semmae.evaluation.protocols.segment import Segment

COMMON: dict[str, Any] = {"workers": 0, "batch_size": 16}


@pytest.fixture(scope="module")
def evaluated(encoder: Path, creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    return evaluate(encoder=str(encoder), data=str(creatures), out=out, steps=2, **COMMON)


def evaluate(**options: Any) -> Path:
    return semmae.evaluate(**options).path


def test_an_encoder_that_has_learned_nothing_equals_its_baseline(evaluated: Path) -> None:
    found = tiny.results(evaluated)
    own, untrained = found["this encoder"], found["untrained"]
    assert own.keys() == untrained.keys()
    assert {name: value for name, value in own.items() if untrained[name] != value} == {}
    measured = {name.partition("_")[0] for name in own}
    assert {"knn", "probe", "segment", "heads", "kmeans", "grid"} <= measured


def test_figures_are_those_of_the_single_verbs(evaluated: Path, encoder: Path, creatures: Path, tmp_path: Path) -> None:
    own = tiny.results(evaluated)["this encoder"]
    images = str(creatures / "images")
    semmae.probe(encoder=str(encoder), data=images, out=tmp_path / "probe", crop_pct=1.0, **COMMON)
    semmae.segment(
        encoder=str(encoder), data=str(creatures), out=tmp_path / "segment", head="linear", steps=2, val_steps=2,
        workers=0,
    )  # fmt: skip
    for verb, names in (("probe", ("top1", "top5", "mean_class", "rate")), ("segment", ("miou", "pixel_accuracy"))):
        alone = tiny.results(tmp_path / verb)
        assert [own[f"{verb}_{name}"] for name in names] == [alone[name] for name in names]


def test_the_table_gives_every_encoder_and_protocol(evaluated: Path) -> None:
    text = (evaluated / "results.md").read_text()
    assert "| this encoder | untrained |" in " ".join(text.split())
    for words in (
        "k-NN, top-1 %",
        "linear probe, top-1 %",
        "segmentation, linear head, mIoU %",
        "parts by attention heads, NMI",
    ):
        assert f"| {words} " in text
    protocol = tiny.results(evaluated)["protocol"]
    assert protocol["knn"]["split"] == protocol["probe"]["split"] == "24 train, 8 held out of each class by seed 0"
    assert protocol["segment"]["steps"] == 2


def test_without_masks_classes_alone_are_measured(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    out = evaluate(
        encoder=str(encoder), data=str(creatures / "images"), out=tmp_path / "out", untrained=False, **COMMON
    )
    found = tiny.results(out)
    assert "untrained" not in found
    assert {name.partition("_")[0] for name in found["this encoder"]} == {"knn", "probe"}


@pytest.fixture
def streets(creatures: Path, tmp_path: Path) -> Path:
    """Photos as ADE20K lays them out: no classes, the same names in both splits, 255 where nobody is asked."""
    folder = tmp_path / "streets"
    images = sorted((creatures / "images").rglob("*.png"))
    for number, image in enumerate(images[:16]):
        split = "train" if number < 8 else "val"
        for kind, source in (
            ("images", image),
            ("masks", creatures / "masks" / image.relative_to(creatures / "images")),
        ):
            target = folder / kind / split / f"{number % 8:04}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return folder


def test_masks_without_classes_are_measured_beside_the_baseline(encoder: Path, streets: Path, tmp_path: Path) -> None:
    out = evaluate(encoder=str(encoder), data=str(streets), out=tmp_path / "out", steps=2, **COMMON)
    found = tiny.results(out)
    assert found["this encoder"] == found["untrained"]
    assert {name.partition("_")[0] for name in found["this encoder"]} >= {"segment", "heads", "grid"}
    assert (out / "segment" / "per_class.csv").is_file() and (out / "untrained" / "segment" / "per_class.csv").is_file()


def test_what_is_ignored_is_no_part(encoder: Path, streets: Path, tmp_path: Path) -> None:
    def grid_nmi(name: str) -> float:
        out = evaluate(encoder=str(encoder), data=str(streets), out=tmp_path / name, steps=1, untrained=False, **COMMON)
        return float(tiny.results(out)["this encoder"]["grid_nmi"])

    before = grid_nmi("before")
    for path in (streets / "masks").rglob("*.png"):
        mask = np.array(Image.open(path))
        mask[mask == 0] = 255  # the background is not to be predicted, and was none of the parts before
        Image.fromarray(mask).save(path)
    assert grid_nmi("after") == before


def test_what_cannot_be_read_is_listed(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(creatures / "images", folder)
    broken = sorted(folder.rglob("*.png"))[0]
    broken.write_bytes(broken.read_bytes()[:100])
    out = evaluate(encoder=str(encoder), data=str(folder), out=tmp_path / "out", untrained=False, **COMMON)
    assert (out / "skipped.csv").read_text().splitlines()[1].startswith(broken.relative_to(folder).as_posix())


def test_without_classes_and_masks_nothing_is_written(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    images = next((creatures / "images").iterdir())
    before = tiny.listing(tmp_path)
    with refused("--masks", tmp_path / "none"):
        evaluate(
            encoder=str(encoder),
            data=str(creatures / "images"),
            masks=tmp_path / "none",
            out=tmp_path / "out",
            **COMMON,
        )
    with refused("classes", "annotations"):
        evaluate(encoder=str(encoder), data=str(images), out=tmp_path / "out", **COMMON)
    assert tiny.listing(tmp_path) == before


@pytest.fixture
def divided(creatures: Path, tmp_path: Path) -> Path:
    return tiny.divide(creatures, tmp_path / "divided")


def test_one_pass_over_the_images_serves_knn_and_probe_and_gives_their_figures(
    encoder: Path, divided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = features.Looks.made

    def counting(looks: features.Looks, *rest: Any) -> Any:
        seen.append(len(looks.images))
        return real(looks, *rest)

    monkeypatch.setattr(features.Looks, "made", counting)
    given = {"encoder": str(encoder), "data": str(divided), **COMMON}
    own = tiny.results(evaluate(out=tmp_path / "all", **given))["this encoder"]
    assert seen == [24, 8, 24, 8]  # of the encoder and of the untrained one: train, val
    knn = tiny.results(semmae.knn(out=tmp_path / "knn", **given).path)
    assert [own[f"knn_{name}"] for name in ("top1", "top5", "mean_class")] == [
        knn[name] for name in ("top1", "top5", "mean_class")
    ]
    probe = tiny.results(semmae.probe(out=tmp_path / "probe", **given).path)
    assert (own["probe_top1"], own["probe_sweep"]) == (probe["top1"], probe["sweep"])


def test_of_a_limit_those_that_were_measured_are_listed(encoder: Path, divided: Path, tmp_path: Path) -> None:
    """Of each split so many are drawn: a broken one that none of the draws has is none that was left out."""
    drawn = set(open_images(divided, split="train", limit=6, seed=0).names)
    for path in (divided / "train").rglob("*.png"):
        if path.relative_to(divided).as_posix() not in drawn:
            path.write_bytes(b"broken")
    given = {"encoder": str(encoder), "data": str(divided), "limit": 6, "untrained": False, **COMMON}
    out = evaluate(out=tmp_path / "out", **given)
    assert (out / "skipped.csv").read_text().splitlines() == ["name,reason"]


@pytest.mark.parametrize("stopped_in", ["probe", "parts", "segment"])
def test_a_stopped_run_goes_on_after_the_last_finished_protocol(
    stopped_in: str, evaluated: Path, encoder: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second encoder, whose first figures and all of the first encoder's are not computed again."""
    protocols: list[type[Any]] = [Knn, Probe, Parts, Segment]
    names = [protocol.name for protocol in protocols]
    calls: list[str] = []
    for protocol in protocols:

        def counted(*rest: Any, _name: str = protocol.name, _real: Any = protocol.run, **named: Any) -> Any:
            calls.append(_name)
            if (_name, calls.count(_name)) == (stopped_in, 2):
                raise KeyboardInterrupt
            return _real(*rest, **named)

        monkeypatch.setattr(protocol, "run", counted)
    given = {"encoder": str(encoder), "data": str(creatures), "out": tmp_path / "out", "steps": 2, **COMMON}
    with pytest.raises(KeyboardInterrupt):
        evaluate(**given)
    assert not (tmp_path / "out" / "results.json").exists()
    before = len(calls) - 1
    calls.append(stopped_in)  # so that the second call of it is not the one that stops
    evaluate(out=tmp_path / "out", resume=True)
    assert calls[before + 2 :] == names[names.index(stopped_in) :]
    for name in ("results.json", "results.md"):
        assert (tmp_path / "out" / name).read_text() == (evaluated / name).read_text()
    assert not (tmp_path / "out" / "probe" / "untrained").exists()


def test_stopped_at_another_image_size_it_goes_on_to_the_same_table(
    encoder: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segmentation resizes the encoder, and a run that goes on has none to do."""
    given = {"encoder": str(encoder), "data": str(creatures), "steps": 2, "image_size": 48, **COMMON}
    whole = evaluate(out=tmp_path / "whole", **given)
    real, calls = Segment.run, []

    def stopping(*rest: Any) -> Any:
        calls.append(rest)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*rest)

    monkeypatch.setattr(Segment, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(out=tmp_path / "out", **given)
    evaluate(out=tmp_path / "out", resume=True)
    assert len(calls) == 3
    assert (tmp_path / "out" / "results.json").read_text() == (whole / "results.json").read_text()


@pytest.mark.parametrize("places", [("train/aachen", "train/bochum", "val/frankfurt"), ("train/a", "val/a", "val/b")])
def test_images_with_masks_in_folders_that_are_no_classes(
    places: tuple[str, str, str], encoder: Path, creatures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Towns, sequences: others in each split, or a single one to learn from. The masks are measured all the same."""
    pairs = zip(
        sorted((creatures / "images").rglob("*.png")), sorted((creatures / "masks").rglob("*.png")), strict=True
    )
    for row, (image, mask) in enumerate(pairs):
        for kind, path in (("images", image), ("masks", mask)):
            target = tmp_path / "streets" / kind / places[row % 3] / f"{row}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    given = {"encoder": str(encoder), "data": str(tmp_path / "streets"), "steps": 2, "untrained": False, **COMMON}
    found = tiny.results(evaluate(out=tmp_path / "out", **given))["this encoder"]
    assert "segment_miou" in found and not [name for name in found if name.startswith(("knn", "probe"))]
    assert "k-NN" in caplog.text


def as_noted_before(out: Path) -> None:
    """The images of classes and of pixels in one list, as runs have them that older versions began."""
    for path in out.rglob("figures.json"):
        found = json.loads(path.read_text())
        found["images"] = [*found.pop("class_images", []), *found.pop("pixel_images", [])]
        path.write_text(json.dumps(found))


@pytest.mark.parametrize("before", [False, True])
def test_figures_of_other_images_are_not_gone_on_with(
    before: bool, encoder: Path, divided: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = {"encoder": str(encoder), "data": str(divided), "out": out, "untrained": False, **COMMON}
    evaluate(**given)
    if before:
        as_noted_before(out)
    (out / ".unfinished").touch()  # as if it had been stopped
    next((divided / "val").rglob("*.png")).unlink()
    listing = tiny.listing(out)
    with refused(out / "figures.json", "images of classes"):
        evaluate(resume=True, **given)
    assert tiny.listing(out) == listing


@pytest.mark.parametrize("before", [False, True])
def test_annotations_are_added_to_a_finished_run(
    before: bool, evaluated: Path, encoder: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured twice, and the table is that of a run that had them from the beginning."""
    masks, out = tmp_path / "masks", tmp_path / "out"
    evaluate(encoder=str(encoder), data=str(creatures / "images"), out=out, steps=2, **COMMON)
    if before:
        as_noted_before(out)
    with monkeypatch.context() as patch:
        patch.delattr(Knn, "run")
        evaluate(out=out, resume=True, masks=creatures / "masks")
        for name in ("results.json", "results.md"):
            assert (out / name).read_text() == (evaluated / name).read_text()
        if before:
            as_noted_before(out)
        evaluate(out=out, resume=True)
    assert tiny.results(out) == tiny.results(evaluated)
    # Others than these are no addition.
    shutil.copytree(creatures / "masks", masks)
    mask = next(masks.rglob("*.png"))
    Image.fromarray(255 - np.array(Image.open(mask))).save(mask)
    listing = tiny.listing(out)
    with refused(out / "figures.json", "--masks"):
        evaluate(out=out, resume=True, masks=masks)
    assert tiny.listing(out) == listing


def test_single_images_of_classes_leave_the_probe_out(
    encoder: Path, divided: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No rate can be chosen: k-NN is measured all the same."""
    for folder in (divided / "train").iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    out = evaluate(encoder=str(encoder), data=str(divided), out=tmp_path / "out", untrained=False, **COMMON)
    assert {name.partition("_")[0] for name in tiny.results(out)["this encoder"]} == {"knn"}
    assert "probe" not in tiny.results(out)["protocol"]
    assert "learning rate" in caplog.text


def test_masks_are_measured_where_every_class_has_a_single_image(
    encoder: Path, creatures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "semmae")
    for kind in ("images", "masks"):
        for path in sorted((creatures / kind).glob("*/*.png"))[::4]:
            target = tmp_path / "data" / kind / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    out = evaluate(
        encoder=str(encoder), data=str(tmp_path / "data"), out=tmp_path / "out", steps=1, untrained=False, **COMMON
    )
    assert {name.partition("_")[0] for name in tiny.results(out)["this encoder"]} >= {"segment", "grid"}
    assert "knn_top1" not in tiny.results(out)["this encoder"]
    assert "single image" in caplog.text
