"""Draw `docs/images/performance.png` and `docs/images/step-profile.png` from the results of the benchmarks.

    python benchmarks/plots.py

Draws what is there: a benchmark that was not run is left out.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
OURS, THEIRS = "#2a6f97", "#b8c4cc"
KINDS = ("#1b4965", "#5fa8d3", "#e07a5f", "#f2cc8f", "#81b29a", "#b8c4cc", "#6d597a", "#dddddd")
NAMES = {"ours": "semmae", "transformers": "Hugging Face", "lightly": "lightly", "torchvision_pil": "torchvision + PIL"}


def main() -> None:
    """Draw both pictures."""
    step, memory, loading = (read(name) for name in ("step", "memory", "loading"))
    panels: list[tuple[str, dict[str, float]]] = []
    if step:
        title = f"images/s, {step['model']}, batch {step['batch']}"
        panels.append((f"{title}\neach by default", rates(step["default"])))
        panels.append((f"{title}\nall in {step['precision']}", rates(step)))
    if memory:
        panels.append(
            (f"peak of the process, MiB, batch {memory['batch']}\nall in {memory['precision']}", rates(memory))
        )
    if loading:
        panels.append(("loading, images/s a core\nJPEG to crop of 224", rates(loading)))
    if panels:
        figure = Figure(figsize=(3.1 * len(panels), 2.4), layout="constrained")
        for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            bars(axes, title, values)
        figure.savefig(IMAGES / "performance.png", dpi=150)
    profile = read("step_profile")
    if profile:
        draw_profile(profile, IMAGES / "step-profile.png")


def read(name: str) -> dict[str, Any] | None:
    """The figures of a benchmark; None where it was not run."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text())["results"]) if path.is_file() else None


def rates(figures: dict[str, Any]) -> dict[str, float]:
    """Ours first, then the peers."""
    peers = {name: value for name, value in figures["peers"].items() if name in NAMES}
    return {"ours": figures["ours"], **peers}


def bars(axes: Axes, title: str, values: dict[str, float]) -> None:
    """One bar each, its value at its end."""
    names = [NAMES[name] for name in values]
    drawn = axes.barh(names, list(values.values()), color=[OURS] + [THEIRS] * (len(values) - 1))
    axes.bar_label(drawn, fmt="%.4g", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9)
    axes.margins(x=0.22)
    axes.tick_params(labelsize=8, left=False)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def draw_profile(profile: dict[str, Any], path: Path) -> None:
    """Seconds of a step, a bar a contestant, by kind of work; a line where a step ends that nobody watches."""
    contestants = profile["kinds"]
    labels = [NAMES.get(name, name.replace("ours", "semmae")) for name in contestants]
    figure = Figure(figsize=(8.4, 2.8), layout="constrained")
    axes = figure.subplots()
    start = [0.0] * len(labels)
    for kind, colour in zip(next(iter(contestants.values())), KINDS, strict=True):
        seconds = [found[kind] for found in contestants.values()]
        axes.barh(labels, seconds, left=start, color=colour, label=kind)
        start = [a + b for a, b in zip(start, seconds, strict=True)]
    for row, name in enumerate(contestants):
        axes.plot(2 * [profile["step"][name]], [row - 0.4, row + 0.4], color="black", linewidth=1.5)
    axes.invert_yaxis()
    what = f"{profile['model']}, batch {profile['batch']}, {profile['precision']}"
    axes.set_xlabel(f"seconds of a step under the profiler (black line: without it): {what}", fontsize=8)
    axes.tick_params(labelsize=8, left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
