"""One file a verb: top to bottom what it does. How every verb begins and ends stands here.

Notable here:
- a verb that writes the folder of a run is called with `out` its own: locked, new or the one to resume;
- its last lines are shown when everything is written and the run is marked as finished: a reader that closes the pipe
  costs nothing;
- a finished run that is asked for again says the same, and computes nothing.
"""

import importlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from semmae.files import guarded
from semmae.options.fields import verb_of
from semmae.options.shared import Batching, RunOptions
from semmae.progress import say
from semmae.run.finished import is_done
from semmae.run.folder import claimed
from semmae.run.ranks import is_rank_zero, sharing
from semmae.run.start import check_start, writes_run


def run_verb(options: Any, given: Iterable[str] = ()) -> Path:
    """Check options, then import their verb and run it; returns the folder or the file that it wrote.

    Options named in `given`, which the user gave, are refused where they have no effect.
    """
    check_start(options, given)
    if writes_run(options):
        return _in_folder(options)
    return _verb(options)(options)


def _verb(options: Any) -> Callable[[Any], Path]:
    verb = verb_of(type(options))
    function: Callable[[Any], Path] = getattr(importlib.import_module(f"semmae.verbs.{verb}"), verb)
    return function


def _in_folder(options: RunOptions) -> Path:
    """Run a verb that writes the folder of a run, and show its last lines."""
    done = is_done(options)
    if not done:
        # Other processes may be here before the first one has made the folder; they write nothing there.
        with ExitStack() as stack:
            own = stack.enter_context(claimed(options))
            if is_rank_zero():
                stack.enter_context(guarded(own.out))
            if isinstance(own, Batching):
                stack.enter_context(sharing(own.out, own.nodes, own.devices))
            _verb(own)(own)
    from semmae.reporting.ending import end, ending  # not above: it imports what pages need

    if not done:
        end(options.out)
    elif is_rank_zero():
        note = f"{options.out}: already finished; nothing was computed (--overwrite begins it anew)"
        say(f"{note}\n\n{ending(options.out)}")
    return options.out
