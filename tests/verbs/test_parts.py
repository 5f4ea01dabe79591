"""`semmae parts`: repeatable, resumable; labels that belong to their images; quality against true parts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import semmae
from semmae.cli import run
from semmae.data.loaders import WholeDataset, normalise
from semmae.data.manifest import open_images
from semmae.data.part_store import PartStore
from semmae.evaluation.quality import quality, read_annotations
from semmae.filters import guides
from semmae.formats.folders import read_learner
from semmae.labels import labelling
from semmae.models.parts import PartLearner
from semmae.models.published_parts import PublishedPartLearner
from semmae.models.vit import Encoder
from semmae.names import short
from semmae.options.parts import PartsOptions


def test_interrupted_and_resumed_is_as_never_interrupted(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    out, teacher = tmp_path / "run", whole_run / "teacher"
    with tiny.every_step():
        with tiny.interrupted("parts", step=70):
            semmae.parts(data=creatures / "images", out=out, teacher=teacher, **tiny.TRAIN)
        assert not (out / "learner").exists() and (out / "tokens").is_dir()
        semmae.parts(out=out, resume=True)
    assert tiny.losses(out) == tiny.losses(whole_run / "parts")
    assert len(tiny.losses(out)) == PartsOptions.steps
    tiny.assert_same_weights(out / "learner", whole_run / "parts" / "learner")
    assert (out / "parts.npy").read_bytes() == (whole_run / "parts" / "parts.npy").read_bytes()
    assert (out / "report.html").is_file()
    assert not (out / "tokens").exists(), "all that they were for is done"
    tiny.saved_state(out)


def test_another_seed_gives_other_losses(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    with tiny.every_step(), tiny.interrupted("parts", step=1):
        semmae.parts(
            data=creatures / "images", out=tmp_path / "run", teacher=whole_run / "teacher", seed=1, **tiny.TRAIN
        )
    assert tiny.losses(tmp_path / "run")[0] != tiny.losses(whole_run / "parts")[0]


def test_a_batch_is_no_larger_than_the_images(encoder: Path, creatures: Path, tmp_path: Path) -> None:
    """A million images a step of a few dozen: not each of them thousands of times."""
    count = len(semmae.open_images(creatures / "images"))
    for name, size in (("a", 2**20), ("b", count)):
        options = {**tiny.TRAIN, "steps": 2, "batch_size": size}
        with tiny.every_step():
            semmae.parts(data=creatures / "images", teacher=encoder, out=tmp_path / name, **options)
    assert tiny.losses(tmp_path / "a") == tiny.losses(tmp_path / "b")


def test_a_row_holds_the_labels_of_its_image(whole_run: Path, creatures: Path) -> None:
    images = open_images(creatures / "images")
    store = PartStore.open(whole_run / "parts", manifest_digest=images.digest)
    learner, encoder = read_learner(whole_run / "parts" / "learner").eval(), semmae.load_encoder(whole_run / "teacher")
    whole = WholeDataset(images, tiny.SIZE["image_size"])
    pictures = torch.stack([whole[row]["image"] for row in (3, 30)])
    assert isinstance(learner, PartLearner)
    with torch.inference_mode():
        seen, _, _ = learner.look(encoder, normalise(pictures, encoder.spec.mean, encoder.spec.std))
        labels = learner.labels(seen, guides(pictures, store.grid)).numpy()
    assert (labels == store.labels[[3, 30]]).mean() > 0.999
    assert store.label_names == ["background", *(f"part {number}" for number in range(1, 7))]


def test_quality_is_measured_against_the_masks(whole_run: Path, creatures: Path) -> None:
    measured = json.loads((whole_run / "parts" / "quality.json").read_text())
    assert list(measured) == [
        *("learned", "heads", "heads_background", "kmeans", "kmeans_centred", "kmeans_two_steps"),
        *("grid", "bands", "protocol"),
    ]
    images = open_images(creatures / "images")
    store = PartStore.open(whole_run / "parts", manifest_digest=images.digest)
    rows, masks = read_annotations(images.names, creatures / "masks")
    assert rows == list(range(tiny.COUNT))
    assert measured["learned"] == pytest.approx(quality(store.labels, masks), abs=0.006)


def test_an_interrupted_labelling_keeps_what_is_done(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole_run / "parts", out)
    (out / "parts.png").unlink()
    tiny.rewrite_store(out, complete=False)
    done = np.load(out / "parts.npy", mmap_mode="r+")
    expected = done.copy()
    # A row that is done is not computed again: a mark put there stays.
    done[0], done[5:] = 3, 255
    done.flush()
    assert run(["parts", "--out", str(out), "--resume"]) == 0
    labels = PartStore.open(out).labels
    assert (labels[0] == 3).all()
    assert (labels[1:] == expected[1:]).all()


def test_labels_of_other_images_are_refused(
    whole_run: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    data, out = creatures / "images", tmp_path / "run"
    digests = (short(open_images(data, limit=limit).digest) for limit in (None, 16))
    refuse(tiny.pretrain_on(whole_run / "parts", data, out, "--limit", "16"), out, *digests)


@pytest.fixture
def finished(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run of `semmae parts`, to go on with."""
    shutil.copytree(whole_run / "parts", tmp_path / "run")
    return tmp_path / "run"


def test_quality_only_measures_again_and_touches_nothing_else(finished: Path) -> None:
    (finished / "quality.json").unlink()
    before = tiny.listing(finished / "learner") | {"parts.npy": (finished / "parts.npy").stat().st_mtime_ns}
    assert run(["parts", "--out", str(finished), "--quality-only"]) == 0
    assert json.loads((finished / "quality.json").read_text())["learned"]["nmi"] > 0
    after = tiny.listing(finished / "learner") | {"parts.npy": (finished / "parts.npy").stat().st_mtime_ns}
    assert after == before


def test_quality_only_needs_true_parts(whole_run: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse) -> None:
    out = tmp_path / "run"
    learner = ["--learner", str(whole_run / "parts"), "--data", str(creatures / "images"), "--workers", "0"]
    learner += ["--batch-size", str(tiny.BATCH), "--precision", "float32"]  # as that run: else a label may differ
    assert run(["parts", "--out", str(out), *learner]) == 0
    assert not (out / "quality.json").exists()
    assert (out / "parts.npy").read_bytes() == (whole_run / "parts" / "parts.npy").read_bytes()
    refuse(["parts", "--out", str(out), "--quality-only"], out, "--masks")
    assert run(["parts", "--out", str(out), "--quality-only", "--masks", str(creatures / "masks")]) == 0
    assert (out / "quality.json").read_text() == (whole_run / "parts" / "quality.json").read_text()


def test_labels_only_labels_what_is_missing(finished: Path, tmp_path: Path) -> None:
    expected = (finished / "parts.npy").read_bytes()
    labels = np.load(finished / "parts.npy", mmap_mode="r+")
    labels[7:] = 255
    labels.flush()
    tiny.rewrite_store(finished, complete=False)
    folder = tmp_path / "pngs"
    assert run(["parts", "--out", str(finished), "--labels-only", "--export-png", str(folder)]) == 0
    assert (finished / "parts.npy").read_bytes() == expected
    assert len(list(folder.rglob("*.png"))) == tiny.COUNT


def test_a_store_without_the_digest_of_its_labels_is_refused_with_the_remedy_that_helps(
    finished: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    expected, out = (finished / "parts.npy").read_bytes(), tmp_path / "out"
    tiny.rewrite_store(finished, arrays={})
    remedy = refuse(tiny.pretrain_on(finished, creatures / "images", out), out, "parts.json")
    (finished / "parts.json").unlink()
    assert run(remedy.split("`")[1].split()[1:]) == 0
    assert (finished / "parts.npy").read_bytes() == expected


def test_labels_are_read_from_token_files(creatures: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = open_images(creatures / "images")
    truth = generator.integers(0, 7, (len(images), 196))
    for name, parts in zip(images.names, truth, strict=True):
        file = (tmp_path / "tokens" / name).with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        sizes = np.tile(np.bincount(parts, minlength=7), (196, 1))
        columns = (sizes, np.eye(7)[parts], np.arange(196)[:, None], np.zeros((196, 768)))
        np.save(file, np.concatenate(columns, 1).astype(np.float32))
    out = tmp_path / "run"
    options = ["--data", str(creatures / "images"), "--tokens", str(tmp_path / "tokens"), "--workers", "0"]
    assert run(["parts", "--out", str(out), *options, "--masks", str(creatures / "masks")]) == 0
    store = PartStore.open(out, manifest_digest=images.digest)
    assert (store.labels.reshape(len(images), -1) == truth).all()
    assert list(json.loads((out / "quality.json").read_text())) == ["learned", "grid", "bands", "protocol"]
    assert (out / "report.html").is_file()


def test_parts_of_a_sample_label_all_images(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with tiny.every_step():
        semmae.parts(
            data=creatures / "images", out=out, teacher=whole_run / "teacher", sample=2 * tiny.BATCH, steps=4,
            num_parts=3, total_variation=0.1, refine=False, **tiny.TRAIN,
        )  # fmt: skip
    steps = tiny.metrics(out)
    assert len(steps) == 4
    assert {name for name in steps[0] if name.startswith("loss")} == {
        *("loss", "loss_object", "loss_object_variation", "loss_parts", "loss_parts_variation")
    }
    store = PartStore.open(out)
    assert store.images == tiny.COUNT and store.complete
    assert store.label_names == ["background", "part 1", "part 2", "part 3"]
    assert not (out / "tokens").exists()
    assert json.loads((out / "summary.json").read_text())["steps"] == 4


def test_parts_are_learned_from_pixels_of_a_sample_too(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with tiny.every_step():
        semmae.parts(
            data=creatures / "images", out=out, teacher=whole_run / "teacher", sample=2 * tiny.BATCH, epochs=2,
            rebuild="pixels", start="random", blur=1, background=False, **tiny.TRAIN,
        )  # fmt: skip
    steps = tiny.metrics(out)
    assert len(steps) == 2 * 2
    assert {name for name in steps[0] if name.startswith("loss")} == {"loss", "loss_reconstruction", "loss_diversity"}
    store = PartStore.open(out)
    assert store.images == tiny.COUNT
    assert "background" not in store.label_names
    assert isinstance(read_learner(out / "learner"), PublishedPartLearner)
    assert json.loads((out / "summary.json").read_text())["epochs"] == 2


class Killed(Exception):
    """In place of a signal."""


def killed(*_: object, **__: object) -> None:
    raise Killed


def test_a_run_whose_learner_was_saved_goes_on_from_its_tokens(
    encoder: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image is looked at again, neither for labels nor for pictures; and what is made is what would have been."""
    given = {"data": creatures / "images", "teacher": encoder, "steps": 3, **tiny.TRAIN}
    semmae.parts(out=tmp_path / "whole", **given)
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PartStore, "write", killed)
        semmae.parts(out=out, **given)
    assert (out / "learner").is_dir() and (out / "tokens").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "token_views", killed)
        semmae.parts(out=out, resume=True)
    for name in ("parts.npy", "attention.npy", "parts.png", "pictures/parts.npz"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (out / "tokens").exists()


def test_what_a_user_keeps_among_the_stored_tokens_stays(
    encoder: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    given = {"data": creatures / "images", "teacher": encoder, "steps": 3, **tiny.TRAIN}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PartStore, "write", killed)
        semmae.parts(out=out, **given)
    (out / "tokens/mine.parquet").write_text("mine")
    for again in ({}, {"resume": True, "labels_only": True}):
        semmae.parts(out=out, **given, **again)
        assert [entry.name for entry in (out / "tokens").iterdir()] == ["mine.parquet"]


def test_a_sample_labels_all_images_by_the_encoder(
    encoder: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored tokens are of other rows."""
    given = {"data": creatures / "images", "teacher": encoder, "steps": 3, "sample": 20, **tiny.TRAIN}
    with monkeypatch.context() as patch:
        patch.setattr(labelling, "label_from_tokens", killed)
        semmae.parts(out=tmp_path / "whole", **given)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PartStore, "write", killed)
        semmae.parts(out=tmp_path / "run", **given)
    assert (tmp_path / "run" / "tokens").is_dir()
    semmae.parts(out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "parts.npy").read_bytes() == (tmp_path / "whole" / "parts.npy").read_bytes()
    assert not (tmp_path / "run" / "tokens").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--teacher TEACHER --preset semmae-published --blur 4", "5"),
        ("--teacher TEACHER --rebuild features", "tokens"),
        ("--teacher TEACHER --epochs 3", "--epochs 3"),
        ("--teacher TEACHER --diversity 0.3", "--diversity 0.3"),
        ("--teacher TEACHER --preset semmae-published --steps 3", "--steps 3"),
        ("--teacher TEACHER --rebuild pixels --no-refine", "--no-refine"),
        ("--teacher TEACHER --nodes 2", "--nodes 2"),
        ("--teacher TEACHER --steps 0", "from 1"),
        ("--teacher TEACHER --keypoints none.csv", "none.csv"),
        ("--teacher TEACHER --sample 0", "at least 1"),
        ("--teacher TEACHER --quality-only --masks none", "no run"),
        ("--teacher TEACHER --labels-only", "no run"),
        ("--teacher TEACHER --tokens none", "--teacher"),
        ("--learner RUN --num-parts 3", "--num-parts 3"),
        ("--learner RUN --steps 99", "--steps 99"),
        ("--tokens none", "none"),
    ],
)
def test_what_is_refused(
    arguments: str, named: str, whole_run: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    places = {"TEACHER": whole_run / "teacher", "RUN": whole_run / "parts"}
    given = [str(places.get(word, word)) for word in arguments.split()]
    data = ["--data", str(creatures / "images"), "--workers", "0"]
    refuse(["parts", "--out", str(tmp_path / "run"), *data, *given], tmp_path / "run", named)
