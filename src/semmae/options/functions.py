"""A user's own function as an option: given as text, `package.module:name`, which config.yaml keeps.

By this text every process of a run, and every later run, finds the function. User code is imported here only, and only
when an option names it.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from semmae.errors import UserError, near
from semmae.names import shown


def text_of(function: Callable[..., Any], option: str) -> str:
    """The text by which `function_at` finds this very function; refused: a lambda, an inner one, one of a notebook."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module is None or name is None:
        raise UserError(
            f"{option} {shown(function)}: has no name to find it by again; give its place as text, package.module:name"
        )
    if module == "__main__" or "<" in name:  # <lambda>, <locals>
        raise UserError(
            f"{option} {module}:{name}: cannot be imported by another process; define it at the top level of a module "
            "that can be imported"
        )
    text = f"{module}:{name}"
    if function_at(text, option) != function:
        raise UserError(f"{option} {text}: is another function than the one given; give the module's own")
    return text


def function_at(text: str, option: str) -> Callable[..., Any]:
    """Import the function that `package.module:name` names; the working directory is looked in last."""
    place, _, name = text.partition(":")
    if not all([*place.split("."), *name.split(".")]) or place.endswith(".py"):
        raise UserError(f"{option} {shown(text)}: must be package.module:name of a function, without .py")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # of what that module imports itself
        raise UserError(
            f"{option} {text}: no module {shown(error.name)}; install it, or start in the folder that holds it"
        ) from error
    except SyntaxError as error:
        raise UserError(f"{option} {text}: {error.filename}, line {error.lineno}: {error.msg}; mend it") from error
    try:
        found = functools.reduce(getattr, name.split("."), module)
    except AttributeError as error:
        public = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise UserError(f"{option} {text}: {place} has no {shown(name)}{near(name, public)}") from error
    if not callable(found):
        raise UserError(f"{option} {text}: is {type(found).__name__}, not a function; name a function")
    function: Callable[..., Any] = found
    return function
