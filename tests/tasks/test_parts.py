"""Stage 1: the numbers of a run of a few steps."""

from pathlib import Path

import tiny

# A fixed seed on a CPU. A refactor leaves them as they are; an intended change says why beside the new ones.
# Agreement, its second view and its changes of colour came after the first release of these numbers.
GOLDEN = [0.93197221, 1.09500432, 0.80933177, 0.68447119, 0.46832073]


def test_the_first_losses_are_golden(whole_run: Path) -> None:
    tiny.assert_golden(whole_run / "parts", GOLDEN)
