"""Pre-trains with a mask of one's own: here a disc around a random place of every image.

    python examples/own_masking.py --data photos --out runs/discs

The run is one of `semmae pretrain`: it resumes with the same masks, and its report shows them. On the command line the
same, in the folder of this file: semmae pretrain --data photos --out runs/discs --masking own_masking:disc
"""

import argparse

import torch
from torch import Tensor

import semmae
from semmae import MaskContext, hide_highest, num_hidden


def disc(context: MaskContext) -> Tensor:
    """Hide the patches nearest to a place: bool (B, L), True = hidden, as many in every row.

    The context says how many patches there are and what share to hide; parts and attention too, where --parts gives
    them. Its noise is drawn by the run's seed and step: no other source of chance, or a resumed run would differ.
    """
    _, patches = context.shape
    down, across = ((torch.arange(side, device=context.device) + 0.5) / side for side in context.grid)
    places = torch.cartesian_prod(down, across)  # (L, 2), row by row
    centres = context.uniform(1, 2)  # (B, 1, 2)
    distances = (places - centres).square().sum(2)
    return hide_highest(-distances, num_hidden(patches, context.ratio))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--out", required=True, help="folder to write the run to")
    parser.add_argument("--preset", help="recipe to begin with, such as small-images")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64)
    # By its name, for a resumed run has to find it again: this file is then imported as a module.
    semmae.pretrain(**vars(parser.parse_args()), masking="own_masking:disc")
