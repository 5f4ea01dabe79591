"""config.yaml: the options that a run was begun with, and its verb; by it a run is resumed, and known again.

Some defaults stand for what is found when a run begins (`becomes`): --teacher auto is the public encoder where that is
to be had, else one trained here. config.yaml holds what it became, never the word, and the rule of a resumed run is:
- by --resume, and by the same command again, it keeps what it became, whatever is to be had by then;
- what it became can be given in words too, and is then the same; anything else is refused, as of any option;
- where it can no longer be had, the run stops in a line that says so: nothing takes its place.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semmae.errors import UserError
from semmae.files import Fields
from semmae.names import shown
from semmae.objects import described, recordable
from semmae.options import VERBS
from semmae.options.fields import Option, flag, is_given, options_of, verb_of, with_facts
from semmae.options.presets import preset_options
from semmae.options.values import as_given, check_value, converted, given_options, near_option

CONFIG = "config.yaml"
UNFINISHED = ".unfinished"  # lies in a run's folder from its beginning to its good end
PARTIAL = ".partial"  # ends the name of the folder that a verb works in until the file --out is whole
_OBJECT = "object"  # of Python, in place of which its description is kept


def continues(options: Any) -> bool:
    """Whether these options mean the run that is already in --out."""
    return any(getattr(options, name) for name in with_facts(type(options), continues=True))


def to_yaml(options: Any) -> str:
    """A verb and its options as YAML that `read_config` reads; how to begin is not part of it."""
    from semmae.files.yaml import as_yaml

    return as_yaml(kept_values(options))


def kept_values(options: Any) -> dict[str, Any]:
    """A verb and its options as plain values; how to begin is not part of it."""
    every = options_of(type(options)).items()
    kept = {name: _plain(option, getattr(options, name)) for name, option in every if not option.facts.control}
    return {"verb": verb_of(type(options)), **kept}


def _plain(option: Option, value: Any) -> Any:
    """A value as config.yaml holds it; in place of an object of Python, its description under a name of its own."""
    if option.facts.objects and value is not None and not is_object(value):
        plain = recordable(value)
        return {_OBJECT: described(value)} if plain is None else plain
    if isinstance(value, tuple) and option.is_size:
        return list(value)
    return str(value) if isinstance(value, Path) else value


def is_object(saved: Any) -> bool:
    """Whether this value of a config.yaml stands for an object of Python, which no file can hold."""
    return isinstance(saved, Mapping) and saved.keys() == {_OBJECT}


def readable_value(saved: Any) -> Any:
    """A value of a config.yaml as people read it: an object as what it was, such as "ImageFolder of 300 images"."""
    return str(saved[_OBJECT]) if is_object(saved) else saved


def saved_options(run: Path) -> Mapping[str, Any]:
    """What a run's config.yaml holds, the verb under "verb"; nothing where there is no such file, or not yet."""
    path = run / CONFIG
    if not path.is_file() or not path.stat().st_size:
        return {}
    from semmae.files.yaml import read_yaml  # here, because most mistakes are answered without

    saved = read_yaml(path)
    Fields(path, saved).get("verb", str)
    return saved


def verb_of_run(folder: Path) -> str | None:
    """The verb whose run lies in a folder; None where none does, whatever others call config.yaml."""
    try:
        verb = saved_options(folder).get("verb")
    except UserError:
        return None
    return str(verb) if verb in VERBS else None


def read_config(path: Path, kind: type[Any]) -> dict[str, Any]:
    """Options of a YAML file, for the dataclass `kind`.

    UserError where it is of another verb, or a key is no option, or one that is given beside the file, or the option
    does not take its value.
    """
    from semmae.files.yaml import read_yaml

    values = read_yaml(path)
    verb = values.pop("verb", verb_of(kind))
    if verb != verb_of(kind):
        raise UserError(f"{path}: options of semmae {verb}, not of {verb_of(kind)}; give a file of this verb's")
    every = options_of(kind)
    for name in values:
        if name not in every:
            raise UserError(f"{path}: unknown option {shown(name)}{near_option(name, kind)}")
        if every[name].facts.control:
            raise UserError(f"{path}: {name} says how to begin, not what to do; leave it out there, and give it beside")
    try:
        found = {name: converted(every[name], value) for name, value in values.items()}
        for name, value in found.items():
            if not (every[name].facts.objects and is_object(value)):
                check_value(every[name], value)
        preset_options(verb, found.get("preset"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return found


def with_defaults(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options given, over those of --config or of the run to resume, over those of a preset.

    Where no run is to resume, stand-ins take the place of required options, so that `check_resumed` can say what is
    wrong. UserError where the run was begun with an object of Python, which is not given again.
    """
    saved: dict[str, Any] = {}
    if given.get("config"):
        saved = _read_given(Path(given["config"]), kind)
    elif any(map(given.get, with_facts(kind, continues=True))):
        saved = _saved_for(kind, given)
    recipe = preset_options(verb_of(kind), given.get("preset") or saved.get("preset"))
    own = {name: value for name, value in recipe.items() if name in options_of(kind)}  # not what the verb has dropped
    found = {**own, **saved, **given}
    for name in with_facts(kind, objects=True):
        if is_object(found.get(name)):
            fault = f"the run was begun from Python with {readable_value(found[name])}, which no file can hold"
            if "config" in saved:
                raise UserError(f"--config {saved['config']}: {fault}; give {flag(name)} beside it")
            raise UserError(f"{flag(name)}: {fault}; resume it from Python, with {name}= given again")
    return found


def _read_given(path: Path, kind: type[Any]) -> dict[str, Any]:
    try:
        return read_config(path, kind) | {"config": path}
    except UserError as error:
        raise UserError(f"--config {error}") from error


def _saved_for(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    out = given.get("out")
    path = run_of(out or "") / CONFIG
    if out and path.is_file():
        return {name: value for name, value in read_config(path, kind).items() if name != "out"}
    return {name: "" for name, option in options_of(kind).items() if option.is_required and name != "out"}


def made(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """The options of a verb: those given by name, over those of `with_defaults`."""
    found = with_defaults(kind, given_options(kind, values))
    required = (option for name, option in options_of(kind).items() if option.is_required and name not in found)
    missing = [option.facts.positional or option.flag for option in required]
    if missing:
        verb = verb_of(kind)
        raise UserError(f"{verb} needs {' and '.join(missing)}; see semmae {verb} --help")
    return kind(**found)


def check_resumed(options: Any) -> None:
    """Refuse to resume what is no run, or one that was begun with other options."""
    path = Path(options.out) / CONFIG
    if not path.is_file():
        asked = next(flag(name) for name in with_facts(type(options), continues=True) if getattr(options, name))
        raise UserError(f"{options.out}: no run to resume (no config.yaml); start it without {asked}")
    changed = _changed_since(options, path, ("more", "free"))
    if changed:
        name, was = changed
        now = _plain(options_of(type(options))[name], getattr(options, name))
        raise UserError(
            f"{flag(name)} {as_given(readable_value(now))}: the run in {options.out} began with "
            f"{as_given(readable_value(was))}; leave it out, or use another --out"
        )


def began_alike(options: Any, *, leaves_the_same: bool = False) -> bool:
    """Whether the run in `options.out` was begun with options under which it may be resumed.

    With `leaves_the_same`: with options that leave the same files in the folder, which nobody knows of objects: two
    data sets may have one description.
    """
    path = Path(options.out) / CONFIG
    if not path.is_file():
        return False
    try:
        if leaves_the_same and any(map(is_object, saved_options(path.parent).values())):
            return False
        return _changed_since(options, path, ("free",) if leaves_the_same else ("more", "free")) is None
    except UserError:
        return False  # of another verb, or not written by one


def what_became(options: Any) -> dict[str, Any]:
    """What the options that are words such as --teacher auto became when the run in `options.out` began, by name."""
    return _became(options, saved_options(options.out))


def _became(options: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    words = (option for option in options_of(type(options)).values() if option.is_word(saved.get(option.name)))
    return {word.name: saved[word.name] for word in words if not is_given(options, word.name)}


def _changed_since(options: Any, path: Path, may_differ: tuple[str, ...]) -> tuple[str, Any] | None:
    """The first option that differs from those in a config.yaml in a way that matters, and what it was there."""
    saved = read_config(path, type(options))
    kept = _became(options, saved)
    labelling = any(getattr(options, name, False) for name in ("labels_only", "quality_only"))
    for name, option in options_of(type(options)).items():
        if option.facts.on_resume in may_differ or (labelling and option.facts.group == "labelling"):
            continue  # labels are the same from any number of processes; training is not
        if name in kept:
            continue
        was = saved.get(name, option.default)
        if _plain(option, getattr(options, name)) != _plain(option, was):
            return name, was
    return None


def is_begun(out: Path | str | None) -> bool:
    """Whether a run was begun in `out`, or for the file `out`, so that --resume continues it."""
    return out is not None and (run_of(out) / CONFIG).is_file()


def run_of(out: Path | str) -> Path:
    """The folder in which a run keeps its options: `out` itself, or beside it where a file is being written."""
    beside = Path(f"{out}{PARTIAL}")
    return beside if (beside / CONFIG).is_file() else Path(out)
