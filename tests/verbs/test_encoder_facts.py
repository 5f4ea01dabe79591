"""Whose the figures are: every results.json names the encoder's weights as they were before they were touched."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

import semmae
from semmae.formats import folders as checkpoint
from semmae.formats.open import load_encoder
from semmae.models.vit import EncoderSpec

FEW: dict[str, Any] = {"workers": 0, "batch_size": 8}
# Where an image size is given, positions are resampled on the way.
VERBS: dict[str, dict[str, Any]] = {
    "knn": {"image_size": 40, **FEW},
    "probe": {"epochs": 1, "image_size": 40, **FEW},
    "finetune": {"epochs": 1, "image_size": 40, "precision": "float32", **FEW},
    "segment": {"head": "linear", "steps": 1, "val_steps": 1, "image_size": 40, **FEW},
    "evaluate": {"steps": 1, "untrained": False, "image_size": 40, **FEW},
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another seed than the untrained one."""
    return tiny.new_encoder(tmp_path_factory.mktemp("encoder") / "encoder", EncoderSpec(32, 8, 48, 2, 3), seed=5)


def whose(out: Path) -> str:
    """The digest that results.json holds; results.md must show its beginning, and not all of it."""
    digest = json.loads((out / "results.json").read_text())["protocol"]["encoder_digest"]
    found = (out / "results.md").read_text()
    assert f"- encoder digest: {digest[:12]}\n" in found and digest not in found
    assert isinstance(digest, str)
    return digest


@pytest.mark.parametrize("verb", VERBS)
def test_results_name_the_weights_that_were_given(verb: str, encoder: Path, creatures: Path, tmp_path: Path) -> None:
    data = creatures if verb in ("segment", "evaluate") else creatures / "images"

    out = getattr(semmae, verb)(encoder=str(encoder), data=str(data), out=tmp_path / "out", **VERBS[verb]).path

    assert whose(out) == checkpoint.digest(load_encoder(encoder))
    if verb in ("finetune", "segment"):  # measured again, it is the encoder that became of it
        again = getattr(semmae, verb)(
            encoder=str(out), data=str(data), out=tmp_path / "again", eval_only=True, workers=0
        ).path
        assert whose(again) == checkpoint.digest(load_encoder(out))
