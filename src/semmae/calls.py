"""The Python call of every verb: its options by name, from the one declaration; what it returns, a row each."""

import inspect
import signal
import textwrap
import types
import typing
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar

from semmae.errors import UserError
from semmae.memory import memory_given_back
from semmae.names import shown
from semmae.options.compare import CompareOptions
from semmae.options.demo import DemoOptions
from semmae.options.embed import EmbedOptions
from semmae.options.evaluate import EvaluateOptions
from semmae.options.export import ExportOptions
from semmae.options.fields import Option, Reads, options_of, verb_of
from semmae.options.finetune import FinetuneOptions
from semmae.options.knn import KnnOptions
from semmae.options.pack import PackOptions
from semmae.options.parts import PartsOptions
from semmae.options.pretrain import PretrainOptions
from semmae.options.probe import ProbeOptions
from semmae.options.reconstruct import ReconstructOptions
from semmae.options.report import ReportOptions
from semmae.options.segment import SegmentOptions
from semmae.options.teacher import TeacherOptions
from semmae.options.texts import help_of
from semmae.options.values import in_python
from semmae.results import (
    ClassResult,
    CompareResult,
    DemoResult,
    EvaluateResult,
    PartsResult,
    PretrainResult,
    Result,
    SegmentResult,
    TeacherResult,
)
from semmae.run.config import is_begun, made
from semmae.run.signals import Interrupted, Stopped
from semmae.verbs import run_verb

ResultT = TypeVar("ResultT", bound=Result)

RESULTS: dict[str, type[Result]] = {}  # by verb
# What a call takes beside a path, by what the option reads; where these are declared, tools/stub.py says.
_OBJECTS: dict[Reads | None, str] = {"images": "Sequence[Any] | DataSet", "network": "Encoder"}
_FUNCTION = "Callable[[MaskContext], Tensor]"


def call(options: type[Any], result: type[ResultT]) -> Callable[..., ResultT]:
    """A verb that takes its options by name and returns a result."""
    signature, verb = _signature(options, result), verb_of(options)

    def called(*args: Any, **given: Any) -> ResultT:
        try:
            unnamed = signature.bind_partial(*args).arguments
        except TypeError:
            names = ", ".join(f"{name}=…" for name, each in options_of(options).items() if each.is_required)
            fault = f"semmae.{verb}: {shown(args[-1])} has no name"
            raise UserError(f"{fault}; options are given by name: {names}") from None
        if unnamed.keys() & given.keys():
            raise UserError(f"semmae.{verb}: {' and '.join(unnamed)} is given twice; give it once")
        values = {**unnamed, **given}
        own = made(options, values)
        try:
            with memory_given_back():
                return result.of(run_verb(own, values))
        except (Interrupted, KeyboardInterrupt) as stop:
            # No Exception: a loop that skips what fails would begin the next call.
            out = getattr(own, "out", None)
            remedy = f"resume with out={str(out)!r}, resume=True" if is_begun(out) else "nothing was written"
            raise Stopped(getattr(stop, "signum", signal.SIGINT), f"semmae.{verb}: stopped; {remedy}") from stop

    RESULTS[verb] = result
    called.__name__ = called.__qualname__ = verb
    called.__signature__ = signature  # type: ignore[attr-defined]
    called.__doc__ = _documented(options, signature)
    return called


class _Written(str):
    """A type as it is written; `help` would show a text in quotes."""

    def __repr__(self) -> str:
        return str(self)


def _signature(options: type[Any], result: type[Result]) -> inspect.Signature:
    """What a call takes: what is required, then the verb's own options, then those that others have too."""
    every, declared = options_of(options), inspect.signature(options).parameters
    required = [name for name in reversed(list(every)) if every[name].is_required]
    own = vars(options)["__annotations__"]
    others = sorted((name for name in every if name not in required), key=lambda name: name not in own)
    parameters = [declared[name].replace(annotation=_Written(_taken(every[name]))) for name in [*required, *others]]
    return inspect.Signature(parameters, return_annotation=result)


def _taken(option: Option) -> str:
    """What a call takes for an option, as a type is written: where a path is declared, whatever leads to one."""
    facts, hint = option.facts, option.type
    if facts.python:
        return "Any"
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    taken = [_written(kind, facts.reads) for kind in kinds if kind is not NoneType]
    if facts.objects:
        taken.append(_OBJECTS[facts.reads])
    if facts.function:
        taken.append(_FUNCTION)
    if facts.several:
        taken.append("Sequence[str]")
    if NoneType in kinds:
        taken.append("None")
    return " | ".join(taken)


def _written(kind: Any, reads: str | None) -> str:
    if typing.get_origin(kind) is Literal:
        return "Literal[" + ", ".join(f'"{choice}"' for choice in typing.get_args(kind)) + "]"
    if typing.get_origin(kind) is tuple:
        return str(kind)
    return "str | PathLike[str]" if kind is Path or (kind is str and reads) else str(kind.__name__)


def _documented(options: type[Any], signature: inspect.Signature) -> str:
    """What the verb does, then its options as `--help` explains them."""
    every, texts = options_of(options), help_of(options)
    lines = [
        textwrap.fill(
            f"{name}: {texts[name]} {in_python(every[name])}", 100, initial_indent="    ", subsequent_indent=" " * 8
        )
        for name in signature.parameters
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
pack = call(PackOptions, Result)
report = call(ReportOptions, Result)
compare = call(CompareOptions, CompareResult)
demo = call(DemoOptions, DemoResult)
