"""Attacks, replayed through the command itself: `make attacks`, under two minutes.

Everything that once lost data, misled in silence or ended in a traceback is tried again, on inputs that are made here:
each attack is handled rightly, or is listed and the exit code is 1. The tests prove the same of single functions, on
more inputs; the tables of attacks are theirs.

What "refused" means is the same for all: exit code 2, one line that names the value, within seconds, and no file of
the user's is touched, none is left behind.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

_CACHES = tempfile.TemporaryDirectory(prefix="semmae-attacks-cache-", ignore_cleanup_errors=True)
os.environ |= {"SEMMAE_CACHE": _CACHES.name, "HF_HOME": _CACHES.name, "HF_HUB_OFFLINE": "1"}  # read when imported

import torch  # noqa: E402

from attacks import endless, foreign, lost, wrong  # noqa: E402, F401  # each adds its own to the list
from attacks.desk import ATTACKS, Desk  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="sections to replay, such as A2 C")
    only = tuple(parser.parse_args().only)
    chosen = sorted((one for one in ATTACKS if not only or one.section.startswith(only)), key=lambda one: one.section)
    torch.set_num_threads(1)
    began, tried, held, failed = time.monotonic(), Counter[str](), Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="semmae-attacks-") as folder:
        desk = Desk(Path(folder) / "desk")
        for one in chosen:
            started, count = time.monotonic(), 1
            with contextlib.chdir(desk.root):
                try:
                    count = one.work(desk) or 1
                    held[one.section] += count
                except Exception:
                    failed.append(f"{one.section} {one.name}\n{traceback.format_exc(limit=-3)}")
            tried[one.section] += count
            if time.monotonic() - started > 5:
                print(f"{one.section} {one.name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    print("\n".join(failed), end="")
    print(" ".join(f"{section} {held[section]}/{count}" for section, count in tried.items()))
    print(f"{sum(held.values())} of {sum(tried.values())} attacks handled, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
