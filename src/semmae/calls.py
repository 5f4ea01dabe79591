"""The Python call of every verb: its options by name, from the one declaration; what it returns, a row each."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from semmae.errors import UserError
from semmae.memory import memory_given_back
from semmae.names import shown
from semmae.options.demo import DemoOptions
from semmae.options.embed import EmbedOptions
from semmae.options.evaluate import EvaluateOptions
from semmae.options.export import ExportOptions
from semmae.options.fields import options_of, verb_of
from semmae.options.finetune import FinetuneOptions
from semmae.options.knn import KnnOptions
from semmae.options.parts import PartsOptions
from semmae.options.pretrain import PretrainOptions
from semmae.options.probe import ProbeOptions
from semmae.options.reconstruct import ReconstructOptions
from semmae.options.report import ReportOptions
from semmae.options.segment import SegmentOptions
from semmae.options.teacher import TeacherOptions
from semmae.options.texts import help_of
from semmae.results import (
    ClassResult,
    DemoResult,
    EvaluateResult,
    PartsResult,
    PretrainResult,
    Result,
    SegmentResult,
    TeacherResult,
)
from semmae.run.config import made
from semmae.verbs import run_verb

P = ParamSpec("P")
ResultT = TypeVar("ResultT", bound=Result)


RESULTS: dict[str, type[Result]] = {}  # by verb


def call(options: Callable[P, object], result: type[ResultT]) -> Callable[P, ResultT]:
    """A verb that takes its options by name and returns a result."""
    assert isinstance(options, type)
    signature, verb = inspect.signature(options), verb_of(options)

    def called(*args: P.args, **given: P.kwargs) -> ResultT:
        try:
            unnamed = signature.bind_partial(*args).arguments
        except TypeError:
            names = ", ".join(f"{name}=…" for name, each in options_of(options).items() if each.is_required)
            fault = f"semmae.{verb}: {shown(args[-1])} has no name"
            raise UserError(f"{fault}; options are given by name: {names}") from None
        if unnamed.keys() & given.keys():
            raise UserError(f"semmae.{verb}: {' and '.join(unnamed)} is given twice; give it once")
        values = {**unnamed, **given}
        with memory_given_back():
            return result.of(run_verb(made(options, values), values))

    RESULTS[verb] = result
    called.__name__ = called.__qualname__ = verb
    called.__doc__ = _documented(options)
    called.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    return called


def _documented(options: type[Any]) -> str:
    """What the verb does, then its options as `--help` explains them."""
    texts = help_of(options)
    lines = [
        textwrap.fill(f"{name}: {texts[name]}", 100, initial_indent="    ", subsequent_indent=" " * 8)
        for name in options_of(options)
    ]
    return "\n".join([str(options.__doc__), "", "Args:", *lines])


teacher = call(TeacherOptions, TeacherResult)
parts = call(PartsOptions, PartsResult)
pretrain = call(PretrainOptions, PretrainResult)
knn = call(KnnOptions, ClassResult)
probe = call(ProbeOptions, ClassResult)
finetune = call(FinetuneOptions, ClassResult)
segment = call(SegmentOptions, SegmentResult)
evaluate = call(EvaluateOptions, EvaluateResult)
embed = call(EmbedOptions, Result)
reconstruct = call(ReconstructOptions, Result)
export = call(ExportOptions, Result)
report = call(ReportOptions, Result)
demo = call(DemoOptions, DemoResult)
