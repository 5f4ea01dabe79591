"""What every encoder of a comparison is measured by: data opened once, protocols as the other verbs have them."""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from semmae.data.classes import TrainVal
from semmae.data.kept import KeptImages
from semmae.errors import UserError, listed
from semmae.evaluation.classifier import usual_crop
from semmae.evaluation.features import open_encoder
from semmae.evaluation.parts import pixel_truth
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.finetune import Finetune
from semmae.evaluation.protocols.parts import TrueParts
from semmae.evaluation.protocols.probe import choice_rows
from semmae.evaluation.protocols.segment import Segment
from semmae.evaluation.protocols.shape import Figures
from semmae.evaluation.several import Step, describe_by, finished_figures, measure_by
from semmae.files import Fields, make_folder, read_json, remove, write_json
from semmae.names import user_path
from semmae.objects import described
from semmae.options.compare import MEASURES, CompareOptions
from semmae.options.evaluate import EvaluateOptions
from semmae.options.fields import options_of, shared
from semmae.options.finetune import FinetuneOptions, FinetuneRecipe
from semmae.options.presets import preset_options
from semmae.options.probe import ProbeRecipe
from semmae.options.segment import SegmentOptions
from semmae.options.values import check_choice
from semmae.reporting.results import write_comparison
from semmae.run.config import read_config
from semmae.sizes import Size
from semmae.train.batches import Training
from semmae.verbs import segment as segment_verb
from semmae.verbs.evaluate import EvaluationData, open_class_data, steps_of, with_annotations
from semmae.verbs.finetune import check_finetune
from semmae.verbs.measuring import facts_of, view_of

_log = logging.getLogger("semmae")

FOLDER = "measured"  # in the folder of a run
_OF_CLASSES, _OF_PIXELS = {"knn", "probe", "finetune"}, {"segment", "parts"}
# Of a recipe's file, what is another verb's to say: where things are, and what the comparison has itself.
_PLACES = {"encoder", "data", "out", "config", "resume", "overwrite", "workers", "logger", "check", "callbacks"}
_SHARED = {"seed", "limit", "precision", "devices", "nodes", "gradients", "val_share", "num_heads"}
_OURS = _PLACES | _SHARED | {"untrained", "eval_only"}
_KINDS = {"finetune": FinetuneOptions, "segment": SegmentOptions}


class Measures(NamedTuple):
    """What to measure, by what data and recipes."""

    names: tuple[str, ...]  # among MEASURES
    evaluate: EvaluateOptions  # of no encoder yet
    finetune: FinetuneOptions
    segment: SegmentOptions
    data: EvaluationData
    recipes: Mapping[str, Mapping[str, Any]]  # what was given of each verb's, by its name

    def run(self, run: Path, seed: int) -> tuple[Figures, dict[str, float]]:
        """Every figure of the encoder of a run, and the minutes that each protocol took; resumed after a stop."""
        folder = run / FOLDER
        make_folder(folder)
        options = dataclasses.replace(self.evaluate, encoder=str(run), out=folder, seed=seed)
        encoder = open_encoder(str(run))
        facts = facts_of(options, encoder)
        view = view_of(options, encoder)
        segmenting = self.segmenting(run, seed, view.image_size)
        steps = functools.partial(steps_of, options, view, segmenting, self.data)
        figures: Figures = {}
        for step in steps():
            if step.protocol.name in self.names:
                figures = self._measured(step, encoder, folder)
        described_by = describe_by((step for step in steps() if step.protocol.name in self.names), facts)
        if "finetune" in self.names:
            assert self.data.classes is not None, "it was opened for it"
            tuning = Step(self.finetuning(run, seed, view.image_size), self.data.classes)
            figures = self._measured(tuning, open_encoder(str(run)), folder)
            described_by |= describe_by([tuning], facts)
        write_comparison(folder, described_by, {OWN: figures})
        for left in ("finetune", "segment"):
            for name in ("checkpoints", "classifier", "segmenter"):
                remove(folder / left / name)
        return figures, minutes_in(folder)

    def _measured(self, step: Step, encoder: Any, folder: Path) -> Figures:
        with timed(folder, step.protocol.name):
            digests = self.digests(step.protocol.name)
            return measure_by([step], encoder, folder, digests, resume=True, written=lambda *_: None)

    def digests(self, name: str) -> dict[str, Any]:
        """Of what a protocol measures by alone, its recipe too: others may come later, with images of their own."""
        given = {f"{name}_recipe": _plain(self.recipes[name])} if name in self.recipes else {}
        return {**(self.data.class_digests if name in _OF_CLASSES else self.data.pixel_digests), **given}

    @property
    def images(self) -> dict[str, int]:
        """How many images are measured on, by classes and by annotations of pixels."""
        own, pixels = self.data.classes if _OF_CLASSES & {*self.names} else None, self.data.pixels
        counted = {} if own is None else {"of_classes": len(own.val)}
        return counted if pixels is None else {**counted, "of_pixels": len(pixels.val.images)}

    def check_begun(self, runs: Iterable[Path]) -> None:
        """Refuse to measure by other images, or another recipe, than runs that are there were measured by."""
        facts = {key: value for name in self.names for key, value in self.digests(name).items()}
        for run in runs:
            finished_figures(run / FOLDER, facts)

    def finetuning(self, run: Path, seed: int, image_size: Size) -> Finetune:
        """The protocol, for the encoder of a run."""
        options = dataclasses.replace(self.finetune, encoder=str(run), seed=seed)
        size = options.image_size or image_size
        recipe, training = shared(FinetuneRecipe, options), shared(Training, options, resume=True)
        return Finetune(recipe, training, size, options.crop_pct or usual_crop(size), options.val_share)

    def segmenting(self, run: Path, seed: int, image_size: Size) -> Segment:
        """The protocol, for the encoder of a run."""
        options = dataclasses.replace(self.segment, encoder=str(run), seed=seed, resume=True)
        return segment_verb.protocol_of(options, options.image_size or image_size)


def open_measures(options: CompareOptions) -> Measures:
    """Data to measure by, opened and checked, and recipes, checked; UserError where they lack what is asked for."""
    data = options.data if options.eval_data is None else options.eval_data
    same: dict[str, Any] = {"encoder": "", "data": data, "out": options.out / FOLDER, "val_share": options.val_share}
    same |= {name: getattr(options, name) for name in ("seed", "limit", "workers", "precision", "check")}
    trained = {**same, "logger": "none"}
    beside = options.masks if options.eval_data is None else None
    evaluate = with_annotations(EvaluateOptions(**same, masks=beside, untrained=False))
    if evaluate.masks is None:
        evaluate = dataclasses.replace(evaluate, masks=options.masks)
    tuning = FinetuneOptions(**trained, **recipe(options.finetune_recipe, "finetune"))
    usual = {"head": "linear", "steps": evaluate.steps, "batch_size": 16}
    usual |= {"val_steps": evaluate.steps} if options.segment_recipe is None else {}
    given = {**usual, "pictures": 0, **recipe(options.segment_recipe, "segment")}
    segment = SegmentOptions(**trained, **given)
    check_finetune(tuning)
    segment_verb.protocol_of(segment, 0).check_settings()
    names = tuple(dict.fromkeys(options.measure.split(",")))
    if names == ("auto",):
        classes = open_class_data(evaluate, options.channels)
        names = ("segment",) if classes is None else ("knn", "probe")
    else:
        classes = (
            open_class_data(dataclasses.replace(evaluate, masks=None), options.channels)
            if _OF_CLASSES & {*names}
            else None
        )
    probed = classes is not None and bool(choice_rows(classes.train, shared(ProbeRecipe, evaluate)))
    if "probe" in names and not probed:
        _log.warning(
            "%s: no class has two training images to choose the probe's rate on: none is measured", described(data)
        )
        names = tuple(name for name in names if name != "probe")
        if not names:
            raise UserError(
                f"--measure {options.measure}: no class has two training images to choose the probe's rate on; give "
                "another measure beside it, or more images"
            )
    pixels = parts = None
    if _OF_PIXELS & {*names}:
        if evaluate.masks is None:
            raise UserError(f"--measure {options.measure}: needs annotations of pixels; give --masks, or leave it out")
        pixels = segment_verb.open_data(
            dataclasses.replace(segment, data=evaluate.data), evaluate.masks, channels=options.channels
        )
        if "parts" in names:
            parts = TrueParts(pixels.val.images, pixel_truth(pixels.val, seed=options.seed))
    recipes = {"finetune": recipe(options.finetune_recipe, "finetune")}
    recipes |= {"segment": recipe(options.segment_recipe, "segment")}
    found = Measures(names, evaluate, tuning, segment, EvaluationData(_kept(classes), probed, pixels, parts), recipes)
    if "finetune" in names and classes is not None:
        found.finetuning(options.out, options.seed, options.image_size).check(classes)
    return found


def check_measures(options: CompareOptions) -> None:
    """Refuse names that are no measures, and recipes that are none."""
    for name in options.measure.split(","):
        if options.measure != "auto":
            check_choice("measure", name, MEASURES)
    for verb, given in (("finetune", options.finetune_recipe), ("segment", options.segment_recipe)):
        unread = options.measure != "auto" and verb not in options.measure.split(",") and not options.resume
        if given is not None and unread:
            raise UserError(f"--{verb}-recipe {given}: has an effect only with --measure {verb}; leave it out")
        _say_left_out(given, verb)


def _say_left_out(given: str | None, verb: str) -> None:
    """Say which options in a recipe's file the comparison has itself, where they are others there than by default."""
    if given is None or not given.endswith((".yaml", ".yml")):
        return
    every = options_of(_KINDS[verb])
    found = {name: value for name, value in _read(given, verb).items() if name in _OURS - _PLACES}
    names = [name for name, value in found.items() if value != every[name].default]
    if names:
        _log.warning("--%s-recipe %s: not taken from there: %s", verb, given, listed(sorted(names), len(names)))


def recipe(given: str | None, verb: str) -> dict[str, Any]:
    """Options of a verb by the name of a preset, or from a YAML file: what encoder and data it is for is left out."""
    if given is None:
        return {}
    if not given.endswith((".yaml", ".yml")):
        return preset_options(verb, given, f"--{verb}-recipe") | {"preset": given}
    found = _read(given, verb)
    found = {**preset_options(verb, found.get("preset")), **found}
    return {name: value for name, value in found.items() if name not in _OURS}


def _read(given: str, verb: str) -> dict[str, Any]:
    try:
        return read_config(user_path(given, f"--{verb}-recipe"), _KINDS[verb])
    except UserError as error:
        raise UserError(f"--{verb}-recipe {error}") from error


@contextmanager
def timed(folder: Path, name: str) -> Iterator[None]:
    """Minutes of a protocol, added to those of earlier starts in `folder`/minutes.json."""
    started = time.monotonic()
    try:
        yield
    finally:
        minutes = minutes_in(folder)
        minutes[name] = round(minutes.get(name, 0.0) + (time.monotonic() - started) / 60, 4)
        write_json(folder / "minutes.json", minutes)


def forget_minutes(folder: Path, name: str) -> None:
    """Those of what was removed: made anew it is to count once."""
    minutes = minutes_in(folder)
    if minutes.pop(name, None) is not None:
        write_json(folder / "minutes.json", minutes)


def minutes_in(folder: Path) -> dict[str, float]:
    """What `timed` has added up in a folder, by name."""
    path = folder / "minutes.json"
    known = Fields(path, read_json(path) if path.is_file() else {})
    return {name: float(known.need(name, (int, float))) for name in known.content}


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON holds them."""
    return dict(json.loads(json.dumps(dict(given), default=str)))


def _kept(classes: TrainVal | None) -> TrainVal | None:
    """The same images, which stay decoded from one run to the next."""
    if classes is None:
        return None
    train = KeptImages(classes.train)
    return classes._replace(train=train, val=train if classes.leaves_one_out else KeptImages(classes.val))
