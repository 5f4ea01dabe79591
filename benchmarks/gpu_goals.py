"""What `gpu_check.py` wants of what it finds, and how it ends: goals are met, missed, or open as nothing shows them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

IMAGES_PER_S, FASTER, FED = 4500, 1.5, 0.9  # of ViT-B/16 on one H100; than each peer; share with packed shards
ALL_DONE, UNFINISHED, MISSED = 0, 1, 3  # how the script ends; 2 is what argparse says of its arguments

Line = dict[str, Any]
Lines = dict[str, list[Line]]  # what each section has found


@dataclass(frozen=True)
class Goal:
    """A figure that a section finds, and its limit."""

    name: str
    section: str
    found: Callable[[Lines], float | None]  # None: it was not measured
    limit: float
    most: bool = False  # no figure may lie above the limit, of all that the section is to find; else one must reach it
    right: bool = False  # a question of right or wrong, not of speed: judged on every machine, at tiny sizes too

    def judged(self, lines: Lines, big: bool) -> Line:
        """As a line; `big`: measured on a GPU, at its sizes."""
        found = self.found(lines)
        verdict = "open"
        if found is not None and (big or self.right):
            enough = found <= self.limit if self.most else found >= self.limit  # no number is never enough
            verdict = "met" if enough else "missed"
        if verdict == "met" and self.most and state_of(lines, self.section) != "done":
            verdict = "open"  # what was not looked at may lie above
        wanted = f"{'at most' if self.most else 'at least'} {self.limit}"
        return {"goal": self.name, "of": self.section, "found": found, "wanted": wanted, "verdict": verdict}


def found_in(lines: Lines, section: str) -> list[Line]:
    """Figures of a section."""
    return [line for line in lines.get(section, []) if "state" not in line]


def state_of(lines: Lines, section: str) -> str | None:
    """How a section ended: "done", "failed", "stopped" or "skipped"; None where it was not asked for."""
    states = [line["state"] for line in lines.get(section, []) if "state" in line]
    return str(states[-1]).partition(":")[0] if states else None


def _worst(section: str, name: str, **which: object) -> Callable[[Lines], float | None]:
    """The highest of these figures; no number if one is none."""

    def found(lines: Lines) -> float | None:
        figures = [
            float(line[name])
            for line in found_in(lines, section)
            if name in line and all(line.get(key) == value for key, value in which.items())
        ]
        return None if not figures else next((each for each in figures if math.isnan(each)), max(figures))

    return found


def _rates(lines: Lines) -> dict[int, float]:
    """Images a second of ViT-B, compiled, as it is by default, by the batch; 0 of one that memory did not hold."""
    base = [line for line in found_in(lines, "steps") if line["model"] == "vit_base" and line["compiled"]]
    return {line["batch"]: line["images_per_s"] for line in base if not line.get("bf16_residual")}


def _best(lines: Lines) -> float | None:
    return max(_rates(lines).values(), default=None)


def _waited(lines: Lines) -> float | None:
    waits = [line["waits"] for line in found_in(lines, "waits") if line["task"].startswith("pretrain")]
    return None if not waits or None in waits else sum(waits)


def _fed(lines: Lines) -> float | None:
    """By the command, of what steps of the same batch make without a loader."""
    line: Line = next((line for line in found_in(lines, "command") if "images_per_s" in line), {})
    alone = _rates(lines).get(line.get("batch", 0), 0.0)
    return round(line["images_per_s"] / alone, 3) if alone > 0 else None


def _faster(peer: str) -> Callable[[Lines], float | None]:
    def found(lines: Lines) -> float | None:
        compiled = [line for line in found_in(lines, "peers") if line.get("compiled")]
        return next((line["ratios"][peer] for line in compiled if peer in line["ratios"]), None)

    return found


def _full(section: str) -> Callable[[Lines], float | None]:
    """How often memory was too small."""

    def found(lines: Lines) -> float | None:
        figures = found_in(lines, section)
        return sum("fault" in line for line in figures) if figures else None

    return found


def _alike(lines: Lines) -> float | None:
    alike = [line["same"] for line in found_in(lines, "labelling") if line["precision"] == "float32"]
    return min(alike, default=None)


def _known(lines: Lines) -> float | None:
    return min((line["top1"] for line in found_in(lines, "neighbours")), default=None)


_APART = "losses here and on the CPU, how far apart: "
GOALS = (
    Goal(_APART + "float32", "losses", _worst("losses", "apart", precision="float32"), 1e-4, most=True, right=True),
    Goal(_APART + "bf16", "losses", _worst("losses", "apart", precision="bf16"), 1e-2, most=True, right=True),
    Goal("waits for the device in steps of pretrain", "waits", _waited, 0, most=True, right=True),
    Goal("images/s of ViT-B/16, compiled", "steps", _best, IMAGES_PER_S),
    Goal("sizes of a step that memory is too small for", "steps", _full("steps"), 0, most=True),
    Goal("losses of a step alone and shared, how far apart", "sharing", _worst("sharing", "apart"), 1e-2, True, True),
    Goal("reports of a run lost, doubled or out of order by --resume", "command", _worst("command", "misplaced"), 0,
         most=True, right=True),
    Goal("of these images/s by the command, from packed shards", "command", _fed, FED),
    Goal("checkpointed steps that memory is too small for", "checkpointing", _full("checkpointing"), 0, most=True),
    Goal("part labels that are those of the CPU, float32", "labelling", _alike, 0.95, right=True),
    Goal("images/100 whose class the nearest neighbours know", "neighbours", _known, 99),
    *(Goal(f"times as fast as {peer}, both compiled", "peers", _faster(peer), FASTER)
      for peer in ("transformers", "lightly")),
)  # fmt: skip


def goals(lines: Lines, big: bool) -> Iterator[Line]:
    """What was wanted, what was found, and whether that is enough; speed is open unless `big`."""
    for goal in GOALS:
        yield goal.judged(lines, big)


def ending(lines: Lines, big: bool) -> Line:
    """The last line: goals that were missed or stay open, sections that are not done, and the script's code.

    Sections that were not asked for have no goals. A GPU at its own sizes has to show all of the others'.
    """
    asked = [goal for goal in lines.get("goals", []) if state_of(lines, goal["of"]) is not None]
    named = {word: [goal["goal"] for goal in asked if goal["verdict"] == word] for word in ("missed", "open")}
    for word in ("failed", "stopped", "skipped"):
        named[word] = [section for section in lines if state_of(lines, section) == word]
    unfinished = any(named[word] for word in ("failed", "stopped", "skipped")) or (big and bool(named["open"]))
    return {"tiny": not big, **named, "code": MISSED if named["missed"] else UNFINISHED if unfinished else ALL_DONE}
