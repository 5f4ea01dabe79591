"""An option is declared once: what measures, trains and labels takes it from `semmae.options`, default and all."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

from semmae.options import VERBS, kind_of
from semmae.options.fields import options_of

OPTIONS = {name for verb in VERBS for name in options_of(kind_of(verb))}
# Called as an option is, and something else.
OTHERS = {
    ("Measured", "head"),  # the network that was trained, not what kind it is
    ("MaskContext", "parts"),  # labels of a batch
    ("MaskContext", "blend"),  # now, as the schedule says
    ("MaskContext", "keep_background"),  # of a context that is made without options
}


def dataclasses_of(package: str) -> Iterator[type[Any]]:
    """Those that a package and its modules declare."""
    above = importlib.import_module(package)
    for module in pkgutil.walk_packages(above.__path__, f"{package}."):
        for kind in vars(importlib.import_module(module.name)).values():
            if isinstance(kind, type) and kind.__module__ == module.name and dataclasses.is_dataclass(kind):
                yield kind


@pytest.mark.parametrize("package", ["semmae.evaluation", "semmae.train", "semmae.labels"])
def test_no_default_of_an_option_stands_outside_of_options(package: str) -> None:
    kinds = list(dataclasses_of(package))
    declared = {
        (kind.__name__, name)
        for kind in kinds
        for name in vars(kind).get("__annotations__", {})
        if name in OPTIONS and name in vars(kind)
    }
    assert declared <= OTHERS, declared - OTHERS
    assert kinds
