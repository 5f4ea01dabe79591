"""ONNX graphs: onnxruntime computes what torch does, for any number of images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.formats import onnx
from semmae.models.vit import Encoder, EncoderSpec
from semmae.models.weights import wrap_vit

COLOURS = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def with_registers() -> Encoder:
    """DINOv2's kind: registers, layer scale; no class position."""
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=0, reg_tokens=2, init_values=0.1,
        no_embed_class=True, dynamic_img_size=True,
    )  # fmt: skip
    return wrap_vit(vit, *COLOURS).eval()


@pytest.mark.slow  # the exporter takes its seconds; that of a plain encoder is tested with the verb
@torch.no_grad()
def test_onnxruntime_gives_the_same_features_for_any_batch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder = with_registers()
    path, images = tmp_path / "model.onnx", torch.randn(5, 3, 32, 32)

    onnx.write_onnx(encoder, path, {"mean": json.dumps([0.4, 0.5, 0.6])})

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    cls, patches = session.run(["cls", "patches"], {"images": images.numpy()})
    features = encoder(images)
    assert onnx.check_onnx(encoder, path) < 1e-4
    assert (torch.from_numpy(cls) - features.cls).abs().max() < 1e-4
    assert (torch.from_numpy(patches) - features.patches).abs().max() < 1e-4
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    assert json.loads(session.get_modelmeta().custom_metadata_map["mean"]) == [0.4, 0.5, 0.6]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Runtime:
    """Stands for onnxruntime: computes the encoder's features, changed."""

    def __init__(self, encoder: Encoder, change: Callable[[Tensor], Tensor]) -> None:
        self.encoder, self.change = encoder, change

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        features = self.encoder(torch.from_numpy(inputs["images"]))
        return [self.change(getattr(features, name)).numpy() for name in outputs]


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda tokens: tokens,
    "doubled": lambda tokens: 2 * tokens,
    "one image short": lambda tokens: tokens[1:],
    "not a number": lambda tokens: tokens * float("nan"),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_graph_that_computes_something_else_is_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(EncoderSpec(16, 8, 24, 1, 3)).eval()
    monkeypatch.setattr(onnx, "_session", lambda path: Runtime(encoder, CHANGES[change]))

    if change == "none":
        assert onnx.check_onnx(encoder, tmp_path / "model.onnx") == 0.0
    else:
        with refused("1e-04"):
            onnx.check_onnx(encoder, tmp_path / "model.onnx")
