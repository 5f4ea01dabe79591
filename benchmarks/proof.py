"""The figures that the pages show of one small encoder: their commands, the runs' own results, and the tables.

    python benchmarks/proof.py --commands > proof.sh    # what makes the runs; where the data lies: sh proof.sh
    python benchmarks/proof.py --runs .                 # there: results of the runs → results/proof.json
    python benchmarks/proof.py --tables                 # results/proof.json → tables of docs/

Nothing is typed: results.json of a run is taken over as it lies, once its config.yaml is seen to be what the command
asks for, and a table in docs/ stands between two comments that this script writes between. The machine that is named
is the one that collects: collect where the runs were made. A test compares the pages with results/proof.json.

results/proof_full_rate.json holds what came of a trial: new weights trained with all layers at the full rate, in place
of the recipe's layer decay. They did worse so. What stands against an encoder should be as strong as is known, so
`--untrained` follows the recipe, and these are only mentioned.
"""

import argparse
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import yaml

from semmae.cli.arguments import parse
from semmae.evaluation.accuracy import wilson_interval
from semmae.evaluation.protocols import OWN
from semmae.options import kind_of
from semmae.reporting.page import figure_rows
from semmae.reporting.results import markdown_table

DOCS = Path(__file__).parents[1] / "docs"
ENCODER = "encoder"
_TINY = "--encoder runs/a --data tiny-imagenet-100 --untrained --workers 0"
_FASHION = "--encoder runs/a --data street-fashion --workers 0"
_CLOTHING = "semmae finetune --preset small-data --encoder runs/a --data clothing --untrained --workers 0"

# Name of a result → what made it.
COMMANDS = {
    ENCODER: "semmae pretrain --preset small-images --data tiny-imagenet-100/train.parquet --seed 1 --workers 0"
    " --out runs/a",
    "knn": f"semmae knn {_TINY} --pooling mean --out runs/a-knn",
    "probe": f"semmae probe {_TINY} --pooling mean --out runs/a-probe",
    "probe-mae": f"semmae probe --preset mae-small-data --epochs 6 {_TINY} --out runs/a-probe-mae",
    "finetune": f"semmae finetune --preset small-data {_TINY} --epochs 5 --batch-size 64 --blr 4e-3"
    " --augment rand-m5-n1-mstd0.5-inc1 --out runs/a-fine",
    "clothing": f"{_CLOTHING} --out runs/a-clothing-fine",
    "clothing-1": f"{_CLOTHING} --seed 1 --out runs/a-clothing-fine-1",
    "segment": f"semmae segment --preset small {_FASHION} --untrained --out runs/a-segment",
    "evaluate-street": f"semmae evaluate {_FASHION} --image-size 96 --steps 300 --out runs/a-street",
    "evaluate-clothing": "semmae evaluate --encoder runs/a --data clothing --pooling mean --workers 0"
    " --out runs/a-clothing",
}

Entry = Mapping[str, Any]  # of results/proof.json, by name: the command, and what the run left behind


def main() -> None:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--commands", action="store_true", help="print the commands")
    what.add_argument("--runs", type=Path, help="folder in which they were run: collect their results")
    what.add_argument("--tables", action="store_true", help="write the tables of docs/")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), help="of --runs: these")
    asked = parser.parse_args()
    if asked.commands:
        print("\n".join(COMMANDS.values()))
    elif asked.runs:
        harness.write_results("proof", {name: collected(asked.runs, COMMANDS[name]) for name in asked.only})
    else:
        write_tables(read_results())


def read_results() -> dict[str, Any]:
    """The results by name."""
    results: dict[str, Any] = json.loads((harness.RESULTS / "proof.json").read_text())["results"]
    return results


def collected(root: Path, command: str) -> dict[str, Any]:
    """A command, and what the run that it made holds: results.json or, of a training alone, summary.json.

    Raises:
        SystemExit: the run was made otherwise, or is not finished.
    """
    verb, *arguments = shlex.split(command)[1:]
    parsed = parse(kind_of(verb), arguments)
    assert parsed is not None, "no command asks for help"
    asked, _ = parsed
    out = root / asked.out
    config = yaml.safe_load((out / "config.yaml").read_text())
    del config["out"], config["verb"]  # a run may have been moved
    strange = {name: value for name, value in config.items() if not alike(value, getattr(asked, name, None))}
    if strange:
        raise SystemExit(f"{out}: was made with other options than its command gives: {strange}")
    found = [out / name for name in ("results.json", "summary.json") if (out / name).is_file()]
    if not found or (out / ".unfinished").exists():
        raise SystemExit(f"{out}: the run is not finished; make it:\n{command}")
    return {"command": command, found[0].stem: json.loads(found[0].read_text())}


def alike(found: Any, asked: Any) -> bool:
    """Whether an option of config.yaml is what was asked for; a path may be given from further up."""
    if isinstance(asked, Path):
        asked = asked.as_posix()
    return bool(found == asked) or (isinstance(found, str) and f"/{found}".endswith(f"/{asked}"))


# Tables


def methods_of(entry: Entry) -> dict[str, dict[str, Any]]:
    """Figures of the encoder itself and of what stands beside it, by name."""
    results = {name: value for name, value in entry["results"].items() if name != "protocol"}
    methods = {name: value for name, value in results.items() if isinstance(value, dict)}
    if OWN not in results:
        methods = {OWN: {name: value for name, value in results.items() if name not in methods}, **methods}
    return {name: with_top5(figures) for name, figures in methods.items()}


def with_top5(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures with the interval of each top-5, which runs once left out: it follows from the number of images."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        found[name] = value
        if name.endswith("top5") and f"{name}_low" not in figures:
            images = figures[name.removesuffix("top5") + "images"]
            found[f"{name}_low"], found[f"{name}_high"] = wilson_interval(round(value * images / 100), images)
    return found


def as_printed(name: str) -> Callable[[Entry], list[str]]:
    """The table that the verb printed."""
    return lambda proof: markdown_table(methods_of(proof[name]))


def compared(name: str) -> Callable[[Entry], list[str]]:
    """The table of `semmae evaluate`: a row a figure."""
    return lambda proof: markdown_table(figure_rows(methods_of(proof[name])))


def classes(proof: Entry) -> list[str]:
    """IoU of each class."""
    rows: dict[str, dict[str, Any]] = {}
    for method, figures in methods_of(proof["segment"]).items():
        for facts in figures["per_class"]:
            rows.setdefault(facts["class"], {})[f"IoU %, {method}"] = facts["iou"]
    return markdown_table(rows)


# Protocol, data, and where its figure is found: the result, the figure, and what stands around its interval.
_SUMMARY: Sequence[tuple[str, str, str, str]] = (
    ("[k-NN](knn.md), mean token, top-1 %", "tiny-imagenet-100", "knn", "top1"),
    ("[linear probe](probe.md) on features, mean token, top-1 %", "tiny-imagenet-100", "probe", "top1"),
    ("[linear probe](probe.md) as in MAE, 6 epochs, mean token, top-1 %", "tiny-imagenet-100", "probe-mae", "top1"),
    ("[fine-tuning](finetune.md), 5 epochs, top-1 %", "tiny-imagenet-100", "finetune", "top1"),
    ("[fine-tuning](finetune.md), 30 epochs, top-1 %", "clothing, held out by seed 0", "clothing", "top1"),
    ("the same", "clothing, held out by seed 1", "clothing-1", "top1"),
    ("[segmentation](segment.md), UPerNet, mIoU %", "street-fashion", "segment", "miou"),
    ("[segmentation](evaluate.md), linear head, mIoU %", "street-fashion", "evaluate-street", "segment_miou"),
    ("[parts](evaluate.md) by k-means of tokens, NMI %", "street-fashion", "evaluate-street", "kmeans_centred_nmi"),
    ("parts by a fixed grid, NMI %", "street-fashion", "evaluate-street", "grid_nmi"),
)


def summary(proof: Entry) -> list[str]:
    """Every protocol, a row each: this encoder, and the same with new weights."""
    lines = ["| protocol | data | images measured | this encoder | new weights |", "|---|---|---|---|---|"]
    for protocol, data, name, figure in _SUMMARY:
        own, untrained = methods_of(proof[name]).values()
        count = own.get("images", own.get("segment_images"))
        words = [with_interval(figures, figure) for figures in (own, untrained)]
        lines.append(f"| {protocol} | {data} | {count:,} | {' | '.join(words)} |")
    return lines


def with_interval(figures: Mapping[str, float], name: str) -> str:
    """A figure, and in brackets where it lies with 95 % confidence, if that is known."""
    words = f"{figures[name]:.1f}"
    if f"{name}_low" in figures:
        words += f" ({figures[f'{name}_low']:.1f} to {figures[f'{name}_high']:.1f})"
    return words


TABLES: Mapping[str, Mapping[str, Callable[[Entry], list[str]]]] = {
    "results.md": {"summary": summary},
    "knn.md": {"knn": as_printed("knn")},
    "probe.md": {
        "probe": as_printed("probe"), "probe-mae": as_printed("probe-mae"),
    },
    "finetune.md": {"clothing": as_printed("clothing"), "clothing-1": as_printed("clothing-1")},
    "segment.md": {"segment": as_printed("segment"), "classes": classes},
    "evaluate.md": {
        "evaluate-clothing": compared("evaluate-clothing"), "evaluate-street": compared("evaluate-street"),
    },
}  # fmt: skip


def write_tables(proof: Entry) -> None:
    """Write every table of the pages anew."""
    for page in TABLES:
        path = DOCS / page
        path.write_text(with_tables(page, path.read_text(), proof))


def with_tables(page: str, text: str, proof: Entry) -> str:
    """The text of a page with its tables as `proof` has them; ValueError as `between`."""
    for name, table in TABLES[page].items():
        text = between(f"proof.py: {name}", text, table(proof))
    return text


def between(name: str, text: str, lines: Sequence[str]) -> str:
    """The text with these lines between the comments <!-- NAME --> and <!-- end -->.

    Raises:
        ValueError: it has no such place, or several.
    """
    begin, end = f"<!-- {name} -->", "<!-- end -->"
    table = "\n".join(["", "", *lines, "", ""])
    text, count = re.subn(f"({re.escape(begin)}).*?({re.escape(end)})", rf"\g<1>{table}\g<2>", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{begin} … {end} stands there {count} times, not once")
    return text


if __name__ == "__main__":
    main()
