"""The form of the MAE release (arXiv 2111.06377): one flat state dict, encoder in timm's names.

The decoder's names are ours too; the encoder's only lack a prefix.
"""

from collections.abc import Mapping

from torch import Tensor

from semmae.models.mae import DecoderSpec

_PREFIX = "encoder.vit."
_DECODER = ("decoder_", "mask_token")


def is_mae(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors include MAE's decoder."""
    return "decoder_embed.weight" in state


def to_encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the encoder, in timm's names, and the names of those dropped: the decoder's."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_DECODER)}
    return kept, [name for name in state if name not in kept]


def from_mae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's tensors under the names of `MaskedAutoencoder`."""
    return {name if name.startswith(_DECODER) else _PREFIX + name: tensor for name, tensor in state.items()}


def to_mae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `MaskedAutoencoder` under the release's names."""
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}


def decoder_spec(state: Mapping[str, Tensor], num_heads: int) -> DecoderSpec:
    """Sizes of the decoder, read off the release's tensors.

    Raises:
        ValueError: the heads do not divide the width.
    """
    width = state["decoder_embed.weight"].shape[0]
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"decoder_num_heads {num_heads} does not divide the decoder's width {width}")
    depth = sum(name.startswith("decoder_blocks.") and name.endswith(".norm1.weight") for name in state)
    return DecoderSpec(width, depth, num_heads)
