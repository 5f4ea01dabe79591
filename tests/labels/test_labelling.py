"""What labelling is asked for: by which learner, of which encoder; and what is refused before anything is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from refusals import refused

from semmae.data.manifest import open_images
from semmae.data.part_store import PartStore
from semmae.formats.folders import digest, read_learner, save_encoder, save_learner
from semmae.labels.labelling import (
    check_learner,
    copy_learner,
    label_images,
    labelling_job,
    learner_facts,
    teacher_of,
)
from semmae.models.published_parts import PublishedPartLearner, PublishedPartsSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.names import short
from semmae.options.parts import PartsOptions
from semmae.verbs.parts import with_learner


def new_encoder(seed: int, patch: int = 8) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(EncoderSpec.named("vit_mini", 32, patch)).eval()


@pytest.fixture
def data(creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images; and in the working directory `run`, whose learner is there and whose labels are not, with its encoder."""
    monkeypatch.chdir(tmp_path)
    encoder = new_encoder(0)
    save_encoder(encoder, tmp_path / "encoder")
    learner = PublishedPartLearner(PublishedPartsSpec(encoder.width, 8, head_dim=32), encoder)
    save_learner(learner, Path("run/learner"), learner_facts("encoder", encoder, 32))
    return creatures / "images"


def label(data: Path, encoder: Encoder, out: str = "run", *, limit: int | None = None, **how: Any) -> PartStore:
    given: dict[str, Any] = {"size": 32, "grid": 7, "batch_size": 64, **how}
    images = open_images(data, limit=limit)
    job = labelling_job(images, encoder, read_learner(Path(out) / "learner"), **given)
    return label_images(Path(out), job, teacher="encoder")


def test_other_images_are_labelled_by_a_learner_that_knows_its_encoder(data: Path, tmp_path: Path) -> None:
    encoder, known = new_encoder(0), {"teacher": str(tmp_path / "encoder"), "num_heads": 3, "image_size": 32}
    assert teacher_of(Path("run")) == known
    check_learner(Path("other"), Path("run"), encoder, "encoder")
    assert not (tmp_path / "other").exists()
    copy_learner(Path("run"), Path("other"))
    tiny.assert_same_weights(Path("run/learner"), Path("other/learner"))
    store = label(data, encoder, "other", limit=5, grid=5)
    assert store.labels.shape == (5, 5, 5) and store.complete
    # Whole in itself: the other run may go, and this one's learner labels yet other images.
    assert teacher_of(Path("other/learner")) == known
    # Where --teacher is given beside it, the encoder has moved.
    given = PartsOptions(data="", out=Path("new"), learner=Path("run"), teacher="moved")
    assert with_learner(given).teacher == "moved" and with_learner(given).num_heads == 3


def test_labels_are_resumed_in_any_batch_size_and_refused_for_another_origin(data: Path) -> None:
    encoder = new_encoder(0)
    store = label(data, encoder, batch_size=4)
    expected = store.labels.copy()
    store.labels[3:20] = 255
    store.labels.flush()
    tiny.rewrite_store(Path("run"), complete=False)
    assert np.array_equal(label(data, encoder, batch_size=4).labels, expected)
    found = short(digest(encoder))
    for changed, named in (
        (new_encoder(1), [f"teacher_digest {short(found)}", short(digest(new_encoder(1)))]),
        (encoder, [f"learner_digest {short(store.learner_digest)}"]),
    ):
        if changed is encoder:
            save_learner(PublishedPartLearner(PublishedPartsSpec(encoder.width, 8, head_dim=32)), Path("run/learner"))
        with refused(*named):
            label(data, changed)
    with refused("images 32, not 31", f"manifest_digest {short(store.manifest_digest)}, not "):
        label(data, encoder, limit=31)
    with refused("grid 7, not 9"):
        label(data, encoder, grid=9)


def test_labels_without_attention_get_it_and_stay(data: Path) -> None:
    encoder, out = new_encoder(0), Path("run")
    expected = label(data, encoder).attention.copy()
    tiny.rewrite_store(out, attention_grid=0)
    (out / "attention.npy").unlink()
    before = (out / "parts.npy").read_bytes()
    with refused(f"`semmae parts --out {out} --labels-only`"):
        PartStore.open(out).attention  # noqa: B018
    assert np.array_equal(label(data, encoder).attention, expected)
    assert PartStore.open(out).complete
    assert (out / "parts.npy").read_bytes() == before


def test_a_learner_of_another_encoder_is_refused_with_both_digests(data: Path) -> None:
    ours, other = (short(digest(new_encoder(seed))) for seed in (0, 1))
    with refused(ours, other):
        check_learner(Path("run"), None, new_encoder(1), "encoder")
    with refused(ours, other):
        check_learner(Path("new"), Path("run"), new_encoder(1), new_encoder(1))
    save_learner(read_learner(Path("run/learner")), Path("unknown/learner"))  # does not say what its encoder is
    check_learner(Path("unknown"), None, new_encoder(1), "encoder")
    with refused("patches of 8", "patches of 16"):
        check_learner(Path("unknown"), None, new_encoder(1, patch=16), "encoder")
    with refused("--learner unknown", "--teacher"):
        with_learner(PartsOptions(data="", out=Path("new"), learner=Path("unknown")))


def test_an_encoder_that_is_an_object_is_known_by_its_digest(data: Path) -> None:
    encoder = new_encoder(0)
    facts = learner_facts(encoder, encoder, 32)
    assert facts["teacher"] is None and facts["teacher_digest"] == digest(encoder)


@pytest.mark.parametrize(
    ("learner", "named"),
    [
        ("nowhere", ["nowhere", "learner"]),
        ("whole", ["whole", "whole/parts"]),
    ],
)
def test_what_is_refused(learner: str, named: list[str], data: Path, tmp_path: Path) -> None:
    copy_learner(Path("run"), Path("whole/parts"))
    before = tiny.listing(tmp_path)
    with refused(*named):
        with_learner(PartsOptions(data=str(data), out=Path("new"), learner=Path(learner)))
    assert tiny.listing(tmp_path) == before


def test_labels_only_needs_a_learner(data: Path) -> None:
    encoder = new_encoder(0)
    check_learner(Path("run"), None, encoder, "encoder", needed=True)
    check_learner(Path("empty"), None, encoder, "encoder")
    with refused("--labels-only: empty "):
        check_learner(Path("empty"), None, encoder, "encoder", needed=True)
