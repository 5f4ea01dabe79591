"""What a finished run can be used for next, as commands to paste; the page and the end of its verb both name them."""

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semmae.data.splits import side_by_side
from semmae.files import Fields
from semmae.models.vit import MODELS
from semmae.options.shared import OWN_TEACHER, PUBLIC_TEACHER
from semmae.reporting.comparison import judged_by, rows_in
from semmae.reporting.page import Record, read_facts
from semmae.run.config import CONFIG, saved_options
from semmae.shell import command, python, text

_USUAL_SIZE, _USUAL_MODEL = 224, "vit_small"  # of pretrain
_SEEDS = 5  # of a comparison: with fewer, intervals are wide
_FEW = 5000  # images of which the usual epochs teach less, and for longer, than tokens of the parts' teacher


@dataclass(frozen=True)
class Step:
    """Something to do next, and the command for it: to be pasted into a shell, or lines of Python."""

    purpose: str
    command: str


def next_steps(run: Path, verb: str | None = None) -> list[Step]:
    """What a finished run can be used for, the usual next step first; `verb` wrote it, where its files do not say."""
    config, summary = saved_options(run), read_facts(run / "summary.json")
    steps = _STEPS.get(config.get("verb") or summary.get("stage") or verb or "")
    return [] if steps is None else list(steps(_Run(run, config, summary)))


def resuming(run: Path, verb: str) -> Step:
    """How to resume a run that was stopped; `verb` as for `next_steps`."""
    return Step("Go on with this run", command(saved_options(run).get("verb", verb), out=run, resume=True))


def input_of(run: Path, name: str) -> str | None:
    """What a run read by an option, as it is called from here; None where it was not given, or cannot be found."""
    return _Run(run, saved_options(run), {}).input(name)


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
class _Run:
    """A finished run."""

    folder: Path
    config: Record  # config.yaml
    summary: Record  # summary.json

    @property
    def data(self) -> str:
        return self.input("data") or "IMAGES"

    def input(self, name: str) -> str | None:
        """What the run read by this option, as it is called from the folder that this process works in.

        None where it was not given, was given from another folder and cannot be found from here, or was given as an
        object of Python or a list, which no command line takes.
        """
        given, started = self.config.get(name), self._started
        if not isinstance(given, str):
            return None
        if os.path.isabs(given) or given.startswith(("hf:", "timm:")) or "://" in given or started == Path.cwd():
            return given
        if started is not None and _is_there(started / given):
            return str(started / given)
        return given if started is None and _is_there(Path(given)) else None

    @property
    def _started(self) -> Path | None:
        """The folder in which the run was started: that from which --out, as it was given there, leads to the run."""
        out, run = Path(str(self.config.get("out", "/"))), self.folder.resolve()
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


def _after_teacher(run: _Run) -> Iterator[Step]:
    learn = command("parts", data=run.data, teacher=run.folder, **run.drawn, out=fresh(run.folder, "parts"))
    yield Step("Learn parts from this teacher", learn)
    yield from _with_encoder(run)


def _after_parts(run: _Run) -> Iterator[Step]:
    teacher = run.input("teacher")
    public = teacher not in (None, OWN_TEACHER) and not (Path(str(teacher)) / CONFIG).is_file()
    few = public and run.summary.get("images", _FEW) < _FEW
    how = {"preset": "small-photos"} if few else _sizes(run)
    options = {**how, "data": run.data, "parts": run.folder, **run.drawn}
    yield Step("Pre-train with these parts", command("pretrain", **options, out=fresh(run.folder, "pretrain")))


def _sizes(run: _Run) -> dict[str, Any]:
    """Options of an encoder as large as the parts' own, where that is not of pretrain's usual size."""
    size = run.summary.get("image_size")
    path = run.folder / "learner" / "config.json"
    if size in (None, _USUAL_SIZE) or not path.is_file():
        return {}
    spec = Fields(path, Fields(path, read_facts(path)).need("semmae", dict))
    learner = Fields(path, spec.need("spec", dict))
    width, patch = learner.need("width", int), learner.need("patch_size", int)
    model = next((name for name, (known_width, _, _) in MODELS.items() if width == known_width), _USUAL_MODEL)
    return {"model": model, "image_size": size, "patch_size": patch}


def _after_pretrain(run: _Run) -> Iterator[Step]:
    masks = run.input("masks")
    if run.summary.get("classes", 2) > 1 or masks:
        options = run.encoder(run.folder) | {"masks": masks, "out": fresh(run.folder, "evaluate")}
        yield Step("Measure the encoder", command("evaluate", **options))
    yield from _with_encoder(run)


def _with_encoder(run: _Run) -> Iterator[Step]:
    """What any new encoder is good for."""
    given = run.encoder(run.folder)
    if run.summary.get("classes", 2) > 1:
        yield Step("Measure the encoder by k-NN", command("knn", **given, out=fresh(run.folder, "knn")))
    embed = command("embed", **given, out=fresh(run.folder, "features.parquet"))
    yield Step("Write a feature vector per image", embed)
    yield Step("Load it with timm", in_timm("encoder", run.folder / "encoder"))


def _after_knn(run: _Run) -> Iterator[Step]:
    probe = command("probe", **run.encoder(), out=fresh(run.folder, "probe"))
    yield Step("Measure the encoder by a linear head", probe)


def _after_probe(run: _Run) -> Iterator[Step]:
    yield _finetune(run)
    load = f"import semmae; print(semmae.load_head({text(run.folder)}))"
    yield Step("Load the head: head(encoder(images))", python(load))


def _after_evaluate(run: _Run) -> Iterator[Step]:
    own = read_facts(run.folder / "results.json").get("this encoder", {})
    if "knn_top1" in own:
        # It alone takes images and annotations side by side for both.
        both = None if run.config.get("masks") else side_by_side(Path(run.data))
        yield _finetune(run, **({"data": both[0]} if both else {}))
    elif run.config.get("masks") is None:
        segment = command("segment", **run.encoder(), out=fresh(run.folder, "segment"))
        yield Step("Train segmentation on this encoder", segment)
    else:
        yield _export(run, run.encoder()["encoder"])


def _after_compare(run: _Run) -> Iterator[Step]:
    seeds, first = run.config.get("seeds", 1), run.config.get("seed", 0)
    if seeds < _SEEDS:
        more = command("compare", out=run.folder, resume=True, seeds=_SEEDS)
        yield Step("Add seeds, for narrower intervals", more)
    rows = rows_in(run.folder / "results.json", read_facts(run.folder / "results.json"))
    figure = judged_by(rows)
    if figure is None:
        return
    best = max(rows, key=lambda row: row[figure])
    encoder = run.folder / "runs" / best["name"] / f"seed-{first}"
    if figure == "segment_miou":
        yield Step("Load the encoder of the highest row with timm", in_timm("encoder", encoder / "encoder"))
    else:
        options = {"encoder": encoder, "data": run.data, "out": fresh(run.folder, "finetune")}
        yield Step("Train a classifier on the encoder of the highest row", command("finetune", **options))


def _after_finetune(run: _Run) -> Iterator[Step]:
    measured = run.encoder()["encoder"] if run.config.get("eval_only") else run.folder
    yield _export(run, measured)
    if measured == run.folder:
        again = {"encoder": run.folder, "data": "IMAGES", "out": "NEW_FOLDER"}
        yield Step("Measure it on other images", command("finetune", eval_only=True, **again))
        yield Step("Load it with timm, head and all", in_timm("classifier", run.folder / "classifier"))


def _after_segment(run: _Run) -> Iterator[Step]:
    trained = run.encoder()["encoder"] if run.config.get("eval_only") else run.folder
    yield Step("Load it", python(f"import semmae; print(semmae.load_segmenter({text(trained)}))"))
    again = {"encoder": trained, "data": "DATA", "out": "NEW_FOLDER"}
    yield Step("Measure it on other images", command("segment", eval_only=True, **again))


def _after_demo(run: _Run) -> Iterator[Step]:
    drawn = run.folder / "creatures"
    if run.config.get("data") is None:
        options = {"data": drawn / "images", "masks": drawn / "masks", "encoder": run.folder / "run"}
        yield Step(
            "Measure the encoder in every way", command("evaluate", **options, out=fresh(run.folder, "evaluate"))
        )
    else:
        known = {OWN_TEACHER: OWN_TEACHER, PUBLIC_TEACHER: None}  # the latter is the usual one
        teacher = known.get(str(run.config.get("teacher")), run.input("teacher"))
        recipe = None if teacher == OWN_TEACHER else "small-photos"  # as the demo took it
        again = {"preset": recipe, "data": run.data, "teacher": teacher, "out": fresh(run.folder, "pretrain")}
        yield Step("The same in full", command("pretrain", **again))


def _finetune(run: _Run, **own: Any) -> Step:
    options = run.encoder() | {"out": fresh(run.folder, "finetune")} | own
    return Step("Train a classifier on this encoder", command("finetune", **options))


def _export(run: _Run, encoder: object) -> Step:
    options = {"encoder": encoder, "num_heads": run.encoder()["num_heads"] if encoder != run.folder else None}
    return Step("Write it for timm", command("export", **options, to="timm", out=fresh(run.folder, "export")))


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
    "compare": _after_compare,
    "demo": _after_demo,
}
