"""The pictures show what they say, pixel by pixel; the page holds what the run holds, and nothing else."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from torch import Tensor

from semmae.data.part_store import PartStore
from semmae.options.shared import PUBLIC_TEACHER
from semmae.reporting import charts, page, run_page as reporting
from semmae.reporting.page import Table, score, with_intervals
from semmae.reporting.pictures import (
    HIDDEN_GREY,
    hide,
    label_colours,
    masks_picture,
    overlay,
    parts_picture,
    paste,
    reconstructions_picture,
)
from semmae.reporting.run_page import write_report
from semmae.train.masks import MaskMeter

SUMMARY = {"stage": "pretrain", "images": 1898, "minutes": 12.4}
NAMES = ["background", "head", "body", "limb"]


def photos(count: int = 4, side: int = 32) -> Tensor:
    """Soft colour gradients with a little noise: uint8 (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 3, 2, 2, generator=generator) * 200 + 20
    smooth = torch.nn.functional.interpolate(corners, size=side, mode="bilinear", align_corners=True)
    return (smooth + torch.rand(smooth.shape, generator=generator) * 30).to(torch.uint8)


def labels(count: int = 4) -> Tensor:
    """Quadrants of an 8 × 8 grid: background, head / body, limb."""
    quadrants = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8)
    return quadrants.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(count, 8, 8).clone()


def write_metrics(path: Path, stage: str, steps: int, **extra: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"stage": stage, "step": 10 * i, "epoch": i // 5, "loss": 0.3 + math.exp(-i / 9), "lr": 1e-3 * i,
         "images_per_s": 100.0 + i % 3, "data_wait": 0.02 + 0.001 * (i % 4), **extra}
        for i in range(1, steps + 1)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def pretrain_run(folder: Path) -> Path:
    """A whole run as the commands leave it: teacher and parts inside, pictures, quality, encoder, k-NN."""
    images, mask = photos(), torch.rand(4, 64, generator=torch.Generator().manual_seed(1)) < 0.75
    folder.mkdir()
    (folder / "encoder").mkdir()
    (folder / "config.yaml").write_text(
        "data: my photos\nmodel: vit_tiny\nimage_size: 32\nepochs: 10\nmasking: semantic\nparts: {num_parts: 3}\n"
    )
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    for stage, place in (("pretrain", folder), ("teacher", folder / "teacher"), ("parts", folder / "parts")):
        write_metrics(place / "metrics.jsonl", stage, 49, **{"hidden/head": 0.75})
    parts_picture(images, labels(), NAMES, folder / "parts" / "parts.png")
    masks_picture(images, labels(), NAMES, [("α = 0", mask)], folder / "pictures" / "masks.png")
    reconstructions_picture(images, mask, 255 - images, folder / "pictures" / "reconstructions.png")
    quality = {
        "learned": {"nmi": 41.3, "ari": 28.0, "foreground_iou": 63.2, "parts_used": 2.7},
        "grid": {"nmi": 20.0, "ari": 10.0, "foreground_iou": 44.0, "parts_used": 3.0},
    }
    (folder / "parts" / "quality.json").write_text(json.dumps(quality))
    write_knn(folder / "knn")
    return folder


def write_knn(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    results = {"protocol": {"k": 20, "pooling": "cls"}, "top1": 41.25, "top5": 70.0, "images": 1200}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


class Page(HTMLParser):
    """Collects headings, the places that the page points to, tables, and whether every element is closed."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source, self.headings, self.references = path.read_text(encoding="utf-8"), [""], [""]
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


# Pictures


def test_overlay_dims_background_tints_parts_and_leaves_uncomputed_pixels() -> None:
    images, grid = photos(), labels()
    grid[:, 7, 7] = 255
    shown = overlay(images, grid, NAMES)
    assert shown.shape == images.shape and shown.dtype == torch.uint8
    background = shown[:, :, :16, :16].int()
    assert (background.amax(1) == background.amin(1)).all()  # grey
    assert background.float().mean() < 0.6 * images[:, :, :16, :16].float().mean()  # dim
    assert torch.equal(shown[:, :, 28:, 28:], images[:, :, 28:, 28:])
    for label, (rows, columns) in {1: (slice(16), slice(16, 32)), 2: (slice(16, 32), slice(16))}.items():
        colour = torch.tensor(label_colours(NAMES)[label], dtype=torch.float32)
        tinted = shown[:, :, rows, columns].float()
        # The part's colour is nearer than any other label's, for every pixel and whatever the image.
        others = torch.stack([torch.tensor(c, dtype=torch.float32) for c in label_colours(NAMES) if c])
        offset = tinted - tinted.mean(1, keepdim=True)
        chroma = others - others.mean(1, keepdim=True)
        distance = (offset.unsqueeze(1) / 0.65 - chroma.view(1, -1, 3, 1, 1)).square().sum(2)
        assert (distance.argmin(1) == label - 1).all(), colour


def test_overlay_takes_the_label_under_each_pixel_centre() -> None:
    """Against a slow loop, on a grid that does not divide the image."""
    generator = torch.Generator().manual_seed(3)
    grid = torch.randint(0, 2, (1, 7, 7), generator=generator, dtype=torch.uint8) * 255
    black = torch.zeros(1, 3, 10, 10, dtype=torch.uint8)
    shown = overlay(black + 200, grid, ["background"])
    for row in range(10):
        for column in range(10):
            label = grid[0, int((row + 0.5) * 7 / 10), int((column + 0.5) * 7 / 10)]
            assert shown[0, 0, row, column] == (200 if label == 255 else 100)


def test_overlay_accepts_arrays_and_refuses_labels_without_a_name() -> None:
    images, grid = photos(), labels()
    assert torch.equal(overlay(images, grid.numpy(), NAMES), overlay(images, grid, NAMES))
    with pytest.raises(ValueError, match="label 3"):
        overlay(images, grid, NAMES[:3])


def test_colours_depend_on_the_part_not_on_whether_there_is_a_background() -> None:
    assert label_colours(NAMES)[0] is None
    assert label_colours(NAMES)[1:] == label_colours(NAMES[1:])
    assert len(set(label_colours([f"part {i}" for i in range(14)]))) == 14


def test_hide_and_paste_work_patch_by_patch() -> None:
    images = photos(2)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5] = mask[1, 15] = True  # row 1, column 1 and row 3, column 3 of a 4 × 4 grid of 8-pixel patches
    for image, corner in ((0, 8), (1, 24)):
        expected = images[image].clone()
        expected[:, corner : corner + 8, corner : corner + 8] = HIDDEN_GREY
        assert torch.equal(hide(images, mask)[image], expected)
        expected[:, corner : corner + 8, corner : corner + 8] = 7
        assert torch.equal(paste(images, mask, torch.full_like(images, 7))[image], expected)
    with pytest.raises(ValueError, match="15 patches"):
        hide(images, mask[:, :15])


def contains(sheet: np.ndarray[Any, Any], tile: Tensor) -> bool:
    """Whether the tile (3, T, T) lies somewhere on the sheet (H, W, 3), pixel for pixel."""
    wanted = tile.permute(1, 2, 0).numpy()
    height, width = wanted.shape[:2]
    probes = [(height // 2 + y, x) for y in range(0, 96, 7) for x in range(0, width, 17)]
    rows, columns = sheet.shape[0] - height + 1, sheet.shape[1] - width + 1
    # Tiles begin anywhere; the places where all probes agree are few, and only these are compared in full.
    corners = np.argwhere((sheet[:rows, :columns] == wanted[0, 0]).all(-1))
    for y, x in probes:
        corners = corners[(sheet[corners[:, 0] + y, corners[:, 1] + x] == wanted[y, x]).all(-1)]
    return any(np.array_equal(sheet[y : y + height, x : x + width], wanted) for y, x in corners)


def test_sheets_hold_the_images_and_what_is_laid_over_them(tmp_path: Path) -> None:
    images, grid = photos(2, 192), labels(2)  # 192 is the tile's own size: nothing is resized
    mask = torch.rand(2, 64, generator=torch.Generator().manual_seed(1)) < 0.75
    parts_picture(images, grid, NAMES, tmp_path / "deep" / "parts.png")
    masks_picture(images, None, [], [("start", mask), ("end", ~mask)], tmp_path / "masks.png")
    reconstructions_picture(images, mask, 255 - images, tmp_path / "reconstructions.png")
    expected = {
        "deep/parts.png": [images, overlay(images, grid, NAMES)],
        "masks.png": [images, hide(images, mask), hide(images, ~mask)],
        "reconstructions.png": [images, hide(images, mask), paste(images, mask, 255 - images)],
    }
    for name, columns in expected.items():
        sheet = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert all(contains(sheet, tile) for column in columns for tile in column), name
    assert not list(tmp_path.rglob("*.tmp"))


# Curves


def test_no_axis_is_cut() -> None:
    """A loss that moves by a tenth moves over a small part of the height, wherever it is; steps begin at 0."""
    records = [{"step": step, "loss": loss} for step, loss in ((50, 9.0), (100, 8.9))]
    (chart,), _ = charts.charts(records)
    (x, y), (_, y_last) = ([float(value) for value in point.split(",")] for point in chart.lines[0].points.split())
    assert chart.x_ticks[0] == (charts.LEFT, "0") and x == pytest.approx(
        (charts.LEFT + charts.WIDTH - charts.RIGHT) / 2
    )
    assert (float(charts.HEIGHT - charts.BOTTOM), "0") in chart.y_ticks
    assert abs(y_last - y) < 0.02 * charts.HEIGHT
    (below,), _ = charts.charts([{"step": step, "loss": -loss} for step, loss in ((1, 9.0), (2, 8.0))])
    assert (float(charts.TOP), "0") in below.y_ticks


def test_a_chart_runs_through_its_points() -> None:
    records = [{"step": step, "loss": loss} for step, loss in ((0, 1.0), (50, 0.5), (100, 0.0))]
    (chart,), _ = charts.charts(records)
    points = [tuple(map(float, point.split(","))) for point in chart.lines[0].points.split()]
    right, bottom = charts.WIDTH - charts.RIGHT, charts.HEIGHT - charts.BOTTOM
    middle = ((charts.LEFT + right) / 2, (charts.TOP + bottom) / 2)
    assert points == [(charts.LEFT, charts.TOP), middle, (right, bottom)]
    assert (chart.lines[0].first, chart.lines[0].last) == ("1", "0")
    assert (float(bottom), "0") in chart.y_ticks and (float(charts.TOP), "1") in chart.y_ticks


def test_long_curves_are_thinned_and_keep_their_mean() -> None:
    records = [{"step": step, "loss": float(step % 2)} for step in range(10_000)]
    (line,) = charts._curves(records, 1, {"loss": "loss"}).values()
    assert len(line) <= 250 and line[-1][0] == 9999
    assert all(value == pytest.approx(0.5) for _, value in line)


def test_flat_curves_are_named_in_words_and_broken_values_left_out() -> None:
    same = {"momentum": 0.75, "hidden/background": 0.5, "hidden/part 1": 0.25}
    records = [{"step": s, "loss": loss, **same} for s, loss in enumerate((1.0, math.nan, 0.5))]
    (chart,), constants = charts.charts(records)
    assert chart.title == "Loss" and "nan" not in chart.lines[0].points
    assert constants == [("Hidden share of each part", "background 50, part 1 25 %"), ("Teacher momentum", "0.75")]


@pytest.mark.parametrize("parts", [3, 13])
def test_hidden_shares_have_a_chart_in_the_colours_of_the_parts(parts: int) -> None:
    """Of what a training counts: in some lines of it a part may be missing."""
    names = ["background", *(f"part {number}" for number in range(1, parts + 1))]
    meter, records = MaskMeter(names), []
    for step in range(1, 5):
        labels = torch.arange(3 if step == 1 else len(names)).repeat(4)  # the last parts come later
        labels = labels[None]
        meter.add(torch.rand(labels.shape) < step / 5, labels, 0.5)
        records.append({"step": step, **meter.read()})
    assert len(records[0]) < len(records[1])
    (chart,), _ = charts.charts(records)
    assert [line.name for line in chart.lines] == names
    assert len({line.colour for line in chart.lines}) == len(names) and "" not in {line.colour for line in chart.lines}
    red, green, blue = label_colours(names)[2] or (0, 0, 0)
    assert f"rgb({red}, {green}, {blue})" in chart.lines[2].colour
    last = records[-1]["hidden/part 2"]
    assert chart.lines[2].last == charts.number(100 * last)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345, "12,345"),
        (41.234, "41.2"),
        (1.5e-4, "1.5e-4"),
        (0.0, "0"),
        (True, "yes"),
        (None, "–"),
        (2e4, "20,000"),
    ],
)
def test_numbers_for_people(value: object, text: str) -> None:
    assert charts.number(value) == text


# The page


def test_the_page_of_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pretrain_run(tmp_path / "run a")
    (run / "parts" / "parts.json").write_text(json.dumps({"extra": {"teacher": "timm:vit_tiny"}}))
    (tmp_path / "my photos").mkdir()
    monkeypatch.chdir(tmp_path)
    path = write_report(run)
    page = Page(path)
    assert path == run / "report.html" and page.open == []
    assert page.headings[1:] == [
        "Results",
        "Quality of the parts",
        "Parts",
        "Masks along the schedule",
        "Reconstructions",
        "Curves",
        "Configuration",
        "How to resume",
    ]
    assert all(fact in page.text for fact in ("semantic masking", "1,898 images", "10 epochs", "12 min."))
    assert "41.2" in page.text and "num_parts" in page.text and "Teacher timm:vit_tiny" in page.text
    assert f"semmae knn --encoder '{run}' --data 'my photos'" in page.text
    assert f'timm.create_model("local-dir:{run / "encoder"}", pretrained=True)' in page.text
    assert page.source.count("<polyline") == 12  # loss, learning rate, speed and waiting of three stages


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (f"teacher: {PUBLIC_TEACHER}", f"{PUBLIC_TEACHER} (DINOv2 of Meta AI, arXiv 2304.07193, Apache-2.0)"),
        ("teacher: auto\nparts: labels", "the encoder timm:vit_tiny:"),
        ("teacher: auto\nparts: elsewhere", "the encoder that its parts were learned from:"),
        ("teacher: own", "trained first, on these images."),
    ],
)
def test_the_page_says_whose_tokens_were_learned(
    config: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "labels/parts/parts.json"  # of a run that has made parts within it
    store.parent.mkdir(parents=True)
    store.write_text(json.dumps({"extra": {"teacher": "timm:vit_tiny"}}))
    run = tmp_path / "run"
    write_metrics(run / "metrics.jsonl", "pretrain", 9)
    options = f"verb: pretrain\nout: run\nmasking: random\n{config}\n"
    monkeypatch.chdir(run)  # not where the run was started
    for target in ("tokens", "pixels"):
        (run / "config.yaml").write_text(f"{options}target: {target}\n")
        text = Page(write_report(run)).text
        assert ("The encoder learned the tokens of" in text and said in text) == (target == "tokens")
        alone = "learned from that encoder, and not from these images alone." in text
        assert alone == (target == "tokens" and config != "teacher: own")


def test_the_figures_of_a_column_line_up_whatever_their_size() -> None:
    shown = with_intervals(
        {"top1": 0.0, "top1_low": 0.0, "top1_high": 49.0, "top5": 0.25, "top5_low": 0, "top5_high": 1.5}
    )
    assert shown == {"top1": "0.0 (0.0 to 49.0)", "top5": "0.2 (0.0 to 1.5)"}
    assert [score(value) for value in (0.0, 41.234, 0.001, 3)] == ["0.0", "41.2", "0.001", "3"]


def test_the_verdict_comes_first_then_figures_with_intervals_then_pictures(tmp_path: Path) -> None:
    run = pretrain_run(tmp_path / "run")
    own = {"top1": 20.0, "top1_low": 18.0, "top1_high": 22.0, "images": 1500, "classes": 10}
    untrained = {"top1": 30.0, "top1_low": 28.0, "top1_high": 32.0, "images": 1500, "classes": 10}
    (run / "results.json").write_text(
        json.dumps({"protocol": {"encoder_digest": 64 * "a"}, **own, "untrained": untrained})
    )
    uniform = {"loss_dino": math.log(64), "teacher_information": 0.0}
    write_metrics(run / "teacher" / "metrics.jsonl", "teacher", 20, **uniform)
    (run / "teacher" / "config.yaml").write_text("prototypes: 64\n")
    for stage, minutes in (("teacher", 100.0), ("parts", 7.0)):
        (run / stage / "summary.json").write_text(json.dumps({"stage": stage, "minutes": minutes}))
    store = PartStore.create(
        run / "parts", images=4, grid=8, label_names=NAMES, teacher_digest="t", manifest_digest="m"
    )
    store.write(torch.arange(4), torch.full((4, 8, 8), 2))
    store.finish()
    page = Page(write_report(run))
    order = [
        "collapsed",
        "1 of 4 labels",
        "untrained self",
        "was pre-trained",
        "20.0 (18.0 to 22.0)",
    ]
    places = [page.text.index(words) for words in [*order, "Masks along the schedule"]]
    assert places == sorted(places)
    assert "in 2.0 h." in page.text  # 100 + 7 + 12.4 minutes
    assert 64 * "a" not in page.text and 12 * "a" in page.text


def test_every_figure_of_evaluate_has_a_name_and_too_wide_a_table_is_turned(tmp_path: Path) -> None:
    figures = {
        f"{protocol}_{name}{end}": 29.4 + more
        for protocol in ("knn", "probe")
        for name in ("top1", "top5", "mean_class")
        for end, more in (("", 0), ("_low", -9.5), ("_high", 11.7))
    }
    own = {**figures, "knn_images": 68, "knn_classes": 10, "probe_images": 68, "probe_rate": 0.125}
    (table,) = results_of(tmp_path, {"protocol": {}, "this encoder": own, "untrained": own})
    assert table.header == ("", "this encoder", "untrained") and len(table.rows) == 10, "intervals are no rows"
    names = [row[0] for row in table.rows]
    assert len(set(names)) == 10 and not any("knn" in name or "mean class" in name or "top1" in name for name in names)
    assert {"k-NN, mean of classes %", "k-NN, images", "linear probe, learning rate"} < set(names)
    assert dict((row[0], row[1]) for row in table.rows)["linear probe, learning rate"] == "0.125"

    (table,) = results_of(tmp_path, {"protocol": {}, "top1": 29.4, "rate": 0.1, "untrained": {"top1": 25.0}})
    assert table.header == ("", "top-1 %", "learning rate") and len(table.rows) == 2


def results_of(folder: Path, results: dict[str, Any]) -> list[Table]:
    (folder / "results.json").write_text(json.dumps(results))
    return list(reporting._results(folder))


def test_tables_that_a_screen_cuts_say_so(tmp_path: Path) -> None:
    """A hint for each, on screens that are narrower; what is wider than any page has it always."""
    narrow = Table("", ("", "a"), (("one two three", "1.0"),))
    wide = Table("", ("", *"abc"), (("one", *("41.2 (38.4 to 44.0)",) * 3),))
    long = Table("", ("", "a"), (("word " * 100, "1.0"),))  # is broken between words
    assert narrow.screen == long.screen == 200 and 500 <= wide.screen <= 700
    macros: Any = page._environment().get_template("macros.html.jinja").module
    frame = (Path(page.__file__).parent / "page.html.jinja").read_text()
    assert f"under{wide.screen}" in macros.table(wide) and "under" not in macros.table(wide, plain=True)
    assert "under1200" in macros.table(Table("", ("", "a"), (("one", "x" * 300),))) and ".under1200 {" in frame


def test_four_lines_have_four_colours() -> None:
    style = (Path(charts.__file__).parent / "page.html.jinja").read_text()
    assert all(f".{kind}{number} {{" in style for kind in "lk" for number in range(4))


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = Page(write_report(pretrain_run(tmp_path / "run")))
    pictures = [reference for reference in page.references if reference]
    assert len(pictures) == 3 and all(reference.startswith("data:image/png;base64,") for reference in pictures)
    without_pictures = re.sub(r"base64,[^\"]+", "", page.source)
    assert not re.search(r"https?:|url\(|@import|<script|<link", without_pictures)


def test_missing_pieces_leave_no_section(tmp_path: Path) -> None:
    run = tmp_path / "teacher"
    write_metrics(run / "metrics.jsonl", "teacher", 9)
    page = Page(write_report(run))
    assert page.headings[1:] == ["Curves"]
    assert "not finished" in page.text and "None" not in page.text
    assert "teacher" in page.text


def test_a_parts_run_and_a_knn_folder_have_pages(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    write_metrics(parts / "metrics.jsonl", "parts", 9)
    parts_picture(photos(), labels(), NAMES, parts / "parts.png")
    page = Page(write_report(parts))
    assert page.headings[1:] == ["Parts", "Curves", "How to resume"]
    assert f"--parts {parts}" in page.text
    page = Page(write_report(write_knn(tmp_path / "knn")))
    assert page.headings[1:] == ["Results"]
    assert "this encoder 41.2 70.0 1,200" in page.text


def test_a_stopped_run_can_be_looked_at(tmp_path: Path) -> None:
    """Half a last line, steps logged twice after a resume, a loss that broke."""
    log = tmp_path / "metrics.jsonl"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    lines = ['{"step": 1, "loss": 5.0}', '{"step": 2, "loss": NaN}', '{"step": 3, "loss": 2.0}',
             '{"step": 1, "loss": 4.0}', '{"step": 4, "lo']  # fmt: skip
    log.write_text("\n".join(lines))
    page = Page(write_report(tmp_path))
    assert "not finite (step 2)" in page.text
    assert "4 → 2" in page.text and "--resume" in page.text
    log.write_text("\n".join(lines) + "\n" + lines[0] + "\n")
    with refused("line 5"):
        write_report(tmp_path)


def test_names_and_options_are_text_not_markup(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: <script>alert(1)</script>\n")
    assert "<script" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path / "nowhere"):
        write_report(tmp_path / "nowhere")
    with refused(tmp_path):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
