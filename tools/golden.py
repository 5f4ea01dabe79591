"""Proof that a refactoring changes nothing: `python tools/golden.py compare main .`.

`run OUT.json` draws a few small images and runs every verb that computes on them, through the command line and in
this one process: float32, one thread, no worker. OUT.json keeps every number that the runs leave behind, exactly.
`compare A B` does so with the code of two commits ('.': the working tree). What is changed or missing in B ends with
exit code 1; what B adds is only listed. `--numbers` passes over words, `--ignore '*/config.yaml:masks'` over names.

Nothing is taken from the package but its console script and the files that it writes, so the tool of today runs the
code of any commit that knows the options in the table `RUNS`. Another processor, or release of torch, rounds otherwise.
"""

import argparse
import csv
import fnmatch
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COUNT, CLASSES = 48, ("disc", "square", "stripes")  # images to train on; a quarter more to measure on

# Name of the run → its command line; {data} is the folder of drawn images, {NAME} the folder of another run, {out} its
# own, which is --out where nothing else is.
_TRAIN = "--batch-size 8 --workers 0 --precision float32"
_SIZE = "--model vit_tiny --image-size 32 --patch-size 8"
_LEARN = f"--data {{data}}/images/train {_TRAIN}"
_MEASURE = "--data {data}/images --workers 0 --batch-size 16"
RUNS = {
    "teacher": f"teacher {_LEARN} {_SIZE} --epochs 3 --local-crops 2 --prototypes 64 --head-width 64 --knn-every 2",
    "dino": f"teacher {_LEARN} {_SIZE} --epochs 1 --ibot 0 --centering sinkhorn --prototypes 64 --head-width 64",
    "parts": f"parts {_LEARN} --teacher {{teacher}} --masks {{data}}/masks/train --steps 12",
    "published": f"parts {_LEARN} --teacher {{teacher}} --preset semmae-published --epochs 1 --grid 8",
    "semantic": f"pretrain {_LEARN} {_SIZE} --parts {{parts}} --epochs 3",
    "inter": f"pretrain {_LEARN} {_SIZE} --parts {{published}} --masking inter --token-subset 12 --epochs 1",
    "block": f"pretrain {_LEARN} {_SIZE} --masking block --epochs 1 --accumulate 2 --init {{teacher}}",
    "random": f"pretrain {_LEARN} {_SIZE} --masking random --epochs 1 --crop-scale 1 --no-norm-pix-loss",
    "attention": f"pretrain {_LEARN} {_SIZE} --masking attention --attention-hint 0.3 --masks {{data}}/masks/train"
    " --epochs 1",
    "knn": f"knn {_MEASURE} --encoder {{teacher}} --precision float32 --untrained",
    "probe": f"probe {_MEASURE} --encoder {{semantic}} --precision float32 --flip",
    "probe-mae": f"probe --data {{data}}/images {_TRAIN} --encoder {{semantic}} --protocol mae --epochs 3",
    "finetune": f"finetune --data {{data}}/images {_TRAIN} --encoder {{semantic}} --epochs 3 --val-every 2 --ema 0.9",
    "finetune-alone": f"finetune {_LEARN} --encoder {{teacher}} --pooling cls --epochs 1 --balanced --untrained",
    "segment": f"segment --data {{data}} {_TRAIN} --encoder {{semantic}} --steps 6 --val-steps 3 --decoder-channels 16",
    "segment-linear": f"segment --data {{data}} {_TRAIN} --encoder {{teacher}} --head linear --steps 4 --val-steps 2",
    "evaluate": "evaluate --data {data} --encoder {semantic} --workers 0 --batch-size 16 --precision float32 --steps 3",
    "embed": f"embed {_MEASURE} --encoder {{semantic}} --tokens cls,mean,patch --out {{out}}/tokens.parquet",
    "embed-parts": "embed --data {data}/images/train --workers 0 --encoder {teacher} --tokens parts --parts {parts}"
    " --out {out}/parts.npz",
    "reconstruct": "reconstruct --data {data}/images/train --workers 0 --autoencoder {semantic} --images 4"
    " --out {out}/drawn.png",
    "export-timm": "export --encoder {finetune} --to timm",
    "export-hf": "export --encoder {semantic} --to hf --decoder with",
    "export-mae": "export --encoder {semantic} --to mae",
}
# Option today → its name in older commits: what an older commit refuses is tried again with these.
FORMER: dict[str, str] = {}

# Places that measure the machine; files that only need be there, for others hold their numbers; files of a moment.
_LEFT_OUT = re.compile(r"\b(images_per_s|data_wait|minutes|version)$")
_WORDS = {".html", ".log", ".md", ".ckpt"}
_WORD = re.compile(r'"(?![-.\d]*"$)')  # and no number, as the cells of CSV files are
_UNREAD = re.compile(r"(\.lock|/\.[^/]*|tfevents[^/]*)$")


def run(out: Path) -> None:
    """Run the table, write what it leaves behind."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        work = Path(temporary)
        os.environ |= {"SEMMAE_CACHE": str(work / "cache"), "HF_HOME": str(work / "huggingface")}
        draw(work / "data")
        places = {"data": str(work / "data")}
        values: dict[str, str] = {}
        for name, line in RUNS.items():
            began = time.perf_counter()
            places[name] = places["out"] = str(work / name)
            (work / name).mkdir()
            source = call(shlex.split((line if "--out" in line else f"{line} --out {{out}}").format_map(places)))
            values |= {f"{name}/{key}": text for key, text in read_folder(work / name, work).items()}
            print(f"golden: {name}, {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"source": source, "values": values}, indent=0))


def draw(folder: Path) -> None:
    """images/train|val/CLASS/*.png and masks beside them: one shape of two parts on a coloured ground."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(COUNT + COUNT // 4):
        kind = CLASSES[number % len(CLASSES)]
        height, width = (int(side) for side in rng.integers(36, 60, 2))
        down, right = np.mgrid[:height, :width]
        y, x = rng.uniform(0.4, 0.6, 2) * (height, width)
        radius = rng.uniform(8, 14)
        inside = {
            "disc": (down - y) ** 2 + (right - x) ** 2 < radius**2,
            "square": np.maximum(abs(down - y), abs(right - x)) < radius,
            "stripes": (abs(down - y) < radius) & (right % 8 < 5) & (abs(right - x) < 1.5 * radius),
        }[kind]
        labels = np.where(inside, np.where(down < y, 1, 2), 0).astype(np.uint8)
        colours = rng.integers(0, 256, (3, 3))
        noise = rng.normal(0, 12, (height, width, 3))
        image = Image.fromarray(np.clip(colours[labels] + noise, 0, 255).astype(np.uint8))
        place = f"{'train' if number < COUNT else 'val'}/{kind}/{number:02}.png"
        drawn = {"images": image.convert("L") if number % 16 == 5 else image, "masks": Image.fromarray(labels)}
        for top, picture in drawn.items():
            (folder / top / place).parent.mkdir(parents=True, exist_ok=True)
            picture.save(folder / top / place)


def call(words: list[str]) -> str:
    """Run one command line; returns the folder of the package that has run it."""
    former = [FORMER.get(word, word) for word in words]
    code = enter(words)
    if code == 2 and former != words:
        code = enter(former)
    if code:
        sys.exit(f"golden: exit code {code} from: semmae {shlex.join(words)}")
    return str(Path(str(sys.modules["semmae"].__file__)).parent)


def enter(words: list[str]) -> int:
    """What the console script does; returns the exit code."""
    import numpy as np
    import torch

    from semmae.cli import main

    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    sys.argv = ["semmae", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def read_folder(folder: Path, work: Path) -> dict[str, str]:
    """Every value in the files of a run: file and place in it → exact text."""
    values = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _UNREAD.search(path.as_posix()):
            for place, value in read(path):
                name = f"{path.relative_to(folder).as_posix()}:{place}"
                values[name] = exact(value).replace(str(work), "WORK")
    return {name: value for name, value in values.items() if not _LEFT_OUT.search(name)}


def read(path: Path) -> Iterator[tuple[str, Any]]:
    """Place in the file → value, of every kind of file that a run writes."""
    import numpy as np
    import torch
    import yaml
    from PIL import Image
    from pyarrow import parquet
    from safetensors import safe_open
    from safetensors.torch import load_file

    if path.suffix == ".json":
        yield from leaves(json.loads(path.read_text()))
    elif path.suffix == ".jsonl":
        yield from leaves([json.loads(line) for line in path.read_text().splitlines()])
    elif path.suffix == ".yaml":
        yield from leaves(yaml.safe_load(path.read_text()))
    elif path.suffix == ".csv":
        yield from leaves(list(csv.DictReader(path.read_text().splitlines())))
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as opened:
            yield from leaves({"header": opened.metadata()} | load_file(path))
    elif path.suffix == ".pth":
        yield from leaves(torch.load(path, weights_only=True))
    elif path.suffix == ".npz":
        yield from leaves(dict(np.load(path)))
    elif path.suffix == ".parquet":
        columns = parquet.read_table(path).to_pydict()
        yield from leaves({name: np.array(rows) for name, rows in columns.items()})
    elif path.suffix == ".npy":
        yield "", np.load(path)
    elif path.suffix == ".png":
        yield "", np.asarray(Image.open(path))
    else:
        yield "", "there" if path.suffix in _WORDS else path.read_bytes()


def leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries and lists, each with its place: results.top1, 3.loss."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, tree


def exact(value: Any) -> str:
    """A value as text that is equal where every bit is."""
    if isinstance(value, float):
        return value.hex()
    if hasattr(value, "detach"):  # numpy has no bfloat16, so the bytes
        content = value.detach().cpu().contiguous().flatten().view(sys.modules["torch"].uint8).numpy()
        return f"{value.dtype} {list(value.shape)} {digest(content.tobytes())}"
    if hasattr(value, "tobytes") and value.dtype.kind == "U":
        return json.dumps(value.tolist())
    if hasattr(value, "tobytes"):
        return f"{value.dtype} {list(value.shape)} {digest(value.tobytes())}"
    return digest(value) if isinstance(value, bytes) else json.dumps(value, default=str)


def digest(content: bytes) -> str:
    """Short: this is no defence against forgers."""
    return hashlib.sha256(content).hexdigest()[:16]


def compare(commits: list[str], cache: Path, ignored: list[str], numbers: bool) -> int:
    """Hold two commits against each other; returns the exit code."""
    ours, theirs = (held(values_of(commit, cache), ignored, numbers) for commit in commits)
    failed, added = differences(ours, theirs)
    print(*(f"added: {name}" for name in added), *(f"differs: {line}" for line in failed), sep="\n")
    print(f"{len(failed)} of {len(ours)} values differ" if failed else f"equal: {len(ours)} values")
    return int(bool(failed))


def held(values: dict[str, str], ignored: list[str], numbers: bool) -> dict[str, str]:
    """The values that are to be equal: without those of ignored names and, of numbers alone, without words."""
    names = [name for name, value in values.items() if not (numbers and _WORD.match(value))]
    return {name: values[name] for name in names if not any(fnmatch.fnmatchcase(name, each) for each in ignored)}


def differences(ours: dict[str, str], theirs: dict[str, str]) -> tuple[list[str], list[str]]:
    """Lines about what is changed or missing in theirs; the names of what is added."""
    failed = [
        f"{name}: {value} → {theirs.get(name, 'missing')}" for name, value in ours.items() if theirs.get(name) != value
    ]
    return failed, [name for name in theirs if name not in ours]


def values_of(commit: str, cache: Path) -> dict[str, str]:
    """What `run` finds with the code of a commit, kept in the cache; '.': of the working tree, never kept."""
    with tempfile.TemporaryDirectory(prefix="golden-tree-") as temporary:
        if commit == ".":
            return values_in(ROOT / "src", Path(temporary) / "values.json")
        named = git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
        machine = f"{sys.version} {importlib.metadata.version('torch')}".encode()
        kept = cache / f"{named}-{digest(Path(__file__).read_bytes() + machine)}.json"
        if kept.is_file():
            return dict(json.loads(kept.read_text())["values"])
        subprocess.run(["tar", "-x", "-C", temporary], input=git("archive", named, "src"), check=True)
        return values_in(Path(temporary) / "src", kept)


def values_in(source: Path, out: Path) -> dict[str, str]:
    """Run the table with the package in a folder of sources, in a process of its own."""
    half = out.with_suffix(".part")
    environment = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, __file__, "run", str(half)], env=environment, stdout=sys.stderr, check=True)
    found = json.loads(half.read_text())
    if Path(found["source"]) != source / "semmae":
        sys.exit(f"golden: not the code of {source} was run, but {found['source']}")
    half.replace(out)
    return dict(found["values"])


def git(*words: str) -> bytes:
    """What git prints."""
    return subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("out", type=Path)
    both = commands.add_parser("compare")
    both.add_argument("commits", nargs=2, help="first what was, then what is; '.' is the working tree")
    both.add_argument("--cache", type=Path, default=ROOT / "build" / "golden", help="values of commits")
    both.add_argument("--ignore", action="append", default=[], help="pattern of names that are meant to change")
    both.add_argument("--numbers", action="store_true", help="pass over words")
    given = parser.parse_args()
    if given.command == "run":
        run(given.out)
    else:
        sys.exit(compare(given.commits, given.cache, given.ignore, given.numbers))


if __name__ == "__main__":
    main()
