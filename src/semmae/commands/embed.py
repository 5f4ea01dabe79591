"""`semmae embed`: one vector an image, for search, clustering or a classifier of one's own."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from semmae.commands.knn import FeatureOptions, image_features, open_encoder
from semmae.commands.options import check_values
from semmae.data.manifest import ImageSet, open_images
from semmae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(FeatureOptions):
    """Options of `semmae embed`; --out is a file here, .parquet or .npz."""


def embed(options: EmbedOptions) -> Path:
    """Write features of images with their paths to a .parquet or .npz file."""
    out = options.out
    if out.suffix not in (".parquet", ".npz"):
        raise UserError(f"--out {out}: unknown kind of file {out.suffix!r}; use .parquet or .npz")
    if options.resume:
        raise UserError("--resume: embed writes its file at once; run it again with --overwrite")
    if out.exists() and not options.overwrite:
        raise UserError(f"--out {out}: exists; replace it with --overwrite, or choose another")
    check_values(options)
    encoder = open_encoder(options)
    images = open_images(options.data, limit=options.limit, seed=options.seed, workers=options.workers)
    write_features(image_features(options, encoder, images), images, out)
    print(f"{len(images)} images, {encoder.width} numbers each: {out}")
    return out


def write_features(features: Tensor, images: ImageSet, out: Path) -> None:
    """Columns `path`, `label` (where there are classes) and `features`, written at once."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp{out.suffix}")
    if out.suffix == ".npz":
        columns = {"path": np.array(images.names), "features": features.numpy()}
        if images.labels is not None:
            columns["label"] = np.array(images.labels)
        np.savez(temporary, allow_pickle=False, **columns)
    else:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.numpy().ravel()), features.shape[1])
        table = pa.table({"path": pa.array(images.names), "features": vectors})
        if images.labels is not None:
            table = table.append_column("label", pa.array(images.labels))
        pq.write_table(table, temporary)
    os.replace(temporary, out)
