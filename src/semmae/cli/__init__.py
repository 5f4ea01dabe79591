"""The command `semmae VERB`: arguments → options → the verb, and errors → one line and an exit code.

Exit codes: 0; 2 for what the user must mend, 1 for a fault of the machine (disk, memory), each in one line; 130
after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1; 1, with a traceback, for our own faults.

The libraries of networks take seconds to import: only a verb whose options were checked does, so that help and
mistakes are answered at once, and Ctrl-C meanwhile is no traceback.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from semmae import __version__
from semmae.cli.faults import machine_fault
from semmae.errors import UserError, message, near
from semmae.names import shown
from semmae.options import VERBS, kind_of
from semmae.progress import ESCAPED, LogFormatter, say, silence, write
from semmae.run.ranks import is_rank_zero
from semmae.run.signals import Interrupted, stoppable
from semmae.shell import command


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    console = _Console()
    console.setLevel(logging.INFO)
    console.setFormatter(LogFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[console])
    logging.getLogger("semmae").setLevel(logging.DEBUG)  # train.log holds more than the console shows
    code = run(arguments)
    for stream in (sys.stdout, sys.stderr):  # what libraries have printed there
        try:
            stream.flush()
        except (OSError, ValueError):
            silence(stream)
    sys.exit(code)


class _Console(logging.StreamHandler[Any]):
    """stderr; where nobody reads it any more, silence."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called within the `except` of what could not be shown."""
        if isinstance(sys.exc_info()[1], OSError | ValueError):
            silence(self.stream)
        else:
            super().handleError(record)


def _open_streams() -> None:
    """Standard streams that take every text: any encoding, and also where they were closed before Python began.

    Left closed, their numbers would go to the next files that are opened, and what libraries print into these.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # takes the lowest free number: its own
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where it has been replaced
            stream.reconfigure(errors=ESCAPED)


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        return _run(arguments)
    except UserError as error:
        return _ended(message(error), 2)
    except KeyboardInterrupt:
        return _stopped("nothing was written")
    except Exception as error:
        fault = machine_fault(error)
        if fault is None:
            raise
        return _ended(fault, 1)


def _run(arguments: list[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb == "help" and rest:
        verb, rest = rest[0], ["--help"]
    if verb in ("-h", "--help", "help"):
        say(overview())
        return 0
    if verb in ("-V", "--version"):
        say(f"semmae {__version__}")
        return 0
    if verb.startswith("-"):
        raise UserError(f"{shown(verb)}: the verb comes first, as in semmae pretrain --help; see semmae --help")
    if verb not in VERBS:
        raise UserError(f"unknown verb {shown(verb)}{near(verb[:80], VERBS)}")
    return _run_verb(verb, rest)


def _run_verb(verb: str, arguments: list[str]) -> int:
    from semmae.cli.arguments import parse

    parsed = parse(kind_of(verb), arguments)
    if parsed is None:
        return 0
    options, given = parsed
    out = getattr(options, "out", None)

    def stopped(signum: int) -> int:
        from semmae.run.config import is_begun

        again = command(verb, out=out, resume=True, part=getattr(options, "part", None))
        return _stopped(f"resume with: {again}" if is_begun(out) else "nothing was written", signum)

    try:
        with stoppable(stopped):
            from semmae.verbs import run_verb

            run_verb(options, given)
    except (Interrupted, KeyboardInterrupt) as stop:
        return stopped(getattr(stop, "signum", signal.SIGINT))
    return 0


def _ended(line: str, code: int) -> int:
    write(sys.stderr, f"semmae: {line}\n")
    return code


def _stopped(remedy: str, signum: int = signal.SIGINT) -> int:
    """Say that Ctrl-C, or another signal, stopped the run, and how to resume; returns the exit code."""
    if is_rank_zero():
        write(sys.stderr, f"\nsemmae: stopped; {remedy}\n")
    return 128 + signum


def overview() -> str:
    """The text of `semmae --help`."""
    verbs = "\n".join(f"  {verb:12}{row.help}" for verb, row in VERBS.items())
    return (
        "usage: semmae VERB [options]\n\n"
        "Semantic-guided masking for masked autoencoders: from a folder of images to a ViT encoder.\n\n"
        f"{verbs}\n\n"
        "semmae VERB --help lists the options of a verb; semmae demo --out DIR shows the whole way."
    )
