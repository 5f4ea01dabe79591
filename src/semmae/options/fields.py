"""How an option is declared: a field of a frozen dataclass, its facts in the field's metadata, its help below it.

lr: float = option(1e-3, low=0, high=1000)
"Learning rate at its highest."
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from semmae.sizes import Grid

KindT = TypeVar("KindT")

MOST = 2**63 - 1  # of 64 bits: no limit but that of counting

OnResume = Literal["same", "more", "free"]
Reads = Literal["images", "annotations", "network", "labels", "learner", "run", "file", "rows"]


class Options(Protocol):
    """A frozen dataclass of options, or a base class of one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True)
class Facts:
    """What holds for an option beside its type and its default."""

    low: float = -math.inf  # least and highest value of a number
    high: float = math.inf
    open: bool = False  # neither of the two is taken itself
    # Whether a run may be resumed with another value: no ("same"), yes, for it only adds files or figures ("more"), or
    # yes, for nothing that is left in the folder depends on it ("free").
    on_resume: OnResume = "same"
    reads: Reads | None = None  # what lies at the path, or behind the name, that it takes: never written to
    writes: bool = False  # a place that is written to
    suffixes: tuple[str, ...] = ()  # that place is a file, and no folder, with one of these at the end of its name
    control: bool = False  # how a run begins, not what it does: not kept in config.yaml
    continues: bool = False  # switches it on to resume the run in --out, by that run's options
    group: str = ""  # options that have an effect only together; by default those of the class that declares it
    idles: tuple[str, ...] = ()  # groups, or single options, that have no effect where this one is given
    only: Mapping[str, Any] | None = None  # values of other options without which it has no effect
    # One of its choices → the values of other options with which alone that can be, whoever chose it.
    fits: Mapping[str, Mapping[str, Any]] | None = None
    # Options, or properties of them, without any of which (None, 0, off) it has no effect.
    beside: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()  # other options that cannot be given beside it
    positional: str = ""  # what to call it where it may be given without its name
    # What the default, a word such as auto, may become when a run begins; config.yaml holds that.
    becomes: tuple[str, ...] = ()
    objects: bool = False  # a Python call may give an object that config.yaml cannot hold
    function: bool = False  # a Python call may give a function, which is kept as `package.module:name`
    python: bool = False  # it is of the Python call alone
    check: Callable[[Any], object] | None = (
        None  # raises UserError for a value of the right kind that is none of its own
    )
    several: bool = False  # takes several words, or a list: a text, divided by commas
    dropped: bool = False  # of a base class, and no option of this one: it keeps its default


def option(default: Any, **facts: Any) -> Any:
    """A field with a default; see `Facts` for what may be said of it."""
    return dataclasses.field(default=default, metadata=about(**facts))


def about(**facts: Any) -> dict[str, Any]:
    """The metadata of a field that has no default: `out: Path = field(metadata=about(writes=True))`."""
    return {"facts": Facts(**facts)}


def again(kind: type[Any], name: str, **facts: Any) -> Any:
    """The field that another class declares, default, limits and help, with some other facts."""
    declared = options_of(kind)[name]
    merged = dataclasses.replace(declared.facts, **facts)
    return dataclasses.field(default=declared.default, metadata={"facts": merged, "text_of": kind})


@dataclass(frozen=True)
class Option:
    """One option of a verb: its name as a field, its type, its default (MISSING where it is required), its facts."""

    name: str
    type: Any
    default: Any
    facts: Facts

    @property
    def flag(self) -> str:
        return flag(self.name)

    @property
    def kinds(self) -> tuple[type[Any], ...]:
        """The types that an annotation such as `int | None` allows; empty for a `Literal`."""
        return tuple(kind for kind in typing.get_args(self.type) or (self.type,) if isinstance(kind, type))

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices of a `Literal`; empty for any other."""
        return typing.get_args(self.type) if typing.get_origin(self.type) is Literal else ()

    @property
    def literals(self) -> tuple[str, ...]:
        """Words that are taken beside numbers, as of `int | Literal["auto"]`."""
        kinds = typing.get_args(self.type) if not self.choices else ()
        return tuple(word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind))

    def is_word(self, value: Any) -> bool:
        """Whether a value is one of the words of its own that it takes where others are paths or names."""
        return isinstance(value, str) and value in self.words

    @property
    def words(self) -> tuple[str, ...]:
        """Words of its own that are taken in place of a path or a name: the default, and what that may become."""
        return (self.default, *self.facts.becomes) if self.facts.becomes else ()

    @property
    def is_size(self) -> bool:
        """Whether it takes the size of an image: a whole number, or two."""
        return Grid in typing.get_args(self.type)

    @property
    def is_switch(self) -> bool:
        return self.kinds == (bool,)

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def limits(self) -> str | None:
        """In words, such as "from 0 to 1", or "between 0 and 1" where these are not taken; None where it has none."""
        low, high = self.facts.low, self.facts.high
        if low == -math.inf:
            return None
        if self.facts.open:
            return f"between {low} and {high}"
        return f"at least {low}" if high == MOST else f"from {low} to {high}"


_declared_by: dict[type[Any], Mapping[str, Option]] = {}  # for mypy, functools.cache takes no classes


def options_of(kind: type[Any]) -> Mapping[str, Option]:
    """The options that a class declares or inherits, by name, in the order of the declarations."""
    if kind not in _declared_by:
        _declared_by[kind] = MappingProxyType(_declared(kind))
    return _declared_by[kind]


def _declared(kind: type[Any]) -> dict[str, Option]:
    hints = typing.get_type_hints(kind)
    groups: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        groups |= dict.fromkeys(vars(base).get("__annotations__", {}), vars(base).get("GROUP", ""))
    found = {}
    for field in dataclasses.fields(kind):
        facts: Facts = field.metadata.get("facts", Facts())
        if facts.dropped:
            continue
        if not facts.group:
            facts = dataclasses.replace(facts, group=groups[field.name])
        found[field.name] = Option(field.name, hints[field.name], field.default, facts)
    return found


def command_options(kind: type[Any]) -> Mapping[str, Option]:
    """As `options_of`, without those of the Python call alone."""
    return {name: option for name, option in options_of(kind).items() if not option.facts.python}


def verb_of(kind: type[Any]) -> str:
    """The verb whose options a class holds: the name of its file."""
    return kind.__module__.rpartition(".")[2]


def flag(name: str) -> str:
    """A field's name as it is written on the command line."""
    return "--" + name.replace("_", "-")


def with_facts(kind: type[Any], **facts: Any) -> list[str]:
    """Names of the options of which these facts hold, such as `with_facts(KnnOptions, reads="network")`."""
    return [
        name
        for name, each in options_of(kind).items()
        if all(getattr(each.facts, fact) == value for fact, value in facts.items())
    ]


def is_given(options: Any, name: str) -> bool:
    """Whether an option has another value than by default."""
    value, default = getattr(options, name), options_of(type(options))[name].default
    # Only values of the kinds that defaults have: an array compares itself entry by entry.
    return not isinstance(value, bool | int | float | str | Path | tuple | None) or bool(value != default)


def shared(kind: type[KindT], options: Options, **own: Any) -> KindT:
    """Options of another class: those that both have as they are, all others by default; `own` wins over both."""
    names = options_of(kind).keys() & options_of(type(options)).keys()
    return kind(**{name: getattr(options, name) for name in names} | own)
