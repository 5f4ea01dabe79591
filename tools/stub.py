"""Writes src/semmae/calls.pyi, what type checkers and editors see of the verbs, when the package is built.

Each verb with the signature that `help` shows; only, an option that --config or the run to resume may hold need not be
given. Without the stub, in a checkout that nobody has installed, the calls take anything. Building blocks need no
stub: `semmae/__init__.py` declares them.
"""

import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
PATH = SOURCE / "semmae" / "calls.pyi"
WIDTH = 120
HEADER = '''"""Written by tools/stub.py. `= ...`: needed, but --config or the run to --resume may hold it."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Literal, Protocol

from torch import Tensor

from semmae.models.vit import Encoder
from semmae.results import ClassResult, CompareResult, DemoResult, EvaluateResult, PartsResult, PretrainResult, Result
from semmae.results import SegmentResult, TeacherResult
from semmae.train.masks import MaskContext

class DataSet(Protocol):
    """A map-style data set, of torch, torchvision, Hugging Face or one's own."""
    def __getitem__(self, index: Any, /) -> Any: ...

'''


def stub() -> str:
    """The text of the stub."""
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    from semmae.options import VERBS

    return HEADER + "\n".join(map(signature, VERBS))


def signature(verb: str) -> str:
    """A verb as a function of its options, several of them to a line."""
    from semmae import calls

    call = getattr(calls, verb)
    found = inspect.signature(call)
    # Lines are broken between options, not within one.
    words = " ".join(f"{option},".replace(" ", "\0") for option in parameters(found))
    filled = textwrap.fill(words, WIDTH - 4, break_long_words=False, break_on_hyphens=False).replace("\0", " ")
    lines = textwrap.indent(filled, "    ")
    about = textwrap.indent(str(call.__doc__), "    ").lstrip()
    returned = found.return_annotation.__name__
    return f'def {verb}(\n{lines}\n) -> {returned}:  # fmt: skip\n    """{about}\n    """\n'


def parameters(found: inspect.Signature) -> Iterator[str]:
    """Each option with its type and default, `*` before those that have to be named."""
    starred = False
    for each in found.parameters.values():
        if each.kind is each.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        needed = " = ..." if "config" in found.parameters else ""
        default = needed if each.default is each.empty else f" = {each.default!r}".replace("'", '"')
        yield f"{each.name}: {each.annotation}{default}"


if __name__ == "__main__":
    PATH.write_text(stub())
