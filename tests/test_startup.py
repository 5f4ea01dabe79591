"""Help and what is wrong with a command line are answered before anything is imported that computes."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from semmae.options import VERBS

HEAVY = (
    *("torch", "torchvision", "timm", "pytorch_lightning", "lightning", "lightly", "torchmetrics", "transformers"),
    *("numpy", "scipy", "sklearn", "PIL", "matplotlib", "datasets", "pyarrow", "pandas", "fsspec"),
    *("jinja2", "tensorboard", "safetensors", "huggingface_hub", "segmentation_models_pytorch"),
)
# Ends the process where one of them is first asked for, which no `try: import` can catch, and shows who asked.
GUARD = f"""
import os, sys, traceback
HEAVY = {HEAVY!r}

class Guard:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            traceback.print_stack()
            print(f"imports {{name}}", file=sys.stderr, flush=True)
            os._exit(99)

assert not set(HEAVY) & set(sys.modules), "loaded before we began"
sys.meta_path.insert(0, Guard)
"""


def guarded(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", GUARD + code, *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 99, done.stderr
    return done


def semmae(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return guarded("from semmae.cli import main; main()", *arguments, folder=folder)


def test_the_guard_ends_a_process_that_imports_what_computes(tmp_path: Path) -> None:
    for code in ("import numpy", "try:\n    import torch.nn\nexcept BaseException:\n    pass"):
        with pytest.raises(AssertionError, match="imports (numpy|torch)"):
            guarded(code, folder=tmp_path)


def test_the_package_is_imported_and_the_overview_shown(tmp_path: Path) -> None:
    assert guarded("import semmae", folder=tmp_path).returncode == 0
    for arguments in (["--help"], ["--version"], []):
        assert semmae(*arguments, folder=tmp_path).returncode == 0
    assert semmae("pretrian", folder=tmp_path).returncode == 2


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb: str, tmp_path: Path) -> None:
    done = semmae(verb, "--help", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: semmae {verb}")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("knn --encodr runs/a --data photos --out new", "--encodr"),  # a typo
        ("knn --data photos --out new", "--encoder"),  # one that is missing
        ("pretrain --data photos --out new --epochs many", "many"),
        ("pretrain --data photos --out new --mask-ratio 1.5", "1.5"),
        ("pretrain --data photos --out new --preset small-image", "small-image"),
        ("pretrain --data nowhere --out new", "nowhere"),
        ("pretrain --data photos --out taken", "taken"),
        ("pretrain --out new --resume", "new"),
        ("knn --encoder nowhere.pth --data photos --out new", "nowhere.pth"),
        ("report nowhere", "nowhere"),
    ],
)
def test_what_is_wrong_with_a_command_line(line: str, named: str, tmp_path: Path) -> None:
    for folder in ("photos", "taken"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "1.png")
    done = semmae(*line.split(), folder=tmp_path)
    assert done.returncode == 2
    (found,) = done.stderr.splitlines()
    assert named in found
    assert not (tmp_path / "new").exists()
