"""`semmae export`: every form is loaded by its own library and computes the same; refusals; the card; the hub."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import tiny
import torch
import yaml
from PIL import Image
from refusals import refused
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import semmae
from semmae.data.loaders import WholeDataset, normalise
from semmae.data.manifest import ImageSet, open_images
from semmae.files import PART
from semmae.formats import folders as checkpoint, huggingface, onnx
from semmae.formats.open import load_encoder, load_mae
from semmae.formats.table import WRITINGS
from semmae.models import weights
from semmae.models.classifier import Classifier
from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.segmenter import Segmenter, SegmenterSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.models.weights import set_norm_eps, wrap_vit
from semmae.options.shared import PUBLIC_TEACHER

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SPEC = EncoderSpec(32, 8, 48, 2, 3, mean=MEAN, std=STD)
TABLE = {"protocol": {"method": "k-NN", "k": 20, "data": "/home/me/photos", "seed": 0}, "top1": 41.25, "top5": 70.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What `semmae pretrain` leaves behind, with random weights."""
    mae = MaskedAutoencoder(Encoder(SPEC), DecoderSpec(32, 1, 4), norm_pix_loss=False)
    for parameter in mae.parameters():
        nn.init.normal_(parameter, std=0.2)
    folder = tmp_path / "runs/birds"
    checkpoint.save_encoder(mae.encoder, folder / "encoder")
    checkpoint.save_autoencoder(mae, folder / "autoencoder")
    options = {"verb": "pretrain", "data": "/home/me/photos", "epochs": 9, "mask_ratio": 0.6, "parts": "/home/me/p"}
    options["out"] = str(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    (folder / "summary.json").write_text(
        json.dumps({"stage": "pretrain", "images": 321, "minutes": 4.2, "finished": True})
    )
    return folder


@torch.no_grad()
def test_timm_loads_its_folder(run: Path, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32)

    out = semmae.export(encoder=run, to="timm", out=tmp_path / "out").path

    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    features = load_encoder(run)(images)
    assert torch.equal(model.forward_features(images)[:, 1:], features.patches)
    assert tuple(model.pretrained_cfg["mean"]) == MEAN
    assert checkpoint.digest(load_encoder(out)) == checkpoint.digest(load_encoder(run))


@pytest.mark.parametrize("decoder", ["auto", "without"])
def test_the_mae_file_holds_the_release_s_names_and_reads_back(decoder: str, run: Path, tmp_path: Path) -> None:
    out = semmae.export(encoder=run, to="mae", out=tmp_path / "out", decoder=decoder).path

    state = torch.load(out / "mae.pth", weights_only=True)["model"]
    wanted = load_mae(run)
    with_decoder = decoder == "auto"
    assert ("decoder_blocks.0.attn.qkv.weight" in state) == ("mask_token" in state) == with_decoder
    assert torch.equal(state["pos_embed"], wanted.encoder.vit.pos_embed)
    for place in (out, out / "mae.pth"):
        read = load_encoder(place)  # heads and colours stand beside it
        assert read.spec == SPEC
        assert checkpoint.digest(read) == checkpoint.digest(wanted.encoder)
    if with_decoder:
        again = load_mae(out)
        assert checkpoint.digest(again) == checkpoint.digest(wanted)
        assert (again.decoder, again.norm_pix_loss) == (wanted.decoder, False)


@torch.no_grad()
def test_transformers_loads_the_encoder(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    images = torch.randn(2, 3, 32, 32)

    out = semmae.export(encoder=run, to="hf", out=tmp_path / "out").path

    model, found = transformers.ViTModel.from_pretrained(out, add_pooling_layer=False, output_loading_info=True)
    features = load_encoder(run)(images)
    tokens = model.eval()(images).last_hidden_state
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (tokens[:, 0] - features.cls).abs().max() < 1e-5
    assert (tokens[:, 1:] - features.patches).abs().max() < 1e-5
    assert load_encoder(out).spec == SPEC
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (MEAN, STD)
    pixels = processor(images=torch.full((3, 50, 40), 127, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert torch.allclose(pixels[0, :, 0, 0], (torch.full((3,), 127 / 255) - torch.tensor(MEAN)) / torch.tensor(STD))


@torch.no_grad()
def test_transformers_loads_the_autoencoder(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)

    out = semmae.export(encoder=run, to="hf", out=tmp_path / "out", decoder="with").path

    model, given = transformers.ViTMAEForPreTraining.from_pretrained(out, output_loading_info=True)
    wanted = model.eval()(images, noise=noise)
    mask, mae = wanted.mask.bool(), load_mae(run)
    found = mae(images, mask)
    assert not any(given[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert mask.sum(1).tolist() == [10, 10]  # the run's ratio, 0.6: 16 - int(16 · 0.4)
    assert (found.pred - wanted.logits)[mask].abs().max() < 1e-5
    assert abs(float(found.loss) - float(wanted.loss)) < 1e-5 * float(wanted.loss)
    assert checkpoint.digest(load_mae(out)) == checkpoint.digest(mae)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "head"])
def test_the_line_that_loads_an_export_for_transformers_leaves_nothing_out(
    kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    if kind == "head":
        run = tmp_path / "classifier"
        checkpoint.save_classifier(Classifier(Encoder(SPEC), 2, "cls"), run, ["cat", "dog"], 0.875, {"crop_pct": 0.875})
    read, load = [], transformers.PreTrainedModel.from_pretrained.__func__

    def loaded(kind: Any, *args: Any, **options: Any) -> Any:
        model, found = load(kind, *args, output_loading_info=True, **options)
        read.append(found)
        return model

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(loaded))
    semmae.export(encoder=run, to="hf", out=tmp_path / "it's", decoder="with" if kind == "decoder" else "without")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next  ")]
    exec(shlex.split(line)[-1], {})

    (found,) = read
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@torch.no_grad()
def test_the_release_of_mae_goes_to_transformers_and_back(shared: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    expected = load_file(shared / "vectors/mae-p8/expected.safetensors")
    path = shared / "vectors/mae-p8/checkpoint.pth"

    theirs = semmae.export(encoder=path, to="hf", out=tmp_path / "hf", decoder="with").path
    back = semmae.export(encoder=theirs, to="mae", out=tmp_path / "mae").path

    model = transformers.ViTMAEForPreTraining.from_pretrained(theirs).eval()
    # The release gives each patch's rank in its shuffled order, and noise is only ranked.
    wanted = model(expected["images"], noise=expected["ids_restore"].float())
    mask = expected["mask"].bool()
    assert torch.equal(wanted.mask.bool(), mask)
    assert (wanted.logits - expected["pred"])[mask].abs().max() < 1e-5
    assert abs(float(wanted.loss) - float(expected["loss"])) < 1e-5
    state, released = torch.load(back / "mae.pth", weights_only=True)["model"], load_mae(path)
    assert all(torch.equal(state[name.removeprefix("encoder.vit.")], t) for name, t in released.state_dict().items())
    assert len(state) == len(released.state_dict())


@torch.no_grad()
def test_a_dino_file_goes_to_transformers_as_it_is(shared: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    expected = load_file(shared / "vectors/vit-flat/expected.safetensors")

    out = semmae.export(encoder=shared / "vectors/vit-flat/checkpoint.pth", to="hf", out=tmp_path / "hf").path

    model = transformers.ViTModel.from_pretrained(out, add_pooling_layer=False).eval()
    assert (model(expected["images"]).last_hidden_state - expected["tokens"]).abs().max() < 1e-5
    with refused("--decoder with", "--decoder"):
        semmae.export(encoder=out, to="mae", out=tmp_path / "mae", decoder="with")
    assert not (tmp_path / "mae").exists()


@pytest.mark.parametrize("form", ["timm", "mae", "hf"])
@torch.no_grad()
def test_another_image_size_resamples_the_positions(form: str, run: Path, tmp_path: Path) -> None:
    out = semmae.export(encoder=run, to=form, out=tmp_path / "out", image_size=48).path

    images, read = torch.randn(2, 3, 48, 48), load_encoder(out)
    assert read.spec.image_size == 48 and read.vit.pos_embed.shape[1] == 1 + 36
    assert torch.allclose(read(images).patches, load_encoder(run)(images).patches, atol=1e-5)
    if form == "mae":
        mask = torch.rand(1, 36).argsort(1).expand(2, -1) < 27
        assert torch.allclose(load_mae(out)(images, mask).pred, load_mae(run)(images, mask).pred, atol=1e-5)


@torch.no_grad()
def test_onnx_is_for_any_batch_and_gives_its_colours(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    images = torch.randn(4, 3, 32, 32)

    out = semmae.export(encoder=run, to="onnx", out=tmp_path / "out").path

    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    cls, _ = session.run(["cls", "patches"], {"images": images.numpy()})
    assert (torch.from_numpy(cls) - load_encoder(run)(images).cls).abs().max() < 1e-4
    found = session.get_modelmeta().custom_metadata_map
    assert (json.loads(found["mean"]), json.loads(found["std"])) == (list(MEAN), list(STD))


def peculiar(tmp_path: Path, **more: Any) -> Path:
    """A file of an encoder that is no plain ViT."""
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=0, **more)
    path = tmp_path / "vit.pth"
    torch.save(vit.state_dict(), path)
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 3}))
    return path


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"reg_tokens": 2, "no_embed_class": True}, "registers"),
        ({"init_values": 0.1}, "layer scale"),
        ({"qk_norm": True}, "queries"),
        ({"pre_norm": True}, "norm"),
        ({"reg_tokens": 1, "init_values": 0.1}, "registers and layer scale"),
    ],
)
@pytest.mark.parametrize("form", ["mae", "hf"])
def test_what_a_form_cannot_hold_is_named(form: str, more: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = peculiar(tmp_path, **more)

    with refused(words, "--to timm or --to onnx"):
        semmae.export(encoder=path, to=form, out=tmp_path / "out")

    assert not (tmp_path / "out").exists()
    semmae.export(encoder=path, to="timm", out=tmp_path / "timm")
    assert checkpoint.digest(load_encoder(tmp_path / "timm")) == checkpoint.digest(load_encoder(path))


def test_biases_that_are_not_there_are_for_transformers_only(tmp_path: Path) -> None:
    path = peculiar(tmp_path, qkv_bias=False)

    out = semmae.export(encoder=path, to="hf", out=tmp_path / "hf").path

    assert json.loads((out / "config.json").read_text())["qkv_bias"] is False
    assert checkpoint.digest(load_encoder(out)) == checkpoint.digest(load_encoder(path))
    with refused("biases", "--to"):
        semmae.export(encoder=path, to="mae", out=tmp_path / "mae")


def test_epsilons_of_other_norms_stay_with_transformers(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**sizes)).save_pretrained(tmp_path / "theirs")  # 1e-12

    out = semmae.export(encoder=tmp_path / "theirs", to="hf", out=tmp_path / "hf").path

    assert json.loads((out / "config.json").read_text())["layer_norm_eps"] == 1e-12
    for form in ("timm", "mae"):
        with refused("1e-12", "1e-06", "--to hf"):
            semmae.export(encoder=tmp_path / "theirs", to=form, out=tmp_path / form)


def test_epsilons_that_differ_have_no_place(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mae = load_mae(run)
    set_norm_eps(mae.encoder, 1e-5)
    monkeypatch.setattr("semmae.verbs.export.load_mae", lambda *_, **__: mae)

    with refused("1e-06", "1e-05"):
        semmae.export(encoder=run, to="hf", out=tmp_path / "hf", decoder="with")


def test_the_card_names_the_run_and_no_paths(run: Path, tmp_path: Path) -> None:
    (run / "knn").mkdir()
    (run / "knn/results.json").write_text(json.dumps(TABLE | {"untrained": {"top1": 3.5}, "classes": {"cat": 77.5}}))
    (tmp_path / "segment").mkdir()
    other = {"protocol": {"method": "linear segmentation", "seed": 1}, "miou": 12.5}
    (tmp_path / "segment/results.json").write_text(json.dumps(other))

    out = semmae.export(encoder=run, to="hf", out=tmp_path / "out", results=tmp_path / "segment/results.json").path

    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["library_name"], header["license"]) == ("transformers", "unknown")
    for each in (
        "width 48, depth 2, 3 heads, patches of 8", "the run `birds`", "`photos`, 321 images",
        "- epochs: 9", "- mask ratio: 0.6", "- parts: p\n", "### k-NN", "41.2", "3.5", "- seed: 0",
        "### linear segmentation", "12.5", "add_pooling_layer=False", "mean 0.4, 0.5, 0.6", "Not stated.",
        f"semmae {semmae.__version__}",
    ):  # fmt: skip
        assert each in card, each
    assert "/home/me" not in card and str(tmp_path) not in card and "77.5" not in card


@pytest.mark.parametrize(
    ("teacher", "named"),
    [(PUBLIC_TEACHER, ["timm:vit_small", "DINOv2", "2304.07193", "Apache-2.0"]), ("/home/me/dino.pth", ["`dino.pth`"])],
)
def test_the_card_names_what_parts_were_learned_from(teacher: str, named: list[str], run: Path, tmp_path: Path) -> None:
    config = run / "config.yaml"
    config.write_text(f"{config.read_text()}teacher: {teacher}\n")
    (run / "parts").mkdir()
    (run / "parts/parts.json").write_text(json.dumps({"extra": {"teacher": teacher}}))
    card = (semmae.export(encoder=run, to="timm", out=tmp_path / "out").path / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if "Parts: learned from" in line]
    assert all(each in line for each in named) and "/home/me" not in card
    assert ("- teacher: " in card) == (teacher != PUBLIC_TEACHER)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"teacher": PUBLIC_TEACHER, "parts": None}, f"the public encoder `{PUBLIC_TEACHER}` (DINOv2"),
        ({"teacher": "auto", "parts": "labels"}, "the encoder `dino.pth`: it learned from that encoder, and not from"),
        ({"teacher": "own", "parts": None}, "an encoder that was trained first, on these images."),
    ],
)
def test_the_card_says_whose_tokens_were_learned(
    options: dict[str, Any], named: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/parts.json").write_text(json.dumps({"extra": {"teacher": "/home/me/dino.pth"}}))
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"target": "tokens", "out": "runs/birds"} | options
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    card = (semmae.export(encoder=run, to="timm", out=tmp_path / "out").path / "README.md").read_text()
    assert f"The encoder learned the tokens of {named}" in card and "/home/me" not in card
    assert "- teacher: " not in card and "Parts: learned from" not in card


EVALUATED = {
    "protocol": {
        "encoder": "/home/me/runs/a", "data": "/home/me/photos", "knn": {"method": "k-NN, cosine", "k": 20},
        "segment": {"lr": "1/4 of the rate", "preset": "and/or"}, "parts": {"masks": "/home/me/masks", "labels": 7},
    },
    "this encoder": {"knn_top1": 41.25, "segment_miou": 12.5},
    "untrained": {"knn_top1": 3.5, "segment_miou": 1.5},
}  # fmt: skip


def test_the_card_gives_the_table_of_evaluate(run: Path, tmp_path: Path) -> None:
    (run / "evaluate").mkdir()
    (run / "evaluate/results.json").write_text(json.dumps(EVALUATED))
    options = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(options | {"init": "elsewhere/mae.pth"}))

    card = (semmae.export(encoder=run, to="timm", out=tmp_path / "out").path / "README.md").read_text()

    plain = " ".join(card.split())
    assert "| | this encoder | untrained |" in plain
    assert "| k-NN, top-1 % | 41.2 | 3.5 |" in plain
    assert "| segmentation, linear head, mIoU % | 12.5 | 1.5 |" in plain
    for each in (
        "- knn.method: k-NN, cosine", "- knn.k: 20", "- segment.lr: 1/4 of the rate", "- segment.preset: and/or",
        "- parts.masks: masks\n", "- parts.labels: 7", "- data: photos\n", "- init: mae.pth",
    ):  # fmt: skip
        assert each in card, each
    assert "/home/me" not in card and "{" not in card.split("## Figures")[1].split("## Images")[0]


def test_figures_of_other_weights_are_left_out(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = checkpoint.digest(load_encoder(run))
    for place, digest, top1 in (("a", own, 61.25), ("b", "0" * 64, 62.25), ("c", None, 63.25)):
        (run / place).mkdir()
        content = {"protocol": {"encoder_digest": digest} if digest else {}, "top1": top1}
        (run / place / "results.json").write_text(json.dumps(content))

    with caplog.at_level("INFO", "semmae"):
        # Resampled positions are another digest, and the same training.
        out = semmae.export(encoder=run, to="timm", out=tmp_path / "out", image_size=48).path

    card = (out / "README.md").read_text()
    assert "61.2" in card and "62.2" not in card and "63.2" in card
    assert f"(digest 000000000000, not {own[:12]})" in caplog.text


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_the_card_of_what_was_trained_on_names_its_own_run(kind: str, tmp_path: Path) -> None:
    """A run's own figures name the encoder that it began with; those beside them must be of what it became."""
    encoder, folder = Encoder(SPEC), tmp_path / "tuned"
    if kind == "classifier":
        checkpoint.save_classifier(Classifier(encoder, 2), folder / kind, ["cat", "dog"])
    else:
        checkpoint.save_segmenter(Segmenter(encoder, SegmenterSpec(("cat", "dog"), "linear", (), 8)), folder / kind)
    (folder / "config.yaml").write_text(
        {"classifier": "verb: finetune\nepochs: 9\n", "segmenter": "verb: segment\nsteps: 9\n"}[kind]
    )
    (folder / "knn").mkdir()
    for place, top1 in ((folder, 61.25), (folder / "knn", 62.25)):
        (place / "results.json").write_text(json.dumps({"protocol": {"encoder_digest": "0" * 64}, "top1": top1}))

    out = semmae.export(encoder=folder / kind, to="timm", out=tmp_path / "out").path

    card = (out / "README.md").read_text()
    assert "the run `tuned`" in card and ": 9\n" in card and "61.2" in card and "62.2" not in card


def gradient(path: Path) -> ImageSet:
    """An image of 60 × 40 pixels, dark to bright across, and down in another colour."""
    across, down = np.meshgrid(np.linspace(0, 255, 60), np.linspace(0, 255, 40))
    pixels = np.stack([across, down, 255 - across], 2).astype(np.uint8)
    path.mkdir()
    Image.fromarray(pixels).save(path / "one.png")
    return open_images(str(path), workers=0)


def test_exported_forms_show_what_semmae_shows(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    images = gradient(tmp_path / "images")
    wanted = normalise(WholeDataset(images, 32, fit="centre")[0]["image"][None], MEAN, STD)[0]
    image = Image.open(tmp_path / "images/one.png")

    theirs = semmae.export(encoder=run, to="hf", out=tmp_path / "hf").path
    timms = semmae.export(encoder=run, to="timm", out=tmp_path / "timm").path

    processor = transformers.AutoImageProcessor.from_pretrained(theirs)
    of_transformers = processor(images=image, return_tensors="pt")["pixel_values"][0]
    model = timm.create_model(f"local-dir:{timms}", pretrained=True)
    of_timm = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(image)
    step = 1 / 255 / min(STD)
    for found in (of_transformers, of_timm):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < 3 * step  # roundings; a stretched image differs by 50 of them


def test_what_is_read_back_must_agree_in_what_weights_do_not_show(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = huggingface.preprocessor_config

    monkeypatch.setattr(huggingface, "preprocessor_config", lambda *of: found(*of) | {"image_mean": [0.5, 0.5, 0.5]})

    with pytest.raises(AssertionError, match=r"mean=\(0.5, 0.5, 0.5\).*, not .*mean=\(0.4, 0.5, 0.6\)"):
        semmae.export(encoder=run, to="hf", out=tmp_path / "hf")
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="True, not False"):
        patch.setattr("semmae.formats.beside.norm_pix_loss", lambda *_, **__: True)
        semmae.export(encoder=run, to="mae", out=tmp_path / "mae")
    assert not (tmp_path / "hf").exists() and not (tmp_path / "mae").exists()


@pytest.mark.parametrize("form", ["timm", "mae", "hf"])
def test_what_does_not_read_again_is_laid_to_what_was_given(
    form: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that it was written in is gone by then."""
    real = weights.load_strictly

    def refuse_again(module: nn.Module, state: weights.State) -> None:
        if list(tmp_path.glob(f".out.{os.getpid()}.*")):  # it is being written
            raise ValueError("tensors with values that are infinite")
        real(module, state)

    monkeypatch.setattr(weights, "load_strictly", refuse_again)
    with refused(f"{run}: ", "infinite") as raised:
        semmae.export(encoder=run, to=form, out=tmp_path / "out")
    assert str(raised.value).startswith(f"{run}: ") and PART not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_folder_one_works_in_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work/below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("semmae.verbs.export.load_encoder", lambda *_, **__: pytest.fail("work was done"))

    for place in (".", "../work"):
        with refused(f"{place}: ", "new folder"):
            semmae.export(encoder=run, to="timm", out=Path(place))
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["below"]


def test_the_card_of_a_file_says_what_is_not_known(run: Path, tmp_path: Path) -> None:
    file = semmae.export(encoder=run, to="mae", out=tmp_path / "mae").path / "mae.pth"

    card = (semmae.export(encoder=file, to="timm", out=tmp_path / "timm").path / "README.md").read_text()

    assert "from `mae.pth`" in card and "Nothing is known" in card


def test_an_export_is_replaced_only_when_asked_and_nothing_else_is(run: Path, tmp_path: Path) -> None:
    out = semmae.export(encoder=run, to="mae", out=tmp_path / "out").path
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.jpg").write_text("precious")

    with refused(out, "--overwrite"):
        semmae.export(encoder=run, to="timm", out=out)
    assert semmae.export(encoder=run, to="mae", out=out).path == out  # already finished
    with refused(tmp_path / "photos"):
        semmae.export(encoder=run, to="timm", out=tmp_path / "photos", overwrite=True)
    semmae.export(encoder=run, to="timm", out=out, overwrite=True)

    assert (tmp_path / "photos/one.jpg").read_text() == "precious"
    assert not (out / "mae.pth").exists() and checkpoint.kind(out) == checkpoint.ENCODER
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos", "runs"]


@pytest.mark.parametrize("form", ["timm", "mae", "hf", "onnx"])
def test_an_export_that_was_damaged_is_not_called_finished(form: str, run: Path, tmp_path: Path) -> None:
    if WRITINGS[form].missing():
        pytest.skip("needs libraries that are not installed")
    out = semmae.export(encoder=run, to=form, out=tmp_path / "out").path
    (out / "README.md").write_text("The licence is ours.")  # the card is for its owner to complete
    assert semmae.export(encoder=run, to=form, out=out).path == out
    assert (out / "README.md").read_text() == "The licence is ours."
    about = json.loads((out / "export.json").read_text())
    assert about["files"].keys() == {path.name for path in out.iterdir()} - {"README.md", "export.json"}

    def is_refused_for(name: str) -> None:
        with refused(f"--out {out}", name, "--overwrite"):
            semmae.export(encoder=run, to=form, out=out)

    for name in about["files"]:
        whole = (out / name).read_bytes()
        (out / name).unlink()
        is_refused_for(name)
        (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        is_refused_for(name)
        (out / name).write_bytes(whole)
    del about["files"]
    (out / "export.json").write_text(json.dumps(about))
    is_refused_for("export.json")
    semmae.export(encoder=run, to=form, out=out, overwrite=True)
    assert semmae.export(encoder=run, to=form, out=out).path == out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--to", "timm", "--decoder", "with"], ["--to timm", "decoder"]),
        (["--to", "hff"], ["'hff'"]),
        *(
            (["--to", "onnx", "--out", f"out/m{ending}"], [f"--out out/m{ending}", "--out out/m"])
            for ending in (".onnx", ".pth", ".pt", ".bin", ".ckpt", ".safetensors")
        ),
        (["--to", "timm", "--private"], ["--push-to-hub"]),
        (["--to", "timm", "--push-to-hub", "a b/c"], ["--push-to-hub", "a b/c"]),
        (["--to", "timm", "--image-size", "33"], ["--image-size 33", "patch size 8", "32 or 40"]),
        (["--to", "timm", "--results", "nowhere.json"], ["--results nowhere.json"]),
        (["--to", "timm", "--num-heads", "4"], ["3 heads, not 4"]),
        (["--encoder", "nowhere", "--to", "timm"], ["--encoder nowhere"]),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    options: list[str], named: list[str], run: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    given = tiny.instead(options, ["--encoder", str(run), "--out", str(tmp_path / "out")])
    refuse(["export", *given], tmp_path, *named)


def test_a_loaded_encoder_is_exported_and_its_run_is_not_known(run: Path, tmp_path: Path) -> None:
    encoder = load_encoder(run)
    with torch.no_grad():
        encoder.vit.patch_embed.proj.weight.mul_(2)

    out = semmae.export(encoder=encoder, to="timm", out=tmp_path / "out").path

    assert checkpoint.digest(load_encoder(out)) == checkpoint.digest(encoder)
    card = (out / "README.md").read_text()
    assert "from `Encoder`" in card and "Nothing is known of it" in card
    with refused("Encoder", "decoder"):
        semmae.export(encoder=encoder, to="mae", decoder="with", out=tmp_path / "other")


def test_onnx_without_its_libraries_gives_how_to_get_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "LIBRARIES", ("onnx", "no_such_library"))

    with refused("no_such_library", 'pip install "semmae[onnx]"'):
        semmae.export(encoder=run, to="onnx", out=tmp_path / "out")


class Hub:
    """Stands for huggingface_hub.HfApi: remembers what it was asked to do, and what lay there then."""

    calls: list[Any] = []
    fault: Exception | None = None
    private = True  # the repository, new or not

    def create_repo(self, name: str, **options: Any) -> Any:
        Hub.calls.append((name, options))
        if Hub.fault:
            raise Hub.fault
        full = name if "/" in name else f"token-owner/{name}"
        return type("Address", (str,), {"repo_id": full})(f"https://hub.example/{full}")

    def repo_info(self, repo_id: str) -> Any:
        return type("Info", (), {"private": Hub.private})()

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]
    ) -> None:
        Hub.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir()), commit_message))
        # What was there of an export in any form goes, and nothing that somebody else put there.
        stale = {"mae.pth", "model.onnx", "model.onnx.data", "model.safetensors", "preprocessor_config.json"}
        assert stale | {"config.json"} == set(delete_patterns)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    Hub.calls, Hub.fault, Hub.private = [], None, True
    return Hub


def test_the_whole_folder_goes_to_the_hub(
    hub: type[Hub], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = semmae.export(encoder=run, to="hf", out=tmp_path / "out", push_to_hub="me/birds", private=True).path

    names = ["README.md", "config.json", "export.json", "model.safetensors", "preprocessor_config.json"]
    assert hub.calls == [
        ("me/birds", {"private": True, "exist_ok": True}),
        ("me/birds", names, f"semmae {semmae.__version__}: export to hf"),
    ]
    assert "https://hub.example/me/birds" in capsys.readouterr().out
    assert 'from_pretrained("me/birds"' in (out / "README.md").read_text()


def test_a_public_repository_gets_nothing_that_was_to_be_private(hub: type[Hub], run: Path, tmp_path: Path) -> None:
    hub.private = False

    with refused("--private", "me/birds", "public"):
        semmae.export(encoder=run, to="timm", out=tmp_path / "out", push_to_hub="me/birds", private=True)

    assert len(hub.calls) == 1
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_a_name_without_owner_is_named_in_full(form: str, hub: type[Hub], run: Path, tmp_path: Path) -> None:
    out = semmae.export(encoder=run, to=form, out=tmp_path / "out", push_to_hub="birds").path

    card = (out / "README.md").read_text()
    assert "# token-owner/birds\n" in card
    assert ('"hf-hub:token-owner/birds"' if form == "timm" else 'from_pretrained("token-owner/birds"') in card
    assert hub.calls[1][0] == "token-owner/birds"


def test_a_failed_upload_leaves_the_folder_and_says_how_to_go_on(hub: type[Hub], run: Path, tmp_path: Path) -> None:
    hub.fault = OSError("401 Client Error.\nInvalid credentials")

    with refused("401 Client Error. Invalid credentials", "hf upload"):
        semmae.export(encoder=run, to="timm", out=tmp_path / "out", push_to_hub="me/birds")

    assert checkpoint.digest(load_encoder(tmp_path / "out")) == checkpoint.digest(load_encoder(run))


def test_nothing_is_uploaded_of_what_cannot_be_written(hub: type[Hub], tmp_path: Path) -> None:
    path = peculiar(tmp_path, reg_tokens=2)

    with refused("registers"):
        semmae.export(encoder=path, to="hf", out=tmp_path / "out", push_to_hub="me/birds")

    assert hub.calls == []


def test_timm_s_own_models_keep_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model by name, the name says what cannot be seen in its weights: CLIP's norms, their epsilon."""
    model = timm.create_model("vit_base_patch32_clip_224", num_classes=0, embed_dim=48, depth=1, num_heads=3)
    encoder = wrap_vit(model, MEAN, STD).eval()
    monkeypatch.setattr("semmae.verbs.export.load_encoder", lambda *_, **__: encoder)
    monkeypatch.setattr("semmae.verbs.export.find_decoder", lambda *_, **__: None)

    out = semmae.export(encoder="timm:vit_base_patch32_clip_224", to="timm", out=tmp_path / "out").path

    read = checkpoint.read_encoder(out)
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(read(images).cls, encoder(images).cls)
