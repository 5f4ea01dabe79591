"""The Python call of every verb: its options by name, from the one declaration; what it returns, a row each."""

import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from semmae.memory import memory_given_back
from semmae.options.demo import DemoOptions
from semmae.options.embed import EmbedOptions
from semmae.options.evaluate import EvaluateOptions
from semmae.options.export import ExportOptions
from semmae.options.fields import verb_of
from semmae.options.finetune import FinetuneOptions
from semmae.options.knn import KnnOptions
from semmae.options.parts import PartsOptions
from semmae.options.pretrain import PretrainOptions
from semmae.options.probe import ProbeOptions
from semmae.options.reconstruct import ReconstructOptions
from semmae.options.report import ReportOptions
from semmae.options.segment import SegmentOptions
from semmae.options.teacher import TeacherOptions
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
    signature = inspect.signature(options)

    def called(*args: P.args, **given: P.kwargs) -> ResultT:
        values = {**signature.bind_partial(*args).arguments, **given}
        with memory_given_back():
            return result.of(run_verb(made(options, values), values))

    RESULTS[verb_of(options)] = result
    called.__name__ = called.__qualname__ = verb_of(options)
    called.__doc__ = options.__doc__
    called.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    return called


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
