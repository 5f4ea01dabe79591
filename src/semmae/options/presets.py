"""Recipes by name: what a verb's options are in a paper, or where they were measured to work on small data.

A preset is a function in its verb's file that returns options; its name, with dashes, is what `--preset` takes. Its
docstring states what it is, where it comes from, and what to expect. Options on the command line and those of
`--config` win over a preset. Numbers of others stay theirs: they are what to aim at, not what was seen here.
"""

import importlib
from collections.abc import Callable
from typing import Any

from semmae.errors import UserError, near
from semmae.names import shown

Preset = Callable[[], dict[str, Any]]


def presets_of(verb: str) -> dict[str, Preset]:
    """The presets of a verb, by the name that `--preset` takes."""
    module = importlib.import_module(f"semmae.options.{verb}")
    return {preset.__name__.replace("_", "-"): preset for preset in getattr(module, "PRESETS", ())}


def preset_options(verb: str, name: str | None, option: str = "--preset") -> dict[str, Any]:
    """The options of the preset that `option` names; none where it names none."""
    if name is None:
        return {}
    known = presets_of(verb)
    if name not in known:
        raise UserError(f"{option}: semmae {verb} has no preset {shown(name)}{near(name, known)}")
    return known[name]()


def preset_list(verb: str) -> str:
    """The presets of a verb for its help, one a line; empty where it has none."""
    presets = presets_of(verb)
    width = max(map(len, presets), default=0)
    lines = [f"  {name:{width}}  {(preset.__doc__ or '').splitlines()[0]}" for name, preset in presets.items()]
    return "\n".join(["Presets:", *lines]) if lines else ""
