"""`semmae compare`: rows are paired, runs go on where they were stopped, shares make the whole, kinds of parts."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from forked import Forked, at_renaming_of, in_a_process
from PIL import Image
from refusals import refused
from safetensors.torch import load_file

import semmae
import semmae.verbs.compare
import semmae.verbs.shared_stages
from semmae.data.creatures import draw_creatures
from semmae.data.loaders import CropDataset
from semmae.data.manifest import open_images
from semmae.formats.folders import digest
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.compare import PART_KINDS, share_of
from semmae.options.pretrain import PretrainOptions
from semmae.run.folder import foreign_files, turn
from semmae.train.summary import summarised
from semmae.verbs.rows import Row
from semmae.verbs.shared_stages import Stages

FEW: dict[str, Any] = {
    "model": "vit_mini", "image_size": 32, "patch_size": 8, "epochs": 2, "teacher_epochs": 1, "batch_size": 8,
    "workers": 0, "precision": "float32", "teacher": "own", "logger": "none",
}  # fmt: skip
KINDS = """\
- {masking: semantic, name: parts, parts: [kmeans, shuffled, annotations]}
- {masking: random, mask_ratio: 0.5}
"""
PAIR = "- {masking: random}\n- {masking: semantic, parts: grid}\n"  # no teacher is needed


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw_creatures(folder, count=16, size=40)
    (folder / "kinds.yaml").write_text(KINDS)
    (folder / "pair.yaml").write_text(PAIR)
    return folder


def compare(drawn: Path, out: Path, **given: Any) -> Path:
    rows = {} if {"maskings", "grid"} & given.keys() else {"grid": drawn / "pair.yaml"}
    return semmae.compare(data=drawn / "images", out=out, **{**FEW, "seeds": 2, **rows, **given}).path


@pytest.fixture(scope="module")
def whole(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows, two seeds, never stopped."""
    return compare(drawn, tmp_path_factory.mktemp("whole") / "out")


def figures(out: Path) -> list[dict[str, Any]]:
    """What was found of each run, but for what depends on the moment and the place."""
    found = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert tiny.results(out)["runs"] == found
    return [{name: value for name, value in run.items() if name not in ("minutes", "command")} for run in found]


def test_runs_that_learned_from_another_teacher_are_not_gone_on_with(drawn: Path, tmp_path: Path) -> None:
    images, run = open_images(drawn / "images", workers=0), tmp_path / "run"
    first, other = (Encoder(EncoderSpec(32, 8, 24, 1, 2)) for _ in range(2))
    run.mkdir()
    with summarised(run, "pretrain", images, teacher_digest=digest(first)):
        pass
    stages = [Stages(PretrainOptions(data="", out=tmp_path), images, None, teacher, None) for teacher in (first, other)]
    row = Row("a", {"masking": "random"})
    stages[0].check_begun([(row, run), (row, tmp_path / "not begun")])
    with refused(run, "begun with teacher ", digest(other)[:6], "restore"):
        stages[1].check_begun([(row, tmp_path / "not begun"), (row, run)])


# Pairs


def test_rows_of_a_seed_have_the_same_crops_and_first_weights(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every run the first weights and each crop that it was shown, in order: they differ by the seed alone."""
    seen: dict[str, list[torch.Tensor]] = {}
    real_fit, real_item = semmae.verbs.pretrain.fit, CropDataset.__getitem__
    now: list[str] = [""]

    def fit(task: Any, loader: Any, how: Any) -> Any:
        now[0] = how.out.parent.name + "/" + how.out.name
        seen[now[0]] = [parameter.detach().clone() for parameter in task.mae.parameters()]
        return real_fit(task, loader, how)

    def item(dataset: CropDataset, key: Any) -> Any:
        found = real_item(dataset, key)
        seen.setdefault(now[0], []).extend([torch.tensor(key), found["images"]])
        return found

    monkeypatch.setattr(semmae.verbs.pretrain, "fit", fit)
    monkeypatch.setattr(CropDataset, "__getitem__", item)
    compare(drawn, tmp_path / "out", maskings="block", grid=drawn / "pair.yaml", epochs=1, measure="knn")
    names = ("block", "random", "semantic-parts=grid")
    for seed in range(2):
        first, *others = (seen[f"{name}/seed-{seed}"] for name in names)
        assert len(first) > 2 * 16
        for other in others:
            assert len(first) == len(other) and all(map(torch.equal, first, other))
    zero, one = seen["block/seed-0"], seen["block/seed-1"]
    assert not all(map(torch.equal, zero, one))


# Stops, shares, more of it


def test_stopped_and_resumed_equals_undisturbed(drawn: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with tiny.interrupted("pretrain", 3):
        compare(drawn, out)
    assert not (out / "results.json").exists()
    compare(drawn, out)
    assert figures(out) == figures(whole)
    for run in sorted(whole.glob("runs/*/*")):
        tiny.assert_same_weights(run / "encoder", out / run.relative_to(whole) / "encoder")


def test_killed_and_asked_again_equals_undisturbed(drawn: Path, whole: Path, tmp_path: Path) -> None:
    """`kill -9` inside a run, before and after its line is written, and as the end is written."""
    out = tmp_path / "out"
    options = {name.replace("_", "-"): value for name, value in FEW.items()}
    given = {"data": drawn / "images", "out": out, "grid": drawn / "pair.yaml", "seeds": 2, **options}
    arguments = ["compare", *(text for name, value in given.items() for text in (f"--{name}", str(value)))]
    for name, after in (
        ("config.yaml", True), ("last.ckpt", True), ("encoder", False), ("comparison.json", False),
        ("comparison.json", True), ("results.jsonl", False), ("results.json", False), ("comparison.png", True),
    ):  # fmt: skip
        child = in_a_process(arguments, at_renaming_of(name, after=after))
        assert child.ended(120) == -signal.SIGKILL, f"{name}: {child.output}"
    compare(drawn, out)
    assert figures(out) == figures(whole)
    # The lock of a run that was killed when all but that was done is taken by whoever comes next.
    left = tiny.listing(out).keys() - tiny.listing(whole).keys()
    assert all(name.startswith("runs/") and name.endswith(".semmae-lock") for name in left)
    assert foreign_files(out) == []


def test_shares_make_the_whole_and_the_last_writes_the_end(drawn: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(drawn, out, part="2/2")
    assert not (out / "results.json").exists() and len(list(out.glob("runs/*/*"))) == 2
    compare(drawn, out, part="1/2")
    assert figures(out) == figures(whole)
    before = tiny.listing(out)
    compare(drawn, out, part="2/2")  # nothing is left to do
    assert tiny.listing(out) == before


def test_rows_without_parts_do_not_wait_for_those_that_make_some(drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def at_work() -> None:
        with turn(out, "stages"):
            (tmp_path / "begun").touch()
            time.sleep(600)

    other = Forked(at_work)
    try:
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        one = Forked(lambda: compare(drawn, out, maskings="random,block", seeds=1, part="1/2") and None)
        assert one.ended(60) == 0, one.output
    finally:
        other.process.kill()
        other.process.join()
    assert (out / "runs/random/seed-0/comparison.json").is_file()


def test_whoever_finds_all_runs_there_writes_the_end(drawn: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ("results.json", "results.md", "report.html", "comparison.png"):
        (out / name).unlink()
    (out / ".unfinished").touch()
    compare(drawn, out, part="1/2")
    assert figures(out) == figures(whole) and (out / "report.html").is_file() and (out / "comparison.png").is_file()


def test_more_seeds_leave_what_is_there(drawn: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = (out / "runs/random/seed-0/encoder/model.safetensors").stat().st_mtime_ns
    compare(drawn, out, resume=True, seeds=3)
    assert figures(out)[:4] == figures(whole) and len(figures(out)) == 6
    assert (out / "runs/random/seed-0/encoder/model.safetensors").stat().st_mtime_ns == before


def test_all_that_it_leaves_is_known_and_leftovers_are_gone(whole: Path) -> None:
    assert foreign_files(whole) == []
    left = {path.name for path in whole.rglob("*")}
    assert not left & {"last.ckpt", "tokens.safetensors", "classifier"}
    for run in whole.glob("runs/*/*"):
        assert (run / "encoder").is_dir() and (run / "report.html").is_file()


def test_a_run_is_the_one_that_its_command_makes(drawn: Path, whole: Path, tmp_path: Path) -> None:
    """Alone by `semmae pretrain`, with the options of its config.yaml."""
    out = tmp_path / "alone"
    semmae.pretrain(config=whole / "runs/semantic-parts=grid/seed-1/config.yaml", out=out)
    ours, alone = (
        load_file(run / "encoder/model.safetensors") for run in (whole / "runs/semantic-parts=grid/seed-1", out)
    )
    assert all(torch.equal(ours[name], alone[name]) for name in ours)


# Rows


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/2/3", "-1/2", ""])
def test_a_wrong_share_is_refused_also_of_a_finished_comparison(part: str, drawn: Path, whole: Path) -> None:
    with refused("--part", part):
        share_of(part)
    with refused("--part", part):
        compare(drawn, whole, part=part)
    assert (share_of(None), share_of("2/4")) == ((0, 1), (1, 4))


def test_nothing_is_written_where_a_command_is_wrong(drawn: Path, tmp_path: Path, refuse: tiny.Refuse) -> None:
    given = ["compare", "--data", str(drawn / "images"), "--out", str(tmp_path / "out"), "--teacher", "own"]
    refuse([*given, "--maskings", "random", "semantc"], tmp_path, "'semantc'", "semantic")
    refuse([*given, "--measure", "knn", "prob"], tmp_path, "'prob'", "probe")
    refuse([*given, "--measure", "segment"], tmp_path, "--measure segment", "--masks")
    refuse([*given, "--finetune-recipe", "smal-data"], tmp_path, "--finetune-recipe", '"small-data"')
    refuse([*given, "--part", "5/4"], tmp_path, "--part '5/4'")
    refuse([*given, "--part", "1/2", "--overwrite"], tmp_path, "--part", "--overwrite")


# Parts


def test_every_kind_of_parts_is_a_row(drawn: Path, tmp_path: Path) -> None:
    out = compare(drawn, tmp_path / "out", grid=drawn / "kinds.yaml", masks=drawn / "masks", seeds=1, epochs=1)
    found = tiny.results(out)
    by_kind = {row["parts"]: row for row in found["rows"]}
    assert set(by_kind) == {*PART_KINDS, None} - {"learned", "grid"}
    assert found["rows"][-1]["name"] == "random-mask_ratio=0.5" and "parts_nmi" not in by_kind[None]
    assert by_kind["annotations"]["parts_nmi"] > 2 * by_kind["kmeans"]["parts_nmi"] > 0
    assert {"learned", "teacher", "shuffled", "pretrain", "total"} <= by_kind["shuffled"]["minutes"].keys()
    assert {"teacher", "learned"}.isdisjoint(by_kind["annotations"]["minutes"])
    stores = {kind: semmae.PartStore.open(out / "labels" / kind) for kind in ("kmeans", "shuffled")}
    learned = semmae.PartStore.open(out / "parts")
    own, other = np.asarray(learned.labels), np.asarray(stores["shuffled"].labels)
    assert sorted(map(bytes, own)) == sorted(map(bytes, other)) and stores["shuffled"].attention_grid
    assert {store.num_labels for store in stores.values()} == {learned.num_labels}


def test_the_same_folder_with_splits_trains_on_one_and_measures_on_the_other(drawn: Path, tmp_path: Path) -> None:
    data = tiny.divide(drawn, tmp_path / "data")
    out = semmae.compare(
        data=data, out=tmp_path / "out", maskings="random,block", **{**FEW, "seeds": 1, "epochs": 1}
    ).path
    assert tiny.results(out)["protocol"]["images"] == len(list((data / "train").rglob("*.png")))
    one = tiny.results(out / "runs/random/seed-0/measured")["protocol"]
    assert f"{len(list((data / 'val').rglob('*.png')))} val" in one["knn"]["split"]


@pytest.mark.parametrize("channels", [3, 12])
def test_annotations_go_with_the_split(channels: int, drawn: Path, tmp_path: Path) -> None:
    """Both have the same names: rows of true parts have those of the images that are trained on."""
    rng, data = np.random.default_rng(0), tmp_path / "data"
    own = sorted((drawn / "masks").glob("*/*.png"))
    for number, path in enumerate(own):
        split, name = ("val", "train")[number % 2], str(number // 2)
        for kind in ("images", "masks"):
            (data / kind / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, data / "masks" / split / f"{name}.png")
        if channels == 3:
            shutil.copy(drawn / "images" / path.relative_to(drawn / "masks"), data / "images" / split / f"{name}.png")
        else:
            np.save(data / "images" / split / f"{name}.npy", rng.integers(0, 65536, (40, 40, channels), np.uint16))
    (tmp_path / "rows.yaml").write_text("- {masking: semantic, parts: annotations}\n")
    out = semmae.compare(
        data=data, out=tmp_path / "out", grid=tmp_path / "rows.yaml", measure="parts", channels=channels,
        **{**FEW, "seeds": 1, "epochs": 1},
    ).path  # fmt: skip
    labels = np.asarray(semmae.PartStore.open(out / "labels" / "annotations").labels)
    trained = [path for number, path in enumerate(own) if number % 2]
    for row, name in enumerate(open_images(data / "images" / "train", channels=channels, workers=0).names):
        truth = np.asarray(Image.open(trained[int(Path(name).stem)]))
        assert {*np.unique(labels[row])} <= {*np.unique(truth)} and labels[row].any()
    given = tiny.results(out / "runs/semantic-parts=annotations/seed-0/measured")["protocol"]
    assert "parts" in given


def test_tokens_of_the_teacher_are_stored_once(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    real = semmae.verbs.shared_stages.fill_store
    monkeypatch.setattr(
        semmae.verbs.shared_stages,
        "fill_store",
        lambda store, *rest, **how: calls.append(store.folder) or real(store, *rest, **how),
    )
    out = compare(drawn, tmp_path / "out", maskings="random,block", target="tokens", epochs=1)
    assert calls == [out / "teacher_tokens"]
    assert "tokens" not in json.loads((out / "minutes.json").read_text())  # made anew they are to count once
    assert all(run["minutes"]["tokens"] > 0 for run in tiny.results(out)["runs"])
    assert not list(out.rglob("tokens.safetensors"))


@pytest.mark.parametrize(
    ("when", "links", "stored"), [("train_autoencoder", True, 1), ("train_autoencoder", False, 1), ("gather", True, 2)]
)
def test_a_process_with_other_rows_ends_and_leaves_the_tokens_that_are_needed(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, links: bool, stored: int
) -> None:
    """Where a run is begun it leaves them; between two it takes them away, and the next one stores them anew."""
    filled: list[int] = []
    real, then = semmae.verbs.shared_stages.fill_store, getattr(semmae.verbs.compare, when)
    monkeypatch.setattr(
        semmae.verbs.shared_stages,
        "fill_store",
        lambda store, *rest, **how: filled.append(len(store.missing())) or real(store, *rest, **how),
    )
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no hard links")))
    given = {"target": "tokens", "epochs": 1, "seeds": 1, "part": "1/1"}

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(semmae.verbs.compare, when, then)
        compare(drawn, tmp_path / "out", maskings="colour", resume=True, **given)
        return then(*arguments)

    monkeypatch.setattr(semmae.verbs.compare, when, meanwhile)
    out = compare(drawn, tmp_path / "out", maskings="random,block", **given)
    assert sum(count > 0 for count in filled) == stored
    assert len(list(out.glob("runs/*/seed-0/comparison.json"))) == 3 and not list(out.rglob("tokens.safetensors"))
