"""How much of `semmae parts` is the encoder's own pass over the images.

    python benchmarks/parts_time.py --data DIR --teacher T --image-size 224

The verb (manifest, tokens, learning, labels, pictures) and the bare forward pass of the same images, decoded before,
take turns; a pass is what neither can do without. What a new process imports first is timed apart: it is as long for a
million images. The last printed line is one JSON object, written with command and machine to
`benchmarks/results/parts_time.json`.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness import median_ratio, take_turns, write_results

import semmae
from semmae.data.loaders import WholeDataset, make_loader
from semmae.train.frozen import most_rows, through_encoder, usual_device
from semmae.train.precision import resolve_precision


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--teacher", required=True, help="as for semmae parts")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    imports = _imports()
    encoder = semmae.load_encoder(options.teacher, image_size=options.image_size).requires_grad_(False)
    images = semmae.open_images(options.data)
    whole = make_loader(WholeDataset(images, options.image_size), most_rows(), workers=0)
    batches = [(batch["row"], batch["image"]) for batch in whole]
    parts: list[float] = []

    def verb() -> None:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            semmae.parts(
                data=options.data, teacher=options.teacher, image_size=options.image_size, out=Path(folder) / "parts"
            )
            parts.append(time.monotonic() - started)

    def bare() -> None:
        threads, precision = torch.get_num_threads(), resolve_precision("auto")
        for _ in through_encoder(
            batches, encoder, lambda pixels, rows, images: encoder(pixels),
            precision=precision, threads=threads, device=usual_device(),
        ):  # fmt: skip
            pass

    seconds = take_turns({"bare": bare, "parts": verb}, options.rounds, warmup=0)
    figures = {f"{name}_seconds": [round(value, 1) for value in found] for name, found in seconds.items()}
    share = median_ratio(seconds["bare"], seconds["parts"])
    facts = {"images": len(images), "import_seconds": imports}
    write_results("parts_time", {**facts, **figures, "share_of_the_bare_pass": share})


def _imports() -> float:
    """Seconds in which a new process imports what the verb needs; this one has then imported it too."""
    import semmae.verbs.parts  # noqa: F401

    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import semmae.verbs.parts"], check=True)
    return round(time.monotonic() - started, 1)


if __name__ == "__main__":
    main()
