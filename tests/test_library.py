"""`from semmae import …`: light to import, complete, and seen alike by Python and by type checkers."""

import ast
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import semmae

STUB = Path(semmae.__file__).with_suffix(".pyi")
WRITER = Path(__file__).parents[1] / "tools" / "stub.py"


def test_importing_it_imports_no_network_library() -> None:
    told = (
        "import sys, semmae; dir(semmae); semmae.VERBS; semmae.UserError; "
        "print(*sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'timm', 'numpy', 'pytorch_lightning', 'sklearn', 'tyro', 'yaml'}))"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", semmae.BLOCKS)
def test_a_building_block_is_its_modules_own(name: str) -> None:
    module, there = semmae.BLOCKS[name]
    found = getattr(semmae, name)
    assert found is getattr(importlib.import_module(module), there)
    assert found.__module__ == module, f"defined in {found.__module__}: name that module"
    assert (found.__doc__ or "").strip()


def test_dir_and_all_tell_every_name_and_each_can_be_had() -> None:
    assert dir(semmae) == sorted(semmae.__all__)
    assert len(set(semmae.__all__)) == len(semmae.__all__)
    assert {*semmae.VERBS, *semmae.BLOCKS, "masking", "__version__"} <= set(semmae.__all__)
    assert [name for name in semmae.__all__ if not hasattr(semmae, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'random_maks'"):
        _ = semmae.random_maks  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_table() -> None:
    """The stub imports every block from the module that the table names, and declares every verb; nothing else."""
    tree = ast.parse(STUB.read_text())
    imported = {
        alias.asname: (node.module, alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("semmae")
        for alias in node.names
    }
    # A name is only seen as one's own when it is imported as itself; others are assigned: `part_quality = _quality`.
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            (target,) = node.targets
            assert isinstance(target, ast.Name)
            imported[target.id] = imported.pop(node.value.id)
    modules = {name: place for name, place in imported.items() if place[0] == "semmae"}
    assert {name: place for name, place in imported.items() if name not in modules} == semmae.BLOCKS
    assert {*modules, *semmae.VERBS, *semmae.BLOCKS, "__version__"} == set(semmae.__all__)
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert functions == {*semmae.VERBS, "load_verb"}, "declare every verb in __init__.pyi"


def test_type_checkers_see_the_options_that_the_verbs_declare() -> None:
    assert STUB.read_text() == runpy.run_path(str(WRITER))["stub"](), "options or building blocks changed: make stub"


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
    file = tmp_path / "calls.py"
    head = ["from pathlib import Path", "import semmae", "from torch import Tensor"]
    head += ["def own(context: semmae.MaskContext) -> Tensor: return context.uniform(4)"]
    file.write_text("\n".join([*head, *(f"semmae.{call}" for call in CALLS)]) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(file)],
        cwd=WRITER.parents[1], capture_output=True, text=True,
    )  # fmt: skip
    told = dict.fromkeys(CALLS, "")
    for line in done.stdout.splitlines():
        if line.startswith(f"{file}:") and ": error: " in line:
            place, message = line.removeprefix(f"{file}:").split(": error: ")
            told[list(CALLS)[int(place) - len(head) - 1]] += message
    assert [call for call, fault in CALLS.items() if fault not in told[call] or bool(fault) != bool(told[call])] == []
