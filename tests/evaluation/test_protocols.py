"""The table of protocols is complete: each is run on drawn data, and every figure and every fact has a name."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from semmae.data.classes import TrainVal, open_sets, train_val, voters
from semmae.data.coding import Coding
from semmae.data.segmentation import open_segmentation
from semmae.evaluation.features import View
from semmae.evaluation.parts import pixel_truth
from semmae.evaluation.protocols import OWN, PROTOCOLS, UNTRAINED
from semmae.evaluation.protocols.finetune import Finetune
from semmae.evaluation.protocols.knn import Knn
from semmae.evaluation.protocols.mae_probe import MaeProbe
from semmae.evaluation.protocols.parts import Parts, TrueParts
from semmae.evaluation.protocols.probe import Probe
from semmae.evaluation.protocols.segment import Segment, Windows
from semmae.evaluation.protocols.shape import Classified, Protocol, Segmented, measure
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.finetune import FinetuneRecipe
from semmae.options.knn import KnnRecipe
from semmae.options.segment import SegmentRecipe
from semmae.reporting.page import FIGURES, called
from semmae.train.batches import Training

VIEW = View(32, "mean", batch_size=16, precision="float32", workers=0)
TRAINING = Training(batch_size=8, precision="float32", workers=0, resume=False)
# Given where something allows them: an interval of more than one image, a sweep where the rate is chosen …
ENDS = ("_low", "_high")


class Case(NamedTuple):
    protocol: Protocol[Any]
    data: Any


@pytest.fixture(scope="module")
def classes(creatures: Path) -> TrainVal:
    data = creatures / "images"
    return train_val(data, open_sets(data, limit=None, seed=0, workers=0), val_share=0.2, limit=None, seed=0)


@pytest.fixture
def case(request: pytest.FixtureRequest, creatures: Path, classes: TrainVal, tmp_path: Path) -> Case:
    """A protocol at its smallest, by its name in the table, and what it measures by."""
    windows = Windows(32, precision="float32", workers=0, pictures=1)
    name = request.param
    if name in ("parts", "segment"):
        pixels = open_segmentation(creatures, Coding(), workers=0)
        if name == "parts":
            parts = TrueParts(pixels.val.images, pixel_truth(pixels.val))
            return Case(Parts(VIEW), parts)
        return Case(Segment(SegmentRecipe(head="linear", steps=1), TRAINING, windows, "encoder"), pixels)
    of_classes: dict[str, Protocol[TrainVal]] = {
        "knn": Knn(VIEW, KnnRecipe(k=5)),
        "probe": Probe(VIEW, epochs=1),
        "probe-mae": MaeProbe(VIEW, TRAINING, epochs=1),
        "finetune": Finetune(FinetuneRecipe(epochs=1, val_every=0), TRAINING, 32, crop_pct=0.875, val_share=0.2),
    }
    return Case(of_classes[name], classes)


@pytest.mark.parametrize(("name", "case"), [(name, name) for name in PROTOCOLS], indirect=["case"])
def test_every_figure_has_a_name_and_every_name_a_figure(name: str, case: Case, tmp_path: Path) -> None:
    row, (protocol, data) = PROTOCOLS[name], case
    assert protocol.name == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.epochs = 3  # type: ignore[attr-defined]
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(32, 8, 24, 2, 2)).eval()
    protocol.check_encoder(encoder)
    protocol.prepare(encoder)
    protocol.check(data)
    methods = measure(protocol, encoder, data, tmp_path, untrained_seed=0)
    assert list(methods) == [OWN, UNTRAINED]
    for measured in methods.values():
        figures = measured.figures
        assert {figure for figure in figures if not figure.endswith(ENDS)} == row.figures.keys()
        assert {figure.removesuffix(end) for figure in figures for end in ENDS if figure.endswith(end)} <= set(figures)
        assert all(isinstance(figures[figure], float) for figure in row.summary)
        json.dumps(figures)
    if isinstance(methods[OWN].details, Classified):
        assert len(methods[OWN].details.chosen) == methods[OWN].figures["images"]
    assert isinstance(methods[OWN].details, Segmented) == (name == "segment")


@pytest.mark.parametrize(("name", "case"), [(name, name) for name in PROTOCOLS], indirect=["case"])
def test_what_may_be_chosen_is_described(name: str, case: Case) -> None:
    """With any other value of what changes the figures, results.json is another."""
    protocol, data = case
    described = protocol.describe(data)
    assert json.loads(json.dumps(described)) == described
    if "split" in described:
        assert described["split"] == data.split and "method" in described
    of_place = {"view", "training", "windows", "recipe", "embed", "source"}  # or of a value of its own
    of_machine = {"workers", "batch_size", "checkpointing", "compile", "val_every", "val_steps", "val_share", "seed"}
    for owner, field in fields_of(protocol):
        if field in of_place | of_machine | NOT_DESCRIBED.get(name, set()):
            continue
        changed = dataclasses.replace(owner, **{field: other_than(field, getattr(owner, field))})
        whole = changed if owner is protocol else dataclasses.replace(protocol, recipe=changed)
        assert whole.describe(data) != described, field


def fields_of(protocol: Any) -> Iterator[tuple[Any, str]]:
    """What may be chosen, of the protocol itself and of its recipe."""
    for owner in filter(None, (protocol, getattr(protocol, "recipe", None))):
        yield from ((owner, field.name) for field in dataclasses.fields(owner))


# What config.yaml alone says of a training.
NOT_DESCRIBED = {
    "segment": {
        *("clip", "blocks", "decoder_channels", "min_scale", "max_scale", "most_of_one", "colour", "drop_path"),
        *("layer_decay", "warmup_share", "aux_weight"),
    },
}
OTHERS: dict[str, Any] = {
    "pooling": "cls",
    "head": "upernet",
    "augment": "none",
    "lr": 0.5,
    "crop_pct": 0.5,
    "preset": "p",
}


def other_than(name: str, value: Any) -> Any:
    if name in OTHERS:
        return OTHERS[name]
    return not value if isinstance(value, bool) else value / 2 or 0.5 if isinstance(value, float) else value + 1


def test_leave_one_out_is_what_data_without_splits_are_measured_by(creatures: Path, tmp_path: Path) -> None:
    data = creatures / "images"
    asked = voters(data, open_sets(data, limit=None, seed=0, workers=0), limit=None)
    assert asked.leaves_one_out and asked.split == "leave one out" and len(asked.sets) == 1


def test_names_in_tables_of_several_protocols_are_told_apart() -> None:
    prefixes = [row.prefix for row in PROTOCOLS.values() if row.prefix]
    assert len(set(prefixes)) == len(prefixes)
    assert len(set(FIGURES.values())) == len(FIGURES)
    for row in PROTOCOLS.values():
        assert set(row.summary) <= row.figures.keys()
        for figure in row.summary:
            assert FIGURES[row.prefix + figure] == called(row.prefix + figure)
    assert called("knn_mean_class") == "k-NN, mean of classes %" and called("knn_images") == "k-NN, images"
