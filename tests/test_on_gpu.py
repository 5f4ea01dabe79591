"""Whatever computes on a GPU mixes no devices, and finds what the CPU finds; shown without one, see `elsewhere`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny
import torch
from elsewhere import CUDA, on_gpu
from tasks import TASKS, loader
from torch import Tensor

import semmae
from semmae.train.batches import Training
from semmae.train.stage import FitOptions
from semmae.train.trainer import fit

Array = npt.NDArray[Any]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.ones(3, 4),
        lambda x: x @ torch.ones(4, 2),
        lambda x: torch.cat([x, torch.ones(1, 4)]),
        lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
        lambda x: torch.stack([x.sum(), torch.zeros(())]),
        lambda x: x.add_(torch.ones(4)),
        lambda x: torch.nn.Linear(4, 2)(x),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
    ],
)
def test_what_a_gpu_refuses_is_refused(wrong: Callable[[Tensor], object]) -> None:
    before = torch.cuda.is_available(), Tensor.to, torch.Generator
    with on_gpu():
        assert torch.cuda.is_available()
        x = torch.ones(3, 4, device="cuda")
        assert x.device == x.to("cuda").device == (2 * x).sum().device == CUDA
        assert x[torch.tensor([0, 1])].device == (x + torch.ones(())).device == CUDA
        assert not x.cpu().is_cuda and x.cpu().numpy().shape == (3, 4)
        with pytest.raises((RuntimeError, TypeError)):
            wrong(x)
    assert (torch.cuda.is_available(), Tensor.to, torch.Generator) == before


def trained(name: str, out: Path) -> list[dict[str, Any]]:
    """The figures of every step of two epochs, the second of them by a run that goes on with the first one's."""
    for epochs in (1, 2):
        torch.manual_seed(0)
        task, row = TASKS[name]()
        training = Training(resume=epochs > 1, precision="float32", accumulate=2)
        with tiny.every_step():
            fit(task, loader(row, 12, 3), FitOptions(training, out, "test", epochs, clip=1.0))
    return tiny.metrics(out)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_there_and_goes_on_with_the_losses_of_the_cpu(name: str, tmp_path: Path) -> None:
    expected = trained(name, tmp_path / "cpu")
    with on_gpu():
        found = trained(name, tmp_path / "gpu")
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        figures = {key: value for key, value in theirs.items() if key not in ("images_per_s", "data_wait", "stage")}
        assert {key: ours[key] for key in figures} == pytest.approx(figures, rel=1e-5)


def whole_way(out: Path, creatures: Path, encoder: Path) -> None:
    """Verbs that train, measure or embed; parts are learned on the way, and one training is for a teacher's tokens."""
    images, masks = creatures / "images", creatures / "masks"
    common: dict[str, Any] = {"data": images, "workers": 0, "precision": "float32"}
    few: dict[str, Any] = {**common, "batch_size": tiny.BATCH, "logger": "none"}
    new: dict[str, Any] = {**few, "epochs": 1, **tiny.SIZE}
    semmae.teacher(out=out / "teacher", **new)
    semmae.pretrain(out=out / "parts", teacher=out / "teacher", masks=masks, **new)
    semmae.pretrain(out=out / "tokens", teacher=encoder, target="tokens", masking="random", **new)
    own: dict[str, Any] = {"encoder": out / "parts", "untrained": False}
    semmae.evaluate(out=out / "evaluate", steps=2, **own, **common)
    semmae.knn(out=out / "knn", **own, **common)
    semmae.probe(out=out / "probe", epochs=1, **own, **few)
    semmae.finetune(out=out / "finetune", epochs=1, augment="none", **own, **few)
    segmented = {**few, "data": creatures, "head": "linear", "steps": 2, "val_steps": 1, "pictures": 0}
    semmae.segment(out=out / "segment", **own, **segmented)
    semmae.embed(out=out / "embed.npz", encoder=out / "parts", data=images, workers=0)
    semmae.reconstruct(autoencoder=out / "parts", out=out / "pictures.png", data=images, workers=0)


def found_by(out: Path) -> tuple[dict[str, Any], Array, Array]:
    """Losses of all trainings, part labels and features; no losses of a teacher's tokens, for it sees other crops."""
    runs = [path.parent for path in sorted(out.rglob("metrics.jsonl")) if path.parent.name != "tokens"]
    found = {str(run.relative_to(out)): [line["loss"] for line in tiny.metrics(run)] for run in runs}
    with np.load(out / "embed.npz") as embedded:
        return found, np.load(out / "parts/parts/parts.npy"), embedded["mean"]


@pytest.mark.slow
def test_verbs_find_there_what_they_find_on_the_cpu(creatures: Path, encoder: Path, tmp_path: Path) -> None:
    whole_way(tmp_path / "cpu", creatures, encoder)
    with on_gpu():
        whole_way(tmp_path / "gpu", creatures, encoder)
    (losses, labels, features), (expected, wanted, theirs) = (found_by(tmp_path / name) for name in ("gpu", "cpu"))
    assert losses.keys() == expected.keys() and len(losses) > 4
    for run, values in losses.items():
        assert values == pytest.approx(expected[run], rel=1e-3), run
    assert (labels == wanted).mean() > 0.99
    np.testing.assert_allclose(features, theirs, rtol=1e-3, atol=1e-3)
