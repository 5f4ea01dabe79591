"""What labelling is asked for: by which learner, of which encoder; and what is refused before anything is written."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from semmae.data.manifest import open_images
from semmae.data.part_store import PartStore
from semmae.errors import UserError
from semmae.files import short
from semmae.formats.folders import digest, read_learner, save_encoder, save_learner
from semmae.labels.labelling import check_learner, has_learner, label_images, learner_facts, with_encoder
from semmae.models.parts import PartLearner, PartsSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.parts import LabelOptions


def new_encoder(seed: int, patch: int = 8) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(EncoderSpec.named("vit_tiny", 32, patch)).eval()


@pytest.fixture
def learned(creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelOptions:
    """A run whose learner is there and whose labels are not; and its encoder."""
    monkeypatch.chdir(tmp_path)
    encoder = new_encoder(0)
    save_encoder(encoder, tmp_path / "encoder")
    options = LabelOptions(data=str(creatures / "images"), out=Path("run"), teacher="encoder", grid=7, workers=0)
    learner = PartLearner(PartsSpec(encoder.width, 8), encoder)
    save_learner(learner, options.out / "learner", learner_facts(options, encoder, 32))
    return options


def label(options: LabelOptions, encoder: Encoder) -> PartStore:
    images = open_images(options.data, limit=options.limit)
    return label_images(options, images, encoder, read_learner(options.out / "learner"), options.image_size or 32)


def test_other_images_are_labelled_by_a_learner_that_knows_its_encoder(learned: LabelOptions, tmp_path: Path) -> None:
    other = LabelOptions(data=learned.data, limit=5, out=Path("other"), learner=Path("run"), grid=5, workers=0)
    told = with_encoder(other)
    assert (told.teacher, told.num_heads, told.image_size) == (str(tmp_path / "encoder"), 3, 32)
    encoder = new_encoder(0)
    check_learner(told, encoder)
    assert not (tmp_path / "other").exists()
    assert has_learner(told)
    tiny.assert_same_weights(Path("run/learner"), Path("other/learner"))
    store = label(told, encoder)
    assert store.labels.shape == (5, 5, 5) and store.complete
    # Whole in itself: the other run may go, and this one's learner labels yet other images.
    again = with_encoder(LabelOptions(data=learned.data, out=Path("third"), learner=Path("other/learner")))
    assert again.teacher == told.teacher


def test_labels_are_gone_on_with_in_any_batch_size_and_refused_for_another_origin(learned: LabelOptions) -> None:
    encoder = new_encoder(0)
    store = label(dataclasses.replace(learned, batch_size=4), encoder)
    expected = store.labels.copy()
    store.labels[3:20] = 255
    store.labels.flush()
    tiny.retell_store(learned.out, complete=False)
    assert np.array_equal(label(dataclasses.replace(learned, batch_size=4), encoder).labels, expected)
    found = short(digest(encoder))
    for changed, named in (
        (new_encoder(1), [f"teacher_digest {short(found)}", short(digest(new_encoder(1)))]),
        (encoder, [f"learner_digest {short(store.learner_digest)}"]),
    ):
        if changed is encoder:
            save_learner(PartLearner(PartsSpec(encoder.width, 8)), learned.out / "learner")
        with pytest.raises(UserError) as caught:
            label(learned, changed)
        assert all(words in str(caught.value) for words in named)
    with pytest.raises(UserError, match=f"images 32, not 31; .*manifest_digest {short(store.manifest_digest)}, not "):
        label(dataclasses.replace(learned, limit=31), encoder)
    with pytest.raises(UserError, match="grid 7, not 9"):
        label(dataclasses.replace(learned, grid=9), encoder)


def test_labels_without_attention_get_it_and_stay(learned: LabelOptions) -> None:
    encoder = new_encoder(0)
    expected = label(learned, encoder).attention.copy()
    tiny.retell_store(learned.out, attention_grid=0)
    (learned.out / "attention.npy").unlink()
    before = (learned.out / "parts.npy").read_bytes()
    with pytest.raises(UserError, match=f"no attention .*`semmae parts --out {learned.out} --labels-only`"):
        PartStore.open(learned.out).attention  # noqa: B018
    assert np.array_equal(label(learned, encoder).attention, expected)
    assert PartStore.open(learned.out).complete
    assert (learned.out / "parts.npy").read_bytes() == before


def test_a_learner_of_another_encoder_is_refused_with_both_digests(learned: LabelOptions) -> None:
    ours, other = (short(digest(new_encoder(seed))) for seed in (0, 1))
    with pytest.raises(UserError, match=f"from the encoder {ours}, .*is {other};"):
        check_learner(learned, new_encoder(1))
    untold = dataclasses.replace(learned, out=Path("untold"))
    save_learner(read_learner(Path("run/learner")), Path("untold/learner"))  # does not tell its encoder
    check_learner(untold, new_encoder(1))
    with pytest.raises(UserError, match="192 wide with patches of 8, and encoder is 192 wide with patches of 16"):
        check_learner(untold, new_encoder(1, patch=16))
    with pytest.raises(UserError, match="does not tell its encoder; add --teacher"):
        with_encoder(dataclasses.replace(untold, teacher=None, learner=Path("untold"), out=Path("new")))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"teacher": None}, "parts needs --teacher, or --learner or --tokens"),
    ({"tokens": Path("t")}, "--tokens and --teacher exclude each other"),
    ({"teacher": None, "tokens": Path("t"), "learner": Path("run")}, "--tokens and --learner exclude each other"),
    ({"labels_only": True, "quality_only": True}, "--labels-only and --quality-only exclude each other"),
    ({"teacher": None, "learner": Path("nowhere")}, "nowhere: holds no part learner; give the --out"),
    ({"teacher": None, "learner": Path("whole")}, r"holds no part learner \(did you mean whole/parts\?\)"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED)
def test_what_is_refused(change: dict[str, Any], named: str, learned: LabelOptions, tmp_path: Path) -> None:
    save_learner(read_learner(Path("run/learner")), tmp_path / "whole" / "parts" / "learner")
    before = tiny.listing(tmp_path)
    with pytest.raises(UserError, match=named):
        with_encoder(dataclasses.replace(learned, **change))
    assert tiny.listing(tmp_path) == before


def test_labels_only_needs_a_learner(learned: LabelOptions) -> None:
    check_learner(dataclasses.replace(learned, labels_only=True), new_encoder(0))
    with pytest.raises(UserError, match="--labels-only: empty has not learned parts yet; go on with --resume"):
        check_learner(dataclasses.replace(learned, labels_only=True, out=Path("empty")), new_encoder(0))
    assert not has_learner(dataclasses.replace(learned, out=Path("empty")))
