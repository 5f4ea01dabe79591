"""An encoder with a head that gives every pixel a class: UPerNet on four blocks, or one linear layer.

Notable here:
- the pyramid is BEiT's (arXiv 2106.08254): tokens after four blocks are brought to strides of 4, 8, 16 and 32 pixels by
  transposed convolutions and max pooling; at patch 8 the outermost step up becomes a step down;
- the decoder is UPerNet (arXiv 1807.10221) of segmentation-models-pytorch, which norms what it is given;
- a second, small head on the third level (FCN) only helps to train;
- the linear head reads the frozen encoder's last patch tokens, as DINOv2 (arXiv 2304.07193) evaluates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from torch.nn import functional

from semmae.models.blocks import embed, run_blocks
from semmae.models.vit import Encoder
from semmae.options.values import check_choice

Head = Literal["upernet", "linear"]

LEVELS = 4  # of the pyramid
_FINEST = 4  # pixels of stride that its first level aims at
_AUXILIARY_LEVEL, _AUXILIARY_CHANNELS = 2, 256
_DROPOUT = 0.1  # of whole channels, before the last layer
_USUAL_BLOCKS = (4, 6, 8, 12)  # of twelve, counted from 1


@dataclass(frozen=True)
class SegmenterSpec:
    """What must be known beside the encoder to build a segmenter before its weights are loaded."""

    classes: tuple[str, ...]  # K names
    head: Head = "upernet"
    blocks: tuple[int, ...] = (3, 5, 7, 11)  # whose tokens UPerNet reads, counted from 0
    decoder_channels: int = 512
    auxiliary: bool = True  # a second head while training

    def __post_init__(self) -> None:
        check_choice("head", self.head, get_args(Head))


class Scores(NamedTuple):
    """Logits (B, K, h, w) at the resolution of the heads."""

    main: Tensor
    auxiliary: Tensor | None


class Segmenter(nn.Module):
    """Encoder and head; takes the encoder over, to train what the head reads and freeze what it does not."""

    def __init__(self, encoder: Encoder, spec: SegmenterSpec) -> None:
        super().__init__()
        self.encoder, self.spec = encoder, spec
        self.checkpointing = False  # of the blocks' activations while training
        width, classes = encoder.width, len(spec.classes)
        self.head: nn.Module
        self.auxiliary: nn.Module | None = None
        encoder.requires_grad_(spec.head != "linear")  # positions too, as in MAE's fine-tuning
        if spec.head == "linear":
            self.head = nn.Sequential(nn.BatchNorm2d(width), _last_layer(width, classes))
            return
        _freeze_unread(encoder, spec.blocks[-1])
        self.head = UPerNetHead(width, encoder.patch_size, classes, spec.decoder_channels)
        if spec.auxiliary:
            self.auxiliary = fcn_head(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W), sides multiples of the patch size → logits (B, K, H, W), float32."""
        logits = self.scores(images).main.float()
        return functional.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)

    def scores(self, images: Tensor) -> Scores:
        """Logits of the head, and in training of the auxiliary one, before they are brought to the image's size."""
        if not isinstance(self.head, UPerNetHead):
            with torch.no_grad():
                tokens = self.encoder(images).patches
            return Scores(self.head(_as_map(tokens, images, self.encoder.patch_size)), None)
        levels = self.head.levels(self._block_maps(images))
        auxiliary = self.auxiliary(levels[_AUXILIARY_LEVEL]) if self.auxiliary and self.training else None
        return Scores(self.head(levels), auxiliary)

    def train(self, mode: bool = True) -> "Segmenter":
        super().train(mode)
        if self.spec.head == "linear":
            self.encoder.eval()
        return self

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer a parameter belongs to, from the embedding to the head, as timm's layer decay asks."""
        return {
            "stem": r"^encoder\.vit\.(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)",
            "blocks": r"^encoder\.vit\.blocks\.(\d+)",
            "head": r".*",
        }

    def _block_maps(self, images: Tensor) -> list[Tensor]:
        """Patch tokens after each of the spec's blocks, (B, C, H/p, W/p) each."""
        vit = self.encoder.vit
        tokens, _ = embed(vit, images)
        maps, start = [], 0
        for block in self.spec.blocks:
            tokens = run_blocks(vit.blocks[start : block + 1], tokens, self.checkpointing and self.training)
            maps.append(_as_map(tokens[:, vit.num_prefix_tokens :], images, self.encoder.patch_size))
            start = block + 1
        return maps


class UPerNetHead(nn.Module):
    """Maps of four blocks, `width` channels → pyramid → UPerNet of `channels` → logits of so many classes."""

    def __init__(self, width: int, patch_size: int, classes: int, channels: int) -> None:
        super().__init__()
        self.pyramid = nn.ModuleList(_rescaling(width, scale) for scale in pyramid_scales(patch_size))
        # Its first two inputs are the image and its half, which it does not read.
        self.decoder = UPerNetDecoder([0, 0] + [width] * LEVELS, encoder_depth=5, decoder_channels=channels)
        initialize_decoder(self.decoder)
        self.classifier = nn.Sequential(nn.Dropout2d(_DROPOUT), _last_layer(channels, classes))

    def levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, g, g) of four blocks → the same at four resolutions, the finest first."""
        return [rescale(one) for rescale, one in zip(self.pyramid, maps, strict=True)]

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels → logits (B, K, h, w) at the resolution of the finest."""
        logits: Tensor = self.classifier(self.decoder([levels[0], levels[0], *levels]))
        return logits


def pyramid_scales(patch_size: int) -> list[float]:
    """How far each level is enlarged: 4, 2, 1, 1/2 at patch 16, so that the finest has a stride of 4 pixels."""
    finest = 2 ** min(2, max(0, round(math.log2(patch_size / _FINEST))))
    return [finest / 2**level for level in range(LEVELS)]


def smallest_image(patch_size: int) -> int:
    """Pixels a side below which the coarsest level of the pyramid would be empty."""
    return max(1, round(1 / pyramid_scales(patch_size)[-1])) * patch_size


def usual_blocks(depth: int) -> tuple[int, ...]:
    """The four blocks read of an encoder of that depth, counted from 0: 3, 5, 7, 11 of twelve, 7, 11, 15, 23 of 24."""
    blocks: list[int] = []
    for block in _USUAL_BLOCKS:  # each after the one before, in short encoders too
        blocks.append(max(round(block * depth / 12) - 1, blocks[-1] + 1 if blocks else 0))
    return tuple(blocks)


def fcn_head(width: int, classes: int) -> nn.Module:
    """The auxiliary head: one convolution, then the classes."""
    convolution = nn.Conv2d(width, _AUXILIARY_CHANNELS, 3, padding=1, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, mode="fan_in", nonlinearity="relu")
    norm = nn.BatchNorm2d(_AUXILIARY_CHANNELS)
    return nn.Sequential(
        convolution, norm, nn.ReLU(inplace=True), nn.Dropout2d(_DROPOUT), _last_layer(_AUXILIARY_CHANNELS, classes)
    )


def _rescaling(width: int, scale: float) -> nn.Module:
    if scale == 4:
        return nn.Sequential(_doubling(width), nn.BatchNorm2d(width), nn.GELU(), _doubling(width))
    if scale == 2:
        return _doubling(width)
    return nn.Identity() if scale == 1 else nn.MaxPool2d(round(1 / scale))


def _doubling(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def _last_layer(width: int, classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(width, classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _as_map(tokens: Tensor, images: Tensor, patch_size: int) -> Tensor:
    """Patch tokens (B, L, C) of images (B, 3, H, W) → (B, C, H/p, W/p)."""
    height, width = (side // patch_size for side in images.shape[-2:])
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)


def _freeze_unread(encoder: Encoder, last: int) -> None:
    """No gradient reaches what lies behind the last block that is read: several processes would wait for one."""
    for name, part in encoder.vit.named_children():
        if name == "blocks":
            for block in list(part.children())[last + 1 :]:
                block.requires_grad_(False)
        elif name not in ("patch_embed", "norm_pre"):
            part.requires_grad_(False)
