"""examples/: each runs as its docstring says, on tiny input, and gives what the library promises.

plain_loop.py has its own tests.
"""

import importlib
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image

import semmae
from semmae.masking import num_hidden, part_counts

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a script, whose own folder Python looks into first."""
    monkeypatch.syspath_prepend(FOLDER)


def command(name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """`python examples/NAME.py --option value …`, in this process."""
    arguments = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_gives_its_own_command_and_is_short(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert f"\n    python examples/{name} --" in text
    assert len(text.splitlines()) <= 90


def test_masks_of_every_kind_hide_as_many_and_follow_the_parts(
    whole_run: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, parts, out = creatures / "images", whole_run / "parts", tmp_path / "masks.png"
    command("masks", monkeypatch, data=data, parts=parts, out=out, image_size=32, patch_size=4)
    with Image.open(out) as sheet:
        assert sheet.format == "PNG" and sheet.width > sheet.height
    drawn = importlib.import_module("masks").draw(str(data), parts, out, image_size=32, patch_size=4)
    assert list(drawn) == ["random", "block", "colour", "attention", "intra", "semantic, half way", "inter"]
    assert {int(count) for mask in drawn.values() for count in mask.sum(1)} == {num_hidden(64, 0.75)}


def test_masks_go_from_a_share_of_every_part_to_whole_parts() -> None:
    labels = torch.arange(64).remainder(4).expand(8, -1)  # four parts of 16 patches
    masks = importlib.import_module("masks").maskings(labels, 4)
    hidden = {name: part_counts(labels + 4 * mask, 8)[:, 4:] for name, mask in masks.items()}
    assert "attention" not in masks
    assert (hidden["intra"] == 12).all()
    assert (hidden["inter"].sort(1).values == torch.tensor([0, 16, 16, 16])).all()
    middle = hidden["semantic, half way"].sort(1).values
    assert (middle == torch.tensor([6, 14, 14, 14])).all()


def test_parts_learned_in_a_loop_are_those_of_the_verb(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    example = importlib.import_module("learn_parts")
    images = semmae.open_images(creatures / "images")
    encoder = semmae.load_encoder(whole_run / "teacher").requires_grad_(False)
    learner, tokens = example.look(images, encoder, 32, workers=0)
    losses = example.learn(learner, tokens, batch_size=tiny.BATCH)
    assert losses == pytest.approx(tiny.losses(whole_run / "parts"), rel=1e-3)
    example.label(images, encoder, learner, tokens, tmp_path / "parts", workers=0)
    ours = semmae.PartStore.open(tmp_path / "parts", manifest_digest=images.digest)
    theirs = semmae.PartStore.open(whole_run / "parts")
    assert ours.label_names == theirs.label_names and ours.teacher_digest == theirs.teacher_digest
    assert (ours.labels == theirs.labels).mean() > 0.995


def test_parts_learned_by_the_script_can_be_pre_trained_on(
    whole_run: Path, creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = creatures / "images", tmp_path / "parts"
    command("learn_parts", monkeypatch, data=data, encoder=whole_run / "teacher", out=out, image_size=32, steps=3)
    spec = semmae.read_learner(out / "learner").spec
    assert spec.label_names == semmae.PartStore.open(out).label_names
    semmae.pretrain(data=data, parts=out, out=tmp_path / "run", epochs=1, **tiny.SIZE, **tiny.TRAIN)
    assert {f"hidden/{name}" for name in spec.label_names} >= {
        name for name in tiny.metrics(tmp_path / "run")[-1] if name.startswith("hidden/")
    }


def test_knn_is_that_of_the_verb(
    whole_run: Path,
    creatures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = creatures / "images"
    semmae.knn(encoder=whole_run, data=data, out=tmp_path / "knn", pooling="mean", precision="float32", workers=0)
    capsys.readouterr()
    command("evaluate_encoder", monkeypatch, encoder=whole_run, data=data, workers=0)
    given = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    figures = json.loads((tmp_path / "knn" / "results.json").read_text())
    assert given["knn_top1"] == f"{figures['top1']:.1f}" and given["knn_top5"] == f"{figures['top5']:.1f}"


def test_what_colours_say_is_read_off_without_a_fault(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for name, colour in (("blue", (20, 40, 200)), ("red", (200, 40, 20))):
        (tmp_path / name).mkdir()
        for number in range(10):
            pixels = np.clip(noise.normal(colour, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    encoder = semmae.Encoder(semmae.EncoderSpec(32, 8, width=24, depth=1, num_heads=2))
    figures = importlib.import_module("evaluate_encoder").evaluate(encoder, semmae.open_images(tmp_path), workers=0)
    assert figures == {"knn_top1": 100.0, "knn_top5": 100.0, "regression_top1": 100.0}


def test_a_mask_of_ones_own_hides_a_disc_throughout_the_training(
    creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = importlib.import_module("own_masking")
    context = semmae.MaskContext((16, 64), 0.75, progress=0.0, generator=torch.Generator().manual_seed(0))
    mask = example.disc(context)
    centres = torch.rand(16, 1, 2, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    places = (torch.stack([rows, columns], dim=2).reshape(1, 64, 2) + 0.5) / 8
    distances = (places - centres).norm(dim=2)
    furthest_hidden = distances.masked_fill(~mask, 0.0).amax(1)
    nearest_visible = distances.masked_fill(mask, torch.inf).amin(1)
    assert (mask.sum(1) == 48).all() and (furthest_hidden <= nearest_visible + 1e-6).all()

    made: list[torch.Tensor] = []
    real = example.disc
    monkeypatch.setattr(example, "disc", lambda context: made.append(real(context)) or made[-1])
    options = {"preset": "small-images", "epochs": 1, "batch_size": tiny.BATCH}
    command("own_masking", monkeypatch, data=creatures / "images", out=tmp_path / "run", **options)
    assert len(made) >= tiny.COUNT // tiny.BATCH  # of every step, and of the report's pictures
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["masking"] == "own_masking:disc"
