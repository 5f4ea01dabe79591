"""`semmae pretrain`: the whole way and alone, repeatable, resumable; every masking; what it leaves behind."""

import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import tiny
import torch
import yaml
from PIL import Image
from refusals import check_refusal, refused
from torch import Tensor

import semmae
from semmae.cli import run
from semmae.data.manifest import open_images
from semmae.data.part_store import PartStore
from semmae.masking import part_counts
from semmae.options.presets import preset_options
from semmae.reporting import mask_pictures
from semmae.train import pretrain as task
from semmae.train.batches import Training
from semmae.train.masks import MaskContext
from semmae.train.stage import LAST

OPTIONS = {"epochs": tiny.EPOCHS, **tiny.SIZE, **tiny.TRAIN}
ONE_EPOCH = OPTIONS | {"epochs": 1}


@pytest.fixture(scope="module")
def random_run(creatures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("random") / "run"
    with tiny.every_step():
        semmae.pretrain(data=creatures / "images", out=out, masking="random", **ONE_EPOCH)
    return out


def test_the_whole_way_leaves_what_is_promised(whole_run: Path) -> None:
    found = {path.relative_to(whole_run).as_posix() for path in whole_run.rglob("*") if path.is_file()}
    stage = {"config.yaml", "metrics.jsonl", "train.log", "checkpoints/last.ckpt", "skipped.csv", "summary.json"}
    weights = {"model.safetensors", "config.json"}
    promised = {
        *stage, *(f"encoder/{name}" for name in weights), *(f"autoencoder/{name}" for name in weights),
        "report.html", "pictures/masks.png", "pictures/reconstructions.png",
        *(f"teacher/{name}" for name in stage), *(f"teacher/encoder/{name}" for name in weights),
        *(f"parts/{name}" for name in stage), *(f"parts/learner/{name}" for name in weights),
        "parts/parts.npy", "parts/attention.npy", "parts/parts.json", "parts/parts.png", "parts/quality.json",
        "parts/parts.html", "parts/pictures/parts.npz",
    }  # fmt: skip
    assert promised - found == set()
    others = found - promised
    assert all("tensorboard/" in name for name in others), others
    assert sum("events.out.tfevents" in name for name in others) == 3
    page = (whole_run / "report.html").read_text()
    assert "<img" in page
    assert "<svg" in page


def test_interrupted_and_resumed_is_as_never_interrupted(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "run", whole_run / "parts"
    with tiny.every_step():
        with tiny.interrupted("pretrain", step=10):  # in the middle of the third epoch
            semmae.pretrain(data=creatures / "images", out=out, parts=parts, **OPTIONS)
        assert len(tiny.losses(out)) == 10
        semmae.pretrain(out=out, resume=True)
    assert tiny.losses(out) == tiny.losses(whole_run)
    assert len(tiny.losses(out)) == tiny.STEPS
    tiny.assert_same_weights(out / "encoder", whole_run / "encoder")
    tiny.assert_same_weights(out / "autoencoder", whole_run / "autoencoder")


def test_stopped_between_two_lines_the_next_one_gives_of_all_steps(
    whole_run: Path, creatures: Path, tmp_path: Path
) -> None:
    """Averages of losses, blends and hidden shares of parts reach over the stop."""
    given = {"data": creatures / "images", "parts": whole_run / "parts", **OPTIONS}
    semmae.pretrain(out=tmp_path / "whole", **given)
    clock = {"images_per_s": 0, "data_wait": 0}
    for step in (2, 5, 11):
        out = tmp_path / f"stopped-{step}"
        with tiny.interrupted("pretrain", step):
            semmae.pretrain(out=out, **given)
        semmae.pretrain(out=out, resume=True)
        lines, expected = ([line | clock for line in tiny.metrics(run)] for run in (out, tmp_path / "whole"))
        assert lines == expected, step
        assert any(name.startswith("hidden/") for name in lines[0])
        tiny.assert_same_weights(out / "encoder", tmp_path / "whole" / "encoder")


def test_the_whole_way_stopped_at_the_parts_goes_on_there(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stages = {"teacher": "own", "teacher_epochs": tiny.EPOCHS}
    with tiny.every_step():
        with tiny.interrupted("parts", step=6):
            semmae.pretrain(data=creatures / "images", out=out, **stages, **OPTIONS)
        before = tiny.listing(out / "teacher")
        semmae.pretrain(out=out, resume=True)
    assert tiny.listing(out / "teacher") == before
    for stage in ("teacher", "parts", "."):
        assert tiny.losses(out / stage) == tiny.losses(whole_run / stage), stage
    assert (out / "parts" / "parts.npy").read_bytes() == (whole_run / "parts" / "parts.npy").read_bytes()
    tiny.assert_same_weights(out / "autoencoder", whole_run / "autoencoder")


def test_parts_are_learned_by_the_preset_asked_for(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    out, teacher = tmp_path / "run", whole_run / "teacher"
    with tiny.every_step(), tiny.interrupted("parts", step=2):
        semmae.pretrain(data=creatures / "images", out=out, teacher=teacher, parts_preset="semmae-published", **OPTIONS)
    found = yaml.safe_load((out / "parts" / "config.yaml").read_text())
    published = preset_options("parts", "semmae-published")
    assert {name: found[name] for name in published} == published | {"batch_size": tiny.BATCH}
    terms = {name for name in tiny.metrics(out / "parts")[0] if name.startswith("loss")}
    assert terms == {"loss", "loss_reconstruction", "loss_diversity"}


def test_another_seed_gives_other_losses(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    with tiny.every_step(), tiny.interrupted("pretrain", step=1):
        semmae.pretrain(data=creatures / "images", out=tmp_path / "run", parts=whole_run / "parts", seed=1, **OPTIONS)
    assert tiny.losses(tmp_path / "run")[0] != tiny.losses(whole_run)[0]


def test_the_configuration_makes_the_same_run_again(random_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with tiny.every_step():
        assert run(["pretrain", "--config", str(random_run / "config.yaml"), "--out", str(out)]) == 0
    assert tiny.losses(out) == tiny.losses(random_run)
    ours, theirs = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (out, random_run))
    assert {**ours, "out": ""} == {**theirs, "out": ""}


def test_random_masking_needs_no_parts(random_run: Path) -> None:
    assert not (random_run / "teacher").exists()
    assert not (random_run / "parts").exists()
    assert (random_run / "encoder" / "model.safetensors").is_file()


@pytest.mark.parametrize(("masking", "blend"), [("intra", 0.0), ("inter", 1.0)])
def test_intra_and_inter_stay_at_one_end(
    masking: str, blend: float, whole_run: Path, creatures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with tiny.every_step(), tiny.interrupted("pretrain", step=3):
        semmae.pretrain(data=creatures / "images", out=out, parts=whole_run / "parts", masking=masking, **OPTIONS)
    assert [line["blend"] for line in tiny.metrics(out)] == [blend] * 3


def test_semantic_goes_from_one_end_to_the_other(whole_run: Path) -> None:
    blends = [line["blend"] for line in tiny.metrics(whole_run)]
    assert blends == pytest.approx([(step / tiny.STEPS) ** 2 for step in range(tiny.STEPS)], abs=1e-7)


def test_a_fixed_blend_stays(whole_run: Path, creatures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with tiny.every_step(), tiny.interrupted("pretrain", step=3):
        semmae.pretrain(data=creatures / "images", out=out, parts=whole_run / "parts", blend=0.25, **OPTIONS)
    assert [line["blend"] for line in tiny.metrics(out)] == [0.25] * 3


Masked = list[tuple[Tensor, MaskContext]]


@pytest.fixture
def masked(monkeypatch: pytest.MonkeyPatch) -> Masked:
    """The masks of the runs of a test, and what they were made from."""
    seen: Masked = []
    real = task.mask_function

    def watched(masking: str) -> Callable[[MaskContext], Tensor]:
        draw = real(masking)

        def drawn(context: MaskContext) -> Tensor:
            seen.append((draw(context), context))
            return seen[-1][0]

        return drawn

    for user in (task, mask_pictures):
        monkeypatch.setattr(user, "mask_function", watched)
    return seen


def test_blend_and_hidden_shares_of_parts_are_averages(
    masked: Masked, whole_run: Path, creatures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    semmae.pretrain(data=creatures / "images", out=out, parts=whole_run / "parts", gamma=1.0, **ONE_EPOCH)

    (line,) = tiny.metrics(out)
    assert line["blend"] == pytest.approx((0 + 0.25 + 0.5 + 0.75) / 4)
    hidden = torch.cat([mask for mask, _ in masked[:4]]).double()
    labels = torch.cat([context.parts for _, context in masked[:4] if context.parts is not None])
    names = PartStore.open(whole_run / "parts").label_names
    shares = {f"hidden/{name}": hidden[labels == label].mean() for label, name in enumerate(names)}
    given = {name: share for name, share in line.items() if name.startswith("hidden/")}
    assert given == pytest.approx({name: share.item() for name, share in shares.items() if share.isfinite()})
    assert len(given) > 1


@pytest.mark.parametrize("masking", ["block", "colour"])
def test_shapes_need_no_parts(masking: str, creatures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with tiny.every_step():
        semmae.pretrain(data=creatures / "images", out=out, masking=masking, **ONE_EPOCH)
    assert len(tiny.losses(out)) == 4
    assert not any("blend" in line or any("hidden" in name for name in line) for line in tiny.metrics(out))
    assert not (out / "teacher").exists()
    assert (out / "pictures" / "masks.png").is_file()


def test_attention_masks_hide_the_most_attended(
    masked: Masked, whole_run: Path, creatures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = {"data": creatures / "images", "parts": whole_run / "parts", "masking": "attention"}
    with tiny.every_step():
        semmae.pretrain(out=out, **options, **ONE_EPOCH)
    assert len(masked) == 4 + 5  # steps, and the points of the picture
    for mask, context in masked:
        assert context.attention is not None
        assert mask.sum(1).tolist() == [12] * len(mask)
        least_hidden = context.attention.masked_fill(~mask, 2.0).amin(1)
        assert (context.attention.masked_fill(mask, -1.0).amax(1) <= least_hidden).all()
    line = tiny.metrics(out)[0]
    assert any(name.startswith("hidden/") for name in line) and "blend" not in line


def test_an_attention_hint_leaves_the_most_attended_visible(
    masked: Masked, whole_run: Path, creatures: Path, tmp_path: Path
) -> None:
    options = {"parts": whole_run / "parts", "masking": "attention", "attention_hint": 1.0}
    with tiny.interrupted("pretrain", step=1):
        semmae.pretrain(data=creatures / "images", out=tmp_path / "run", **options, **ONE_EPOCH)
    ((mask, context),) = masked
    assert context.attention is not None
    third = context.attention.topk(3, dim=1).values[:, 2]
    assert mask.sum(1).tolist() == [12] * len(mask)
    assert not mask[context.attention > third[:, None]].any()  # two of sixteen, where no third is attended as much


@pytest.mark.parametrize("masking", ["semantic", "inter", "intra"])
def test_hints_stay_visible_and_the_background_keeps_its_share(
    masking: str, masked: Masked, whole_run: Path, creatures: Path, tmp_path: Path
) -> None:
    out, parts = tmp_path / "run", whole_run / "parts"
    own = {"semantic": {"keep_background": True, "blend_end": 0.5}, "inter": {"keep_background": True}}
    given = {"masking": masking, "hints": 1, **own.get(masking, {})}
    semmae.pretrain(data=creatures / "images", out=out, parts=parts, **given, **ONE_EPOCH)
    assert len(masked) == 4 + 5
    assert masked[-1][1].blend == {"semantic": 0.5, "inter": 1.0, "intra": 0.0}[masking]
    labels = PartStore.open(parts).num_labels
    for mask, context in masked:
        assert mask.sum(1).tolist() == [12] * len(mask)
        assert context.parts is not None
        patches = part_counts(context.parts, labels)
        visible = patches - part_counts(context.parts + labels * mask, 2 * labels)[:, labels:]
        larger = patches > 1
        assert (visible >= 1)[larger & (larger.sum(1, keepdim=True) <= 4)].all()
        if masking != "intra":
            may_hide = (patches - larger * (4 / larger.sum(1, keepdim=True)).clamp(max=1)).double()
            share = 12 * may_hide[:, 0] / may_hide.sum(1)
            assert ((patches - visible)[:, 0] - share).abs().max() < 1
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert {name: kept[name] for name in given} == given


def of_one_label(creatures: Path, out: Path, name: str) -> None:
    """Part labels of all creatures, without attention."""
    digest = open_images(creatures / "images").digest
    store = PartStore.create(
        out, images=tiny.COUNT, grid=4, label_names=[name], teacher_digest="", manifest_digest=digest
    )
    store.write(np.arange(tiny.COUNT), np.zeros((tiny.COUNT, 4, 4), np.uint8))
    store.finish()


def test_a_background_that_no_label_is_cannot_keep_its_share(creatures: Path, tmp_path: Path) -> None:
    of_one_label(creatures, tmp_path / "parts", "part 1")
    given = {"data": creatures / "images", "parts": tmp_path / "parts", "keep_background": True}
    with refused("--keep-background", "parts", "part 1"):
        semmae.pretrain(out=tmp_path / "run", **given, **ONE_EPOCH)
    assert not (tmp_path / "run").exists()


def test_attention_that_was_not_stored_is_refused_before_anything_is_written(creatures: Path, tmp_path: Path) -> None:
    of_one_label(creatures, tmp_path / "parts", "a")
    given = {"data": creatures / "images", "parts": tmp_path / "parts", "masking": "attention"}
    with refused("parts", "--labels-only"):
        semmae.pretrain(out=tmp_path / "run", **given, **ONE_EPOCH)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def own_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the working directory with a mask function: twelve of the patches at random."""
    name = f"own_masks_{tmp_path.name}"
    source = (
        "seen = []\n\ndef twelve(context):\n    seen.append(context)\n    return context.uniform().argsort(1) < 12\n"
    )
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return name


def test_an_own_function_is_resumed_and_run_again(own_masks: str, creatures: Path) -> None:
    text = f"{own_masks}:twelve"
    arguments = ["--data", str(creatures / "images"), "--masking", text, "--epochs", "2"]
    with tiny.every_step():
        assert run(["pretrain", *arguments, *tiny.SMALL, "--precision", "float32", "--out", "whole"]) == 0
        function = importlib.import_module(own_masks).twelve
        with tiny.interrupted("pretrain", step=6):
            semmae.pretrain(data=creatures / "images", out="cut", masking=function, **OPTIONS | {"epochs": 2})
        semmae.pretrain(out="cut", resume=True)
        with tiny.interrupted("pretrain", step=2):
            semmae.pretrain(config="whole/config.yaml", out="again")
    assert yaml.safe_load(Path("cut/config.yaml").read_text())["masking"] == text
    assert len(tiny.losses(Path("whole"))) == 8
    assert tiny.losses(Path("cut")) == tiny.losses(Path("whole"))
    assert tiny.losses(Path("again")) == tiny.losses(Path("whole"))[:2]
    tiny.assert_same_weights(Path("cut/encoder"), Path("whole/encoder"))
    assert not Path("whole/teacher").exists() and not Path("whole/parts").exists()
    contexts = importlib.import_module(own_masks).seen
    assert all(context.parts is None and context.attention is None for context in contexts)
    assert [context.progress for context in contexts[9:14]] == [0.0, 0.25, 0.5, 0.75, 1.0]  # the picture's


def test_an_own_function_gets_the_parts_that_there_are(own_masks: str, whole_run: Path, creatures: Path) -> None:
    given = {"data": creatures / "images", "parts": whole_run / "parts", "masking": f"{own_masks}:twelve"}
    with tiny.every_step(), tiny.interrupted("pretrain", step=3):
        semmae.pretrain(out="run", **given, **ONE_EPOCH)
    tried, *contexts = importlib.import_module(own_masks).seen
    assert tried.shape == tried.parts.shape == tried.attention.shape == (2, 16)  # before anything was written
    assert [context.progress for context in contexts] == [0.0, 0.25, 0.5]
    assert all(context.shape == context.parts.shape == context.attention.shape == (8, 16) for context in contexts)
    assert contexts[0].num_labels == 7 and contexts[0].parts.max() < 7
    assert 0 <= contexts[0].attention.min() < contexts[0].attention.max() <= 1
    assert any(name.startswith("hidden/") for name in tiny.metrics(Path("run"))[0])


def test_part_labels_follow_the_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images black to the left and white to the right, labelled so: in every batch, label = brightness."""
    data = tmp_path / "images"
    data.mkdir()
    picture = np.zeros((48, 48, 3), np.uint8)
    picture[:, 24:] = 255
    for number in range(8):
        Image.fromarray(picture).save(data / f"{number}.png")
    digest = open_images(data).digest
    store = PartStore.create(
        tmp_path / "parts", images=8, grid=24, label_names=["black", "white"], teacher_digest="", manifest_digest=digest
    )
    store.write(np.arange(8), np.broadcast_to(np.arange(24) >= 12, (8, 24, 24)).astype(np.uint8))
    store.finish()
    seen: list[dict[str, Tensor]] = []
    real = task.PretrainTask.training_step

    def watched(module: task.PretrainTask, batch: dict[str, Tensor], index: int) -> Tensor:
        seen.append(batch)
        return real(module, batch, index)

    monkeypatch.setattr(task.PretrainTask, "training_step", watched)
    with tiny.interrupted("pretrain", step=3):
        semmae.pretrain(data=data, out=tmp_path / "run", parts=tmp_path / "parts", **OPTIONS)
    pixels = torch.cat([batch["images"][:, 0, 0] for batch in seen]).float()  # (24, 32, 32)
    centres = pixels.unfold(1, 8, 8).unfold(2, 8, 8)[..., 3:5, 3:5].mean((-1, -2)).flatten(1)
    labels = torch.cat([batch["parts"] for batch in seen])
    sure = (centres < 20) | (centres > 235)  # not a patch whose centre lies on the edge
    assert sure.float().mean() > 0.8
    assert torch.equal(labels[sure], (centres[sure] > 128).long())
    # Both sides are seen, and mirrored images among them.
    left = labels.view(-1, 4, 4)[:, :, 0].float().mean(1)
    assert {0.0, 1.0} <= set(left.tolist())


@pytest.mark.parametrize(("scale", "areas"), [(None, (0.2, 0.7)), (1.0, (1.0, 1.0))])
def test_crops_show_at_least_the_share_asked_for(
    scale: float | None, areas: tuple[float, float], creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        pass

    def look(training: Training, dataset: Any, *rest: Any) -> None:
        raise Seen(*(dataset[row]["crops"][0, 2:4].prod().item() for row in range(tiny.COUNT)))

    monkeypatch.setattr(Training, "loader", look)
    given = {} if scale is None else {"crop_scale": scale}
    with pytest.raises(Seen) as seen:
        semmae.pretrain(data=creatures / "images", out=tmp_path / "run", masking="random", **OPTIONS, **given)
    # One pixel of rounding a side, of 48.
    assert areas[0] - 0.04 <= min(seen.value.args) <= areas[1]
    assert max(seen.value.args) <= 1.0


def test_fewer_images_than_one_batch(creatures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    with caplog.at_level(logging.WARNING, "semmae"):
        semmae.pretrain(data=creatures / "images", out=out, limit=5, masking="random", **ONE_EPOCH)
    assert "batch size 8" in caplog.text and "5 images" in caplog.text and "2.93e-06" in caplog.text
    assert [line["step"] for line in tiny.metrics(out)] == [1]


def test_timm_loads_the_encoder(whole_run: Path) -> None:
    model = timm.create_model(f"local-dir:{whole_run / 'encoder'}", pretrained=True).eval()
    encoder = semmae.load_encoder(whole_run)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = model.forward_features(images)
        ours = encoder(images)
    assert torch.allclose(tokens[:, 0], ours.cls, atol=1e-5)
    assert torch.allclose(tokens[:, 1:], ours.patches, atol=1e-5)
    assert torch.allclose(model(images), ours.cls, atol=1e-5)


def test_the_checkpoint_holds_no_code_and_the_last_step(whole_run: Path) -> None:
    state = tiny.saved_state(whole_run)
    assert state["global_step"] == tiny.STEPS
    encoder = semmae.load_encoder(whole_run).state_dict()
    assert all(torch.equal(tensor, state["state_dict"][f"mae.encoder.{name}"]) for name, tensor in encoder.items())


def test_a_loss_that_is_not_finite_stops_the_run(
    creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    real = task.PretrainTask.training_step

    def broken(module: task.PretrainTask, batch: dict[str, Tensor], index: int) -> Tensor:
        loss = real(module, batch, index)
        return loss * float("nan") if module.global_step >= 5 else loss  # in the second epoch

    monkeypatch.setattr(task.PretrainTask, "training_step", broken)
    arguments = ["--data", str(creatures / "images"), "--out", str(out), "--masking", "random", "--epochs", "3"]
    assert run(["pretrain", *arguments, *tiny.SMALL]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    check_refusal(error, "loss is nan", "step 5", out / "checkpoints" / LAST, "--resume")
    state = tiny.saved_state(out)
    assert state["global_step"] == 4
    assert tiny.finite(state["state_dict"])
    assert [line["step"] for line in tiny.metrics(out)] == [4]
