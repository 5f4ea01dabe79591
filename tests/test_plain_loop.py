"""examples/plain_loop.py: a loop of one's own trains what `semmae pretrain` trains."""

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from semmae.options.pretrain import PretrainOptions

EXAMPLE = Path(__file__).parents[1] / "examples" / "plain_loop.py"


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("plain_loop", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_losses_and_weights_are_those_of_the_verb_and_gradients_go_when_their_step_is_done(
    whole_run: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load_example()
    loss_of, held = example.masked_loss, []

    def watched(mae: Any, *rest: Any) -> Any:
        held.append([weight.grad for weight in mae.parameters() if weight.grad is not None])
        return loss_of(mae, *rest)

    monkeypatch.setattr(example, "masked_loss", watched)
    losses = example.train(
        str(creatures / "images"), whole_run / "parts", tmp_path, "vit_mini", size=32, patch=8,
        epochs=tiny.EPOCHS, batch=tiny.BATCH, workers=0, float32=True,
    )  # fmt: skip

    assert [round(loss, 8) for loss in losses] == tiny.losses(whole_run)
    tiny.assert_same_weights(tmp_path / "encoder", whole_run / "encoder")
    assert held == [[]] * len(losses)


def test_its_defaults_are_those_of_the_verb() -> None:
    defaults = {name: field.default for name, field in inspect.signature(load_example().train).parameters.items()}
    same = {"model": "model", "size": "image_size", "patch": "patch_size", "batch": "batch_size", "seed": "seed"}

    for here, option in same.items():
        assert defaults[here] == getattr(PretrainOptions, option)
    assert f"--epochs {defaults['epochs']}`" in EXAMPLE.read_text()


@pytest.mark.slow  # imports everything anew
def test_it_does_not_even_import_lightning() -> None:
    found = f"import runpy, sys; runpy.run_path({str(EXAMPLE)!r}); print([m for m in sys.modules if 'lightning' in m])"
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
