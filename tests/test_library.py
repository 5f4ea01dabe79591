"""`from semmae import …`: light to import, complete, and seen alike by Python and by type checkers."""

import importlib
import os
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

WRITER = Path(__file__).parents[1] / "tools" / "stub.py"


def test_importing_it_imports_no_network_library() -> None:
    found = (
        "import sys, semmae; dir(semmae); semmae.VERBS; semmae.UserError; "
        "print(*sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'timm', 'numpy', 'pytorch_lightning', 'sklearn', 'argparse', 'yaml'}))"
    )
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


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
    """In a process of its own, as a user of a prompt does it."""
    code = (
        "from semmae import *\n"
        "import contextlib, io, pickle, semmae\n"
        "assert [name for name in semmae.VERBS if name not in globals()] == []\n"
        "assert random_mask is semmae.random_mask and set(semmae.__all__) <= {*globals(), '__version__'}\n"
        "page = io.StringIO()\n"
        "with contextlib.redirect_stdout(page): help(semmae.knn)\n"
        "assert 'temperature: float = 0.07' in page.getvalue() and 'temperature: Votes weigh' in page.getvalue()\n"
        "assert pickle.loads(pickle.dumps(semmae.knn)) is semmae.knn\n"
        "assert repr(semmae.knn).startswith('<function knn')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


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


def losses_of_parts(reconstruction: Any) -> None:
    learner = semmae.PartLearner(semmae.PartsSpec(24, 8))
    features = [tiny_encoder().last_block_features(IMAGES)] * 2
    recipe = semmae.PartsRecipe(reconstruction=reconstruction)
    semmae.parts_losses(learner, recipe, IMAGES, features, torch.zeros(1, 2, 5))


GIVEN: dict[str, Callable[[Any], object]] = {
    "Classifier.pooling": lambda value: semmae.Classifier(tiny_encoder(), 2, value),
    "HeadSpec.pooling": lambda value: semmae.HeadSpec(24, ("a", "b"), value),
    "PartsRecipe.reconstruction": losses_of_parts,
    "PartsSpec.target": lambda value: semmae.PartsSpec(24, 8, target=value),
    "SegmenterSpec.head": lambda value: semmae.SegmenterSpec(("a", "b"), value),
    "WholeDataset.fit": lambda value: semmae.WholeDataset(None, 16, value),  # type: ignore[arg-type]
    "embed_images.pooling": lambda value: semmae.embed_images(tiny_encoder(), [], pooling=value),
    "extract.pooling": lambda value: semmae.extract(tiny_encoder(), [], mean=[0], std=[1], pooling=value),
    "pool.pooling": lambda value: semmae.pool(tiny_encoder()(IMAGES), value),
    "reconstruction_loss.kind": lambda value: semmae.reconstruction_loss(IMAGES, IMAGES, value),
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
    'pretrain(data="photos", out="runs/a", epoch=1)': 'Unexpected keyword argument "epoch"',
    'knn(encoder="runs/a", data="photos", out="runs/k", k="many")': 'Argument "k" to "knn" has incompatible type "str"',
    'export(encoder="runs/a", to="jax", out="exports/a")': 'Argument "to" to "export" has incompatible type',
    'export(encoder="runs/a", out="exports/a")': 'Missing named argument "to"',
}


@pytest.mark.slow  # mypy reads what we import, too
def test_a_wrong_option_is_a_type_error(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    shutil.copytree(Path(semmae.__file__).parent, tmp_path / "src" / "semmae")
    (tmp_path / "src/semmae/calls.pyi").write_text(runpy.run_path(str(WRITER))["stub"]())
    file = tmp_path / "uses.py"
    head = ["from pathlib import Path", "import semmae", "from torch import Tensor"]
    head += ["def own(context: semmae.MaskContext) -> Tensor: return context.uniform(4)"]
    file.write_text("\n".join([*head, *(f"semmae.{call}" for call in CALLS)]) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(file)],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(tmp_path / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    given = dict.fromkeys(CALLS, "")
    for line in done.stdout.splitlines():
        if line.startswith(f"{file}:") and ": error: " in line:
            place, message = line.removeprefix(f"{file}:").split(": error: ")
            given[list(CALLS)[int(place) - len(head) - 1]] += message
    assert [call for call, fault in CALLS.items() if fault not in given[call] or bool(fault) != bool(given[call])] == []
