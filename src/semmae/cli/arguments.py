"""Arguments of a verb → its options; what is wrong with them is told in one line, in our words.

The options' one declaration is read: an argument becomes the value of a field, and goes on by the door of the Python
call. Every option is given once and takes one value, but for those that are on or off.
"""

import dataclasses
import difflib
import typing
from functools import partial
from typing import Any

from semmae.errors import UserError
from semmae.files import shown
from semmae.presets import preset_options
from semmae.progress import say
from semmae.verbs.options import as_kwargs, flag, from_text, kinds

# The verbs whose only required option needs no name: `semmae report RUN`; and what to call it.
_POSITIONAL = {"report": ("run", "the folder of a run")}
# As others call it → ours, the first that the verb has.
_SYNONYMS = {
    ("gpus", "num-gpus", "n-gpus", "ngpus"): ("devices",),
    ("num-nodes", "nnodes"): ("nodes",),
    ("num-workers", "n-workers", "j", "jobs", "threads"): ("workers",),
    ("lr", "learning-rate", "base-lr"): ("blr", "lr"),
    ("blr",): ("lr",),
    ("min-learning-rate",): ("min-lr",),
    ("wd",): ("weight-decay",),
    ("warmup", "warmup-epochs", "warmup-steps"): ("warmup-share",),
    ("arch", "architecture", "backbone", "net"): ("model", "encoder", "autoencoder"),
    ("model",): ("encoder", "autoencoder", "teacher"),
    ("ckpt", "checkpoint", "checkpoint-path", "weights", "pretrained", "pretrained-weights"): (
        *("encoder", "autoencoder", "teacher", "init"),
    ),
    ("encoder",): ("autoencoder", "teacher", "init"),
    ("finetune", "init-from"): ("init", "encoder"),
    ("o", "output", "output-dir", "output-path", "outdir", "out-dir", "save-dir", "save-path", "log-dir"): ("out",),
    ("b", "bs", "batch", "batchsize", "batch-size-per-gpu"): ("batch-size",),
    ("dataset", "data-path", "data-dir", "data-root", "datasets", "images", "image-dir", "root", "input"): ("data",),
    ("num-epochs", "max-epochs", "n-epochs"): ("epochs",),
    ("img-size", "input-size", "resolution", "imgsz", "size"): ("image-size",),
    ("amp", "fp16", "bf16"): ("precision",),
    ("accum-iter", "grad-accum", "gradient-accumulation-steps", "accumulate-grad-batches"): ("accumulate",),
    ("max-samples", "num-samples", "num-images", "subset"): ("limit",),
    ("nb-knn", "neighbours", "neighbors", "topk"): ("k",),
    ("clip-grad", "grad-clip", "max-norm"): ("clip",),
    ("val-split", "test-split"): ("val-share",),
    ("force", "f"): ("overwrite",),
    ("format",): ("to",),
    ("random-seed",): ("seed",),
    ("cfg", "config-file"): ("config",),
    ("recipe",): ("preset",),
}


def parse(verb: str, kind: type[Any], description: str, arguments: list[str]) -> Any:
    """Arguments of a verb → its options; None when help was asked for and printed.

    Raises:
        UserError: an unknown option, a value of the wrong kind, a missing option.
    """
    if {"-h", "--help"} & set(arguments):
        from semmae.cli.help import help_text

        say(help_text(verb, kind, description))
        return None
    # A resumed run reads its own config.yaml: nothing but --out has to be given again.
    values = as_kwargs(read_arguments(verb, kind, arguments), kind, partial(preset_options, verb))
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    missing = [flag(name) for name in required if name not in values]
    if missing:
        wanted = _POSITIONAL[verb][1] if verb in _POSITIONAL else " and ".join(missing)
        raise UserError(f"{verb} needs {wanted}; see semmae {verb} --help")
    return kind(**values)


def read_arguments(verb: str, kind: type[Any], arguments: list[str]) -> dict[str, Any]:
    """The options that arguments give, by name; numbers are numbers, the rest is text.

    Raises:
        UserError: an unknown option, one given twice or without its value, no number where one is declared, or a
            word that belongs to no option.
    """
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    stray: list[str] = []
    words = arguments[::-1]
    last = before = ""  # option; that which the first stray word follows
    while words:
        word = words.pop()
        if not _is_option(word):
            before = before if stray else last
            stray.append(word)
            continue
        text, equals, attached = word.partition("=")
        name, on = find_option(verb, hints, text)
        if name in given:
            raise UserError(f"{flag(name)} is given twice; give it once")
        last = name
        if kinds(hints[name]) == (bool,):
            if equals:
                raise UserError(f"{shown(word)}: {flag(name)} takes no value; {flag('no-' + name)} is its contrary")
            given[name] = on
            continue
        if not equals and (not words or _is_option(words[-1])):
            raise UserError(f"{flag(name)}: no value follows; one that begins with a dash is written {flag(name)}=-…")
        given[name] = from_text(name, attached if equals else words.pop(), hints[name])
    if verb in _POSITIONAL and stray and _POSITIONAL[verb][0] not in given:
        given[_POSITIONAL[verb][0]] = stray.pop(0)
    if stray:
        raise UserError(_unexpected(verb, kind, given, before, stray))
    return given


def find_option(verb: str, hints: dict[str, Any], text: str) -> tuple[str, bool]:
    """The field that an option on the command line means, and whether it is on: False for `--no-…`.

    Args:
        verb: of the command.
        hints: type of each field of the verb's options.
        text: the option, dashes and all, without a value.

    Raises:
        UserError: there is no such option; the near ones are named.
    """
    name = text.lstrip("-").replace("-", "_")
    if text.startswith("--") and name in hints:
        return name, True
    contrary = name.removeprefix("no_")
    if text.startswith("--no") and contrary in hints and kinds(hints[contrary]) == (bool,):
        return contrary, False
    near_ones = " or ".join(_near_options(hints, name.replace("_", "-").lower()))
    hint = f"did you mean {near_ones}?" if near_ones else f"see semmae {verb} --help"
    raise UserError(f"unknown option {text if len(text) <= 40 else shown(text)}; {hint}")


def _near_options(hints: dict[str, Any], text: str) -> list[str]:
    """The options that may be meant: what others call so, else those spelled alike."""
    known = [name.replace("_", "-") for name in hints]
    meant = next((ours for theirs, ours in _SYNONYMS.items() if text in theirs), ())
    found = [name for name in meant if name in known][:1]
    if text in known:  # with one dash
        found = [text]
    # Without the dashes, which make all options alike; a verb has too many to list them all.
    known += [f"no-{name.replace('_', '-')}" for name in hints if kinds(hints[name]) == (bool,)]
    found = found or difflib.get_close_matches(text[:80], known, n=3, cutoff=0.6)
    return [f"--{name}" for name in found]


def _is_option(word: str) -> bool:
    """Whether a word is an option, and no value such as -1 or -inf."""
    if not word.startswith("-") or word == "-":
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def _unexpected(verb: str, kind: type[Any], given: dict[str, Any], before: str, stray: list[str]) -> str:
    """Words that belong to no option, and where they may belong."""
    word = shown(stray[0]) if len(stray[0]) > 40 or not stray[0] else stray[0]
    more = f" and {len(stray) - 1} more" if len(stray) > 1 else ""
    told = f"{word}{more}: not the value of any option; "
    needed = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    places = [name for name in ("data", "encoder", "autoencoder", "out") if name in needed and name not in given]
    if before and isinstance(given[before], bool):
        return f"{told}{flag(before)} takes no value, see semmae {verb} --help"
    if more and before:
        return f"{told}an option takes one value, so quote a pattern, as in {flag(before)} 'photos/*.jpg'"
    if places:
        return f"{told}did you mean {flag(places[0])} {word}?"
    return f"{told}see semmae {verb} --help"
