"""Writes src/semmae/calls.pyi, what type checkers and editors see of the verbs, when the package is built.

The options' own declarations say it all but for two things: a call takes a text where a path is declared, and need not
give what --config or the run to resume holds. Building blocks need no stub: `semmae/__init__.py` declares them.
"""

import dataclasses
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1] / "src"
PATH = SOURCE / "semmae" / "calls.pyi"
WIDTH = 120
HEADER = '''"""Written by tools/stub.py. `= ...`: needed, but --config or the run to --resume may hold it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from semmae.models.vit import Encoder
from semmae.results import ClassResult, DemoResult, EvaluateResult, PartsResult, PretrainResult, Result
from semmae.results import SegmentResult, TeacherResult
from semmae.train.masks import MaskContext

'''
# What a call takes beside a text, by what the option reads.
OBJECTS = {"images": "Any", "network": "Encoder"}
FUNCTION = "Callable[[MaskContext], Tensor]"


def stub() -> str:
    """The text of the stub."""
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    from semmae.options import VERBS

    return HEADER + "\n".join(map(signature, VERBS))


def signature(verb: str) -> str:
    """A verb as a function of its options, several of them to a line."""
    from semmae import calls
    from semmae.options import kind_of

    kind = kind_of(verb)
    result = calls.RESULTS[verb].__name__
    # Lines are broken between options, not within one.
    words = " ".join(f"{option},".replace(" ", "\0") for option in parameters(kind))
    filled = textwrap.fill(words, WIDTH - 4, break_long_words=False, break_on_hyphens=False).replace("\0", " ")
    lines = textwrap.indent(filled, "    ")
    about = textwrap.indent(str(getattr(calls, verb).__doc__), "    ").lstrip()
    return f'def {verb}(\n{lines}\n) -> {result}:  # fmt: skip\n    """{about}\n    """\n'


def parameters(kind: type[Any]) -> Iterator[str]:
    """Each option with its type and default, `*` before those that have to be named."""
    from semmae.options.fields import options_of

    every = options_of(kind)
    starred = False
    for field in dataclasses.fields(kind):
        if field.kw_only and not starred:
            starred = True
            yield "*"
        option = every[field.name]
        taken = "Any" if option.facts.python else written(option.type)
        if option.facts.objects:
            taken = f"{taken} | {OBJECTS[option.facts.reads or 'images']}"
        if option.facts.function:
            taken = f"{taken} | {FUNCTION}"
        yield f"{field.name}: {taken}{default(field, elsewhere='config' in every)}"


def default(field: Any, *, elsewhere: bool) -> str:
    """` = value`, or nothing where the option must be given."""
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}".replace("'", '"')
    return " = ..." if elsewhere else ""


def written(hint: Any) -> str:
    """A type as it is written in Python. Where a path or a text is declared, a call takes either."""
    if typing.get_origin(hint) is typing.Literal:
        return "Literal[" + ", ".join(f'"{choice}"' for choice in typing.get_args(hint)) + "]"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(written(one) for one in typing.get_args(hint)))
    if hint in (str, Path):
        return "str | Path"
    return "None" if hint is type(None) else str(hint.__name__)


if __name__ == "__main__":
    PATH.write_text(stub())
