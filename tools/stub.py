"""Writes src/semmae/__init__.pyi, what type checkers and editors see of semmae: `make stub`.

`semmae/__init__.py` looks names up on first use, which a type checker cannot follow. The stub says the same plainly,
from the same tables: an import of every building block, and every verb with the options of its dataclass as keywords.
tests/test_library.py tells when it no longer fits the declarations.
"""

import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import semmae

PATH = Path(semmae.__file__).with_suffix(".pyi")
WIDTH = 120
HEADER = '''"""What type checkers and editors see of semmae; `__init__.py` looks the same names up on first use.

Written by `make stub`. `= ...` is an option that a verb needs, but that --config, or the run to --resume, may tell.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

'''
# Here a Python call takes more than the command line does.
ALSO = {("pretrain", "masking"): "_OwnMask"}


def stub() -> str:
    """The text of the stub."""
    renamed = {name: f"_{name}" for name, (_, there) in semmae.BLOCKS.items() if name != there}
    return (
        HEADER
        + "".join(f"{line}\n" for line in imports(renamed))
        + "\n__version__: str\nVERBS: dict[str, str]\nBLOCKS: dict[str, tuple[str, str]]\n\n"
        "_OwnMask = Callable[[MaskContext], Tensor]\n"
        # A checker takes a name in a stub for public where it is imported as itself, or assigned.
        + "".join(f"{name} = {alias}\n" for name, alias in sorted(renamed.items()))
        + "\ndef load_verb(verb: str) -> tuple[type[Any], Callable[[Any], Path]]: ...\n"
        + "\n".join(map(signature, semmae.VERBS))
    )


def imports(renamed: dict[str, str]) -> list[str]:
    """One line a name, in the order that ruff asks for."""
    modules = [("semmae", module, module) for module in semmae._MODULES]
    blocks = [(module, there, renamed.get(name, name)) for name, (module, there) in semmae.BLOCKS.items()]
    # Classes before functions, as everywhere here.
    ordered = sorted(modules + blocks, key=lambda entry: (entry[0], entry[1][0].islower(), entry[1]))
    return [f"from {module} import {there} as {name}" for module, there, name in ordered]


def signature(verb: str) -> str:
    """A verb as a function of its options, several of them to a line."""
    kind, function = semmae.load_verb(verb)
    summary = str(function.__doc__).splitlines()[0]
    # Lines are broken between options, not within one.
    words = " ".join(f"{option},".replace(" ", "\0") for option in parameters(verb, kind))
    filled = textwrap.fill(words, WIDTH - 4, break_long_words=False, break_on_hyphens=False).replace("\0", " ")
    lines = textwrap.indent(filled, "    ")
    return f'def {verb}(\n{lines}\n) -> Path:  # fmt: skip\n    """{summary}"""\n'


def parameters(verb: str, kind: type[Any]) -> Iterator[str]:
    """Each option with its type and default, `*` before those that have to be named."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    starred = False
    for field in fields:
        if field.kw_only and not starred:
            starred = True
            yield "*"
        taken = written(hints[field.name])
        if (verb, field.name) in ALSO:
            taken = f"{taken} | {ALSO[verb, field.name]}"
        yield f"{field.name}: {taken}{default(field, told_elsewhere='config' in hints)}"


def default(field: Any, *, told_elsewhere: bool) -> str:
    """` = value`, or nothing where the option must be given."""
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}".replace("'", '"')
    return " = ..." if told_elsewhere else ""


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
