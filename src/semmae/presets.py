"""Recipes by name: what a verb's options are in a paper, or where they were measured to work on small data.

A preset is a function that returns options of its verb; its name, with dashes, is what `--preset` takes. Its
docstring states what it is, where it comes from, and what to expect. Options on the command line and those of
`--config` win over a preset. Numbers of others stay theirs: they are what to aim at, not what was seen here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from semmae.errors import UserError, near

Preset = Callable[[], dict[str, Any]]


def ibot_vit_s16() -> dict[str, Any]:
    """iBOT as published: ViT-S/16, ImageNet-1k, 800 epochs, 16 GPUs.

    Source: bytedance/ibot, README, "iBOT Pre-Training with ViTs", and the defaults of its main_ibot.py; two nodes
    of 8 GPUs, 64 images each. The authors report 75.2 % k-NN, 77.9 % linear probing and 82.3 %
    fine-tuning.

    Not taken over: stochastic depth (0.1), solarisation, a last rate of 1e-6 (here 0), learned positions (here
    fixed).
    """
    return {
        "model": "vit_small", "image_size": 224, "patch_size": 16, "epochs": 800, "batch_size": 1024,
        "blr": 5e-4, "warmup_share": 10 / 800, "weight_decay": 0.04, "weight_decay_end": 0.4, "clip": 3.0,
        "momentum": 0.996, "crop_scale": 0.25, "local_crops": 10, "local_size": 96,
        "ibot": 1.0, "masking": "block", "mask_ratio": 0.3, "mask_spread": 0.2, "mask_share": 0.5,
        "koleo": 0.0, "centering": "centering", "warmup_teacher_temp": 0.04, "teacher_temp": 0.07,
        "temp_warmup_share": 30 / 800, "prototypes": 8192, "head_width": 2048, "shared_head": True,
        "norm_last_layer": False, "frozen_share": 1 / 800,
    }  # fmt: skip


def dino_vit_s16() -> dict[str, Any]:
    """DINO as published: ViT-S/16, ImageNet-1k, 300 epochs, 16 GPUs, 2.6 days.

    Source: facebookresearch/dino, README, "Boosting DINO performance", and the defaults of its main_dino.py; two
    nodes of 8 GPUs, 64 images each. The authors report 73.3 % k-NN and about 76.1 % linear probing.

    Not taken over: stochastic depth (0.1), solarisation, a last rate of 1e-6 (here 0), learned positions (here
    fixed).
    """
    return {
        "model": "vit_small", "image_size": 224, "patch_size": 16, "epochs": 300, "batch_size": 1024,
        "blr": 5e-4, "warmup_share": 10 / 300, "weight_decay": 0.04, "weight_decay_end": 0.4, "clip": 3.0,
        "momentum": 0.996, "crop_scale": 0.4, "local_crops": 8, "local_size": 96, "ibot": 0.0, "koleo": 0.0,
        "centering": "centering", "warmup_teacher_temp": 0.04, "teacher_temp": 0.07,
        "temp_warmup_share": 30 / 300, "prototypes": 65536, "head_width": 2048, "norm_last_layer": False,
        "frozen_share": 1 / 300,
    }  # fmt: skip


PRESETS: Mapping[str, tuple[Preset, ...]] = {
    "teacher": (ibot_vit_s16, dino_vit_s16),
}


def preset_options(verb: str, name: str | None) -> dict[str, Any]:
    """The options of a verb's preset; none where no preset is asked for.

    Raises:
        UserError: the verb has no such preset; the near ones are named.
    """
    if name is None:
        return {}
    known = {preset_name(preset): preset for preset in PRESETS.get(verb, ())}
    if name not in known:
        raise UserError(f"--preset: semmae {verb} has no preset {name!r}{near(name, known)}")
    return known[name]()


def preset_name(preset: Preset) -> str:
    """The name that `--preset` takes."""
    return preset.__name__.replace("_", "-")


def preset_list(verb: str) -> str:
    """The presets of a verb for its help, one a line; empty where it has none."""
    presets = PRESETS.get(verb, ())
    width = max((len(preset_name(preset)) for preset in presets), default=0)
    lines = [f"  {preset_name(preset):{width}}  {(preset.__doc__ or '').splitlines()[0]}" for preset in presets]
    return "\n".join(["Presets:", *lines]) if lines else ""
