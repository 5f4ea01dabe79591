"""An encoder with a linear head that classifies: what fine-tuning trains.

Notable here:
- pooling, norm and head are those of timm's VisionTransformer, so that what is trained loads in timm as it is;
- with mean pooling the norm stands behind the pooling and is new, as in MAE's fine-tuning; the head begins nearly at 0,
  so that the first steps do not spoil the encoder.
"""

from typing import Any, Literal, get_args

import torch
from timm.layers.drop import DropPath
from timm.layers.weight_init import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.models.blocks import AnyBlock, ViT, embed, run_blocks
from semmae.models.vit import Encoder, Features
from semmae.options.shared import Pooling
from semmae.options.values import check_choice

HEAD_STD = 2e-5  # of the head's first weights (MAE)
_IN_TIMM: dict[Pooling, Literal["avg", "token"]] = {"mean": "avg", "cls": "token"}


class Classifier(nn.Module):
    """Encoder, pooling, norm and a linear head; takes the encoder over and changes it.

    The head is new. It looks at the mean of the patch tokens, normed after it (`fc_norm`), or at the class token.
    ValueError for an encoder that is no VisionTransformer of timm's: its head stands elsewhere.
    """

    def __init__(self, encoder: Encoder, num_classes: int, pooling: Pooling = "mean") -> None:
        super().__init__()
        check_choice("pooling", pooling, get_args(Pooling))
        vit = encoder.vit
        if not isinstance(vit, VisionTransformer):
            raise ValueError(f"its class in timm is {type(vit).__name__}, not VisionTransformer")
        self.encoder, self.num_classes, self.pooling = encoder, num_classes, pooling
        self.checkpointing = False  # of the blocks' activations while training
        _place_norm(vit, pooling)
        device = vit.patch_embed.proj.weight.device
        vit.global_pool, vit.num_classes = _IN_TIMM[pooling], num_classes
        vit.head = nn.Linear(encoder.width, num_classes, device=device)
        trunc_normal_(vit.head.weight, std=HEAD_STD)
        nn.init.zeros_(vit.head.bias)

    @property
    def vit(self) -> VisionTransformer:
        assert isinstance(self.encoder.vit, VisionTransformer)
        return self.encoder.vit

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S), S any multiple of the patch size → logits (B, K)."""
        logits: Tensor = self.vit.forward_head(self._tokens(images))
        return logits

    def features_and_logits(self, images: Tensor) -> tuple[Features, Tensor]:
        """What `encoder(images)` and the classifier itself give, of one pass."""
        tokens = self._tokens(images)
        features = Features(tokens[:, 0], tokens[:, self.vit.num_prefix_tokens :])
        return features, self.vit.forward_head(tokens)

    def _tokens(self, images: Tensor) -> Tensor:
        tokens, _ = embed(self.vit, images)
        normed: Tensor = self.vit.norm(run_blocks(self.vit.blocks, tokens, self.checkpointing and self.training))
        return normed


def without_head(classifier: Classifier) -> Encoder:
    """The classifier's encoder, its head taken off; what it pooled with stays."""
    classifier.vit.head, classifier.vit.num_classes = nn.Identity(), 0
    return classifier.encoder


def set_drop_path(vit: ViT, rate: float) -> None:
    """Leave a block's attention and MLP out, of each image by chance: never in the first block, `rate` in the last."""
    for block, share in zip(vit.blocks, torch.linspace(0, rate, len(vit.blocks)).tolist(), strict=True):
        found: AnyBlock = block
        drops = [DropPath(share) if share else nn.Identity() for _ in range(2)]
        found.drop_path1, found.drop_path2 = (drop.train(found.training) for drop in drops)


def _place_norm(vit: VisionTransformer, pooling: Pooling) -> None:
    """The final norm before the pooling (class token) or, a new one, behind it (mean)."""
    trained: Any = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
    if pooling == "mean":
        if isinstance(vit.fc_norm, nn.Identity):
            vit.fc_norm = _new_like(trained)
        vit.norm = nn.Identity()
    else:
        if isinstance(vit.norm, nn.Identity):
            vit.norm = _new_like(trained)
        vit.fc_norm = nn.Identity()


def _new_like(norm: Any) -> nn.Module:
    """A norm of the same kind with its first weights, on the same device."""
    fresh: nn.Module = type(norm)(norm.normalized_shape, eps=norm.eps)
    return fresh.to(norm.weight.device)
