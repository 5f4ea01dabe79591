"""Which encoder is meant: out of what a checkpoint holds to the tensors of one Vision Transformer.

An encoder is where a projection of patches lies; what stands before its name, in the dictionaries around it and in
its own name, says whose it is. Where several lie in one file, the words below decide, best first:

| rank | words                                                    | what                                              |
|------|----------------------------------------------------------|---------------------------------------------------|
| 0    | `teacher`, `target_encoder`                              | the average that DINO, iBOT, DINOv2, MSN evaluate |
|      | `model_ema`, `state_dict_ema`                            | averages of DeiT and timm                         |
| 1    | any other: none, `module`, `model`, `state_dict`,        | the network itself; MoCo v3, solo-learn and       |
|      | `backbone`, `base_encoder`, `encoder`, …                 | lightly evaluate it beside its average            |
| 2    | `teacher_backbone`                                       | lightly's average, beside `student_backbone`      |
| 3    | `student`, `student_backbone`, `momentum_encoder`,       | what is not evaluated where another is there      |
|      | `momentum_backbone`, `backbone_momentum`                 |                                                   |
|      | `ema_state_dict`                                         | the network itself; mmengine's average has its    |
|      |                                                          | place, `state_dict`                               |

Among equals the one with the shortest name is taken. What is taken and what is left is logged where it is loaded.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_OTHER = 1
_RANKS = {
    **dict.fromkeys(("teacher", "target_encoder", "model_ema", "state_dict_ema"), 0),
    "teacher_backbone": 2,
    **dict.fromkeys(("student", "student_backbone", "momentum_encoder", "momentum_backbone", "backbone_momentum"), 3),
    "ema_state_dict": 3,
}
# The projection of patches, in the names of timm, of mmpretrain, and of transformers with its model's name before.
_KERNEL = re.compile(
    r"(|.*?\.)(?:patch_embed\.proj(?:ection)?|(?:(?:vit|dinov2|dinov2_with_registers)\.)?"
    r"embeddings\.patch_embeddings(?:\.projection)?)\.weight"
)
# Names of what encoders are trained beside: classifiers of timm and DeiT; projections and predictors of DINO, iBOT,
# DINOv2 and MSN; the token of a hidden patch, which features do not need.
_CLASSIFIERS = ("head.", "head_dist.", "pre_logits.")
_PROJECTIONS = ("dino_head.", "ibot_head.", "fc.", "pred.")
_HEADS = (*_CLASSIFIERS, *_PROJECTIONS, "masked_embed", "mask_token")
_DECODER = "decoder_embed."  # in the names of MAE's decoder, in all forms
_WRAPPED = re.compile(r"\b(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_DEEPEST = 4  # dictionaries within each other: {"model": {"teacher": {…}}}


@dataclass(frozen=True)
class Chosen:
    """The encoder of a checkpoint."""

    tensors: dict[str, Tensor]  # by name, without what stands before the names of this encoder
    options: Mapping[str, Any]  # of the training script, saved beside them
    source: str  # what stood before the names, such as `state_dict.module.base_encoder.`; empty for a plain state dict
    dropped: list[str]  # names, as in the file, of what lies beside it in the same dictionary: heads, other networks
    others: list[str]  # sources of encoders that were not taken
    arch: str  # of the script, as saved by those of timm and MoCo v3; empty where it is not
    has_decoder: bool  # whether MAE's decoder lies anywhere in the checkpoint


def choose(content: Mapping[str, Any]) -> Chosen:
    """The encoder that is meant of all that a checkpoint holds; without any, tensors as they lie."""
    held = [(place, _tensors(mapping)) for place, mapping in _dictionaries(content)]
    has_decoder = any(_DECODER in str(name) for _, mapping in _dictionaries(content) for name in mapping)
    found = [(place, match[1], state) for place, state in held for name in state if (match := _KERNEL.fullmatch(name))]
    args, arch = content.get("args"), content.get("arch")
    options = vars(args) if isinstance(args, argparse.Namespace) else {}
    arch = arch if isinstance(arch, str) else ""
    if not found:
        most = max((state for _, state in held), key=len)
        return Chosen(most, options, "", [], [], arch, has_decoder)
    ordered = sorted(found, key=lambda one: (_rank(one[0] + one[1]), len(one[0] + one[1])))
    place, prefix, state = ordered[0]
    networks = [other for at, other, _ in found if at == place and other != prefix]
    within = tuple(other for other in networks if other.startswith(prefix))
    own = [name for name in state if name.startswith(prefix) and not name.startswith(within)]
    return Chosen(
        tensors={name.removeprefix(prefix): state[name] for name in own},
        options=options,
        source=place + prefix,
        dropped=[name for name in state if not name.startswith((prefix, *filter(None, networks)))],
        others=[at + other for at, other, _ in ordered[1:]],
        arch=arch,
        has_decoder=has_decoder,
    )


def without_heads(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of an encoder alone, as far as names show it, and the names of the others."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_HEADS)}
    return kept, [name for name in state if name not in kept]


def _dictionaries(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dictionary in a checkpoint, each once, and the keys that lead to it, each followed by a dot."""
    level, seen = [("", content)], {id(content)}
    for _ in range(_DEEPEST):
        yield from level
        deeper = []
        for place, mapping in level:
            for key, value in mapping.items():
                if isinstance(key, str) and isinstance(value, Mapping) and id(value) not in seen:
                    seen.add(id(value))
                    deeper.append((f"{place}{key}.", value))
        level = deeper


def _tensors(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors in a dictionary, without what torch puts into names where it compiles or wraps a part."""
    tensors = {name: value for name, value in mapping.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return {_WRAPPED.sub("", name): value for name, value in tensors.items()}


def _rank(source: str) -> int:
    return max((_RANKS[word] for word in source.split(".") if word in _RANKS), default=_OTHER)
