"""The command `semmae VERB`: arguments → options → the verb, and errors → one line and an exit code.

Exit codes: 0; 2 for what the user must mend, told in one line; 130 after Ctrl-C, 143 after SIGTERM; 1, with a
traceback, for our own faults.

The networks' libraries take seconds to import: only `_run_verb` does, so that `--help` and an unknown verb are
answered at once, and Ctrl-C meanwhile is no traceback.
"""

import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from semmae import VERBS, __version__, load_verb
from semmae.errors import UserError, near


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = logging.StreamHandler()
    console.setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[console])
    logging.getLogger("semmae").setLevel(logging.DEBUG)  # train.log tells more than the console
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    verb = arguments[0] if arguments else "--help"
    try:
        if verb in ("-h", "--help", "help"):
            print(overview())
            return 0
        if verb == "--version":
            print(f"semmae {__version__}")
            return 0
        if verb not in VERBS:
            raise UserError(f"unknown verb {verb!r}{near(verb, VERBS)}")
        return _run_verb(verb, arguments[1:])
    except UserError as error:
        print(f"semmae: {_last_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _stopped("nothing was written")


def _last_line(error: UserError) -> str:
    """The message itself, also where a loader's worker has wrapped it in its traceback."""
    return str(error).strip().splitlines()[-1].removeprefix("semmae.errors.UserError: ")


def _run_verb(verb: str, arguments: list[str]) -> int:
    kind, function = load_verb(verb)
    from semmae.cli.arguments import parse
    from semmae.commands.options import run_of
    from semmae.tasks.stopping import Interrupted

    options = parse(verb, kind, function.__doc__ or "", arguments)
    if options is None:
        return 0
    try:
        function(options)
    except (Interrupted, KeyboardInterrupt) as stop:
        out = getattr(options, "out", None)
        begun = out is not None and (run_of(out) / "config.yaml").is_file()
        again = f"semmae {verb} --out {shlex.quote(str(out))} --resume"
        remedy = f"go on with: {again}" if begun else "nothing was written"
        return _stopped(remedy, getattr(stop, "signum", signal.SIGINT))
    return 0


def _stopped(remedy: str, signum: int = signal.SIGINT) -> int:
    """Tell that Ctrl-C, or another signal, stopped the run, and how to go on; returns the exit code."""
    print(f"\nsemmae: stopped; {remedy}", file=sys.stderr)
    return 128 + signum


def overview() -> str:
    """The text of `semmae --help`."""
    verbs = "\n".join(f"  {verb:12}{text}" for verb, text in VERBS.items())
    return (
        "usage: semmae VERB [options]\n\n"
        "Semantic-guided masking for masked autoencoders: from a folder of images to a ViT encoder.\n\n"
        f"{verbs}\n\n"
        "semmae VERB --help tells the options of a verb; semmae demo --out DIR shows the whole way."
    )
