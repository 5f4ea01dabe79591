"""The encoders that a run learned from, as its page and its model card name them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semmae.options.shared import AUTO_TEACHER, OWN_TEACHER, PUBLIC_TEACHER
from semmae.reporting.next_steps import input_of
from semmae.reporting.page import read_facts

_UNKNOWN = ""  # tokens were learned, but the part labels that their encoder is recorded beside are not there


def parts_teacher(store: Path) -> str | None:
    """What the part labels of a run were learned from; None where there are none, or it is not recorded.

    `store` is the folder of the labels, or of a run that has made them within it.
    """
    paths = (store / "parts.json", store / "parts" / "parts.json")  # in the order of `PartStore.open`
    return (read_facts(next(filter(Path.exists, paths), paths[0])).get("extra") or {}).get("teacher")


def tokens_teacher(run: Path, config: Mapping[str, Any]) -> str | None:
    """Whose tokens the encoder of a run has learned, for `tokens_sentence`; None where it has learned no tokens.

    A run of `pretrain` keeps in `config` what auto became; beside --parts it stays auto, the teacher of the parts.
    """
    if config.get("target") != "tokens":
        return None
    teacher = config.get("teacher", AUTO_TEACHER)
    if teacher != AUTO_TEACHER:
        return str(teacher)
    store = input_of(run, "parts")
    return (store and parts_teacher(Path(store))) or _UNKNOWN


def tokens_sentence(teacher: str, quote: str = "") -> str:
    """What the encoder has learned from, of `tokens_teacher`; `quote` stands around names."""
    if teacher == OWN_TEACHER:
        return "The encoder learned the tokens of an encoder that was trained first, on these images."
    named = in_words(teacher, quote) if teacher != _UNKNOWN else "the encoder that its parts were learned from"
    return f"The encoder learned the tokens of {named}: it learned from that encoder, and not from these images alone."


def in_words(teacher: str, quote: str = "") -> str:
    """An encoder that was learned from; of what --teacher auto finds whose it is."""
    name = f"{quote}{teacher}{quote}"
    if teacher != PUBLIC_TEACHER:
        return f"the encoder {name}"
    return f"the public encoder {name} (DINOv2 of Meta AI, arXiv 2304.07193, Apache-2.0)"
