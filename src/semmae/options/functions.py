"""A user's own function as an option: given as text, `package.module:name`, which config.yaml keeps.

By this text every process of a run, and every later run, finds the function. User code is imported here only, and only
when an option names it. What it raises is the user's to mend: `foreign` gives its place.
"""

import functools
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semmae.errors import UserError, near, one_line
from semmae.names import shown

_log = logging.getLogger("semmae")


@contextmanager
def foreign(name: str) -> Iterator[None]:
    """Code of the user's runs, which messages call `name`: whatever it raises, `sys.exit` too, is a UserError.

    Ctrl-C passes. The traceback goes to train.log, where there is one.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        _log.debug("%s\n%s", name, "".join(traceback.format_exception(error)).rstrip())
        said = error.msg if isinstance(error, SyntaxError) else error  # str() of it repeats the place
        fault = ": ".join(filter(None, [type(error).__name__, one_line(said)[:200]]))
        raise UserError(f"{name}: {_place(error)}: {fault}; mend it") from error


def _place(error: BaseException) -> str:
    """File and line in the user's own code: the last of these on the way, whichever library it ends in."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    import sysconfig  # not above: help needs none of it

    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    not_own = ("<frozen", *libraries, str(Path(__file__).parents[1]))
    frames = traceback.extract_tb(error.__traceback__)
    last = ([frame for frame in frames if not frame.filename.startswith(not_own)] or frames)[-1]
    return f"{last.filename}, line {last.lineno}"


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
    with foreign(f"{option} {text}"):
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise  # of what that module imports itself
            raise UserError(
                f"{option} {text}: no module {shown(error.name)}; install it, or start in the folder that holds it"
            ) from error
        try:
            found = functools.reduce(getattr, name.split("."), module)
        except AttributeError as error:
            public = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
            raise UserError(f"{option} {text}: {place} has no {shown(name)}{near(name, public)}") from error
    if not callable(found):
        raise UserError(f"{option} {text}: is {type(found).__name__}, not a function; name a function")
    function: Callable[..., Any] = found
    return function
