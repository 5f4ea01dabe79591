"""How verbs end: files first, then the lines; a finished run is not computed again; commands can be pasted."""

import ast
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import semmae
from semmae import shell
from semmae.cli import run
from semmae.formats.folders import save_encoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options import VERBS, kind_of
from semmae.options.knn import KnnOptions
from semmae.progress import logged
from semmae.reporting import ending, next_steps
from semmae.run.finished import is_done, is_finished

FEW = ["--workers", "0", "--batch-size", "8"]


def measured(whole_run: Path, creatures: Path, out: Path, **more: Any) -> Path:
    options: dict[str, Any] = {"encoder": whole_run, "data": creatures / "images", "workers": 0, **more}
    return semmae.knn(out=out, **options).path


def last_command(output: str) -> list[str]:
    (line,) = [line for line in output.splitlines() if line.startswith("next  semmae")]
    return shlex.split(line.removeprefix("next  semmae"))


def test_the_end_of_knn_is_shown_when_all_is_written_and_kept_in_the_log(
    whole_run: Path,
    creatures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[set[str]] = []
    monkeypatch.setattr(ending, "say", lambda text: seen.append({path.name for path in out.iterdir()}) or print(text))
    out = tmp_path / "my run-knn"
    measured(whole_run, creatures, out, untrained=True)
    output = capsys.readouterr().out
    assert seen == [{"config.yaml", "results.json", "results.md", "skipped.csv", "train.log", "report.html"}]
    figures = json.loads((out / "results.json").read_text())
    assert f"{figures['top1']:.1f} ({figures['top1_low']:.1f} to {figures['top1_high']:.1f})" in output
    assert "untrained self" in output
    assert str(out / "report.html") in output and str(out / "results.json") in output
    assert last_command(output)[:1] + last_command(output)[-1:] == ["probe", str(tmp_path / "my run-probe")]


def test_the_log_holds_what_was_shown(
    whole_run: Path,
    creatures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "semmae")  # as the command does
    out = measured(whole_run, creatures, tmp_path / "out")
    output = capsys.readouterr().out
    assert output.strip() in (out / "train.log").read_text()


def test_a_finished_run_asked_for_again_computes_nothing(
    whole_run: Path,
    creatures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    asked = ["knn", "--encoder", str(whole_run), "--data", str(creatures / "images"), "--out", str(out), *FEW]
    assert run(asked) == 0
    first, before = capsys.readouterr().out, tiny.listing(out)
    monkeypatch.setattr("semmae.verbs.knn.open_encoder", lambda *_, **named: pytest.fail("opened an encoder"))
    for again in (
        asked,
        [*asked, "--resume"],
        ["knn", "--out", str(out), "--resume"],
        [*asked[: -len(FEW)], "--workers", "1", *FEW[2:]],
    ):
        assert run(again) == 0
        output = capsys.readouterr().out
        assert "already finished" in output and output.endswith(first.strip() + "\n")
    assert tiny.listing(out) == before
    for other in (["--k", "3"], ["--untrained"], ["--seed", "1"]):
        assert run([*asked, *other]) == 2  # not this run: the folder is in the way
        assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["", "teacher", "parts"])
def test_finished_trainings_are_known(stage: str, whole_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny.listing(whole_run)
    verb = stage or "pretrain"
    assert run([verb, "--out", str(whole_run / stage), "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out and tiny.listing(whole_run) == before


def test_what_is_not_finished_is_not_taken_for_it(whole_run: Path, tmp_path: Path) -> None:
    assert is_finished(whole_run)
    (tmp_path / "config.yaml").write_text((whole_run / "config.yaml").read_text())
    assert not is_finished(tmp_path)  # as a copy without the hidden marker
    for name in VERBS["pretrain"].product:
        assert not is_finished(tmp_path)  # something is gone: --resume writes it again
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for finished in (False, True):
        (tmp_path / "summary.json").write_text(json.dumps({"finished": finished}))
        assert is_finished(tmp_path) == finished
    (tmp_path / "parts.json").write_text(json.dumps({"complete": False}))
    assert not is_finished(tmp_path)
    (tmp_path / "parts.json").unlink()
    (tmp_path / ".unfinished").touch()
    assert not is_finished(tmp_path)


@pytest.mark.parametrize("verb", [verb for verb, row in VERBS.items() if row.product])
def test_a_run_without_what_it_made_is_not_called_finished(verb: str, tmp_path: Path) -> None:
    """Figures and pages may be there: each file that others read is looked for, of a verb that only measured none."""
    row = VERBS[verb]
    (tmp_path / "config.yaml").write_text(f"verb: {verb}\n")
    (tmp_path / "results.json").write_text("{}")
    for name in row.product:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
        assert any(Path(name).match(pattern) for pattern in row.leaves)
    for name in row.product:
        assert is_finished(tmp_path)
        (tmp_path / name).unlink()
        assert not is_finished(tmp_path)
        (tmp_path / name).write_text("{}")
    if row.network:
        shutil.rmtree(tmp_path / row.network)
        (tmp_path / "config.yaml").write_text(f"verb: {verb}\neval_only: true\n")
        assert is_finished(tmp_path)


def test_weights_that_are_gone_are_written_again_when_asked(
    encoder: Path, creatures: Path, tmp_path: Path, refuse: tiny.Refuse
) -> None:
    out = tmp_path / "probe"
    asked = ["probe", "--encoder", str(encoder), "--data", str(creatures / "images"), "--out", str(out)]
    asked += [*FEW, "--epochs", "1"]
    assert run(asked) == 0
    weights = out / "head" / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()

    refuse(asked, weights, f"--out {out}", "--resume", "--overwrite")
    assert run([*asked, "--resume"]) == 0
    assert weights.read_bytes() == before


def test_every_command_that_is_named_can_be_pasted(
    whole_run: Path, creatures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Teacher, parts, pre-training, evaluation, fine-tuning, export: each is the line that the last one gave."""
    place = tmp_path / "my runs"
    place.mkdir()
    asked = [
        *("teacher", "--data", str(creatures / "images"), "--out", str(place / "a"), "--limit", "24", "--seed", "1"),
        *("--model", "vit_mini", "--image-size", "32", "--patch-size", "8", "--prototypes", "64", "--head-width", "64"),
    ]
    less: dict[str, list[str]] = {
        "parts": [*FEW, "--steps", "2"],
        "evaluate": ["--workers", "0"],
        "finetune": [*FEW, "--epochs", "1"],
        "export": [],
    }
    verbs = []
    while True:
        verbs.append(asked[0])
        assert run([*asked, *less.get(asked[0], [*FEW, "--epochs", "1"])]) == 0, asked
        output = capsys.readouterr().out
        if asked[0] == "export":
            break
        asked = last_command(output)
    assert verbs == ["teacher", "parts", "pretrain", "evaluate", "finetune", "export"]
    line = output.splitlines()[-1].removeprefix("next  ")
    load = shlex.split(line)
    assert load[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *load[1:]], check=True, stdout=subprocess.DEVNULL, timeout=120)
    protocol = json.loads((place / "a-evaluate" / "results.json").read_text())["protocol"]
    assert protocol["knn"]["pooling"] == protocol["probe"]["pooling"] == "mean"


def test_a_reader_that_has_gone_costs_nothing(tmp_path: Path) -> None:
    """`say` into a pipe that nobody reads, and into a closed stdout: no error, not even as Python ends."""
    code = "from semmae.progress import say\nfor _ in range(3): say('a' * 100000)"
    source = Path(semmae.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    reader, writer = os.pipe()
    os.close(reader)
    for stdout in (writer, "closed"):
        command = [sys.executable, "-c", code]
        if stdout == "closed":
            command = ["sh", "-c", f"exec {shlex.join(command)} >&-"]
        done = subprocess.run(
            command, stdout=writer if stdout == writer else None, stderr=subprocess.PIPE, env=environment, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b"")
    os.close(writer)


def test_names_beside_a_run_are_free(tmp_path: Path) -> None:
    assert next_steps.fresh(tmp_path / "a", "knn") == tmp_path / "a-knn"
    assert next_steps.fresh(tmp_path / "a-knn", "probe") == tmp_path / "a-probe"
    (tmp_path / "a-knn").mkdir()
    (tmp_path / "a-knn-2").touch()
    assert next_steps.fresh(tmp_path / "a", "knn") == tmp_path / "a-knn-3"
    (tmp_path / "a-features.parquet").touch()
    assert next_steps.fresh(tmp_path / "a", "features.parquet") == tmp_path / "a-features-2.parquet"


ODD = [
    "a b",
    "-dash",
    "--two",
    "it's",
    'a "quote"',
    "both ' and \"",
    "back\\slash",
    "猫",
    "\U0001f600",
    "$HOME `id` !",
    "~/x",
]
UNSHOWN = ["line\nbreak", "tab\t", "\x7f", "\x9b", "\u202e", "\udcff", "ä\udcff0"]


def test_whatever_a_name_holds_the_commands_mean_it() -> None:
    """A shell runs them; what programs are given is what was named. `$'…'` is of bash alone."""
    lines = [shell.command("report", run=name, overwrite=True) for name in ODD]
    lines += [shell.again(Path(name)) for name in ODD if "/" not in name]
    lines = [line.replace("semmae", "printf '%s\\0'", 1) for line in lines]
    for program in ("sh", "bash"):
        output = subprocess.run(
            [program, "-c", "\n".join(lines)], stdout=subprocess.PIPE, check=True, timeout=60
        ).stdout
        words = os.fsdecode(output).split("\0")
        for name in ODD:
            place = words.index("report")
            words = words[place + 1 :]
            given = tiny.options_from(kind_of("report"), words[: words.index("--overwrite")])
            assert os.path.expanduser(name) == str(given.run)
            words = words[words.index("--overwrite") + 1 :]
        for name in (name for name in ODD if "/" not in name):
            assert words[1] in (name, f"--run={name}") and words[0] == "report"
            words = words[2:]


def test_whatever_a_name_holds_python_reads_it() -> None:
    names = ODD + UNSHOWN
    for name in names:
        assert ast.literal_eval(shell.text(name)) == name and shell.text(name).isprintable()
    found = shell.python(f"print([{', '.join(map(shell.text, names))}] == {names!a})")
    done = subprocess.run(["sh", "-c", found.replace("python", shlex.quote(sys.executable), 1)], capture_output=True)
    assert done.stdout == b"True\n"
    line = " ".join(shell.quoted(name) for name in UNSHOWN)
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True)
    assert line.isprintable() and os.fsdecode(done.stdout).split("\0")[:-1] == UNSHOWN


def test_commands_lead_to_the_data_from_wherever_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, other = tmp_path / "start", tmp_path / "other"
    run_, images = start / "runs" / "a", start / "photos"
    for folder in (run_, images, other):
        folder.mkdir(parents=True)
    (images / "1.jpg").touch()

    def data(run: Path, out: str, given: str = "photos") -> str:
        (run_ / "config.yaml").write_text(f"verb: knn\nout: {out}\ndata: '{given}'\nencoder: '{given}'\nseed: 0\n")
        (step,) = next_steps.next_steps(run)
        words = shlex.split(step.command)
        found = words[words.index("--data") + 1]
        assert words[words.index("--encoder") + 1] == {"IMAGES": "ENCODER"}.get(found, found)
        return found

    monkeypatch.chdir(start)
    assert data(Path("runs/a"), "runs/a") == data(run_, "runs/a") == data(run_, str(run_)) == "photos"
    monkeypatch.chdir(other)
    for given in ("photos", "pho*/*.jpg"):
        assert data(run_, "runs/a", given) == data(Path("../start/runs/a"), "runs/a", given) == str(start / given)
    (other / "photos").mkdir()
    assert data(run_, "runs/a") == str(images), "not what is called so here"
    (other / "photos").rmdir()
    assert data(run_, str(run_)) == data(run_, "runs/b") == data(run_, "runs/a", "gone") == "IMAGES"
    for given in ("hf:cats", "https://a.b/c", str(images), "/gone"):
        assert data(run_, "runs/a", given) == given


def test_options_of_another_verb_are_no_finished_run(whole_run: Path) -> None:
    options = KnnOptions(encoder="x", data="y", out=whole_run)
    assert not is_done(options)


def test_the_log_takes_names_that_are_no_text(tmp_path: Path) -> None:
    with logged(tmp_path / "train.log"):
        logging.getLogger("semmae").warning("%s", "cat\udcff.png")
    assert "cat\\xff.png" in (tmp_path / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("change", ["an image more", "an image less", "other weights"])
def test_a_run_of_what_has_changed_is_not_called_finished(change: str, creatures: Path, tmp_path: Path) -> None:
    shutil.copytree(creatures / "images", tmp_path / "photos")
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(32, 8, 48, 2, 3))
    save_encoder(encoder, tmp_path / "run" / "encoder")
    command = ["knn", "--encoder", str(tmp_path / "run"), "--data", str(tmp_path / "photos"), "--workers", "0"]
    command += ["--out", str(tmp_path / "knn")]
    assert run(command) == 0 and run(command) == 0
    figures = (tmp_path / "knn" / "results.json").read_bytes()
    time.sleep(0.02)
    first = next((tmp_path / "photos").rglob("*.png"))
    if change == "an image more":
        shutil.copy(first, first.with_name("new.png"))
    elif change == "an image less":
        first.unlink()
    else:
        save_encoder(encoder, tmp_path / "run" / "encoder")
    assert run(command) == 2
    assert (tmp_path / "knn" / "results.json").read_bytes() == figures
    assert run([*command, "--overwrite"]) == 0
