"""SemMAE (arXiv 2206.10207): semantic-guided masking for masked autoencoders.

Each verb of the command line is a function here, with the same names:
`semmae.pretrain(data="photos", out="runs/a", epochs=100)`. Building blocks are in the modules:
`semmae.masking`, `semmae.models`, `semmae.data`, `semmae.evaluation`.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In the order of work; the text is the verb's line in `semmae --help`.
VERBS = {
    "teacher": "train an encoder on your own images, to learn parts from",
    "parts": "learn semantic parts from a frozen encoder, label every image",
    "pretrain": "pre-train a masked autoencoder with semantic-guided masking",
    "knn": "measure an encoder by k-NN",
    "embed": "write one feature vector an image",
    "report": "one HTML page about a run",
    "demo": "the whole way in minutes, without data of your own",
}
_LOADERS = ("load_encoder", "load_mae")

__all__ = [*VERBS, *_LOADERS, "__version__"]


def load_verb(verb: str) -> tuple[type[Any], Callable[[Any], Path]]:
    """A verb's options (a frozen dataclass) and its function."""
    module = importlib.import_module(f"semmae.commands.{verb}")
    return getattr(module, f"{verb.capitalize()}Options"), getattr(module, verb)


def __getattr__(name: str) -> Any:
    """Verbs and loaders on first use: importing semmae imports no network library."""
    if name in VERBS:
        function = _as_call(name)
    elif name in _LOADERS:
        function = getattr(importlib.import_module("semmae.loading"), name)
    else:
        raise AttributeError(f"module 'semmae' has no attribute {name!r}")
    globals()[name] = function
    return function


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _as_call(verb: str) -> Callable[..., Path]:
    """The Python call of a verb: its options as keyword arguments, from the one declaration."""
    from semmae.commands.options import as_kwargs
    from semmae.presets import preset_options

    kind, function = load_verb(verb)
    preset = functools.partial(preset_options, verb)

    def call(*args: Any, **options: Any) -> Path:
        bound = inspect.signature(kind).bind_partial(*args)
        return function(kind(**as_kwargs({**bound.arguments, **options}, kind, preset)))

    call.__name__ = call.__qualname__ = verb
    call.__doc__ = function.__doc__
    call.__signature__ = inspect.signature(kind).replace(return_annotation=Path)  # type: ignore[attr-defined]
    return call
