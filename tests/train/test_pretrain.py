"""Stage 2: the numbers of a run of a few steps."""

from pathlib import Path

import tiny

# A fixed seed on a CPU. A refactor leaves them as they are; an intended change says why beside the new ones.
# They change with the parts that the masks follow, and so with the teacher that these are learned from.
# Last changed with the teacher, whose views are coloured on the device.
GOLDEN = [1.65785789, 1.64708757, 1.63349128, 1.67913342, 1.66523242]


def test_the_first_losses_are_golden(whole_run: Path) -> None:
    tiny.assert_golden(whole_run, GOLDEN)
