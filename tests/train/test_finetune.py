"""Fine-tuning's parts, against timm's losses and loops and the formulas of MAE and BEiT."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import semmae
from semmae.formats.folders import save_encoder
from semmae.models.classifier import Classifier, set_drop_path
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.finetune import FinetuneRecipe
from semmae.train.batches import Training
from semmae.train.finetune import FinetuneTask, disturbed
from semmae.train.optimizer import layer_decay_groups
from semmae.train.stage import FitOptions
from semmae.train.trainer import fit

DEPTH = 3
GOLDEN = [2.07948661, 2.11358881, 2.1479249, 2.05964303, 2.06949568]
PLAIN = FinetuneRecipe(mixup=0, cutmix=0, erasing=0, label_smoothing=0)


def classifier(pooling: str = "mean", classes: int = 4) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Encoder(EncoderSpec(16, 8, 24, DEPTH, 3)), classes, pooling)


def layer_of(name: str) -> int:
    """MAE's util/lr_decay.py in words: tokens, positions and patch projection 0, block i is i + 1, the rest last."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else DEPTH + 1


def test_each_layer_learns_at_the_rate_of_the_formula() -> None:
    vit = classifier().requires_grad_(True).vit
    groups = layer_decay_groups(vit, lr=0.1, weight_decay=0.05, layer_decay=0.65)
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == len(list(vit.parameters()))
    for name, parameter in vit.named_parameters():
        group = found[id(parameter)]
        assert group["lr"] == pytest.approx(0.1 * 0.65 ** (DEPTH + 1 - layer_of(name))), name
        undecayed = parameter.ndim == 1 or name in ("pos_embed", "cls_token")
        assert group["weight_decay"] == (0.0 if undecayed else 0.05), name
    assert groups[0]["lr"] == 0.1  # which metrics show


def test_plain_targets_give_cross_entropy() -> None:
    logits, targets = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    images, soft = disturbed(torch.zeros(5, 3, 8, 8), targets, PLAIN, 4, seed=1)
    assert not images.any()
    assert torch.allclose(functional.cross_entropy(logits, soft), functional.cross_entropy(logits, targets))


def test_smoothed_targets_give_timm_s_loss() -> None:
    logits, targets = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    recipe = FinetuneRecipe(mixup=0, cutmix=0, erasing=0, label_smoothing=0.1)
    _, soft = disturbed(torch.zeros(5, 3, 8, 8), targets, recipe, 4, seed=1)
    assert torch.allclose(functional.cross_entropy(logits, soft), LabelSmoothingCrossEntropy(0.1)(logits, targets))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_a_batch_is_erased_and_mixed_as_by_timm(mixup: float, cutmix: float) -> None:
    images, targets = torch.randn(6, 3, 16, 16), torch.tensor([0, 3, 1, 1, 2, 0])
    recipe = FinetuneRecipe(mixup=mixup, cutmix=cutmix, erasing=0.5)
    logits = torch.randn(6, 4)
    for seed in range(5):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        mix = Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=4)
        expected, soft = mix(RandomErasing(0.5, mode="pixel", device="cpu")(images.clone()), targets)
        torch.manual_seed(seed)
        found, targets_found = disturbed(images.clone(), targets, recipe, 4, seed)
        assert torch.equal(found, expected) and torch.equal(targets_found, soft)
        loss = functional.cross_entropy(logits, targets_found)
        assert torch.allclose(loss, SoftTargetCrossEntropy()(logits, soft))


def test_an_odd_batch_leaves_its_last_image_unmixed() -> None:
    images, targets = torch.randn(5, 3, 16, 16), torch.tensor([0, 3, 1, 1, 2])
    recipe = FinetuneRecipe(mixup=0.8, cutmix=0, erasing=0, label_smoothing=0)
    found, soft = disturbed(images.clone(), targets, recipe, 4, seed=0)
    assert torch.equal(found[4], images[4]) and soft[4].tolist() == [0, 0, 1, 0]
    assert not torch.equal(found[:4], images[:4]) and torch.allclose(soft.sum(1), torch.ones(5))
    alone, target = disturbed(images[:1].clone(), targets[:1], recipe, 4, seed=0)
    assert torch.equal(alone, images[:1]) and target.tolist() == [[1, 0, 0, 0]]


class Colours(Dataset[dict[str, Any]]):
    """Four plain colours and a little noise, told apart by a single look."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, row: int) -> dict[str, Any]:
        noise = torch.Generator().manual_seed(row)
        image = torch.randint(0, 40, (3, 16, 16), generator=noise)
        if row % 4 < 3:
            image[row % 4] += 200
        return {"images": image.to(torch.uint8), "targets": row % 4, "row": row}


def trained(
    recipe: FinetuneRecipe, out: Path, epochs: int = 2, accumulate: int = 1, drop: float = 0.0, lr: float = 5e-4
) -> FinetuneTask:
    model = classifier().eval()  # as a loaded encoder comes
    set_drop_path(model.vit, drop)
    task = FinetuneTask(model, recipe, lr=lr)
    loader = DataLoader(Colours(), batch_size=8 // accumulate)
    training = Training(precision="float32", accumulate=accumulate, resume=False)
    fit(task, loader, FitOptions(training, out, "finetune", epochs, clip=0.0))
    return task


def test_it_learns_to_classify_colours(tmp_path: Path) -> None:
    recipe = FinetuneRecipe(layer_decay=0.9, mixup=0, cutmix=0, erasing=0)
    task = trained(recipe, tmp_path, epochs=10, lr=3e-3)
    items = [Colours()[row] for row in range(32)]
    images = torch.stack([item["images"] for item in items]).float()
    spec = task.result.encoder.spec
    images = (images / 255 - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    with torch.no_grad():
        assert task.result.eval()(images).argmax(1).tolist() == [item["targets"] for item in items]


def test_at_a_rate_of_zero_that_ends_at_zero_nothing_moves(tmp_path: Path) -> None:
    task = trained(dataclasses.replace(PLAIN, min_lr=0.0), tmp_path, epochs=1, lr=0.0)
    found, wanted = task.result.state_dict(), classifier().state_dict()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_the_average_follows_every_optimiser_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    real = FinetuneTask.on_train_batch_end

    def watch(task: FinetuneTask, *rest: Any) -> None:
        real(task, *rest)
        seen.append(task.classifier.vit.head.weight.detach().clone())

    monkeypatch.setattr(FinetuneTask, "on_train_batch_end", watch)
    recipe = FinetuneRecipe(ema=0.9)
    task = trained(recipe, tmp_path, accumulate=2, lr=1e-2)

    average = seen[1]
    for step, weights in enumerate(seen[3::2], start=2):  # after each second batch
        decay = min(0.9, 1 - step ** -(2 / 3))  # timm's warm-up of the decay
        average = decay * average + (1 - decay) * weights
    assert len(seen) == 16
    assert torch.allclose(task.result.vit.head.weight, average, rtol=1e-5)
    assert not torch.allclose(task.result.vit.head.weight, task.classifier.vit.head.weight)


def test_drop_path_is_at_work_though_the_encoder_came_in_evaluation_mode(tmp_path: Path) -> None:
    def weights(drop: float, seed: int, name: str) -> torch.Tensor:
        task = trained(dataclasses.replace(PLAIN, seed=seed), tmp_path / name, epochs=1, drop=drop)
        return task.classifier.vit.blocks[1].mlp.fc1.weight.detach()

    assert torch.equal(weights(0.0, 0, "a"), weights(0.0, 1, "b"))  # nothing else is drawn
    assert torch.equal(weights(0.5, 0, "c"), weights(0.5, 0, "d"))
    assert not torch.equal(weights(0.5, 0, "e"), weights(0.5, 1, "f"))


def test_the_first_losses_are_golden(creatures: Path, tmp_path: Path) -> None:
    """With all that draws by chance: crops, policies, mixing, erasing, drop path."""
    save_encoder(Encoder(EncoderSpec(32, 8, 48, DEPTH, 3)), tmp_path / "encoder")
    recipe = {"epochs": 2, "blr": 0.2, "drop_path": 0.3, "val_every": 0}
    with tiny.every_step():
        semmae.finetune(
            encoder=tmp_path / "encoder", data=creatures / "images", out=tmp_path / "run", **recipe, **tiny.TRAIN
        )
    tiny.assert_golden(tmp_path / "run", GOLDEN)
