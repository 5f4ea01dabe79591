"""Values of options: from text, from YAML, from a Python call; each checked by its field's declaration, at one door."""

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from semmae.errors import UserError, near_only
from semmae.names import check_text, shown, user_path
from semmae.options.fields import Option, Reads, flag, is_given, options_of
from semmae.options.functions import text_of
from semmae.sizes import Size, read_size, sides, size_text

# What a Python call may give beside text, by what the option reads.
_OBJECTS: Mapping[Reads | None, str] = {
    "images": "a list of images or paths, or a map-style data set",
    "network": "what semmae.load_encoder returns",
}
# By kind, what a value must be; a text that names something to read is a path, or stands for one.
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def check_values(options: Any) -> None:
    """Check every option: of the declared kind, among the choices, within the limits, and fitting others."""
    for name, option in options_of(type(options)).items():
        check_value(option, getattr(options, name))
    check_fitting(options)


def check_fitting(options: Any) -> None:
    """Refuse a choice that cannot be beside the value of another option."""
    for name, option in options_of(type(options)).items():
        if option.facts.fits is None:  # of all others the value may be any object
            continue
        chosen = getattr(options, name)
        for other, wanted in option.facts.fits.get(chosen, {}).items():
            if (found := getattr(options, other)) != wanted:
                remedy = " or ".join(choice for choice in option.choices if choice != chosen)
                raise UserError(f"{option.flag} {chosen}: is for {flag(other)} {wanted}, not {found}; use {remedy}")


def check_value(option: Option, value: Any) -> None:
    """As `check_values`, of one option."""
    check_choice(option.name, value, option.choices)
    if not _is_object(option, value):
        _check_kind(option, value)
    _check_limits(option, value)
    if option.facts.check is not None:
        option.facts.check(value)


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Refuse a value that is not among the choices, where there are any."""
    choices = tuple(known)
    if choices and (type(value) is not str or value not in choices):
        hint = near_only(str(value)[:80], choices)
        raise UserError(f"{flag(name)} {shown(value)}: must be one of {', '.join(choices)}{hint}")


def check_image_size(image_size: Size, patch_size: int, name: str = "image_size") -> None:
    """Refuse an image that does not divide into patches; `name` is the option that gave its size."""
    for side in sides(image_size):
        if side % patch_size:
            below = side - side % patch_size
            use = f"{below} or {below + patch_size}" if below else f"{patch_size}"
            of = "" if isinstance(image_size, int) else f": {side}"
            given = f"{flag(name)} {size_text(image_size)}{of}"
            raise UserError(f"{given} is not divisible by the patch size {patch_size}; use {use}")


def check_given(options: Any, given: Iterable[str]) -> None:
    """Refuse an option that was given and has no effect beside the others; what a preset or a file says is let pass."""
    every = options_of(type(options))
    idling = [each for each in every.values() if each.facts.idles and is_given(options, each.name)]
    for name in given:
        option = every[name]
        clashing = next((other for other in option.facts.excludes if is_given(options, other)), None)
        if clashing is not None and is_given(options, name):
            raise UserError(f"{option.flag} and {flag(clashing)} exclude each other; give one of them")
        if not is_given(options, name):
            continue
        given_as = _given_as(option, getattr(options, name))
        for other in idling:
            if {name, option.facts.group} & set(other.facts.idles):
                raise UserError(f"{given_as}: has no effect with {other.flag}; leave one of them out")
        if option.facts.beside and not any(getattr(options, other) for other in option.facts.beside):
            needed = " or ".join(_needed(every, other) for other in option.facts.beside)
            raise UserError(f"{given_as}: has an effect only {needed}; leave it out")
        for other_name, value in (option.facts.only or {}).items():
            if other_name in every and getattr(options, other_name) != value:
                raise UserError(f"{given_as}: has an effect only {_condition(every[other_name], value)}; leave it out")


def _given_as(option: Option, value: Any) -> str:
    if option.is_switch:
        return option.flag if value else flag("no-" + option.name)
    return f"{option.flag} {as_given(value)}"


def as_given(value: Any) -> str:
    """A value as a message shows it behind its option."""
    if isinstance(value, tuple | list) and value and all(isinstance(side, int) for side in value):  # from YAML, a list
        return size_text(value)
    return value if isinstance(value, str) else str(value) if isinstance(value, Path) else shown(value)


def _condition(option: Option, value: Any) -> str:
    return f"without {option.flag}" if value is None or value is False else f"with {option.flag} {value}"


def _needed(every: Mapping[str, Option], name: str) -> str:
    """An option that must be set, in words; a property such as `learns_parts` is named so that it reads as a clause."""
    if name not in every:
        return f"where a run {name.replace('_', ' ')}"
    numeric = every[name].default is not None and not every[name].is_switch
    return f"with {flag(name)}{' above 0' if numeric else ''}"


def from_text(option: Option, text: str) -> Any:
    """What a text of the command line means for an option: a number where one is declared, None, or the text."""
    if text == "None" and type(None) in option.kinds:
        return None
    if text in option.literals:
        return text
    kind = int if int in option.kinds else float
    try:
        if option.is_size and "," in text:
            return tuple(map(int, text.split(",")))
        return kind(text) if kind in option.kinds else text
    except ValueError as error:
        raise UserError(f"{option.flag} {shown(text)}: must be {_kinds(option, {kind})}") from error


def converted(option: Option, value: Any) -> Any:
    """A value as its option declares it, from whichever door: text as a path and the other way round, with the user's
    folder for `~`; 1e-3, which YAML takes for text, as a number; a scalar of NumPy, and a value of a class derived from
    one of Python's, such as an enumeration's, as Python's own, which alone YAML can write.
    """
    if option.facts.python:
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    if option.is_size and isinstance(value, list | tuple):
        sizes = [_own_scalar(side) for side in value]
        with contextlib.suppress(ValueError):
            return read_size(sizes)
        return tuple(sizes)
    if option.facts.several and isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    is_named = Path in option.kinds or str in option.kinds
    if is_named and isinstance(value, os.PathLike):
        with contextlib.suppress(TypeError):  # of a class that gives no text after all
            value = os.fsdecode(value)
    value = _own_scalar(value)
    if isinstance(value, str) and float in option.kinds:
        with contextlib.suppress(ValueError):
            return float(value)
    if isinstance(value, str) and is_named:
        check_text(value, option.flag)
        if option.facts.reads or option.facts.writes:
            path = user_path(value, option.flag)
            # As a path, hf:NAME or an address would be written otherwise.
            return path if Path in option.kinds else str(path) if value.startswith("~") else value
    return value


def given_options(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Options given by name, in a Python call or on the command line: known, as declared, and checked."""
    every = options_of(kind)
    for name in values:
        if name not in every:
            raise UserError(f"unknown option {shown(name)}{near_option(name, kind)}")
    found = {name: converted(every[name], value) for name, value in values.items()}
    for name, value in found.items():
        if every[name].facts.function and callable(value):
            found[name] = text_of(value, flag(name))
        check_value(every[name], found[name])
    return found


def in_python(option: Option) -> str:
    """What a Python call takes for an option beside text, as a sentence; empty where that is nothing."""
    also = (
        _OBJECTS[option.facts.reads] if option.facts.objects else "the function itself" if option.facts.function else ""
    )
    return also and f"In Python also {also}."


def near_option(name: str, kind: type[Any]) -> str:
    """The hint to append to an unknown option: the near ones, else where all of them, which are many, are listed."""
    return near_only(name[:80], options_of(kind)) or "; the options are those of --help, with _ for -"


def _is_object(option: Option, value: Any) -> bool:
    """Whether a Python call gave an object, such as a data set, where text is usual."""
    if option.facts.python:
        return True  # checked where its kind is known
    # A loader gives no items; what to give in its place is said where data is opened.
    like = ("forward",) if option.facts.reads == "network" else ("__getitem__", "dataset")
    known = any(hasattr(value, name) for name in like)
    return option.facts.objects and known and not isinstance(value, str | bytes | bytearray | type)


def _check_kind(option: Option, value: Any) -> None:
    """Refuse a value, from a file of options or a Python call, of another kind than declared."""
    # Of classes derived from these YAML writes none, and True is no whole number.
    fits = type(value) in option.kinds or (Path in option.kinds and isinstance(value, Path))
    fits = fits or (type(value) is str and value in option.literals)
    fits = fits or (option.is_size and type(value) is tuple and len(value) == 2 and all(type(x) is int for x in value))
    if option.kinds and not fits and not (float in option.kinds and type(value) is int):
        kinds = {Path} if option.facts.reads else option.kinds
        wanted = _kinds(option, kinds)
        objects = f"; or give {_OBJECTS[option.facts.reads]}" if option.facts.objects else ""
        raise UserError(f"{option.flag} {shown(value)}: must be {wanted}{objects}")


def _kinds(option: Option, kinds: Collection[type[Any]]) -> str:
    """What an option takes of these kinds, in words."""
    words = [words for kind, words in _KINDS.items() if kind in kinds]
    return " or ".join([*words, *(["two, height and width"] if option.is_size else ()), *option.literals])


def _check_limits(option: Option, value: Any) -> None:
    """Refuse a number that is not finite, whatever it is for, or is outside its limits."""
    facts = option.facts
    for number in value if isinstance(value, tuple) and option.is_size else (value,):
        if not isinstance(number, int | float) or isinstance(number, bool):
            return
        inside = facts.low < number < facts.high if facts.open else facts.low <= number <= facts.high
        if not inside or abs(number) == float("inf"):  # so written, NaN is refused too
            given = as_given(value) if option.is_size else shown(value)
            raise UserError(f"{option.flag} {given}: must be {option.limits or 'a finite number'}")


def _own_scalar(value: Any) -> Any:
    """A scalar as Python's own: of NumPy, or of a class that derives from int, float or str; anything else as it is."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    for kind in (int, float, str):
        if isinstance(value, kind) and not isinstance(value, bool):
            # An enumeration's own __str__ may give its name.
            return value if type(value) is kind else str.__str__(value) if isinstance(value, str) else kind(value)
    return value
