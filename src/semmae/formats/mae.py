"""The form of the MAE release (arXiv 2111.06377): one flat state dict, encoder in timm's names.

The decoder's names are ours too; the encoder's only lack a prefix.

The SemMAE authors' checkpoints are of the same form, name by name, by their source (github.com/ucasligang/SemMAE,
`models_mae_setting3.py`); no file that they released was tried. What their model adds to MAE's, parts and their order,
comes with the images and is no tensor. Two things are their own. Both `pos_embed` count 28 × 28 positions whatever the
patch size. With patches of 8 that is an image of 224 pixels, of which 196 patches were shown (packed as images of 112
pixels, which is what its options say): `patches_shown` finds that out. With patches of 16 it would be 448 pixels,
which nothing else in their source speaks of, and their ViT-B/16 is measured at 224: a file with 14 × 14 positions
needs no word, one with 28 × 28 is `is_doubtful`. And fine-tuned encoders do not add the class token's position
(`model/models_vit.py`), which makes no difference: it is all zeros.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.files import write_json
from semmae.formats.folders import CONFIG
from semmae.formats.form import Form, Model, Reading, Subject, Writing, encoder_of, pooling_of
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.weights import MEAN_NORM
from semmae.shell import python, text

_LOG = logging.getLogger("semmae")
FILE = "mae.pth"  # what an export in this form is called
_PREFIX = "encoder.vit."
# Of the SemMAE authors: pixels a side of an image, and the grid of positions in their source.
_SEMMAE_SIZE, _SEMMAE_SIDE = 224, 28
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


def released(model: Model) -> dict[str, Tensor]:
    """A model's tensors under the release's names; an encoder's are timm's."""
    return to_mae(model.state_dict()) if isinstance(model, MaskedAutoencoder) else model.vit.state_dict()


def decoder_spec(state: Mapping[str, Tensor], num_heads: int) -> DecoderSpec:
    """Sizes of the decoder, read off the release's tensors; ValueError where the heads do not divide its width."""
    width = state["decoder_embed.weight"].shape[0]
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"decoder_num_heads {num_heads} does not divide the decoder's width {width}")
    depth = sum(name.startswith("decoder_blocks.") and name.endswith(".norm1.weight") for name in state)
    return DecoderSpec(width, depth, num_heads)


def patches_shown(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Patches of an image that the model was trained on, and all of them; None where these are the same, or unknown."""
    size, positions = options.get("input_size"), state.get("pos_embed")
    if not isinstance(size, int) or positions is None or "patch_embed.proj.weight" not in state:
        return None
    shown, total = (size // state["patch_embed.proj.weight"].shape[-1]) ** 2, positions.shape[1] - 1
    is_grid = math.isqrt(max(total, 0)) ** 2 == total
    return (shown, total) if 0 < shown < total and is_grid else None


def is_doubtful(path: Path, state: Mapping[str, Tensor], options: Mapping[str, Any]) -> bool:
    """Whether SemMAE's 28 × 28 positions, with other patches than those of 8, leave open what images they are of."""
    shown = patches_shown(state, options)
    if shown is None or shown[1] != _SEMMAE_SIDE**2:
        return False
    size = int(_SEMMAE_SIDE * state["patch_embed.proj.weight"].shape[-1])
    if size == _SEMMAE_SIZE:
        return False
    _LOG.warning(
        "%s: positions for images of %d pixels, while its options say %d: the SemMAE source has 28 × 28 of them "
        "whatever the patches, so the file does not show what it was trained on; they are taken as they lie; "
        "compare with --image-size 224",
        path, size, options["input_size"],
    )  # fmt: skip
    return True


def write(subject: Subject, folder: Path) -> Mapping[str, Any]:
    """`mae.pth`, and what its tensors do not show in a config.json beside it."""
    model, spec = subject.model, encoder_of(subject.model).spec
    config: dict[str, Any] = {
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "num_heads": spec.num_heads,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "semmae": {"pooling": pooling_of(model)},
    }
    if isinstance(model, MaskedAutoencoder):
        config |= {"decoder_num_heads": model.decoder.num_heads, "norm_pix_loss": model.norm_pix_loss}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in released(model).items()}
    torch.save({"model": state}, folder / FILE)
    write_json(folder / CONFIG, config)
    return {}


def _use(place: str, model: Model, classes: bool) -> Sequence[str]:
    loader = "load_mae" if isinstance(model, MaskedAutoencoder) else "load_encoder"
    return (
        "import torch",
        "",
        f'state = torch.load("{FILE}", weights_only=True)["model"]  # names of the MAE release',
        "",
        "import semmae",
        "",
        f'model = semmae.{loader}("{FILE}")  # reads config.json beside it',
    )


FORM = Form(
    name="mae",
    title="MAE's form",
    projects=("MAE", "SemMAE"),
    reading=Reading(
        recognise=is_mae,
        to_encoder=to_encoder,
        to_autoencoder=lambda state: (dict(state), []),
        describes=lambda config: not config or "num_heads" in config,  # as `write` leaves it
        weights=(FILE,),
    ),
    writing=Writing(
        write=write,
        files=(CONFIG, FILE),
        library="semmae",
        command=lambda folder, decoder, head: python(
            f'import torch; print(*torch.load({text(folder / FILE)}, weights_only=True)["model"])'
        ),
        use=_use,
        decoder="always",
        head=False,
        peculiar={MEAN_NORM},
        norm_eps="usual",
    ),
)
