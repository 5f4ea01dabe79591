"""What several runs of a comparison read, made once: the teacher, its tokens, part labels of every kind.

Processes that share the runs out wait for each other here; what is made stands in the folder of the comparison.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore, read_meta
from semmae.data.token_store import FILE, TokenStore
from semmae.errors import UserError, listed
from semmae.evaluation.parts import Truth, read_truth, score
from semmae.files import discard, make_folder
from semmae.formats.folders import digest
from semmae.formats.open import load_encoder
from semmae.labels.kinds import annotated_parts, annotations_digest, cluster_parts, grid_parts, shuffled_parts
from semmae.labels.labelling import teacher_of
from semmae.models.vit import Encoder
from semmae.names import short, user_path
from semmae.options.compare import CompareOptions
from semmae.options.fields import shared
from semmae.options.pretrain import PretrainOptions
from semmae.options.shared import AUTO_TEACHER, OWN_TEACHER
from semmae.run.config import UNFINISHED
from semmae.run.folder import turn
from semmae.train.summary import check_same_inputs
from semmae.train.teacher_tokens import fill_store
from semmae.verbs.measures import forget_minutes, minutes_in, timed
from semmae.verbs.parts import shown_size
from semmae.verbs.pretrain import (
    TOKENS,
    begin_tokens,
    load_init,
    own_teacher,
    part_labels,
    teacher_of_parts,
    teacher_sees_crops,
    teacher_size,
    with_teacher,
)
from semmae.verbs.rows import Row
from semmae.verbs.stages import parts_stage

# By which it is known whether an encoder to begin with fits.
_OF_INIT = {"init", "model", "image_size", "patch_size", "decoder_width", "decoder_depth", "decoder_heads"}
_QUALITY = ("nmi", "ari", "foreground_iou")  # of part labels, where true parts are known


class Stages:
    """The teacher, its tokens and part labels, each made once, by the first process that needs it."""

    def __init__(
        self,
        base: PretrainOptions,
        images: ImageSet,
        given: PartStore | None,
        teacher: Encoder | None,
        truth: Truth | None,
    ) -> None:
        """`base`: options of pretrain for what is made, in the folder of the comparison; `given`: --parts."""
        self.base, self.images, self.given, self.teacher, self.truth = base, images, given, teacher, truth
        self._labels = base.out / "labels"

    def check_begun(self, runs: Iterable[tuple[Row, Path]]) -> None:
        """Refuse to go on with runs that were begun with other images, learned from another teacher, or masked by
        other part labels; and with true parts of other annotations.
        """
        known = {} if self.teacher is None else {"teacher_digest": digest(self.teacher)}
        labels: dict[str | None, dict[str, str]] = {}
        for row, run in runs:
            if row.parts not in labels:
                labels[row.parts] = self._digest_of_labels(row)
            check_same_inputs(run, self.images, **known, **labels[row.parts])

    def _digest_of_labels(self, row: Row) -> dict[str, str]:
        """Of the part labels of a row, if they are there already."""
        folder = self.folder(row)
        if folder is None or (row.kind is not None and not _is_labelled(folder)):
            return {}
        store = self.store(row)
        assert store is not None, "it has parts"
        if row.kind == "annotations":
            assert self.base.masks is not None, "rows of annotations without were refused"
            was, now = store.extra.get("annotations_digest"), annotations_digest(self.images, self.base.masks)
            if was is not None and was != now:
                raise UserError(
                    f"--masks {self.base.masks}: the true parts in {folder} were read from others ({short(was)}, now "
                    f"{short(now)}); give those, or use another --out"
                )
        return {"parts_digest": store.labels_digest}

    def make(self, rows: Sequence[Row]) -> None:
        """Whatever these rows read."""
        rows = [row for row in rows if row.kind is not None or self.predicts_tokens(row)]
        if not rows:  # they need not wait for another process that is making something
            return
        with turn(self.base.out, "stages"):
            self._make(rows)

    def _make(self, rows: Sequence[Row]) -> None:
        tokens = None
        if any(self.predicts_tokens(row) for row in rows):
            tokens = begin_tokens(self.base, self.images, self.open_teacher())
        for kind in sorted({row.kind for row in rows if row.kind is not None}):
            self._make_labels(kind, tokens)
        if tokens is not None:  # what learning parts has not stored
            self._fill(tokens)

    def predicts_tokens(self, row: Row) -> bool:
        """Whether a row predicts the teacher's tokens."""
        return str(row.given.get("target", self.base.target)) == "tokens"

    def folder(self, row: Row) -> Path | None:
        """Where the part labels of a row lie, made or not."""
        if row.parts is None:
            return None
        if row.kind is None:
            return user_path(row.parts, "--parts")
        if row.kind == "learned":
            return self.base.out / "parts" if self.given is None else self.given.path
        return self._labels / row.kind

    def store(self, row: Row) -> PartStore | None:
        """The part labels of a row."""
        folder = self.folder(row)
        return None if folder is None else PartStore.open(folder, manifest_digest=self.images.digest)

    def minutes(self, row: Row) -> dict[str, float]:
        """What was spent on what this row reads, by stage; of a row alone it would be as much."""
        known, needed = minutes_in(self.base.out), set()
        if row.kind is not None:
            needed |= {"learned" if row.kind == "shuffled" else row.kind, row.kind}
        if self.predicts_tokens(row):
            needed.add("tokens")
        if needed & {"learned", "kmeans", "tokens"}:
            needed.add("teacher")
        return {name: known[name] for name in sorted(needed) if name in known}

    def quality(self, row: Row) -> dict[str, float]:
        """How well the part labels of a row agree with true parts, where some are known."""
        if row.parts is None or self.truth is None:
            return {}
        store = self.store(row)
        assert store is not None, "it has parts"
        figures = score(store.labels[self.truth.rows], self.truth)
        return {f"parts_{name}": round(figures[name], 2) for name in _QUALITY if name in figures}

    def open_teacher(self) -> Encoder:
        """The teacher; one's own is trained first."""
        if self.teacher is None:
            with timed(self.base.out, "teacher"):
                self.teacher = load_encoder(str(own_teacher(self.base, self.images)))
        return self.teacher

    def _fill(self, tokens: TokenStore) -> None:
        base, teacher = self.base, self.open_teacher()
        size = teacher_size(base, teacher)
        with timed(base.out, "tokens"):
            fill_store(tokens, self.images, teacher, size=size, precision=base.precision, workers=base.num_workers)

    def give_tokens(self, row: Row, run: Path) -> None:
        """Give a run the stored tokens of all images as its own; it removes them when it is trained.

        Made once more where a process with other rows, all of them finished, has removed them.
        """
        source, place = (folder / TOKENS / FILE for folder in (self.base.out, run))
        if teacher_sees_crops() or place.exists():
            return
        with turn(self.base.out, "stages"):
            if not source.exists():
                self._make([row])
            make_folder(place.parent)
            place.unlink(missing_ok=True)  # a link to what is gone
            try:
                os.link(source, place)
            except OSError:  # a file system without hard links
                place.symlink_to(source.resolve())

    def discard_tokens(self) -> None:
        """Remove the stored tokens, unless there is a run, of whatever rows, that may go on to read them."""
        with turn(self.base.out, "stages"):
            if not any(self.base.out.glob(f"runs/*/*/{UNFINISHED}")):
                discard(self.base.out / TOKENS, FILE)
                forget_minutes(self.base.out, "tokens")

    def _make_labels(self, kind: str, tokens: TokenStore | None) -> None:
        folder = self._labels / kind
        if kind == "learned":
            if self.given is None and not _is_labelled(self.base.out / "parts"):
                if self.base.teacher == OWN_TEACHER:
                    self.open_teacher()
                with timed(self.base.out, kind):
                    part_labels(self.base, self.images, self.teacher, tokens)
            return
        if _is_labelled(folder):
            return
        learned = None
        if kind == "shuffled":
            self._make_labels("learned", tokens)
            learned = PartStore.open(
                self.given.path if self.given else self.base.out / "parts", manifest_digest=self.images.digest
            )
        if kind == "kmeans":
            self.open_teacher()
        with timed(self.base.out, kind):
            self._label(kind, folder, learned)

    def _label(self, kind: str, folder: Path, learned: PartStore | None) -> None:
        base = self.base
        stage = parts_stage(base, base.teacher)
        labels, grid = stage.num_parts + 1, stage.grid
        if self.given is not None:
            labels, grid = self.given.num_labels, self.given.grid
        if kind == "shuffled":
            assert learned is not None, "it was made first"
            shuffled_parts(folder, self.images, learned, seed=base.seed)
        elif kind == "grid":
            grid_parts(folder, self.images, labels=labels, grid=grid)
        elif kind == "annotations":
            assert base.masks is not None, "rows of annotations without were refused"
            annotated_parts(folder, self.images, base.masks, grid=grid)
        else:
            teacher = self.open_teacher()
            cluster_parts(
                folder, self.images, teacher, teacher=base.teacher, labels=labels, size=shown_size(stage, teacher),
                grid=grid, batch_size=stage.batch_size, precision=stage.precision, workers=stage.num_workers,
                seed=base.seed,
            )  # fmt: skip


def _is_labelled(folder: Path) -> bool:
    return (folder / "parts.json").is_file() and bool(read_meta(folder)["complete"])


def open_stages(options: CompareOptions, rows: Sequence[Row], images: ImageSet) -> tuple[Stages, CompareOptions]:
    """What is to be made for all runs, checked, and the options with what --teacher auto becomes."""
    given = None if options.parts is None else PartStore.open(options.parts, manifest_digest=images.digest)
    for row in rows:
        store = given if row.parts == "learned" else None
        if row.parts is not None and row.kind is None:
            store = PartStore.open(user_path(row.parts), manifest_digest=images.digest)
        if store is not None and row.given.get("keep_background", options.keep_background) and not store.has_background:
            raise UserError(
                f"row {row.name}: keep_background: {store.path} has no background, its labels are "
                f"{listed(store.label_names)}; leave it out, or give labels of semmae parts"
            )
    base = shared(
        PretrainOptions, options, masking="semantic", masks=options.masks, resume=True, overwrite=False, config=None
    )
    wanted = any(
        row.given.get("target", options.target) == "tokens"
        or row.kind == "kmeans"
        or (row.kind in ("learned", "shuffled") and given is None)
        for row in rows
    )
    teacher = None
    if wanted and given is not None and base.teacher == AUTO_TEACHER:
        teacher = teacher_of_parts(given)
        base = dataclasses.replace(base, teacher=str(teacher_of(given.path)["teacher"]))
    elif wanted:
        base = dataclasses.replace(with_teacher(dataclasses.replace(base, target="tokens")), target=base.target)
        if base.teacher != OWN_TEACHER:
            heads = base.num_heads if base.names_a_teacher else None
            teacher = load_encoder(base.teacher, num_heads=heads)
    load_init(base, teacher)  # to refuse one that does not fit
    for row in rows:
        if row.given.keys() & _OF_INIT:
            own = row.options(options, base.out, base.seed, None)
            try:
                load_init(own, teacher if own.predicts_tokens else None)
            except UserError as error:
                raise UserError(f"row {row.name}: {error}") from error
    truth = None if options.masks is None else read_truth(images, masks=options.masks, seed=options.seed)
    return Stages(base, images, given, teacher, truth), dataclasses.replace(options, teacher=base.teacher)
