"""Recipes by name: what a verb's options are in a paper, or where they were measured to work on small data.

A preset is a function that returns options of its verb; its name, with dashes, is what `--preset` takes. Its
docstring states what it is, where it comes from, and what to expect. Options on the command line and those of
`--config` win over a preset. Numbers of others stay theirs: they are what to aim at, not what was seen here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from semmae.errors import UserError, near
from semmae.presets import finetune, knn, parts, pretrain, probe, segment, teacher

Preset = Callable[[], dict[str, Any]]

PRESETS: Mapping[str, tuple[Preset, ...]] = {
    "teacher": (teacher.ibot_vit_s16, teacher.dino_vit_s16, teacher.small_photos, teacher.small_drawings),
    "parts": (parts.semmae_published,),
    "pretrain": (
        pretrain.semmae_vit_b16,
        pretrain.semmae_vit_b8,
        pretrain.mae_vit_b16,
        pretrain.mae_vit_l16,
        pretrain.small_images,
    ),
    "knn": (knn.dino,),
    "probe": (probe.mae_linear, probe.mae_small_data),
    "segment": (segment.ade20k_vit_b16, segment.linear, segment.small),
    "finetune": (
        finetune.mae_vit_b16,
        finetune.mae_vit_l16,
        finetune.cub,
        finetune.cars,
        finetune.flowers,
        finetune.inaturalist,
        finetune.small_data,
    ),
}


def preset_options(verb: str, name: str | None, option: str = "--preset") -> dict[str, Any]:
    """The options of a verb's preset; none where no preset is asked for.

    Args:
        verb: whose preset it is.
        name: as `--preset` takes it.
        option: by which it was asked for, to be named where there is none.

    Raises:
        UserError: the verb has no such preset; the near ones are named.
    """
    if name is None:
        return {}
    known = {preset_name(preset): preset for preset in PRESETS.get(verb, ())}
    if name not in known:
        raise UserError(f"{option}: semmae {verb} has no preset {name!r}{near(name, known)}")
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
