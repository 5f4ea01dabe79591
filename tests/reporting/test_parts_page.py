"""parts.html shows what the run's files hold, needs nothing from outside, and fits a phone."""

import base64
import dataclasses
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from semmae.reporting import charts
from semmae.reporting.part_samples import FILE, PartSamples
from semmae.reporting.parts_page import _MOST_MAPS, write_parts_page
from semmae.reporting.pictures import label_colours

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUALITY = {
    "learned": {"nmi": 41.3, "ari": 28.0, "foreground_iou": 63.2, "parts_used": 2.7},
    "grid": {"nmi": 20.0, "ari": 10.0, "foreground_iou": 44.0, "parts_used": 3.0},
    "bands": {"nmi": 43.0, "ari": 9.0, "foreground_iou": 40.0, "parts_used": 3.0},
}


def write_samples(run: Path, labels: int = 3, images: int = 8, names: list[str] | None = None) -> PartSamples:
    """pictures/parts.npz: smooth images, random maps; the last label appears nowhere."""
    generator = np.random.default_rng(0)
    names = names or [f"cat/{number:04}.jpg" for number in range(images)]
    maps = generator.dirichlet(np.ones(labels), (images, 4, 4)).transpose(0, 3, 1, 2)
    shares = generator.dirichlet(np.ones(labels - 1), 50)
    ramp = np.linspace(40, 200, 224)
    photo = np.stack([ramp[None, :] + 0 * ramp[:, None], ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + 90 + 0 * ramp])
    crops = [label for label in range(labels - 1) for _ in range(2)]
    samples = PartSamples(
        label_names=np.array(["background", *(f"part {number}" for number in range(1, labels))]),
        names=np.array(names),
        aspects=np.full(images, 1.5, np.float32),
        images=np.stack([photo.astype(np.uint8)] * images),
        labels=generator.integers(0, labels - 1, (images, 7, 7)).astype(np.uint8),
        maps=maps.astype(np.float16),
        shares=np.pad(shares, ((0, 0), (0, 1))).astype(np.float32),
        crops=np.full((len(crops), 3, 32, 32), 120, np.uint8),
        regions=np.ones((len(crops), 32, 32), bool),
        crop_labels=np.array(crops),
        crop_names=np.array([names[i % len(names)] for i in range(len(crops))]),
        strengths=np.linspace(0.9, 0.5, len(crops)).astype(np.float32),
    )
    (run / FILE).parent.mkdir(parents=True, exist_ok=True)
    fields = {field.name: getattr(samples, field.name) for field in dataclasses.fields(samples)}
    np.savez_compressed(run / FILE, **fields)
    return samples


def parts_run(folder: Path, **sizes: Any) -> Path:
    """A parts run as `semmae parts` leaves it, less what the page does not read."""
    write_samples(folder, **sizes)
    (folder / "config.yaml").write_text("data: my photos\nteacher: timm:vit_tiny\n")
    (folder / "summary.json").write_text(
        json.dumps({"stage": "parts", "minutes": 4.25, "epochs": 20, "image_size": 96})
    )
    (folder / "parts.json").write_text(json.dumps({"images": 1898, "extra": {"teacher": "timm:vit_tiny"}}))
    (folder / "quality.json").write_text(json.dumps(QUALITY))
    records = [{"stage": "parts", "step": i, "loss": 1 / i, "loss_reconstruction": 0.9 / i} for i in range(1, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def source(run: Path) -> str:
    return write_parts_page(run).read_text(encoding="utf-8")


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def pictures(page: str) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Alternative text → pixels of the pictures that have it."""
    found: dict[str, list[np.ndarray[Any, Any]]] = {}
    for alt, data in re.findall(r'<img alt="([^"]*)"[^>]*src="data:image/webp;base64,([^"]*)"', page):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
        found.setdefault(html.unescape(alt), []).append(pixels)
    return found


def test_the_page_of_a_whole_run(tmp_path: Path) -> None:
    page = source(parts_run(tmp_path / "run a"))
    assert headings(page) == [
        "Quality of the parts",
        "Images and their parts",
        "What each part shows",
        "Area of each part",
        "Losses",
    ]
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
    assert all(fact in text for fact in ("2 parts and a background", "1,898 images", "4.2 min."))
    assert "96 × 96" in text and "timm:vit_tiny" in text and "my photos" in text
    assert "NMI (by Horizontal bands)" in text
    assert '<td class="best">43.0</td>' in page and '<td class="best">28.0</td>' in page
    assert f"semmae report '{tmp_path / 'run a'}'" in text
    assert page.count("<polyline") == 2 and "Loss: reconstruction" in page


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = source(parts_run(tmp_path))
    places = re.findall(r'(?:src|srcset|data)="([^"]*)"', page)
    assert places and all(place.startswith("data:image/webp;base64,") for place in places)
    assert all(place.startswith("#label-") for place in re.findall(r'href="([^"]*)"', page))
    without_pictures = re.sub(r"base64,[^\"]+", "", page)
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", without_pictures)


def test_pictures_are_those_of_the_samples(tmp_path: Path) -> None:
    run = parts_run(tmp_path)
    samples = write_samples(run)
    shown = pictures(source(run))
    photo = samples.images[0].transpose(1, 2, 0)
    assert np.abs(shown["cat/0000.jpg"][0] - photo).mean() < 4  # WebP rounds
    # Where a part is strongest, its map's picture leans to its colour more than anywhere else.
    at, label = np.unravel_index(samples.maps[:, 1:].max((2, 3)).argmax(), (8, 2))
    colour = np.array(label_colours(samples.label_names.tolist())[label + 1])
    heat = shown[f"{samples.names[at]}: part {label + 1}"][0]
    hue = colour - colour.mean()
    leaning = ((heat - heat.mean(-1, keepdims=True)) @ hue).reshape(4, 40, 4, 40).mean((1, 3))
    assert np.corrcoef(leaning.ravel(), samples.maps[at, label + 1].ravel())[0, 1] > 0.9
    assert all(f"part {part} in cat/{i:04}.jpg" in shown for part, i in ((1, 2), (1, 3)))


def test_areas_are_the_mean_spread_and_presence_of_the_shares(tmp_path: Path) -> None:
    run = parts_run(tmp_path)
    samples = write_samples(run)
    rows = re.findall(r"<tr style=.*?</tr>", source(run), flags=re.DOTALL)
    assert len(rows) == 3
    end = np.ceil(10 * np.percentile(samples.shares, 90, axis=0).max()) / 10
    for label in (0, 1):
        mean = float(samples.shares[:, label].mean())
        low, high = np.percentile(samples.shares[:, label], (10, 90))
        assert f"<td>{100 * mean:.0f} %</td>" in rows[label] and "<td>100 %</td>" in rows[label]
        (width,) = re.findall(r'<rect width="([\d.]+)" height="16" fill', rows[label])
        assert float(width) == pytest.approx(100 * mean / end, abs=0.01)
        ends = re.findall(r'x1="([\d.]+)" x2="([\d.]+)"', rows[label])[0]
        assert [float(x) for x in ends] == pytest.approx([100 * low / end, 100 * high / end], abs=0.01)
    assert rows[2].count("0 %") >= 3


def test_a_part_that_appears_nowhere_is_named(tmp_path: Path) -> None:
    articles = re.findall(r"<article.*?</article>", source(parts_run(tmp_path)), flags=re.DOTALL)
    assert [article.count("<img") for article in articles] == [2, 2, 0]
    assert "nowhere" in articles[2] and "nowhere" not in articles[1]


def test_missing_pieces_leave_no_section(tmp_path: Path) -> None:
    write_samples(tmp_path, images=1)
    page = source(tmp_path)
    assert headings(page) == ["Images and their parts", "What each part shows", "Area of each part"]
    assert "None" not in page and "more image" not in page


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    name = "a\"'&<script>alert(1)</script>.jpg"
    run = parts_run(tmp_path, images=1, names=[name])
    page = source(run)
    assert "<script" not in page and name in pictures(page)


def test_with_many_parts_the_largest_of_each_image_are_shown(tmp_path: Path) -> None:
    run = parts_run(tmp_path, labels=40, images=2)
    samples = write_samples(run, labels=40, images=2)
    shown = pictures(source(run))
    for at, name in enumerate(samples.names.tolist()):
        largest = np.argsort(-samples.maps[at].astype(np.float32).mean((1, 2)))[:_MOST_MAPS]
        given = {label for label in range(40) if f"{name}: {samples.label_names[label]}" in shown}
        assert given == set(largest.tolist())


def test_what_is_no_parts_run_is_refused(tmp_path: Path) -> None:
    with refused("parts.npz"):
        write_parts_page(tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_loss_has_a_chart_by_itself() -> None:
    records = [{"step": i, "loss": 2.0, "loss_total_variation": 3.0 - i} for i in range(3)]
    flat, falling = charts.loss_charts(records)
    assert (flat.title, falling.title) == ("Loss: total", "Loss: total variation")
    heights = {point.split(",")[1] for point in flat.lines[0].points.split()}
    assert len(heights) == 1 and "nan" not in heights  # a flat line is a line
    assert (falling.lines[0].first, falling.lines[0].last) == ("3", "1")
    assert charts.loss_charts([]) == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("labels", [7, 60])
def test_the_page_fits_its_window_and_fetches_nothing(tmp_path: Path, width: int, labels: int) -> None:
    """In a real browser, in a frame of that width: a browser's own window is never narrower than 500 pixels."""
    names = [f"{'long_name_' * 12}{number}" for number in range(7)]
    page = source(parts_run(tmp_path / "run", labels=labels, images=7, names=names))
    opened = html.escape(page.replace("<details>", "<details open>"))
    probe = """const page = document.querySelector("iframe").contentWindow, root = page.document.documentElement;
      const fetched = page.performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:"));
      document.body.dataset.probe = [page.innerWidth, root.scrollWidth, fetched.length].join(" ");"""
    frame = f'<iframe style="border: 0" width="{width}" height="844" srcdoc="{opened}"></iframe>'
    script = f"<script>addEventListener('load', () => {{{probe}}})</script>"
    (tmp_path / "probe.html").write_text(f"<!doctype html><body>{frame}{script}</body>", encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r'data-probe="([^"]+)"', done.stdout)
    window, document, fetched = map(int, found.split())
    assert window == width and document <= window and fetched == 0
