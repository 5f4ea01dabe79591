"""The help of options: the text below each field, read from the file that declares it."""

import ast
import functools
import sys
from pathlib import Path
from typing import Any


def texts_of(group: type[Any]) -> dict[str, str]:
    """The text under each field that a class itself declares, in one line."""
    declared = _classes(str(sys.modules[group.__module__].__file__))[group.__name__]
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in zip(declared.body, declared.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


@functools.cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    """The classes of a file, by name: several are looked at, and `inspect` would read it anew for each."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
