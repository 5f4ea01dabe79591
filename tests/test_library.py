"""`from semmae import …`: light to import, complete, and seen alike by Python and by type checkers."""

import contextlib
import importlib
import io
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from refusals import refused

import semmae
from semmae.errors import UserError
from semmae.options import VERBS

ROOT = Path(__file__).parents[1]
WRITER = ROOT / "tools" / "stub.py"
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r'^```python title="(\w+)\.py"\n(.*?)^```', re.DOTALL | re.MULTILINE)


def test_importing_it_imports_no_network_library() -> None:
    found = (
        "import sys, semmae; dir(semmae); semmae.VERBS; semmae.UserError; "
        "print(*sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'timm', 'numpy', 'pytorch_lightning', 'sklearn', 'argparse', 'yaml'}))"
    )
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_name_on_the_page_of_the_library_is_there() -> None:
    page = Path(semmae.__file__).parents[2] / "docs" / "api" / "index.md"
    rows = [line.split("|")[2] for line in page.read_text(encoding="utf-8").splitlines() if line.count("|") == 3]
    names = {name for row in rows for name in re.findall(r"`([A-Za-z]\w*)`", re.sub(r"\([^)]*\)", "", row))}
    assert len(names) > 60
    assert {name for name in names if not hasattr(semmae, name)} == set()


@pytest.mark.parametrize("name", [name for name, (module, _) in semmae._blocks().items() if module != "semmae"])
def test_a_building_block_is_its_modules_own(name: str) -> None:
    module, there = semmae._blocks()[name]
    found = getattr(semmae, name)
    assert found is getattr(importlib.import_module(module), there)
    assert found.__module__ == module, f"defined in {found.__module__}: name that module"
    assert (found.__doc__ or "").strip()


def test_dir_and_all_give_every_name_and_each_can_be_had() -> None:
    assert dir(semmae) == sorted(semmae.__all__)
    assert len(set(semmae.__all__)) == len(semmae.__all__)
    assert {*VERBS, *semmae._blocks(), "masking", "__version__"} <= set(semmae.__all__)
    assert [name for name in semmae.__all__ if not hasattr(semmae, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'random_maks'"):
        _ = semmae.random_maks  # type: ignore[attr-defined]


def test_a_star_takes_every_name_and_help_shows_the_options() -> None:
    names: dict[str, Any] = {}
    exec("from semmae import *", names)
    assert {*VERBS, *semmae.__all__} <= {*names}
    assert names["random_mask"] is semmae.random_mask
    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        help(semmae.knn)
    shown = ["temperature: float = 0.07", "temperature: Votes weigh", "In Python also a list of images"]
    shown += ["knn(*, encoder: str | PathLike[str] | Encoder, data: str"]
    assert [text for text in shown if text not in page.getvalue()] == []
    assert pickle.loads(pickle.dumps(semmae.knn)) is semmae.knn
    assert repr(semmae.knn).startswith("<function knn")


def choices(annotation: Any) -> tuple[str, ...]:
    """The choices of a `Literal`, alone or beside None."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next(filter(None, map(choices, get_args(annotation))), ())


def chosen() -> dict[str, tuple[str, ...]]:
    """By "function.argument" or "Class.argument", the choices of every building block that has some."""
    found = {}
    for name in semmae._blocks():
        block = getattr(semmae, name)
        if callable(block):
            hints = get_type_hints(block.__init__ if isinstance(block, type) else block)
            found |= {f"{name}.{own}": choices(kind) for own, kind in hints.items() if own != "return"}
    return {name: known for name, known in found.items() if known}


IMAGES = torch.zeros(1, 3, 16, 16)


def tiny_encoder() -> semmae.Encoder:
    return semmae.Encoder(semmae.EncoderSpec(16, 8, 24, 1, 3))


GIVEN: dict[str, Callable[[Any], object]] = {
    "Classifier.pooling": lambda value: semmae.Classifier(tiny_encoder(), 2, value),
    "HeadSpec.pooling": lambda value: semmae.HeadSpec(24, ("a", "b"), value),
    "SegmenterSpec.head": lambda value: semmae.SegmenterSpec(("a", "b"), value),
    "WholeDataset.fit": lambda value: semmae.WholeDataset(None, 16, value),  # type: ignore[arg-type]
    "embed_images.pooling": lambda value: semmae.embed_images(tiny_encoder(), [], pooling=value),
    "extract.pooling": lambda value: semmae.extract(tiny_encoder(), [], mean=[0], std=[1], pooling=value),
    "open_images.check": lambda value: semmae.open_images("nowhere", check=value),
    "open_segmentation.check": lambda value: semmae.open_segmentation(
        "nowhere", semmae.AnnotationCoding(), check=value
    ),
    "pool.pooling": lambda value: semmae.pool(tiny_encoder()(IMAGES), value),
    "resolve_precision.precision": lambda value: semmae.resolve_precision(value),
}


def test_each_argument_of_a_few_choices_refuses_all_else() -> None:
    every = chosen()
    assert every.keys() == GIVEN.keys()
    for name, known in every.items():
        for value in (f"{known[0]} ", known[0].upper(), "bf-16", "", 3):
            with refused(repr(value), error=(UserError, ValueError)):
                GIVEN[name](value)


CALLS = {
    'pretrain(data=Path("photos"), out="runs/a", epochs=1, masking=own)': "",
    'pretrain(out="runs/a", resume=True)': "",
    'report("runs/a")': "",
    'knn(encoder=semmae.load_encoder("runs/a"), data=["a.jpg"], out="runs/k")': "",
    'knn(encoder=semmae.pretrain(data=[(image, 1)], out="runs/a"), data=images, out=Path("runs/k"))': "",
    'pretrain(data="photos", out="runs/a", epoch=1)': 'Unexpected keyword argument "epoch"',
    'knn(encoder="runs/a", data="photos", out="runs/k", k="many")': 'Argument "k" to "knn" has incompatible type "str"',
    'knn(encoder="runs/a", data=3, out="runs/k")': 'Argument "data" to "knn" has incompatible type "int"',
    'export(encoder="runs/a", to="jax", out="exports/a")': 'Argument "to" to "export" has incompatible type',
    'export(encoder="runs/a", out="exports/a")': 'Missing named argument "to"',
}
HEAD = """\
from pathlib import Path
import semmae
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
def own(context: semmae.MaskContext) -> Tensor: return context.uniform(4)
def called(image: Image.Image, images: Dataset[Image.Image]) -> None:
"""
# Only our own calls are looked at, so that it takes seconds: other libraries are anything.
CONFIG = """\
[mypy]
python_version = 3.11
ignore_missing_imports = True
follow_imports = skip
[mypy-semmae.*]
follow_imports = silent
"""


def test_type_checkers_take_the_documented_calls_and_refuse_a_wrong_option(tmp_path: Path) -> None:
    """A checkout that nobody has installed has no stub: there every call of a verb is taken."""
    pytest.importorskip("mypy")
    shutil.copytree(Path(semmae.__file__).parent, tmp_path / "src" / "semmae")
    (stub := tmp_path / "src/semmae/calls.pyi").unlink(missing_ok=True)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    (tmp_path / "calls.py").write_text(HEAD + "".join(f"    semmae.{call}\n" for call in CALLS))
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        files = dict(_FILE.findall(text))
        given = "from typing import Any\nimages: Any\n"  # where a comment says what they are
        code = given + "\n".join(_PYTHON.findall(text))
        for name, content in {f"page_{page.stem.replace('-', '_')}": code, **files}.items():
            (tmp_path / f"{name}.py").write_text(content)
    assert type_errors(tmp_path) == {}
    stub.write_text(runpy.run_path(str(WRITER))["stub"]())
    found = type_errors(tmp_path)
    assert found.keys() == {f"calls.py:{line}" for line, fault in enumerate(CALLS.values(), LINE) if fault}
    wrong = [
        call for line, (call, fault) in enumerate(CALLS.items(), LINE) if fault not in found.get(f"calls.py:{line}", "")
    ]
    assert wrong == []


LINE = HEAD.count("\n") + 1


def type_errors(folder: Path) -> dict[str, str]:
    """By file and line, what mypy says of the files in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", "cache", *sorted(path.name for path in folder.glob("*.py"))],
        cwd=folder, env={**os.environ, "MYPYPATH": str(folder / "src")}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    lines = (line.partition(": error: ") for line in done.stdout.splitlines())
    return {place: message for place, colon, message in lines if colon}
