"""Files of a run that somebody edited, cut or replaced are read as they are, or refused in a line that names them."""

import functools
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from refusals import check_refusal, refused
from reporting.test_parts_page import write_samples
from reporting.test_run_page import labels, photos, write_metrics

from semmae.data.manifest import ImageSet, open_images
from semmae.errors import UserError
from semmae.evaluation.embedding import state_of
from semmae.evaluation.several import finished_figures
from semmae.files import Fields, read_json
from semmae.models.vit import Encoder, EncoderSpec
from semmae.reporting import part_samples
from semmae.reporting.comparison import check_record, summary, tables
from semmae.reporting.model_card import Card, find_run, write_card
from semmae.reporting.part_samples import FILE, read_samples
from semmae.reporting.parts_page import write_parts_page
from semmae.reporting.pictures import parts_picture
from semmae.reporting.run_page import write_report
from semmae.run.finished import is_finished
from semmae.train.summary import summarised

SECONDS = 10.0  # of the processor: what would take minutes does not pass, a busy machine does
FIGURES = {"top1": 41.25, "top1_low": 38.0, "top1_high": 44.5, "top5": 70.0, "images": 1200}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, its files written by hand."""
    folder = tmp_path_factory.mktemp("edited") / "run"
    config = {"verb": "pretrain", "data": "photos", "model": "vit_tiny", "image_size": 32, "epochs": 10, "steps": None,
              "masking": "semantic", "mask_ratio": 0.75, "blend": [0.0, 1.0]}  # fmt: skip
    runs = [(seed, name) for name in ("random", "block") for seed in (0, 1)]
    files: dict[str, Any] = {
        "config.yaml": yaml.safe_dump(config),
        "summary.json": {"stage": "pretrain", "images": 1898, "skipped": 1, "epochs": 10, "image_size": 32,
                         "model": "vit_tiny", "manifest": "m1", "finished": True, "minutes": 12.4},
        "skipped.csv": "name,reason\na.jpg,truncated\n",
        "results.json": {"protocol": {"method": "k-NN", "k": 20, "encoder_digest": "d1"}, **FIGURES,
                         "untrained": FIGURES, "per_class": [1.0, None]},
        "parts/quality.json": {"learned": {"nmi": 41.3, "ari": 28.0}, "grid": {"nmi": 20.0, "ari": 10.0},
                               "protocol": {"images": 4}},
        "parts/parts.json": {"images": 1898, "grid": 8, "label_names": ["background", "head"],
                             "extra": {"teacher": "timm:vit_tiny"}, "complete": False},
        "parts/summary.json": {"stage": "parts", "images": 1898, "epochs": 20, "image_size": 96, "minutes": 4.25},
        "compared/config.yaml": yaml.safe_dump({"verb": "compare", "seeds": 3}),
        "compared/results.json": {"verdict": "level", "rows": summary([record(*run) for run in runs]),
                                  "protocol": {"interval": "95 %"}},
        "compared/comparison.json": record(0),
        "figures.json": {"encoder_digest": "d1", "figures": {"knn": {"knn_top1": 41.25}}},
        "state.json": {"rows": 3, "info": {"images_digest": "m1"}},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    for stage, place in (("pretrain", folder), ("parts", folder / "parts")):
        write_metrics(place / "metrics.jsonl", stage, 3)
    parts_picture(photos(2), labels(2), ["background", "head", "body", "limb"], folder / "parts" / "parts.png")
    write_samples(folder / "parts", images=1)
    return folder


def record(seed: int, name: str = "random") -> dict[str, Any]:
    """A line of a run of a comparison."""
    return {"name": name, "masking": name, "variant": "", "parts": None, "target": "pixels", "seed": seed,
            "measured": ["knn"], "knn_top1": 41.25 + seed * len(name),
            "minutes": {"pretrain": 2.5, "total": 3.0}}  # fmt: skip


def compared(run: Path) -> list[Any]:
    found = read_json(run / "compared" / "comparison.json")
    check_record(Fields(run / "compared" / "comparison.json", found))
    return tables(summary([found]))


@functools.cache
def encoder() -> Encoder:
    return Encoder(EncoderSpec.named("vit_tiny", 16, 8))


def card(run: Path) -> str:
    return write_card(Card("x", "timm", encoder(), str(run), find_run(str(run)), {}, "d1"))


def resumed(run: Path, images: ImageSet) -> None:
    with summarised(run, "pretrain", images):
        raise UserError(f"{run / 'summary.json'}: read")


USERS: dict[str, list[Callable[[Path], object]]] = {
    "config.yaml": [write_report, card],
    "summary.json": [write_report, card, is_finished],
    "metrics.jsonl": [write_report],
    "skipped.csv": [write_report],
    "results.json": [write_report, card],
    "parts/quality.json": [write_report],
    "parts/parts.json": [lambda run: write_parts_page(run / "parts")],
    "parts/summary.json": [lambda run: write_parts_page(run / "parts")],
    "parts/metrics.jsonl": [lambda run: write_parts_page(run / "parts")],
    "parts/parts.png": [write_report],
    f"parts/{FILE}": [lambda run: write_parts_page(run / "parts")],
    "compared/results.json": [lambda run: write_report(run / "compared")],
    "compared/comparison.json": [compared],
    "figures.json": [lambda run: finished_figures(run, {"encoder_digest": "d1"})],
    "state.json": [lambda run: (state_of(run).need("rows", int), state_of(run).need("info", dict))],
}
VALUES = ["x", "", -1, 0, 1e300, -1e38, True, None, [], [1, 2], {}, {"a": 1}, "y" * 100_000, "\udcff", "<b>", 2**63]


def mutations(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """(What, the act that does it to the file)."""
    whole = path.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 2):
        yield f"cut at {size}", lambda size=size: path.write_bytes(whole[:size])
    for position in range(0, len(whole), max(1, len(whole) // 12)):
        flipped = whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]
        yield f"flipped at {position}", lambda flipped=flipped: path.write_bytes(flipped)
    for content in (b"null", b"[]", b"3", b'"x"', b"{", b"\0" * 100, b"\xff\xfe", "{}".encode("utf-16"), b"PK\x03\x04",
                    b"[" * 200_000, b'{"a":' * 200_000, b'{"a":' * 500 + b"1" + b"}" * 500, b"a: &a [*a]", b"- " * 5000,
                    b"{}", b'{"stage": "pretrain"}', b"\xef\xbb\xbf" + whole, whole + whole):  # fmt: skip
        yield f"{content[:12]!r} …", lambda content=content: path.write_bytes(content)
    yield "a FIFO", lambda: (path.unlink(), os.mkfifo(path))
    yield "a folder", lambda: (path.unlink(), path.mkdir())
    yield "a dangling link", lambda: (path.unlink(), path.symlink_to("nowhere"))
    yield "huge", lambda: os.truncate(path, 2**33)
    yield "gone", path.unlink
    yield from _of_form(path, whole)


def _of_form(path: Path, whole: bytes) -> Iterator[tuple[str, Callable[[], object]]]:
    """Other values in JSON, in YAML and in lines of JSON; each leaf gets some of them, drawn."""
    draw = random.Random(0)
    if path.suffix == ".jsonl":
        first, *lines = whole.decode().splitlines()
        record = json.loads(first)
        for name in record:
            for value in [*draw.sample(VALUES, 2), float("nan"), float("inf")]:
                text = "\n".join([json.dumps(record | {name: value}), *lines]) + "\n"
                yield f"{name} {value!r:.20}", lambda text=text: path.write_text(text)
    elif path.suffix in (".json", ".yaml"):
        load = json.loads if path.suffix == ".json" else yaml.safe_load
        for place in _places(load(whole)):
            for value in [*draw.sample(VALUES, 2), "GONE", 10**400, float("nan"), float("inf")]:
                text = json.dumps(_changed(load(whole), place, value))
                yield f"{place} {str(value)[:20]!r}", lambda text=text: path.write_text(text)
            text = json.dumps(_changed(load(whole), place, "TOKEN")).replace('"TOKEN"', "1e999")
            yield f"{place} 1e999", lambda text=text: path.write_text(text)


def _places(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in content.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from _places(value, (*before, key))


def _changed(content: Any, place: tuple[Any, ...], value: object) -> Any:
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value == "GONE":
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


@pytest.mark.parametrize("name", USERS)
def test_a_changed_file_is_read_or_refused_in_one_line(name: str, run: Path) -> None:
    path, tried, refused = run / name, 0, 0
    whole = path.read_bytes()
    try:
        for what, change in mutations(path):
            change()
            for use in USERS[name]:
                tried += 1
                started = time.process_time()
                try:
                    use(run)
                except UserError as error:
                    refused += 1
                    found = str(error)
                    assert path.name in found or "no such file" in found or "no run" in found, (what, found)
                    check_refusal(found)
                except Exception as error:
                    raise AssertionError(f"{name}: {what}: {type(error).__name__}: {error}") from error
                assert time.process_time() - started < SECONDS, what
            _restore(path, whole)
    finally:
        _restore(path, whole)
    assert tried >= 20 and refused >= 3


def _restore(path: Path, whole: bytes) -> None:
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(whole)


def test_a_summary_is_checked_before_a_run_goes_on(run: Path, creatures: Path) -> None:
    images = open_images(creatures / "images", limit=2)
    path = run / "summary.json"
    whole = path.read_bytes()
    try:
        for content in (b"[]", b'{"minutes": "long"}', b'{"minutes": null}', b'{"manifest": 3}', b"\xff"):
            path.write_bytes(content)
            with refused("summary.json"):
                resumed(run, images)
            assert path.read_bytes() == content
    finally:
        path.write_bytes(whole)


SAMPLES: dict[str, Any] = {
    "label_names": np.array(["a", "b"]),
    "names": np.array(["x"] * 3),
    "aspects": np.array([np.nan], np.float32),
    "images": np.zeros((1, 3, 4, 5), np.uint8),
    "labels": np.full((1, 7, 7), 3, np.uint8),
    "maps": np.full((1, 3, 4, 4), np.inf, np.float16),
    "shares": np.zeros((0, 3), np.float32),
    "crops": np.zeros((4, 3, 8, 8), np.float32),
    "regions": np.ones((4, 32, 32), np.uint8),
    "crop_labels": np.full(4, -1),
    "crop_names": np.array([1, 2, 3, 4]),
    "strengths": np.ones(4, np.complex64),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_of_parts_that_do_not_fit_each_other_are_refused(name: str, tmp_path: Path) -> None:
    samples = vars(write_samples(tmp_path, images=1))
    assert read_samples(tmp_path / FILE).names.tolist() == ["cat/0000.jpg"]
    np.savez(tmp_path / FILE, **(samples | {name: SAMPLES[name]}))
    with refused("parts.npz"):
        read_samples(tmp_path / FILE)
    np.savez(tmp_path / FILE, **{key: value for key, value in samples.items() if key != name})
    with refused("parts.npz"):
        read_samples(tmp_path / FILE)


def test_a_bomb_among_the_samples_of_parts_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_samples(tmp_path, images=1)
    monkeypatch.setattr(part_samples, "_MOST_BYTES", 100_000)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with refused("parts.npz", "bytes"):
        read_samples(tmp_path / FILE)
