"""Checkpoints as other projects' own code saves them: the encoder that is meant, bit for bit, and nothing executed.

Each form is written by a function of two networks: the one that the project evaluates, and another beside it.
"""

import argparse
import pathlib
import re
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.formats.open import load_encoder, load_mae
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec

State = dict[str, Tensor]
Form = Callable[[State, State], dict[str, Any]]


def network(seed: int, width: int = 192, heads: int = 3, depth: int = 2, **options: Any) -> VisionTransformer:
    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, **options
    )
    for parameter in vit.parameters():  # nothing may agree only because it is zero
        nn.init.normal_(parameter, std=0.1)
    return vit.eval()


def named(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def head(prefix: str) -> State:
    return {f"{prefix}mlp.0.weight": torch.ones(8, 192), f"{prefix}last_layer.weight_g": torch.ones(4, 1)}


def optimizer(state: State) -> dict[str, Any]:
    """AdamW after a step, its rates set every step from a schedule of numpy, as DINO's loop does."""
    parameters = [nn.Parameter(tensor.clone()) for tensor in list(state.values())[:2]]
    made = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    for group in made.param_groups:
        group["lr"], group["weight_decay"] = np.linspace(0, 1e-3, 5)[3], np.float32(0.04)
    return made.state_dict()


def dino(wanted: State, other: State) -> dict[str, Any]:
    """facebookresearch/dino main_dino.py, started by run_with_submitit.py, which sets a path."""
    return {
        "student": named("module.backbone.", other) | head("module.head."),
        "teacher": named("backbone.", wanted) | head("head."),
        "optimizer": optimizer(other),
        "epoch": 7,
        "args": argparse.Namespace(arch="vit_tiny", output_dir=pathlib.PosixPath("/checkpoint/me/experiments/%j")),
        "dino_loss": OrderedDict(center=torch.zeros(1, 4)),
    }


def ibot(wanted: State, other: State) -> dict[str, Any]:
    """bytedance/ibot main_ibot.py: the backbone has a token of hidden patches."""
    content = dino(wanted, other) | {"ibot_loss": OrderedDict(center2=torch.zeros(1, 1, 4))}
    content["teacher"]["backbone.masked_embed"] = torch.zeros(1, 192)
    return content


def dinov2_flat(wanted: State, other: State) -> dict[str, Any]:
    """facebookresearch/dinov2 SSLMetaArch.state_dict(): both networks in one dictionary, blocks in chunks."""

    def backbone(prefix: str, state: State) -> State:
        chunked = {re.sub(r"^blocks\.(\d+)\.", r"blocks.0.\1.", name): tensor for name, tensor in state.items()}
        return named(f"{prefix}.backbone.", chunked | {"mask_token": torch.zeros(1, 192)})

    heads = {f"{role}.{kind}.{name}": t for role in ("student", "teacher") for kind in ("dino_head", "ibot_head")
             for name, t in head("").items()}  # fmt: skip
    return backbone("student", other) | backbone("teacher", wanted) | heads


def dinov2(wanted: State, other: State) -> dict[str, Any]:
    """The same by its checkpointer."""
    return {"model": dinov2_flat(wanted, other), "iteration": 1249}


def moco_v3(wanted: State, other: State) -> dict[str, Any]:
    """facebookresearch/moco-v3 main_moco.py: the base encoder is evaluated; heads are its MLPs."""
    mlp = {"0.weight": torch.ones(8, 192), "1.running_mean": torch.zeros(8)}
    state = {
        **named("module.base_encoder.", wanted), **named("module.base_encoder.head.", mlp),
        **named("module.momentum_encoder.", other), **named("module.momentum_encoder.head.", mlp),
        **named("module.predictor.", mlp),
    }  # fmt: skip
    return {"epoch": 3, "arch": "vit_tiny", "state_dict": state, "optimizer": optimizer(other), "scaler": {}}


def msn(wanted: State, other: State) -> dict[str, Any]:
    """facebookresearch/msn src/msn_train.py: DistributedDataParallel's names, the projection is `fc`."""
    projection = {"fc.fc1.weight": torch.ones(8, 192), "fc.bn1.running_var": torch.ones(8)}
    return {
        "encoder": named("module.", other | projection),
        "opt": optimizer(other),
        "prototypes": torch.zeros(4, 8),
        "target_encoder": named("module.", wanted | projection),
        "epoch": 10,
        "loss": 1.5,
    }


TO_MMPRETRAIN = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."), (r"^norm\.", "ln1."), (r"^blocks\.", "layers."),
    (r"\.norm([12])\.", r".ln\1."), (r"\.mlp\.fc1\.", ".ffn.layers.0.0."), (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"\.ls1\.gamma$", ".attn.gamma1.weight"), (r"\.ls2\.gamma$", ".ffn.gamma2.weight"),
)  # fmt: skip


def in_mmpretrain(state: State) -> State:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in TO_MMPRETRAIN:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def mmpretrain(wanted: State, other: State) -> dict[str, Any]:
    """open-mmlab/mmpretrain, a classifier by mmengine's Runner, whose hub keeps curves."""
    state = named("backbone.", in_mmpretrain(wanted)) | {"head.layers.head.weight": torch.zeros(5, 192)}
    return {
        "meta": {"epoch": 3, "dataset_meta": {"classes": ("a", "b")}, "time": "20240101"},
        "state_dict": OrderedDict(state),
        "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer()), "runtime_info": OrderedDict(iter=4)},
        "optimizer": optimizer(other),
    }


def mmpretrain_mae(wanted: State, other: State) -> dict[str, Any]:
    """Its MAE: the decoder is the neck."""
    neck = {"neck.mask_token": torch.zeros(1, 1, 32), "neck.decoder_embed.weight": torch.zeros(32, 192)}
    return {"meta": {}, "state_dict": named("backbone.", in_mmpretrain(wanted)) | neck}


def mmengine_ema(wanted: State, other: State) -> dict[str, Any]:
    """mmengine's EMAHook swaps before it saves: the average lies in state_dict."""
    content = mmpretrain_mae(wanted, other)
    return content | {"ema_state_dict": {"steps": torch.tensor(9)} | named("module.backbone.", in_mmpretrain(other))}


def lightly(wanted: State, other: State) -> dict[str, Any]:
    """lightly-ai/lightly benchmarks/imagenet/vitb16/dino.py: `backbone` is the teacher, by Lightning."""
    state = {
        **named("backbone.vit.", wanted), "backbone.mask_token": torch.zeros(1, 1, 192), **head("projection_head."),
        **named("student_backbone.vit.", other), **head("student_projection_head."),
    }  # fmt: skip
    return {"state_dict": state, "epoch": 1, "global_step": 10, "hyper_parameters": {"num_classes": 10}}


def solo_learn(wanted: State, other: State) -> dict[str, Any]:
    """vturrisi/solo-learn by Lightning: `backbone` is evaluated, beside its momentum."""
    state = {
        **named("momentum_backbone.", other),
        **named("backbone.", wanted),
        "classifier.weight": torch.ones(3, 192),
    }
    return {"state_dict": state, "epoch": 1, "optimizer_states": [optimizer(other)], "lr_schedulers": []}


def lightning(wanted: State, other: State) -> dict[str, Any]:
    """A LightningModule that keeps its network as `model`, compiled."""
    return {"state_dict": named("model._orig_mod.", wanted), "pytorch-lightning_version": "2.5.0", "callbacks": {}}


def timm_train(wanted: State, other: State) -> dict[str, Any]:
    """timm's train.py: CheckpointSaver with an EMA and a metric of numpy."""
    return {
        "epoch": 3,
        "arch": "vit_tiny_patch16_224",
        "state_dict": other | {"head.weight": torch.zeros(10, 192)},
        "optimizer": optimizer(other),
        "version": 2,
        "args": argparse.Namespace(model="vit_tiny_patch16_224", img_size=None, output=pathlib.PosixPath("out")),
        "state_dict_ema": wanted | {"head.weight": torch.zeros(10, 192)},
        "metric": np.float64(81.5),
    }


def deit(wanted: State, other: State) -> dict[str, Any]:
    """facebookresearch/deit main.py."""
    return {
        "model": other,
        "model_ema": wanted,
        "optimizer": optimizer(other),
        "epoch": 3,
        "scaler": {"scale": 65536.0},
    }


# What is said to be taken, and what is said to be left.
FORMS: dict[Form, tuple[str, str]] = {
    dino: ("teacher.backbone", "student.module.backbone"),
    ibot: ("teacher.backbone", "student.module.backbone"),
    dinov2_flat: ("teacher.backbone", "student.backbone"),
    dinov2: ("model.teacher.backbone", "model.student.backbone"),
    moco_v3: ("state_dict.module.base_encoder", "state_dict.module.momentum_encoder"),
    msn: ("target_encoder.module", "encoder.module"),
    mmpretrain: ("state_dict.backbone", ""),
    mmpretrain_mae: ("state_dict.backbone", ""),
    mmengine_ema: ("state_dict.backbone", "ema_state_dict.module.backbone"),
    lightly: ("state_dict.backbone.vit", "state_dict.student_backbone.vit"),
    solo_learn: ("state_dict.backbone", "state_dict.momentum_backbone"),
    lightning: ("state_dict.model", ""),
    timm_train: ("state_dict_ema", "state_dict"),
    deit: ("model_ema", "model"),
}


# These need a stand-in for a library.
MMENGINE = (mmpretrain, mmengine_ema)
WITH_DECODER = (mmpretrain_mae, mmengine_ema)


class HistoryBuffer:
    """As mmengine's: an array, and functions that are found by name."""

    def __init__(self) -> None:
        self._log_history = np.array([1.0, 2.0])
        self.statistics_methods = {"mean": HistoryBuffer.mean}

    def mean(self) -> float:
        return float(self._log_history.mean())


@pytest.fixture
def mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module by whose name mmengine's curves are pickled."""
    name = "mmengine.logging.history_buffer"
    for package in ("mmengine", "mmengine.logging", name):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setattr(sys.modules[name], "HistoryBuffer", HistoryBuffer, raising=False)
    monkeypatch.setattr(HistoryBuffer, "__module__", name)
    monkeypatch.setattr(HistoryBuffer.mean, "__module__", name)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.usefixtures("mmengine")
@torch.no_grad()
def test_the_network_that_a_project_evaluates_is_read(
    form: Form, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer_scale = {"init_values": 0.1} if form in (dinov2, dinov2_flat, mmpretrain) else {}
    wanted, other = network(1, **layer_scale), network(2, **layer_scale)
    torch.save(form(wanted.state_dict(), other.state_dict()), tmp_path / "some.pth")
    images = torch.randn(2, 3, 32, 32)

    with caplog.at_level("INFO", "semmae"):
        encoder = load_encoder(tmp_path / "some.pth")

    tokens = wanted.forward_features(images)
    assert torch.equal(encoder(images).cls, tokens[:, 0])
    assert torch.equal(encoder(images).patches, tokens[:, 1:])
    assert encoder.pooling == ("mean" if form in WITH_DECODER else "cls")
    taken, left = FORMS[form]
    found = next(message for message in caplog.messages if "taken from" in message)
    assert found.endswith(f"taken from {taken}" + (f", not from {left}" if left else ""))
    assert all(len(message) < 400 for message in caplog.messages)  # never the list of all tensors


@pytest.mark.parametrize("word", ["teacher", "model", "student", "backbone", "momentum_encoder", "anything.at_all"])
def test_an_encoder_alone_is_taken_whatever_stands_before_it(word: str, tmp_path: Path) -> None:
    wanted = network(1)
    torch.save({"wrapped": named(f"{word}.", wanted.state_dict())}, tmp_path / "some.pth")

    read = load_encoder(tmp_path / "some.pth").vit.state_dict()

    assert all(torch.equal(read[name], tensor) for name, tensor in wanted.state_dict().items())


@pytest.mark.parametrize(
    ("form", "sizes", "heads"),
    [
        (lambda state: moco_v3(state, state), (384, 2), 12),
        (lambda state: {"arch": "vit_small", "state_dict": named("module.", state), "best_acc1": 7.0}, (384, 2), 12),
        (lambda state: {"teacher": named("backbone.", state)}, (384, 2), 6),
        (lambda state: {"state_dict": named("backbone.", in_mmpretrain(state))}, (768, 8), 8),
        (lambda state: {"state_dict": named("backbone.", in_mmpretrain(state))}, (768, 2), 12),
    ],
)
def test_heads_are_those_of_the_project(
    form: Callable[[State], Any], sizes: tuple[int, int], heads: int, tmp_path: Path
) -> None:
    """MoCo v3's ViT-S has 12 heads, not 6, and mmpretrain's "small" 8 at the width of ViT-B."""
    with torch.device("meta"):
        shapes = VisionTransformer(
            img_size=32, patch_size=16, embed_dim=sizes[0], depth=sizes[1], num_heads=4, num_classes=0, mlp_ratio=0.1
        ).state_dict()
    torch.save(form({name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}), tmp_path / "some.pth")

    assert load_encoder(tmp_path / "some.pth").spec.num_heads == heads
    assert load_encoder(tmp_path / "some.pth", num_heads=4).spec.num_heads == 4


@torch.no_grad()
def test_numbers_as_numpy_1_wrote_them_are_read(tmp_path: Path) -> None:
    wanted = network(1)
    torch.save(dino(wanted.state_dict(), network(2).state_dict()), tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for entry in new.namelist():
            content = new.read(entry)
            if entry.endswith("data.pkl"):
                assert content.count(b"numpy._core.multiarray") == 1
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(entry, content)

    read = load_encoder(tmp_path / "old.pth").vit.state_dict()

    assert torch.equal(read["norm.bias"], wanted.state_dict()["norm.bias"])


@torch.no_grad()
def test_a_masked_autoencoder_is_read_out_of_its_wrappers(tmp_path: Path) -> None:
    mae = MaskedAutoencoder(Encoder(EncoderSpec(32, 16, 192, 1, 3)), DecoderSpec(32, 1, 4)).eval()
    state = {name.removeprefix("encoder.vit."): tensor for name, tensor in mae.state_dict().items()}
    args = argparse.Namespace(norm_pix_loss=True, output_dir=pathlib.PosixPath("/checkpoint/%j"))
    torch.save({"model": named("module.", state), "optimizer": optimizer(state), "args": args}, tmp_path / "mae.pth")
    images, mask = torch.randn(2, 3, 32, 32), torch.tensor([[True, True, True, False]] * 2)

    read = load_mae(tmp_path / "mae.pth", decoder_num_heads=4)

    assert torch.equal(read(images, mask).pred, mae(images, mask).pred)


@pytest.mark.parametrize("where", ["args", "options", "config.json", "patches"])
def test_a_grid_that_is_no_square_is_one_where_anything_says_so(where: str, tmp_path: Path) -> None:
    """64 × 16 pixels in patches of 8 are 16 positions, as many as 4 × 4; patches that are no squares are refused."""
    vit = VisionTransformer(img_size=(64, 16), patch_size=8, embed_dim=192, depth=1, num_heads=3, num_classes=0)
    vit.pos_embed.data.normal_()
    state = vit.state_dict()
    content: dict[str, Any] = {"state_dict": state}
    if where == "args":
        content["args"] = argparse.Namespace(model_kwargs={"img_size": [64, 16]})
    elif where == "options":
        content["args"] = argparse.Namespace(img_size=(64, 16))
    else:
        found = '{"image_size": [64, 16]}' if where == "config.json" else '{"patch_size": [8, 16]}'
        (tmp_path / "config.json").write_text(found)
    torch.save(content, tmp_path / "some.pth")

    if where == "patches":
        with refused("patch_size is 8×16, not square"):
            load_encoder(tmp_path / "some.pth")
        return
    encoder = load_encoder(tmp_path / "some.pth")
    images = torch.randn(1, 3, 64, 16)
    assert encoder.spec.image_size == (64, 16)
    assert torch.equal(encoder(images).patches, vit.eval().forward_features(images)[:, 1:])
