"""What a refusal is, wherever it is made: one line that names the facts and what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from semmae.errors import UserError

# Behind what is wrong stands what to do; a limit, or the names that are known, says it by itself.
_REMEDY = re.compile(r"; |must be |\(known: ")


def check_refusal(line: str, *facts: object) -> None:
    """One short line with a remedy and every fact: the option, its value, the limit, the file, what it takes."""
    assert len(line.splitlines()) == 1 and len(line) < 500 and _REMEDY.search(line), line
    assert [fact for fact in map(str, facts) if fact not in line] == [], line


@contextmanager
def refused(
    *facts: object, error: type[BaseException] | tuple[type[BaseException], ...] = UserError
) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """What is done inside is refused by a line with all facts."""
    with pytest.raises(error) as raised:
        yield raised
    check_refusal(str(raised.value), *facts)
