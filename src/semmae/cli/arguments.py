"""Arguments of a verb → its options; what is wrong with them is one line, in our words.

The options' one declaration is read: an argument becomes the value of a field, and goes on by the door of the Python
call. Every option is given once and takes one value, but for those that are on or off; a few take several words.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from semmae.errors import UserError
from semmae.names import shown
from semmae.options.fields import Option, command_options, flag, verb_of
from semmae.options.values import from_text
from semmae.progress import say

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


def parse(kind: type[Any], arguments: list[str]) -> tuple[Any, dict[str, Any]] | None:
    """Arguments of a verb → its options, and those of them that were given; None where help was asked for and shown."""
    if {"-h", "--help"} & set(arguments):
        from semmae.cli.help import help_text

        say(help_text(kind))
        return None
    from semmae.run.config import made

    # A resumed run reads its own config.yaml: nothing but --out has to be given again.
    given = read_arguments(kind, arguments)
    return made(kind, given), given


def read_arguments(kind: type[Any], arguments: list[str]) -> dict[str, Any]:
    """The options that arguments give, by name; numbers are numbers, the rest is text."""
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
        option, on = find_option(kind, text)
        if option.name in given:
            raise UserError(f"{option.flag} is given twice; give it once")
        last = option.name
        if option.is_switch:
            if equals:
                contrary = flag("no-" + option.name)
                raise UserError(f"{shown(word)}: {option.flag} takes no value; {contrary} is its contrary")
            given[option.name] = on
            continue
        if not equals and (not words or _is_option(words[-1])):
            raise UserError(f"{option.flag}: no value follows; one that begins with a dash is written {option.flag}=-…")
        text = attached if equals else words.pop()
        while not equals and words and _follows(option, text, words[-1]):
            text += f",{words.pop()}"
        given[option.name] = from_text(option, text)
    nameless = next((name for name, option in command_options(kind).items() if option.facts.positional), None)
    if nameless and stray and nameless not in given:
        given[nameless] = stray.pop(0)
    if stray:
        raise UserError(_unexpected(kind, given, before, stray))
    return given


def find_option(kind: type[Any], text: str) -> tuple[Option, bool]:
    """What an option on the command line means, and whether it is on: False for `--no-…`."""
    every = command_options(kind)
    name = text.lstrip("-").replace("-", "_")
    if text.startswith("--") and name in every:
        return every[name], True
    contrary = name.removeprefix("no_")
    if text.startswith("--no") and contrary in every and every[contrary].is_switch:
        return every[contrary], False
    near_ones = " or ".join(_near_options(every, name.replace("_", "-").lower()))
    hint = f"did you mean {near_ones}?" if near_ones else f"see semmae {verb_of(kind)} --help"
    raise UserError(f"unknown option {text if len(text) <= 40 else shown(text)}; {hint}")


def _near_options(every: Mapping[str, Option], text: str) -> list[str]:
    """The options that may be meant: what others call so, else those spelled alike."""
    known = [name.replace("_", "-") for name in every]
    meant = next((ours for theirs, ours in _SYNONYMS.items() if text in theirs), ())
    found = [name for name in meant if name in known][:1]
    if text in known:  # with one dash
        found = [text]
    # Without the dashes, which make all options alike; a verb has too many to list them all.
    known += [f"no-{name.replace('_', '-')}" for name, option in every.items() if option.is_switch]
    found = found or difflib.get_close_matches(text[:80], known, n=3, cutoff=0.6)
    return [f"--{name}" for name in found]


def _follows(option: Option, text: str, word: str) -> bool:
    """Whether a word is another value of an option behind those in `text`: the width of a size, or one of several."""
    if option.is_size:
        return "," not in text and word.isdecimal()
    return option.facts.several and not _is_option(word)


def _is_option(word: str) -> bool:
    """Whether a word is an option, and no value such as -1 or -inf."""
    if not word.startswith("-") or word == "-":
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def _unexpected(kind: type[Any], given: dict[str, Any], before: str, stray: list[str]) -> str:
    """Words that belong to no option, and where they may belong."""
    word = shown(stray[0]) if len(stray[0]) > 40 or not stray[0] else stray[0]
    more = f" and {len(stray) - 1} more" if len(stray) > 1 else ""
    fault = f"{word}{more}: not the value of any option; "
    every = command_options(kind)
    needed = [name for name in ("data", "encoder", "autoencoder", "out") if name in every and every[name].is_required]
    places = [name for name in needed if name not in given]
    if before and every[before].is_switch:
        return f"{fault}{flag(before)} takes no value, see semmae {verb_of(kind)} --help"
    if more and before:
        return f"{fault}an option takes one value, so quote a pattern, as in {flag(before)} 'photos/*.jpg'"
    if places:
        return f"{fault}did you mean {flag(places[0])} {word}?"
    return f"{fault}see semmae {verb_of(kind)} --help"
