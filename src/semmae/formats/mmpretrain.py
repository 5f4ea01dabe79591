"""The form of mmpretrain (mmselfsup, mmcls): blocks are `layers`, norms `ln1` and `ln2`, MLPs `ffn.layers`.

Names are those of its `VisionTransformer` (mmpretrain/models/backbones/vision_transformer.py) without the `backbone.`
before them; necks and heads, MAE's decoder among them, lie outside of it. DINOv2's layer scale stands in `attn` and
`ffn` there.
"""

from collections.abc import Mapping

from torch import Tensor

from semmae.formats.form import Form, Reading, renamed

_KERNEL = "patch_embed.projection.weight"
_RENAMES = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^pre_norm\.", "norm_pre."),
    (r"^ln1\.", "norm."),
    (r"^ln2\.", "fc_norm."),  # behind mean pooling, where fine-tuning MAE puts it
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"\.ffn\.w12\.", ".mlp.fc1."),
    (r"\.ffn\.w3\.", ".mlp.fc2."),
    (r"\.attn\.gamma1\.(?:weight|scale)$", ".ls1.gamma"),
    (r"\.ffn\.gamma2\.(?:weight|scale)$", ".ls2.gamma"),
)
# Its own "small", width and depth, whose heads are others than those of timm at that width.
_SMALL, _SMALL_HEADS = (768, 8), 8


def to_encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the encoder, in timm's names; none are dropped."""
    return {renamed(name, _RENAMES): tensor for name, tensor in state.items()}, []


def num_heads(state: Mapping[str, Tensor]) -> int | None:
    """Heads where mmpretrain's are others than those of timm's model of that width: its "small" has 8 blocks of 8."""
    depth = sum(name.startswith("layers.") and name.endswith(".ln1.weight") for name in state)
    return _SMALL_HEADS if (state[_KERNEL].shape[0], depth) == _SMALL else None


FORM = Form(
    name="mmpretrain",
    title="mmpretrain's ViT",
    projects=("mmpretrain",),
    reading=Reading(recognise=lambda state: _KERNEL in state, to_encoder=to_encoder, num_heads=num_heads),
)
