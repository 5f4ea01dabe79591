"""Verdicts: what counts as collapsed, below the untrained encoder and unused, on both sides of each limit."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semmae.data.part_store import PartStore
from semmae.evaluation.accuracy import wilson_interval
from semmae.reporting.verdicts import encoder_above, encoder_below, parts_unused, teacher_collapsed, verdicts

UNIFORM = math.log(1024)


def run(loss: float, information: float, before: float = 6.0, lines: int = 20) -> list[dict[str, Any]]:
    """Records of a run that ends with these figures; k-NN stands in lines of its own."""
    early = [{"loss_dino": before, "teacher_information": 0.5}] * lines
    return [*early, *[{"loss_dino": loss, "teacher_information": information}] * 4, {"knn_top1": 30.0}]


@pytest.mark.parametrize(
    ("loss", "information", "collapsed"),
    [
        (UNIFORM, 0.0, True),
        (UNIFORM + 0.5, 1.0, True),  # a student worse than the uniform answer has learned nothing
        (0.01, 0.0, True),  # one prototype for all images
        (0.997 * UNIFORM, 0.05, True),  # measured without KoLeo
        (0.989 * UNIFORM, 0.22, False),  # measured with it
        (5.9, 2.5, False),
        (3.0, 0.5, False),
    ],
)
def test_a_teacher_collapses_to_one_answer_or_to_the_uniform_one(
    loss: float, information: float, collapsed: bool
) -> None:
    assert (teacher_collapsed(run(loss, information), 1024) is not None) == collapsed


def test_the_end_of_a_run_decides_and_names_its_figures() -> None:
    assert teacher_collapsed(run(5.0, 2.0, before=UNIFORM), 1024) is None
    said = teacher_collapsed(run(UNIFORM, 0.0, before=5.0), 1024)
    assert said is not None and "6.93" in said and "1024" in said and "\n" not in said
    assert teacher_collapsed([], 1024) is None
    assert teacher_collapsed([{"step": 1, "loss": 0.3}], 1024) is None  # of another stage


def figures(hits: int, count: int, prefix: str = "") -> dict[str, float]:
    low, high = wilson_interval(hits, count)
    return {
        f"{prefix}top1": 100 * hits / count,
        f"{prefix}top1_low": low,
        f"{prefix}top1_high": high,
        f"{prefix}top5": 100.0,
    }


def test_an_encoder_below_its_untrained_self_is_named_with_its_figures() -> None:
    own, untrained = figures(300, 1000), figures(400, 1000)
    said = encoder_below({"protocol": {}, **own, "untrained": untrained})
    assert said is not None and "30.0" in said and "40.0" in said and "chance" not in said
    assert encoder_below({**untrained, "untrained": own}) is None
    assert encoder_below({**own, "untrained": own}) is None
    assert encoder_below(own) is None  # nothing to compare with


def test_a_difference_within_the_intervals_is_called_one() -> None:
    near, far = {**figures(30, 100), "untrained": figures(35, 100)}, {**figures(90, 100), "untrained": figures(35, 100)}
    said = encoder_below(near)
    assert said is not None and "within chance" in said
    said = encoder_above(far)
    assert said is not None and "chance" not in said


@pytest.mark.parametrize("images", [68, 1000])
@pytest.mark.parametrize("hits", [0.1, 0.36, 0.7])
def test_chance_is_what_the_test_of_two_proportions_calls_so(images: int, hits: float) -> None:
    """Intervals of 36.0 and 41.5 % of 1000 images overlap, and yet no chance makes such a difference likely."""
    before = round(hits * images)
    for more in range(1, images - before):
        pooled = (2 * before + more) / (2 * images)
        z = more / images / (2 * pooled * (1 - pooled) / images) ** 0.5
        if abs(z - 1.96) > 0.12:
            said = encoder_above({**figures(before + more, images), "untrained": figures(before, images)})
            assert said is not None and ("chance" in said) == (z < 1.96), (more, z)


def test_of_several_protocols_those_below_are_named() -> None:
    own = figures(30, 100, "knn_") | figures(90, 100, "probe_") | {"segment_miou": 20.0, "knn_images": 100}
    other = figures(80, 100, "knn_") | figures(40, 100, "probe_") | {"segment_miou": 21.0, "knn_images": 200}
    said = encoder_below({"protocol": {"knn": {}}, "this encoder": own, "untrained": other})
    assert said is not None and "30.0" in said and "21.0" in said
    assert "90.0" not in said and "200" not in said


def test_raw_pixels_are_compared_likewise() -> None:
    own, pixels = figures(300, 1000, "knn_"), figures(400, 1000, "knn_")
    results = {"this encoder": own, "untrained": own, "raw_pixels": pixels}
    said = encoder_below(results, "raw_pixels")
    assert said is not None and "raw pixels" in said and "30.0" in said and "40.0" in said and "chance" not in said
    assert encoder_below(results) is None


def test_labels_hardly_given_are_counted() -> None:
    names = ["background", *(f"part {number}" for number in range(1, 7))]
    said = parts_unused([700, 300, 4, 0, 0, 0, 0], names)
    assert said is not None and "2 of 7" in said and "background 70 %" in said and "part 2" not in said
    assert parts_unused([100] * 7, names) is None
    assert parts_unused([994, 6], ["a", "b"]) is None  # 0.6 %
    assert parts_unused([996, 4], ["a", "b"]) is not None
    assert parts_unused([0, 0], ["a", "b"]) is None  # nothing is labelled


@pytest.mark.parametrize(("used", "first"), [(5, "learned"), (2, "Only 2 of 7")])
def test_a_few_empty_labels_are_not_the_first_thing_to_say(used: int, first: str, tmp_path: Path) -> None:
    _labelled(tmp_path, used)
    figures = {"nmi": 40.0, "ari": 40.0, "nmi_all": 40.0, "ari_all": 40.0, "parts_used": 3.0}
    (tmp_path / "quality.json").write_text(
        json.dumps({"learned": figures, "bands": {**figures, "nmi": 10.0}, "protocol": {"images": 4}})
    )
    said = verdicts(tmp_path)
    assert len(said) == 2 and first in said[0] and any(f"Only {used} of 7" in each for each in said)


def test_the_verdict_on_several_rows_is_the_first_sentence(tmp_path: Path) -> None:
    """Whatever went wrong on the way, such as labels that no patch has."""
    _labelled(tmp_path / "parts", 2)
    (tmp_path / "results.json").write_text(json.dumps({"verdict": "random wins", "rows": []}))
    said = verdicts(tmp_path)
    assert len(said) == 2 and said[0] == "random wins" and "Only 2 of 7" in said[1]


def _labelled(folder: Path, used: int) -> None:
    """Labels of four images, of which the first `used` of seven are given."""
    labels = np.arange(4 * 70 * 70, dtype=np.uint8).reshape(4, 70, 70) % used
    store = PartStore.create(
        folder, images=4, grid=70, label_names=["background", *(f"part {number}" for number in range(1, 7))],
        teacher_digest="t", learner_digest="l", manifest_digest="m",
    )  # fmt: skip
    store.write(np.arange(4), labels)
    store.finish()
