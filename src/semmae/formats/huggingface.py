"""The form of Hugging Face's transformers: ViT, ViTMAE with its decoder, DINOv2, with registers or without.

Two sets of names are in use: files (and transformers 4) say `encoder.layer.0.attention.attention.query`,
`intermediate.dense`; models of transformers 5 in memory say `layers.0.attention.q_proj`, `mlp.fc1`. Both are read, as
is the `decoder.decoder_encoder.layer` that version 5 makes of MAE's `decoder.decoder_layers` when it saves; written are
the names of files, which both versions load. Queries, keys and values are apart there and one tensor in timm.
`config.json` beside the weights says what they do not show.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semmae.errors import listed
from semmae.files import write_json
from semmae.formats.beside import IMAGENET, Colour, Unseen, colours, is_number, oblong, read_beside
from semmae.formats.dino import with_registers
from semmae.formats.folders import CONFIG, WEIGHTS, save_tensors
from semmae.formats.form import Form, Model, Reading, Subject, Writing, encoder_of, pooling_of, renamed
from semmae.formats.mae import released
from semmae.models.classifier import Classifier
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.vit import EncoderSpec
from semmae.models.weights import NO_QKV_BIAS, norm_epsilons
from semmae.names import shown
from semmae.shell import python, text
from semmae.sizes import around, sides

_LOG = logging.getLogger("semmae")
MAE = "vit_mae"  # `model_type` of ViTMAEForPreTraining and ViTMAEModel
PREPROCESSOR = "preprocessor_config.json"

_HEAD = "head."  # of timm's classifiers
_KERNEL = "embeddings.patch_embeddings.projection.weight"
_DINOV3_KERNEL = "embeddings.patch_embeddings.weight"
# No part of a masked autoencoder; of an encoder no more is its decoder, nor the token of a hidden patch.
_HEADS = ("classifier.", "pooler.")
_OTHER = (*_HEADS, "decoder.", "decoder_", "mask_token")

_RENAMES = (
    (r"^(?:vit|dinov2|dinov2_with_registers)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"^decoder\.decoder_(?:layers|encoder\.layer)\.(\d+)\.", r"decoder_blocks.\1."),
    (r"^decoder\.(decoder_|mask_token)", r"\1"),
    (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(?:intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
_QKV = ".attn.qkv."
# Tensors of timm that are several there, in the order of their rows.
_JOINED = {_QKV: (".attn.q.", ".attn.k.", ".attn.v."), ".mlp.fc1.": (".mlp.gate_proj.", ".mlp.up_proj.")}

_TO_FILE = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"^decoder_blocks\.(\d+)\.", r"decoder.decoder_layers.\1."),
    (r"^(decoder_(?:embed|pos_embed|norm|pred)|mask_token)\b", r"decoder.\1"),
    (r"\.attn\.q\.", ".attention.attention.query."),
    (r"\.attn\.k\.", ".attention.attention.key."),
    (r"\.attn\.v\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
# Every name that ViTModel has (without its pooler), and ViTMAEForPreTraining (before `vit.` is put to the encoder's).
_KNOWN = re.compile(
    r"embeddings\.(cls_token|position_embeddings|patch_embeddings\.projection\.(weight|bias))"
    r"|decoder\.(mask_token|decoder_pos_embed)"
    r"|(layernorm|decoder\.decoder_(embed|norm|pred)"
    r"|(encoder\.layer|decoder\.decoder_layers)\.\d+\.(attention\.(attention\.(query|key|value)|output\.dense)"
    r"|layernorm_(before|after)|(intermediate|output)\.dense))\.(weight|bias)"
)
_SIDES = ("height", "width")  # of an image processor


def to_encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the encoder, in timm's names, and the names of those dropped; ValueError for DINOv3."""
    if any(name.endswith(_DINOV3_KERNEL) for name in state):
        raise ValueError("DINOv3, whose positions are rotary, is read from timm only")
    kept: dict[str, Tensor] = {}
    dropped = []
    for name, tensor in state.items():
        in_timm = renamed(name, _RENAMES)
        if in_timm.startswith(_OTHER):
            dropped.append(name)
        else:
            kept[in_timm] = tensor
    return with_registers(_join(kept)), dropped


def to_mae(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a ViTMAEForPreTraining under the names of the MAE release, and the names of those dropped."""
    names = {name: renamed(name, _RENAMES) for name in state}
    dropped = [name for name in state if names[name].startswith(_HEADS)]
    return _join({names[name]: state[name] for name in state if name not in dropped}), dropped


def from_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an encoder, in timm's names, as a ViTModel's; ValueError for one that it has no place for."""
    named = {renamed(name, _TO_FILE): tensor for name, tensor in _split(state).items()}
    unknown = [name for name in named if not _KNOWN.fullmatch(name)]
    if unknown:
        raise ValueError(f"transformers' ViT has no place for {listed(unknown)}")
    return named


def from_mae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of the MAE release as a ViTMAEForPreTraining's; ValueError as `from_encoder`."""
    named = from_encoder(state)
    return {name if name.startswith("decoder.") else f"vit.{name}": tensor for name, tensor in named.items()}


def from_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a classifier, in timm's names, as a ViTForImageClassification's; ValueError as `from_encoder`."""
    head = {name.replace(_HEAD, "classifier."): tensor for name, tensor in state.items() if name.startswith(_HEAD)}
    body = {name: tensor for name, tensor in state.items() if not name.startswith(_HEAD)}
    return {f"vit.{name}": tensor for name, tensor in from_encoder(body).items()} | head


def to_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head of a ViTForImageClassification, in timm's names."""
    return {name.replace("classifier.", _HEAD): t for name, t in state.items() if name.startswith("classifier.")}


def encoder_config(spec: EncoderSpec, state: Mapping[str, Tensor], eps: float) -> dict[str, Any]:
    """`config.json` of a ViTModel with these tensors, in timm's names, and this epsilon of every layer norm."""
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": state["blocks.0.mlp.fc1.weight"].shape[0],
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": eps,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "num_channels": 3,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "torch_dtype": "float32",
    }


def mae_config(
    spec: EncoderSpec,
    decoder: DecoderSpec,
    state: Mapping[str, Tensor],
    eps: float,
    *,
    mask_ratio: float,
    norm_pix_loss: bool,
) -> dict[str, Any]:
    """`config.json` of a ViTMAEForPreTraining; `state` under the names of the MAE release, else `encoder_config`."""
    return encoder_config(spec, state, eps) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": MAE,
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.num_heads,
        "decoder_intermediate_size": state["decoder_blocks.0.mlp.fc1.weight"].shape[0],
        "mask_ratio": mask_ratio,
        "norm_pix_loss": norm_pix_loss,
    }


def classifier_config(
    spec: EncoderSpec, state: Mapping[str, Tensor], eps: float, classes: Sequence[str]
) -> dict[str, Any]:
    """`config.json` of a ViTForImageClassification, with the names of its classes; else `encoder_config`."""
    return encoder_config(spec, state, eps) | {
        "architectures": ["ViTForImageClassification"],
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
    }


def preprocessor_config(spec: EncoderSpec, crop_pct: float = 1.0) -> dict[str, Any]:
    """`preprocessor_config.json`: the short side to the size trained at, bicubic, the centre cut out, normalised.

    With a `crop_pct` below 1 the short side is resized to more, and this share of it cut out. That is what semmae shows
    its encoders. ViTImageProcessor would not do: that of transformers 4 cuts nothing out. Both can only stretch an
    image to a size that is no square: the same of images of its shape.
    """
    covered = around(spec.image_size, crop_pct)
    height, width = sides(spec.image_size)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": covered} if isinstance(covered, int) else dict(zip(_SIDES, covered, strict=True)),
        "resample": 3,  # bicubic, as Pillow numbers it
        "do_center_crop": True,
        "crop_size": dict(zip(_SIDES, (height, width), strict=True)),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _split(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_join` for queries, keys and values; cloned, as safetensors stores no views of one tensor."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _QKV in name:
            parts = zip(_JOINED[_QKV], tensor.chunk(3), strict=True)
            split |= {name.replace(_QKV, part): rows.clone() for part, rows in parts}
        else:
            split[name] = tensor
    return split


def _join(state: dict[str, Tensor]) -> dict[str, Tensor]:
    joined = dict(state)
    for whole, parts in _JOINED.items():
        for first in (name for name in state if parts[0] in name):
            names = [first.replace(parts[0], part) for part in parts]
            if all(name in joined for name in names):  # else loading names what is missing
                joined[first.replace(parts[0], whole)] = torch.cat([joined.pop(name) for name in names])
    return joined


def unseen(path: Path, state: Mapping[str, Tensor]) -> Unseen:
    """Colours and epsilon by the two files of JSON beside the weights; ValueError for what timm does not compute."""
    config = read_beside(path)
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu" and not config.get("use_swiglu_ffn"):
        raise ValueError(f"its activation is {str(activation)[:40]}, not gelu")
    found = _normalisation(read_beside(path, PREPROCESSOR))
    if found is None:
        _LOG.warning("%s: no image_mean and image_std in %s beside it; ImageNet's are taken", path, PREPROCESSOR)
    return Unseen(*(found or IMAGENET), _norm_eps(state, config), oblong(config))


def _norm_eps(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    """Epsilon of the layer norms: as configured, else the default of ViT or of DINOv2."""
    is_vit = any(".layernorm_before." in name for name in state)
    eps = config.get("layer_norm_eps", 1e-12 if is_vit else 1e-6)
    if not is_number(eps) or not 0 < eps < 1:
        raise ValueError(f"its layer_norm_eps is {shown(eps)}, not between 0 and 1")
    return float(eps)


def _normalisation(preprocessor: Mapping[str, Any]) -> tuple[Colour, Colour] | None:
    """Mean and standard deviation of the images, of `preprocessor_config.json`; None where it has none."""
    if preprocessor.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return colours(preprocessor.get("image_mean"), preprocessor.get("image_std"))


def write(subject: Subject, folder: Path) -> Mapping[str, Any]:
    """`model.safetensors`, `config.json` and `preprocessor_config.json`, for a ViT of transformers."""
    model, spec, state = subject.model, encoder_of(subject.model).spec, released(subject.model)
    eps = next(iter(norm_epsilons(model)))
    if isinstance(model, MaskedAutoencoder):
        how: dict[str, Any] = {"mask_ratio": subject.ratio, "norm_pix_loss": model.norm_pix_loss}
        config, tensors = mae_config(spec, model.decoder, state, eps, **how), from_mae(state)
    elif isinstance(model, Classifier):
        config, tensors = classifier_config(spec, state, eps, subject.classes), from_classifier(state)
    else:
        config, tensors = encoder_config(spec, state, eps), from_encoder(state)
    save_tensors(tensors, folder / WEIGHTS)
    # transformers keeps what it does not know.
    write_json(folder / CONFIG, config | {"semmae": {"pooling": pooling_of(model)}})
    write_json(folder / PREPROCESSOR, preprocessor_config(spec, subject.crop_pct))
    return {}


def _command(folder: Path, decoder: bool, head: bool) -> str:
    if decoder or head:
        name, more = "ViTMAEForPreTraining" if decoder else "ViTForImageClassification", ""
    else:
        name, more = "ViTModel", ", add_pooling_layer=False"  # a pooler is none of ours, and would be random
    return python(f"import transformers; print(transformers.{name}.from_pretrained({text(folder)}{more}))")


def _use(place: str, model: Model, classes: bool) -> Sequence[str]:
    processor = f'processor = AutoImageProcessor.from_pretrained("{place}")'
    if isinstance(model, MaskedAutoencoder):
        return (
            "from transformers import AutoImageProcessor, ViTMAEForPreTraining",
            "",
            processor,
            f'model = ViTMAEForPreTraining.from_pretrained("{place}")',
            'loss = model(**processor(images=image, return_tensors="pt")).loss',
        )
    if classes:
        return (
            "from transformers import AutoImageProcessor, ViTForImageClassification",
            "",
            processor,
            f'model = ViTForImageClassification.from_pretrained("{place}")',
            'logits = model(**processor(images=image, return_tensors="pt")).logits',
            "name = model.config.id2label[logits[0].argmax().item()]",
        )
    return (
        "from transformers import AutoImageProcessor, ViTModel",
        "",
        processor,
        "# There is no pooler: with one, transformers would begin a new one at random.",
        f'model = ViTModel.from_pretrained("{place}", add_pooling_layer=False)',
        'tokens = model(**processor(images=image, return_tensors="pt")).last_hidden_state',
    )


FORM = Form(
    name="hf",
    title="transformers' ViT",
    projects=("Hugging Face",),
    reading=Reading(
        recognise=lambda state: any(name.endswith((_KERNEL, _DINOV3_KERNEL)) for name in state),
        to_encoder=to_encoder,
        to_autoencoder=to_mae,
        to_head=to_head,
        unseen=unseen,
        norm_pix_loss=False,  # as transformers takes it
        describes=lambda config: "model_type" in config and "architecture" not in config,
        model_name=lambda config: config["model_type"],
        weights=(WEIGHTS, "pytorch_model.bin"),
    ),
    writing=Writing(
        write=write,
        files=(CONFIG, WEIGHTS, PREPROCESSOR),
        library="transformers",
        command=_command,
        use=_use,
        decoder="asked",
        head=True,
        rgb=True,
        square_decoder=True,
        peculiar={NO_QKV_BIAS},
        norm_eps="one",
    ),
)
