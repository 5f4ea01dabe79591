"""The command line: what it refuses, in one line and before it touches anything; help; Ctrl-C; the Python calls."""

import dataclasses
import inspect
import os
import re
import signal
import time
from pathlib import Path

import pytest
import tiny
from forked import as_command
from refusals import refused

import semmae
import semmae.reporting.run_page
from semmae.cli import run
from semmae.options import VERBS, kind_of
from semmae.options.fields import command_options, flag, options_of
from semmae.options.pretrain import PretrainOptions
from semmae.run.config import check_resumed
from semmae.run.signals import Interrupted

SIZES = [*tiny.SMALL, "--epochs", "1"]


@pytest.fixture
def desk(creatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command runs in, with what users get wrong."""
    (tmp_path / "images").symlink_to(creatures / "images")
    for folder in ("empty", "texts", "broken", "torn"):
        (tmp_path / folder).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    pictures = sorted((creatures / "images").rglob("*.png"))[:20]
    for number, picture in enumerate(pictures):
        (tmp_path / "broken" / f"{number:02}.png").write_bytes(picture.read_bytes() if number > 1 else b"nonsense")
    (tmp_path / "photo.pth").write_bytes(pictures[0].read_bytes())
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "unknown.yaml").write_text("epohcs: 3\n")
    (tmp_path / "words.yaml").write_text("epochs: three\n")
    (tmp_path / "list.yaml").write_text("- 3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Arguments after `semmae pretrain --data images SIZES --out out`, and what the one line must name.
REFUSED = [
    ("--data nowhere/photos", ["--data nowhere/photos"]),
    ("--data imagse", ["imagse", '"images"']),
    ("--data empty", ["empty", "nothing"]),
    ("--data texts", ["texts", "1 files (1 .txt)"]),
    ("--data broken", ["2 of 20 images (10.0 %)", "limit 5 %", "00.png"]),
    ("--image-size 30", ["30", "patch size 8", "use 24 or 32"]),
    ("--patch-size 0", ["--patch-size 0", "from 2"]),
    ("--mask-ratio 0", ["--mask-ratio 0.0", "between 0 and 1"]),
    ("--mask-ratio 1", ["--mask-ratio 1.0", "between 0 and 1"]),
    ("--mask-ratio 0.99", ["0.99", "16", "at most 0.9375"]),
    ("--mask-ratio 1e-12", ["1e-12", "16"]),
    ("--model vit_tini", ["'vit_tini'", '"vit_tiny"']),
    ("--masking semantics", ["'semantics'", '"semantic"']),
    ("--masking own", ["'own'", "semantic, intra, inter, random, block, colour, attention"]),
    ("--masking no_such_module:f", ["no_such_module:f", "no module"]),
    ("--masking semmae.masking:random_maks", ['"random_mask"?']),
    ("--masking semmae.masking:random_mask --masks empty", ["--masks"]),
    ("--masking semmae.train.masks:MaskContext.uniform", ["MaskContext.uniform", "float32", "bool"]),
    ("--masking block --parts empty", ["--masking block", "--parts", "semantic"]),
    ("--blend 0.5 --masking intra", ["--blend 0.5", "--masking semantic"]),
    ("--blend 0.5 --gamma 1", ["--blend", "--gamma 1.0"]),
    ("--gamma 3 --masking intra", ["--gamma 3.0", "--masking semantic"]),
    ("--blend-end 0.5 --masking inter", ["--blend-end 0.5", "--masking semantic"]),
    ("--blend-end 0.5 --blend 0.2", ["--blend-end 0.5", "without --blend"]),
    ("--blend-end 1.5", ["--blend-end 1.5", "from 0 to 1"]),
    ("--keep-background --masking intra", ["--keep-background", "hides whole parts"]),
    ("--keep-background --blend 0", ["--keep-background", "hides whole parts"]),
    ("--keep-background --masking colour", ["--keep-background", "hides whole parts"]),
    ("--hints 1 --masking random", ["--hints 1", "masks by parts"]),
    ("--hints 5", ["--hints 5", "mask ratio 0.75", "4 of all 16"]),
    ("--hints -1", ["--hints -1", "from 0"]),
    ("--masking colour --parts empty", ["--masking colour", "--parts", "semantic"]),
    ("--attention-hint 0.5", ["--attention-hint 0.5", "--masking attention"]),
    ("--masking attention --attention-hint 1 --mask-ratio 0.93", ["hint 1.0", "1 of all 16", "at most 0.5,"]),
    ("--token-subset 17", ["--token-subset 17: ", "32 pixels", "16 patches of 8"]),
    ("--token-subset 3", ["mask ratio 0.75", "patch of 3"]),
    ("--token-subset 8 --masking block", ["--masking block"]),
    ("--token-subset 8 --masking colour", ["--masking colour", "blobs"]),
    ("--accumulate 3", ["--batch-size 8", "--devices 1 · --accumulate 3", "multiple of 3"]),
    ("--accumulate 8 --limit 5", ["--accumulate 8: ", "at most 5"]),
    ("--compile yes", ["--compile", "'yes'"]),
    ("--epoch 3", ["--epoch", "--epochs"]),
    ("--bogus", ["--bogus", "semmae pretrain --help"]),
    ("stray", ["stray", "semmae pretrain --help"]),
    ("--epochs 0", ["--epochs 0", "from 1"]),
    ("--num-parts 300", ["--num-parts 300", "from 1 to 254"]),
    ("--batch-size 3 --devices 2", ["--batch-size 3", "--devices 2", "multiple"]),
    ("--decoder-width 190", ["190", "4", "3", "change one"]),
    ("--limit 0", ["--limit 0", "at least 1"]),
    ("--teacher own --teacher-image-size 8", ["patch of 1"]),
    ("--teacher own --teacher-image-size 30", ["--teacher-image-size 30", "patch size 8", "use 24 or 32"]),
    ("--teacher-epochs 2", ["--teacher-epochs 2", "--teacher own"]),
    ("--teacher own --masking random", ["--teacher own"]),
    ("--teacher photo.pth", ["photo.pth", "not readable", ".safetensors"]),
    ("--teacher empty.pth", ["empty.pth", "not readable", ".safetensors"]),
    ("--teacher nowhere", ["--teacher nowhere", "timm:NAME"]),
    ("--teacher timm:vit_tiny_patch16", ["vit_tiny_patch16", '"vit_tiny_patch16_224"']),
    ("--parts nowhere", ["--parts nowhere", "semmae parts"]),
    ("--masks nowhere", ["nowhere", "PNG"]),
    ("--masks empty", ["empty", "32 images"]),
    ("--parts a --teacher b", ["--teacher b", "learns parts"]),
    ("--parts empty --masks texts", ["--masks", "semmae parts"]),
    ("--masking random --parts empty", ["--masking random", "--parts", "semantic"]),
    ("--resume --overwrite", ["--resume and --overwrite"]),
    ("--resume", ["out: ", "without --resume"]),
    ("--out texts --resume", ["texts: ", "without --resume"]),
    ("--out texts", ["--out texts", "not empty", "--resume", "--overwrite"]),
    ("--out texts --overwrite", ["--out texts", "another folder"]),
    ("--out empty.pth", ["empty.pth", "a file", "folder"]),
    ("--config nowhere.yaml", ["nowhere.yaml"]),
    ("--config unknown.yaml", ["unknown.yaml", "'epohcs'", '"epochs"']),
    ("--config list.yaml", ["list.yaml", "name: value"]),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_what_pretrain_refuses(arguments: str, named: list[str], desk: Path, refuse: tiny.Refuse) -> None:
    given = tiny.instead(arguments.split(), ["--data", "images", *SIZES, "--out", "out"])
    refuse(["pretrain", *given], desk, *named)


OTHERS = [
    ("pretrain --out out", ["--data", "semmae pretrain --help"]),
    (
        "parts --data images --out out",
        ["--teacher auto", "HF_HUB_OFFLINE", "semmae teacher", "HF_HOME", "--teacher FILE"],
    ),
    ("parts --data images --out out --teacher own", ["--teacher own", "semmae teacher"]),
    ("pretrain --data images --out out --config words.yaml", ["--epochs 'three'", "whole number"]),
    ("teacher --data images --out out --image-size 30", ["30", "patch size 16", "use 16 or 32"]),
    ("teacher --data images --out out --preset ibot-s16", ["'ibot-s16'", '"ibot-vit-s16"']),
    ("teacher --data images --out out --local-crops 2 --local-size 30", ["--local-size 30", "use 16 or 32"]),
    ("teacher --data images --out out --mask-spread 0.4", ["--mask-ratio 0.3", "--mask-spread 0.4", "change one"]),
    ("teacher --data images --out out --image-size 16", ["patch of 1"]),
    ("teacher --data images --out out --centering sinkhron", ["'sinkhron'", '"sinkhorn"']),
    ("teacher --data images --out out --init nowhere", ["--init nowhere", "timm:NAME"]),
    ("teacher --data images --out out --init photo.pth", ["photo.pth", "not readable"]),
    ("parts --data images --out out --teacher photo.pth", ["photo.pth", "not readable"]),
    ("knn --encoder photo.pth --data images --out out", ["photo.pth", "not readable"]),
    ("knn --encoder photo.pth --data images --out out --pooling max", ["'max'", "cls, mean"]),
    ("embed --encoder photo.pth --data images --out out.csv", ["out.csv", "'.csv'", ".parquet, .npz or .safetensors"]),
    (
        "embed --encoder photo.pth --data images --out a.npz --resume",
        ["a.npz.partial", "without --resume"],
    ),
    ("embed --encoder photo.pth --data images --out empty", ["--out empty", "folder", ".parquet"]),
    ("embed --encoder photo.pth --data images --out a.npz --tokens cls,prts", ["'prts'", '"parts"']),
    ("embed --encoder photo.pth --data images --out a.npz --tokens parts", ["--tokens parts", "--parts RUN"]),
    ("embed --encoder photo.pth --data images --out a.npz --parts empty", ["--parts", "--tokens mean,parts"]),
    ("embed --encoder photo.pth --data images --out a.npz --dtype half", ["'half'", "float32, float16"]),
    ("report", ["folder", "semmae report --help"]),
    ("report nowhere", ["nowhere"]),
    ("report texts", ["texts", "--out"]),
    ("demo", ["--out", "semmae demo --help"]),
    ("demo --out out --masks empty", ["--masks", "--data"]),
    ("demo --out out --data empty", ["empty"]),
]


@pytest.mark.parametrize(("command", "named"), OTHERS, ids=[command for command, _ in OTHERS])
def test_what_the_verbs_refuse(command: str, named: list[str], desk: Path, refuse: tiny.Refuse) -> None:
    refuse(command.split(), desk, *named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--epochs 4", ["--epochs 4", "began with 3", "another --out"]),
        ("--epochs 400", ["--epochs 400", "began with 3"]),  # the default, given all the same
        ("--data elsewhere", ["--data elsewhere"]),
    ],
)
def test_a_resumed_run_keeps_its_options(
    arguments: str, named: list[str], whole_run: Path, refuse: tiny.Refuse
) -> None:
    command = ["pretrain", "--out", str(whole_run), "--resume", *arguments.split()]
    refuse(command, whole_run, *named)
    option, value = arguments.split()
    with refused("began with"):
        semmae.pretrain(out=whole_run, resume=True, **{option[2:]: int(value) if value.isdigit() else value})


def test_sizes_are_shown_as_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("verb: pretrain\ndata: photos\nimage_size: [48, 32]\n")
    with refused("--image-size 32 48:", "began with 48 32;"):
        check_resumed(PretrainOptions(data="photos", out=tmp_path, image_size=(32, 48), resume=True))


def test_options_beside_a_configuration_win(whole_run: Path) -> None:
    kind = kind_of("pretrain")
    config = str(whole_run / "config.yaml")
    options = tiny.options_from(kind, ["--config", config, "--out", "other", "--epochs", "7"])
    assert (options.out, options.epochs, options.patch_size) == (Path("other"), 7, tiny.SIZE["patch_size"])


def test_yaml_takes_numbers_as_people_write_them(tmp_path: Path) -> None:
    kind = kind_of("pretrain")
    (tmp_path / "a.yaml").write_text("blr: 1e-3\nparts: labels\ndata: photos\n")
    options = tiny.options_from(kind, ["--config", str(tmp_path / "a.yaml"), "--out", "out"])
    assert (options.blr, options.parts) == (1e-3, Path("labels"))


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert run(arguments) == 0
        output = capsys.readouterr().out
        assert all(f"\n  {verb} " in output for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_gives_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    output = capsys.readouterr().out
    kind = kind_of(verb)
    assert (kind.__doc__ or "").split("(")[0].split(",")[0] in " ".join(output.split())
    headings = re.findall(r"^(\S.*):$", output, re.MULTILINE)
    assert [heading for heading in headings if re.search(r"[.:;]( |$)", heading)] == []
    options = list(command_options(kind))
    assert [name for name in options if flag(name) not in output and not (verb == "report" and "PATH" in output)] == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_python_call_has_the_same_options(verb: str) -> None:
    kind = kind_of(verb)
    call = getattr(semmae, verb)
    assert callable(call)  # also `semmae.report`, beside the module semmae.reporting.run_page
    taken = inspect.signature(call).parameters
    required = [field for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    assert sorted(taken) == sorted(options_of(kind))
    assert [name for name in taken if taken[name].default is inspect.Parameter.empty] == list(taken)[: len(required)]
    assert inspect.signature(call).return_annotation is semmae.calls.RESULTS[verb]
    found = str(call.__doc__)
    assert found.startswith(str(kind.__doc__))
    assert [name for name in inspect.signature(call).parameters if f"\n    {name}: " not in found] == []
    assert call.__name__ == verb


def test_the_python_call_refuses_as_the_command_does(tmp_path: Path) -> None:
    with refused("'epohcs'", '"epochs"'):
        semmae.pretrain(data="photos", out=tmp_path / "out", epohcs=3)
    with refused("--epochs 'three'", "whole number"):
        semmae.pretrain(data="photos", out=tmp_path / "out", epochs="three")
    with refused("--norm-pix-loss 1", "true or false"):
        semmae.pretrain(data="photos", out=tmp_path / "out", norm_pix_loss=1)
    with refused("--epochs True", "whole number"):
        semmae.pretrain(data="photos", out=tmp_path / "out", epochs=True)
    with refused("semmae.knn", "'photos'", "data="):
        semmae.knn("photos")
    with refused("semmae.report", "run"):
        semmae.report("a", run="b")
    assert not (tmp_path / "out").exists()
    with pytest.raises(AttributeError, match="pretrian"):
        _ = semmae.pretrian


def test_ctrl_c_leaves_a_run_that_goes_on(creatures: Path, tmp_path: Path) -> None:
    """A real process and a real signal, in the middle of training."""
    out = tmp_path / "run"
    sizes = tiny.instead(["--epochs", "12", "--limit", "16", "--masking", "random"], SIZES)
    child = as_command(["pretrain", "--data", str(creatures / "images"), "--out", str(out), *sizes])
    while "epoch 1/12" not in child.output:
        assert child.process.is_alive(), child.output
        time.sleep(0.01)
    os.kill(child.process.pid or 0, signal.SIGINT)
    assert child.ended(60) == 130, child.output
    found = child.output
    assert found.splitlines()[-1].endswith(f"semmae pretrain --out {out} --resume")
    assert "Traceback" not in found
    assert not (out / "encoder").exists()
    assert run(["pretrain", "--out", str(out), "--resume"]) == 0
    steps = [line["step"] for line in tiny.metrics(out)]
    assert steps == list(range(2, 25, 2))  # each epoch once
    assert (out / "encoder" / "model.safetensors").is_file()


def test_ctrl_c_while_libraries_load_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(verb: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semmae.cli.kind_of", pressed)
    assert run(["knn"]) == 130
    assert capsys.readouterr().err.startswith("\nsemmae: ")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted(signal.SIGTERM)])
@pytest.mark.parametrize("begun", [True, False])
def test_a_stopped_python_call_is_no_exception_to_skip(
    begun: bool, stop: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(options: object, given: object) -> None:
        if begun:
            (tmp_path / "config.yaml").touch()
        raise stop

    monkeypatch.setattr("semmae.calls.run_verb", pressed)
    remedy = (f"resume with out={str(tmp_path)!r}, resume=True",) if begun else ("nothing was written",)
    with refused("semmae.knn: stopped", *remedy, error=KeyboardInterrupt) as raised:
        semmae.knn(encoder="e", data="d", out=tmp_path)
    assert not isinstance(raised.value, Exception)
    assert raised.value.signum == getattr(stop, "signum", signal.SIGINT)  # type: ignore[attr-defined]


def test_the_hint_to_go_on_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "my birds"

    def pressed(options: object, given: object) -> None:
        (out / "config.yaml").parent.mkdir()
        (out / "config.yaml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("semmae.verbs.run_verb", pressed)
    assert run(["knn", "--encoder", "e", "--data", "d", "--out", str(out)]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"semmae knn --out '{out}' --resume")
