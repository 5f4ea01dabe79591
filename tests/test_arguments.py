"""Command lines that are wrong, each refused in one line with the remedy; near misses; the help of a verb."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import tiny
from refusals import check_refusal

from semmae.cli import run
from semmae.cli.arguments import _SYNONYMS
from semmae.options import VERBS, kind_of
from semmae.options.fields import command_options, flag

WRONG = [
    # The verb
    ("train", ['"pretrain"']),
    ("Pretrain", ['"pretrain"']),
    ("eval", ['"evaluate"']),
    ("zzz", ["'zzz'", "pretrain"]),
    ("''", ["unknown verb"]),
    ("--data photos", ["--data", "verb"]),
    ("-x", ["-x", "verb"]),
    ("help nonsense", ["'nonsense'"]),
    # What others call it
    ("pretrain --gpus 2", ["--gpus", "mean --devices?"]),
    ("pretrain --num-workers 2", ["mean --workers?"]),
    ("pretrain --num_workers=2", ["mean --workers?"]),
    ("pretrain --lr 1e-3", ["mean --blr?"]),
    ("teacher --learning-rate 1e-3", ["mean --blr?"]),
    ("segment --blr 1e-3", ["mean --lr?"]),
    ("parts --learning-rate 1", ["mean --lr?"]),
    ("pretrain --arch vit_tiny", ["mean --model?"]),
    ("knn --backbone x", ["mean --encoder?"]),
    ("knn --model x", ["mean --encoder?"]),
    ("knn --ckpt x", ["mean --encoder?"]),
    ("knn --checkpoint x", ["mean --encoder?"]),
    ("reconstruct --weights x", ["mean --autoencoder?"]),
    ("reconstruct --encoder x", ["mean --autoencoder?"]),
    ("teacher --pretrained x", ["mean --init?"]),
    ("knn --output x", ["mean --out?"]),
    ("knn --output-dir x", ["mean --out?"]),
    ("pretrain --bs 8", ["mean --batch-size?"]),
    ("pretrain --dataset x", ["mean --data?"]),
    ("pretrain --data-path x", ["mean --data?"]),
    ("pretrain -j 4", ["-j", "mean --workers?"]),
    ("knn -k 4", ["-k", "mean --k?"]),
    ("pretrain --Epochs 3", ["mean --epochs?"]),
    ("pretrain --epcohs 3", ["--epcohs", "--epochs"]),
    ("export --gpus 2", ["--gpus", "export --help"]),  # it has none
    ("report --data x", ["--data", "report --help"]),
    ("pretrain --", ["--", "pretrain --help"]),
    (f"pretrain --{'x' * 500}", ["unknown option", "pretrain --help"]),
    # Words without an option
    ("pretrain photos", ["photos", "mean --data photos?"]),
    ("pretrain photos --out o", ["mean --data photos?"]),
    ("pretrain 'my photos'", ["my photos", "--data"]),
    ("export runs/a", ["mean --encoder runs/a?"]),
    ("pretrain --data d o", ["mean --out o?"]),
    ("pretrain --data d --out o more", ["more", "pretrain --help"]),
    ("pretrain --data a.jpg b.jpg c.jpg --out o", ["b.jpg and 1 more"]),
    ("pretrain --resume true --out o", ["true", "--resume"]),
    ("pretrain --data d --out o ''", ["''", "pretrain --help"]),
    ("report a b", ["b", "report --help"]),
    # Values
    ("pretrain --data", ["--data", "no value"]),
    ("pretrain --data --out o", ["--data", "no value"]),
    ("pretrain --out o --data -x", ["--data", "no value", "--data=-"]),
    ("pretrain --epochs --data d", ["--epochs", "no value"]),
    ("pretrain --data ''", ["--data ''", "empty"]),
    ("pretrain --data d --out ''", ["--out ''", "empty"]),
    ("pretrain --data d --out=", ["--out ''", "empty"]),
    ("pretrain --data d --out o --preset ''", ["--preset ''", "empty"]),
    ("pretrain --data d --out o --epochs=", ["--epochs ''", "whole number"]),
    ("pretrain --data d --out o --resume=yes", ["--resume", "no value"]),
    ("pretrain --no-resume=1", ["--resume", "no value"]),
    ("pretrain --no-data", ["--no-data"]),
    ("pretrain --no-epochs 3", ["--no-epochs"]),
    ("pretrain --norm-pix-loss False", ["False", "--norm-pix-loss"]),
    ("pretrain --epochs 1 --epochs 2", ["--epochs", "twice"]),
    ("pretrain --batch-size 1 --batch_size=2", ["--batch-size", "twice"]),
    ("pretrain --resume --no-resume", ["--resume", "twice"]),
    ("pretrain --epochs -1", ["--epochs -1", "from 1"]),
    ("pretrain --epochs -1.5", ["--epochs '-1.5'", "whole number"]),
    ("pretrain --gamma -inf", ["--gamma -inf", "from 0"]),
    ("pretrain --limit none", ["--limit 'none'", "whole number"]),
    ("knn --pooling CLS", ["'CLS'", "cls, mean"]),
    ("export --to onxn", ["'onxn'", '"onnx"']),
    # What is missing
    ("pretrain", ["--out and --data"]),
    ("knn --data d", ["--out and --encoder"]),
    ("report", ["folder"]),
    ("export --encoder e --out o", ["--to"]),
]


def test_wrong_command_lines_are_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(WRONG) >= 60
    for line, named in WRONG:
        assert run(shlex.split(line)) == 2, line
        output = capsys.readouterr()
        assert output.out == "" and output.err.startswith("semmae: ") and len(output.err) < 250, (line, output)
        check_refusal(output.err, *named)
    assert list(tmp_path.iterdir()) == []


def test_every_synonym_means_an_option() -> None:
    known = {field.name.replace("_", "-") for verb in VERBS for field in dataclasses.fields(kind_of(verb))}
    assert {ours for options in _SYNONYMS.values() for ours in options} <= known
    theirs = [name for names in _SYNONYMS for name in names]
    assert len(set(theirs)) == len(theirs)


def test_values_in_every_spelling() -> None:
    kind = kind_of("pretrain")
    given = ["--data=a=b", "--out", "o", "--batch_size", "8", "--blr=1e-3", "--no-norm-pix-loss", "--checkpointing"]
    options = tiny.options_from(kind, [*given, "--limit", "None", "--parts=-p"])
    assert (options.data, options.out, options.batch_size, options.blr) == ("a=b", Path("o"), 8, 1e-3)
    assert (options.norm_pix_loss, options.checkpointing, options.limit) == (False, True, None)
    assert options.parts == Path("-p")
    report = kind_of("report")
    assert tiny.options_from(report, ["a run"]) == tiny.options_from(report, ["--run", "a run"])


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_grouped_and_begins_with_the_verbs_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", verb]) == 0
    output = capsys.readouterr().out
    assert run([verb, "--help"]) == 0
    assert capsys.readouterr().out == output
    kind = kind_of(verb)
    usage = output.splitlines()[0]
    fields = dataclasses.fields(kind)
    required = [flag(field.name) for field in fields if field.default is dataclasses.MISSING]
    assert usage.startswith(f"usage: semmae {verb} ")
    assert verb == "report" or [name for name in required if f"{name} " not in usage] == []
    # By the class that declares an option last: those declared beside the verb stand above those that all share.
    lines = re.findall(r"^  (--[\w-]+)", output, re.M)
    place = {name: lines.index(flag(name)) for name in command_options(kind)}
    owner = {
        name: next(group for group in kind.__mro__ if name in vars(group).get("__annotations__", {})).__module__
        for name in place
    }
    own = [place[name] for name in place if owner[name] == kind.__module__]
    shared = [place[name] for name in place if owner[name] == "semmae.options.shared"]
    assert not own or not shared or max(own) < min(shared)
