"""Writes the figures in README.md and docs/ from `benchmarks/results/*.json`, so that no page differs from them.

    python benchmarks/tables.py [--write]

What stands between `<!-- result: NAME -->` and `<!-- end -->`, a table or a number within a sentence, is made here, by
the function of `FIGURES` of that name. Whether a target is met is computed from the unrounded figure. A benchmark that
was not run reads "not measured". Without `--write` it lists the pages that differ, and ends with 1.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scaling
from contestants import KINDS

ROOT = Path(__file__).parents[1]
BENCHMARKS = (
    "step", "step_profile", "memory", "masking", "loading", "remote_shards", "lightning_cost", "startup", "residual",
)  # fmt: skip
VARIANTS = ("loading_packed", "loading_views")  # of these
VIEWS = ("crops_2", "crops_2_8")
PEERS = ("transformers", "lightly")
SUBSET = "ours, a quarter of patches half the size"
NOT_MEASURED = "not measured"

Results = dict[str, Any]  # figures of each benchmark that was run

_MARKED = re.compile(r"(<!-- result: ([\w-]+) -->)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Renew the pages, or list those that need it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the pages anew")
    write = parser.parse_args().write
    results, stale = read_results(), []
    for page in pages():
        text = page.read_text()
        new = renewed(text, results)
        if new != text:
            stale.append(str(page.relative_to(ROOT)))
            if write:
                page.write_text(new)
    if stale:
        print(f"{'written' if write else 'not as results/*.json have it'}: {', '.join(stale)}")
    return 1 if stale and not write else 0


def pages() -> list[Path]:
    """Where figures may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def read_results(folder: Path = Path(__file__).parent / "results") -> Results:
    """The figures of every benchmark of `BENCHMARKS` and `VARIANTS` that was run."""
    paths = {name: folder / f"{name}.json" for name in (*BENCHMARKS, *VARIANTS)}
    return {name: json.loads(path.read_text())["results"] for name, path in paths.items() if path.is_file()}


def renewed(text: str, results: Results) -> str:
    """A page with every marked figure as the results have it."""

    def figure(found: re.Match[str]) -> str:
        opening, name, old, closing = found.groups()
        made = measured(FIGURES[name], results)
        if old.split() == made.split():
            return found.group()  # the same words, however an editor broke the line
        # A table is a block of its own; a number stays within its sentence.
        return f"{opening}\n\n{made}\n\n{closing}" if "\n" in made else f"{opening}{made}{closing}"

    return _MARKED.sub(figure, text)


def measured(figure: Callable[[Results], str], results: Results) -> str:
    """The figure; that it was not measured, where a result is not there."""
    try:
        return figure(results)
    except KeyError:
        return NOT_MEASURED


@dataclass(frozen=True)
class Row:
    """A measure, what was found, and what it was meant to be."""

    measure: str
    here: Callable[[Results], str]
    target: str = "–"
    met: Callable[[Results], bool] | None = None

    def cells(self, results: Results) -> tuple[str, ...]:
        """As they stand in the table."""
        here = measured(self.here, results)
        if self.met is None:
            verdict = ""
        else:
            verdict = "open" if here == NOT_MEASURED else "met" if self.met(results) else "**missed**"
        return self.measure, here, self.target, verdict


def rates(figures: dict[str, Any]) -> str:
    """How many times faster than each peer, and everyone's images a second."""
    by_peer = "; ".join(f"{figures['ratios'][peer]:.2f}×" for peer in PEERS)
    each = ", ".join(f"{rate:.2f}" for rate in (figures["ours"], *(figures["peers"][peer] for peer in PEERS)))
    return f"{by_peer} ({each} images/s)"


def peaks(figures: dict[str, Any]) -> str:
    """Ours as a share of each peer's, and everyone's MiB."""
    by_peer = "; ".join(f"{figures['ratios'][peer]:.3f}" for peer in PEERS)
    return f"{by_peer} ({figures['ours']:,} MiB; " + ", ".join(f"{figures['peers'][peer]:,}" for peer in PEERS) + ")"


def small_steps(figures: dict[str, Any]) -> str:
    """Lightning's share, cost and the step itself of three small models, by the processor's time on one thread."""
    cases = [case["processor"] for case in figures["small"].values()]
    ratios, costs, steps = (
        "; ".join(f"{case[which]:{form}}" for case in cases)
        for which, form in (("ratio", ".2f"), ("cost_ms", "+.1f"), ("step_ms", ".0f"))
    )
    return f"{ratios} of its time ({costs} ms to {steps} ms)"


def gemm(figures: dict[str, Any]) -> str:
    """The share of the matrix product's rate, that rate, and how it went up and down during the race."""
    low, high = figures["gemm_range"]
    share, rate = 100 * figures["gemm_share"], figures["gemm_gflops"]
    return f"{share:.0f} % of {rate:,.0f} GFLOP/s ({low:,.0f} to {high:,.0f})"


def beside_pil(figures: dict[str, Any]) -> str:
    """How many times faster than torchvision with PIL, and both rates: by the batch, item by item."""
    ways = (figures, figures["by_item"])
    by_way = "; ".join(f"{way['ratios']['torchvision_pil']:.2f}×" for way in ways)
    each = ", ".join(f"{way['ours']:.3g} and {way['peers']['torchvision_pil']:.3g}" for way in ways)
    return f"{by_way} ({each} images/s)"


def step_rows() -> list[Row]:
    """How fast a step is."""
    ways = ("ours, timm's blocks", "ours, memory given back")
    least = {"transformers": 1.8, "lightly": 1.7}
    return [
        Row(
            "step, each by default (the peers in float32), vs Hugging Face; vs lightly",
            lambda r: rates(r["step"]["default"]),
            "≥ 1.8×; ≥ 1.7×",
            lambda r: all(r["step"]["default"]["ratios"][peer] >= least[peer] for peer in PEERS),
        ),
        Row(
            "step, all in bf16, vs Hugging Face; vs lightly",
            lambda r: rates(r["step"]),
            "≥ 1.1× the better",
            lambda r: min(r["step"]["ratios"].values()) >= 1.1,
        ),
        Row("step, all in float32, vs Hugging Face; vs lightly", lambda r: rates(r["step"]["float32"])),
        Row(
            "share of the machine's own bf16 matrix product that a step keeps up",
            lambda r: gemm(r["step"]),
            "≥ 80 %",
            lambda r: r["step"]["gemm_share"] >= 0.8,
        ),
        Row(
            "step with timm's blocks in bf16; with freed memory given back: by a step as it is",
            lambda r: "; ".join(f"{r['step']['ablation']['ratios'][way]:.2f}" for way in ways) + " of its time",
        ),
        Row(
            "step with patches of 8, 196 of 784 taking part, by a step with patches of 16",
            lambda r: f"{subset(r)} of its time",
            "≤ 1.1",
            lambda r: r["step"]["ablation"]["ratios"][SUBSET] <= 1.1,
        ),
    ]


def memory_rows() -> list[Row]:
    """How much is held at the peak: counted in two ways, for two pairs of arithmetic."""
    counted: dict[str, Callable[[Results], dict[str, Any]]] = {
        "of the whole process, all in bf16": lambda r: r["memory"],
        "of the whole process, each by default": lambda r: r["memory"]["default"],
        "of training alone, all in bf16": lambda r: r["memory"]["of_training"],
        "of training alone, each by default": lambda r: r["memory"]["default"]["of_training"],
    }
    return [
        Row(
            f"peak memory {what}, of Hugging Face's; of lightly's",
            lambda r, figures=figures: peaks(figures(r)),
            "≤ 0.9 of the better",
            lambda r, figures=figures: max(figures(r)["ratios"].values()) <= 0.9,
        )
        for what, figures in counted.items()
    ]


def other_rows() -> list[Row]:
    """Masks, loading, Lightning, and what nobody could measure."""
    blends = ("semantic_0.0_vs_argsort", "semantic_0.5_vs_argsort", "semantic_1.0_vs_argsort")
    return [
        Row(
            "semantic masks of a batch of 16, with noise and logged sums, of a step",
            lambda r: (
                f"{r['masking']['milliseconds_of_a_batch']['semantic']:.2f} ms, "
                f"{100 * r['masking']['share_of_step']['semantic']:.2g} %"
            ),
            "≤ 1 %",
            lambda r: r["masking"]["share_of_step"]["semantic"] <= 0.01,
        ),
        Row(
            "semantic masks of 4096 × 196 patches × 7 parts, by one `argsort` of that shape, blend 0; 0.5; 1",
            lambda r: "; ".join(f"{r['masking']['ratios'][blend]:.2f}" for blend in blends),
            "≤ 4",
            lambda r: r["masking"]["ratios"]["semantic_vs_argsort"] <= 4,
        ),
        Row(
            "loading on one core, vs `ImageFolder` with PIL: by the batch; item by item",
            lambda r: beside_pil(r["loading"]),
            "≥ 1.8×",
            lambda r: r["loading"]["ratios"]["torchvision_pil"] >= 1.8,
        ),
        Row(
            "loading as a share of bare JPEG decoding",
            lambda r: f"{100 * r['loading']['ratios']['share_of_bare_decode']:.0f} %",
            "≥ 70 %",
            lambda r: r["loading"]["ratios"]["share_of_bare_decode"] >= 0.7,
        ),
        Row("loading photos of 12 megapixels, the same", lambda r: beside_pil(r["loading"]["photos"])),
        Row(
            "step of ViT-S/16, batch 16, through Lightning, by one of the plain loop",
            lambda r: "{ratio:.3f} of its time ({cost_ms:+.0f} ms to {step_ms:,.0f} ms)".format(**r["lightning_cost"]),
            "≤ 1.02",
            lambda r: r["lightning_cost"]["ratio"] <= 1.02,
        ),
        Row(
            "the same of three small models, by the processor's time on one core",
            lambda r: small_steps(r["lightning_cost"]),
        ),
        Row(
            "`VERB --help` and what is wrong with a command: the slowest answer, by starting Python with tyro alone",
            lambda r: f"{r['startup']['worst']['ratio']:.2f} of its time",
            "≤ 1.3",
            lambda r: r["startup"]["worst"]["ratio"] <= 1.3,
        ),
        Row(
            "ViT-B/16 with `torch.compile` on one GPU of the H100's class: images/s; waits of a step; vs Hugging Face, "
            "vs lightly, compiled alike; the command from packed shards with 15 cores, of the first",
            lambda _: NOT_MEASURED,
            "≥ 4,500; 0; ≥ 1.5×; ≥ 90 %",
            lambda _: False,
        ),
    ]


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows))


def figures_table(results: Results) -> str:
    """All measures beside their targets."""
    rows = [row.cells(results) for row in (*step_rows(), *memory_rows(), *other_rows())]
    return table(("measure", "here", "target", ""), rows)


def profile_table(results: Results) -> str:
    """Seconds of a step by kind of work, a column a contestant."""
    profile = results["step_profile"]
    names = {"ours": "semmae", "ours, timm's blocks": "with timm's blocks", "transformers": "Hugging Face"}
    columns = list(profile["kinds"])
    rows = [(kind, *(f"{profile['kinds'][name][kind]:.2f}" for name in columns)) for kind in (*KINDS, "other")]
    sums = {name: sum(profile["kinds"][name].values()) for name in columns}
    rows.append(("together", *(f"{sums[name]:.2f}" for name in columns)))
    rows.append(("the same step by the clock", *(f"{profile['profiled'][name]:.2f}" for name in columns)))
    rows.append(("a step without the profiler", *(f"{profile['step'][name]:.2f}" for name in columns)))
    return table(("seconds", *(names.get(name, name) for name in columns)), rows)


def subset(results: Results) -> str:
    """Time of a step of patches of 8, a quarter taking part, by one of patches of 16."""
    return f"{results['step']['ablation']['ratios'][SUBSET]:.2f}"


def gpu_hours(results: Results) -> str:
    """Of the calculation, from its best to its worst assumption."""
    hours = scaling.Node().gpu_hours().values()
    return f"{min(hours):.0f} to {max(hours):.0f}"


def of_remote_shards(results: Results, ratio: str) -> str:
    """A ratio of an epoch's times where copying a window takes half as long as showing it, and nine tenths."""
    ratios = {case["share"]: case["ratios"][ratio] for case in results["remote_shards"]["cases"]}
    return " and ".join(f"{ratios[share]:.2f}" for share in (0.5, 0.9))


def residual_table(results: Results) -> str:
    """Losses in float32, with products in bf16, and with what blocks add to in bf16 as well."""
    losses: dict[str, dict[str, list[float]]] = results["residual"]["losses"]
    names = {"float32": "float32", "products": "products in bf16", "residual": "products and residual in bf16"}
    seeds = range(len(losses["float32"]["trained"]))
    lines = [["mean loss of the last 50 steps; of 256 other images", *(f"seed {seed}" for seed in seeds)]]
    for way, name in names.items():
        pairs = zip(losses[way]["trained"], losses[way]["others"], strict=True)
        lines.append([name, *(f"{trained:.5f}; {others:.5f}" for trained, others in pairs)])
    head, *rows = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rows])


FIGURES: dict[str, Callable[[Results], str]] = {
    "figures": figures_table,
    "profile": profile_table,
    "subset": subset,
    "residual": residual_table,
    "scaling": lambda r: scaling.table(scaling.Node(), scaling.Loading.of(r)),
    "more-gpus": lambda _: scaling.more_gpus(scaling.Node()),
    "held-and-sent": lambda _: scaling.held_and_sent(scaling.Node()),
    "gpu-hours": gpu_hours,
    "loads": lambda r: f"{r['loading']['ours']:.0f}",
    "loads-packed": lambda r: f"{r['loading_packed']['ratios']['loaded']:.2f}",
    "packed-share": lambda r: "{:.0f} %".format(
        100 * r["loading_packed"]["bytes_an_image"]["packed"] / r["loading_packed"]["bytes_an_image"]["files"]
    ),
    "loads-views": lambda r: " and ".join(f"{views['ours']:.0f}" for views in map(r["loading_views"].get, VIEWS)),
    "copied-ahead": lambda r: of_remote_shards(r, "without"),
    "copied-best": lambda r: of_remote_shards(r, "of_best"),
    "parameters": lambda r: f"{scaling.parameters() / 1e6:.1f} M",
    "gradients": lambda r: f"{scaling.GRADIENT_BYTES['float32'] * scaling.parameters() / 1e6:.0f} MB",
    "products": lambda r: "{:.0f} %".format(
        100 * r["step_profile"]["kinds"]["ours"]["matrix products"] / sum(r["step_profile"]["kinds"]["ours"].values())
    ),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
