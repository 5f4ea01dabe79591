"""What a run came to, read from its files: the verdict in a sentence or two, and what to do next.

The page and the end of a verb both say it from here, so that they say the same, and a run that is finished says it
again without computing anything.
"""

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semmae.data.part_store import PartStore
from semmae.files import Fields
from semmae.models.vit import MODELS
from semmae.reporting.page import Record, by_step, find, quality, read_config, read_facts, read_records
from semmae.reporting.verdicts import (
    encoder_above_untrained,
    encoder_below_untrained,
    measured,
    parts_unused,
    teacher_collapsed,
)
from semmae.run.config import saved_options
from semmae.shell import command, python, text

_STAGES = ("teacher", "parts")  # that a run of pretrain may hold as runs of their own
_BLOCK = 65536  # rows of part labels that are counted together
_USUAL_SIZE, _USUAL_MODEL = 224, "vit_small"  # of pretrain


@dataclass(frozen=True)
class Step:
    """Something to do next, and the command for it: to be pasted into a shell, or lines of Python."""

    purpose: str
    command: str


def verb_of(run: Path) -> str | None:
    """The verb that wrote the folder; None where its files do not show it."""
    return saved_options(run).get("verb") or read_facts(run / "summary.json").get("stage")


def minutes(run: Path) -> float | None:
    """How long all stages of a run took together; None where none tells."""
    told = [
        summary["minutes"]
        for folder in (run, *(run / stage for stage in (*_STAGES, "untrained")))
        if "minutes" in (summary := read_facts(folder / "summary.json"))
    ]
    return sum(told) if told else None


def verdicts(run: Path) -> list[str]:
    """A sentence for whatever was measured and whatever went wrong without an error, the worst first."""
    wrong, found = [], []
    for folder in (run, run / "teacher"):
        prototypes = read_config(folder).get("prototypes")
        if isinstance(prototypes, int):
            wrong.append(teacher_collapsed(by_step(read_records(folder / "metrics.jsonl")), prototypes))
    for folder in (run, run / "parts"):
        wrong.append(_unused(folder))
        compared = quality(read_facts(folder / "quality.json"))
        found.append(compared[0] if compared else None)
    results = read_facts(run / "results.json")
    wrong.append(encoder_below_untrained(results))
    found.append(encoder_above_untrained(results) if "untrained" in results else measured(results))
    return [sentence for sentence in wrong + found if sentence]


def _unused(folder: Path) -> str | None:
    """What is to be said of labels that no image has; nothing of labels that are not there, or not complete."""
    if not ((folder / "parts.npy").is_file() and read_facts(folder / "parts.json").get("complete")):
        return None
    store = PartStore.open(folder)
    counts = np.zeros(store.num_labels, np.int64)
    for start in range(0, store.images, _BLOCK):
        counts += np.bincount(store.labels[start : start + _BLOCK].reshape(-1), minlength=store.num_labels)
    return parts_unused(counts.tolist(), store.label_names)


def next_steps(run: Path, verb: str | None = None) -> list[Step]:
    """What a finished run can be used for, the usual next step first; nothing for what is no run of a verb's.

    Args:
        run: its folder.
        verb: that wrote it, where its own files do not show that.
    """
    steps = _STEPS.get(verb_of(run) or verb or "")
    if steps is None:
        return []
    known = _Known(run, read_config(run), read_facts(run / "summary.json"))
    return list(steps(known))


def going_on(run: Path, verb: str) -> Step:
    """How to go on with a run that was stopped; `verb` as for `next_steps`."""
    return Step("Go on with this run", command(verb_of(run) or verb, out=run, resume=True))


def fresh(run: Path, name: str) -> Path:
    """A place beside a run where nothing is yet, named after it: `runs/a` and `runs/a-probe` → `runs/a-knn`."""
    base = run if run.name not in ("", "..") else run.resolve()
    kept = next((base.name.removesuffix(f"-{verb}") for verb in _STEPS if base.name.endswith(f"-{verb}")), base.name)
    return free(base.with_name(f"{kept}-{name}"))


def free(place: Path) -> Path:
    """A place, or where something is already the first numbered one like it: `a.parquet` → `a-2.parquet`."""
    path, number = place, 2
    while os.path.lexists(path):
        path, number = place.with_name(f"{place.stem}-{number}{place.suffix}"), number + 1
    return path


@dataclass(frozen=True)
class _Known:
    """A run and what its files tell of it."""

    run: Path
    config: Record
    summary: Record

    @property
    def data(self) -> str:
        return self.input("data") or "IMAGES"

    def input(self, name: str) -> str | None:
        """What the run read by this option, as it is called from the folder that this process works in.

        None where it was not given, or was given from another folder and cannot be found from here.
        """
        value = find(self.config, name)
        if value is None:
            return None
        given, started = str(value), self._started
        if os.path.isabs(given) or given.startswith(("hf:", "timm:")) or "://" in given or started == Path.cwd():
            return given
        if started is not None and _is_there(started / given):
            return str(started / given)
        return given if started is None and _is_there(Path(given)) else None

    @property
    def _started(self) -> Path | None:
        """The folder in which the run was started: that from which --out, as it was given there, leads to the run."""
        out, run = Path(str(self.config.get("out", "/"))), self.run.resolve()
        inner = run.parts[len(run.parts) - len(out.parts) :]
        if out.is_absolute() or not out.parts or inner != out.parts:
            return None
        return run.parents[len(out.parts) - 1]

    @property
    def drawn(self) -> dict[str, Any]:
        """Options that say which of the images the part labels are of."""
        limit = self.config.get("limit")
        return {} if limit is None else {"limit": limit, "seed": self.config.get("seed") or None}

    def encoder(self, spec: object = None) -> dict[str, Any]:
        """Options for an encoder, by default the one that was measured here."""
        heads = self.config.get("num_heads") if spec is None else None
        return {"encoder": spec or self.input("encoder") or "ENCODER", "num_heads": heads, "data": self.data}


def _is_there(path: Path) -> bool:
    return path.exists() or (glob.has_magic(str(path)) and any(glob.iglob(str(path), recursive=True)))


def _after_teacher(known: _Known) -> Iterator[Step]:
    run = known.run
    learn = command("parts", data=known.data, teacher=run, **known.drawn, out=fresh(run, "parts"))
    yield Step("Learn parts from this teacher", learn)
    yield from _with_encoder(known)


def _after_parts(known: _Known) -> Iterator[Step]:
    options = {"data": known.data, "parts": known.run, **known.drawn, **_sizes(known)}
    yield Step("Pre-train with these parts", command("pretrain", **options, out=fresh(known.run, "pretrain")))


def _sizes(known: _Known) -> dict[str, Any]:
    """Options of an encoder as large as the parts' own, where that is not of pretrain's usual size."""
    size = known.summary.get("image_size")
    path = known.run / "learner" / "config.json"
    if size in (None, _USUAL_SIZE) or not path.is_file():
        return {}
    spec = Fields(path, Fields(path, read_facts(path)).need("semmae", dict))
    learner = Fields(path, spec.need("spec", dict))
    width, patch = learner.need("width", int), learner.need("patch_size", int)
    model = next((name for name, (known_width, _, _) in MODELS.items() if width == known_width), _USUAL_MODEL)
    return {"model": model, "image_size": size, "patch_size": patch}


def _after_pretrain(known: _Known) -> Iterator[Step]:
    masks = known.input("masks")
    if known.summary.get("classes", 2) > 1 or masks:
        options = known.encoder(known.run) | {"masks": masks, "out": fresh(known.run, "evaluate")}
        yield Step("Measure the encoder", command("evaluate", **options))
    yield from _with_encoder(known)


def _with_encoder(known: _Known) -> Iterator[Step]:
    """What any new encoder is good for."""
    run, given = known.run, known.encoder(known.run)
    if known.summary.get("classes", 2) > 1:
        yield Step("Measure the encoder by k-NN", command("knn", **given, out=fresh(run, "knn")))
    embed = command("embed", **given, out=fresh(run, "features.parquet"))
    yield Step("Write a feature vector per image", embed)
    yield Step("Load it with timm", in_timm("encoder", run / "encoder"))


def _after_knn(known: _Known) -> Iterator[Step]:
    probe = command("probe", **known.encoder(), out=fresh(known.run, "probe"))
    yield Step("Measure the encoder by a linear head", probe)


def _after_probe(known: _Known) -> Iterator[Step]:
    yield _finetune(known)
    load = f"import semmae; print(semmae.load_head({text(known.run)}))"
    yield Step("Load the head: head(encoder(images))", python(load))


def _after_evaluate(known: _Known) -> Iterator[Step]:
    own = read_facts(known.run / "results.json").get("this encoder", {})
    if "knn_top1" in own:
        yield _finetune(known)
    elif known.config.get("masks") is None:
        segment = command("segment", **known.encoder(), out=fresh(known.run, "segment"))
        yield Step("Train segmentation on this encoder", segment)
    else:
        yield _export(known, known.encoder()["encoder"])


def _after_finetune(known: _Known) -> Iterator[Step]:
    measured = known.encoder()["encoder"] if known.config.get("eval_only") else known.run
    yield _export(known, measured)
    if measured == known.run:
        again = {"encoder": known.run, "data": "IMAGES", "out": "NEW_FOLDER"}
        yield Step("Measure it on other images", command("finetune", eval_only=True, **again))
        yield Step("Load it with timm, head and all", in_timm("classifier", known.run / "classifier"))


def _after_segment(known: _Known) -> Iterator[Step]:
    trained = known.encoder()["encoder"] if known.config.get("eval_only") else known.run
    yield Step("Load it", python(f"import semmae; print(semmae.load_segmenter({text(trained)}))"))
    again = {"encoder": trained, "data": "DATA", "out": "NEW_FOLDER"}
    yield Step("Measure it on other images", command("segment", eval_only=True, **again))


def _after_demo(known: _Known) -> Iterator[Step]:
    run, drawn = known.run / "run", known.run / "creatures"
    if known.config.get("data") is None:
        options = {"data": drawn / "images", "masks": drawn / "masks", "encoder": run}
        yield Step("Measure the encoder in every way", command("evaluate", **options, out=fresh(known.run, "evaluate")))
    else:
        yield Step("The same in full", command("pretrain", data=known.data, out=fresh(known.run, "pretrain")))


def _finetune(known: _Known) -> Step:
    options = known.encoder() | {"out": fresh(known.run, "finetune")}
    return Step("Train a classifier on this encoder", command("finetune", **options))


def _export(known: _Known, encoder: object) -> Step:
    options = {"encoder": encoder, "num_heads": known.encoder()["num_heads"] if encoder != known.run else None}
    return Step("Write it for timm", command("export", **options, to="timm", out=fresh(known.run, "export")))


def in_timm(name: str, folder: Path) -> str:
    """Lines of Python that load a folder of ours by timm."""
    return f"import timm\n\n{name} = timm.create_model({text(f'local-dir:{folder}')}, pretrained=True)"


_STEPS: Mapping[str, Any] = {
    "teacher": _after_teacher,
    "parts": _after_parts,
    "pretrain": _after_pretrain,
    "knn": _after_knn,
    "probe": _after_probe,
    "finetune": _after_finetune,
    "segment": _after_segment,
    "evaluate": _after_evaluate,
    "demo": _after_demo,
}
