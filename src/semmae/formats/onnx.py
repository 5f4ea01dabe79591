"""An encoder as an ONNX graph: normalised images in, class token and patch tokens out; of a classifier its logits too.

Notable here:
- the graph is float32 and holds timm's own blocks: no gradients are asked for (see `models.blocks.run_block`);
- the size of the images is fixed, that of the batch is not;
- what was written is run by onnxruntime and compared before it is called done.
"""

import contextlib
import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semmae.errors import UserError, reason
from semmae.formats.form import Form, Model, Subject, Writing, encoder_of, pooling_of
from semmae.models.classifier import Classifier
from semmae.models.mae import MaskedAutoencoder
from semmae.models.vit import Encoder
from semmae.progress import quiet
from semmae.shell import python, text
from semmae.sizes import Size, sides

_LOG = logging.getLogger("semmae")
FILE = "model.onnx"
INPUT, OUTPUTS, LOGITS = "images", ("cls", "patches"), "logits"
LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
# Largest difference from torch, as a share of the largest number where that is above 1.
TOLERANCE = 1e-4

_CHECKED = (1, 3)  # images at a time
_TRACED = 2  # with 1 the exporter would take the batch for a constant
_ONE_FILE = 1.8e9  # bytes; a file in the format of ONNX ends at 2 GB, larger weights lie beside it


class _Graph(nn.Module):
    """The model with a plain tuple as its outputs: class token, patch tokens, of a classifier its logits."""

    def __init__(self, model: Encoder | Classifier) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval()
        encoder = model.encoder if isinstance(model, Classifier) else model
        self.channels, self.size = encoder.spec.channels, encoder.spec.image_size  # of the images it takes
        self.outputs = [*OUTPUTS, LOGITS] if isinstance(model, Classifier) else [*OUTPUTS]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.model, Classifier):
            (cls, patches), logits = self.model.features_and_logits(images)
            return cls, patches, logits
        cls, patches = self.model(images)
        return cls, patches


@torch.no_grad()
def write_onnx(model: Encoder | Classifier, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the graph, for images of the model's own size; weights of more than 1.8 GB go to a second file, `.data`."""
    graph = _Graph(model).eval()
    # The exporter's own notes are for its developers.
    hushed = quiet("torch.onnx", "onnxscript", "onnx_ir")
    with hushed, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                graph,
                (_images(_TRACED, graph.channels, graph.size),),
                input_names=[INPUT],
                output_names=graph.outputs,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise UserError(f"the encoder cannot be written as ONNX ({reason(error, 200)}); use --to timm") from error
        assert program is not None
        program.model.metadata_props.update(metadata)
        size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
        program.save(path, external_data=size > _ONE_FILE)


@torch.no_grad()
def check_onnx(model: Encoder | Classifier, path: Path) -> float:
    """Run the graph for one image and for three; returns the largest difference, as a share of the largest number."""
    graph, session = _Graph(model).eval(), _session(path)
    difference = max(_difference(graph, session, _images(batch, graph.channels, graph.size)) for batch in _CHECKED)
    if not difference <= TOLERANCE:
        raise UserError(
            f"onnxruntime computes features that differ from torch's by {difference:.1e}, more than {TOLERANCE:.0e}; "
            "install other versions of torch and onnxruntime"
        )
    return difference


def _images(batch: int, channels: int, size: Size) -> Tensor:
    return torch.randn(batch, channels, *sides(size), generator=torch.Generator().manual_seed(batch))


def _difference(graph: _Graph, session: Any, images: Tensor) -> float:
    """The largest between torch and onnxruntime, as a share of torch's largest number, or of 1 if that is more."""
    found = [torch.from_numpy(output) for output in session.run(graph.outputs, {INPUT: images.numpy()})]
    worst = 0.0
    for ours, theirs in zip(graph(images), found, strict=True):
        if ours.shape != theirs.shape or not theirs.isfinite().all():
            return float("inf")
        scale = max(1.0, float(ours.abs().max()))
        worst = max(worst, float((ours - theirs).abs().max()) / scale)
    return worst


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def write(subject: Subject, folder: Path) -> Mapping[str, Any]:
    """The graph, with what its user must know in its metadata; it is run and compared."""
    model, spec = subject.model, encoder_of(subject.model).spec
    assert not isinstance(model, MaskedAutoencoder), "ONNX has no place for a decoder"
    metadata = {
        "mean": json.dumps(list(spec.mean)),
        "std": json.dumps(list(spec.std)),
        "image_size": json.dumps(spec.image_size),
        "patch_size": str(spec.patch_size),
        "pooling": pooling_of(model),
        "semmae": version("semmae"),
    }
    if isinstance(model, Classifier):
        metadata |= {"classes": json.dumps(list(subject.classes)), "crop_pct": str(subject.crop_pct)}
    _LOG.info("writing the graph, then comparing what onnxruntime computes; a large model takes a minute")
    write_onnx(model, folder / FILE, metadata)
    difference = check_onnx(model, folder / FILE)
    _LOG.info("onnxruntime and torch differ by %.1e at most", difference)
    return {"difference": difference}


def _command(folder: Path, decoder: bool, head: bool) -> str:
    session = f"onnxruntime.InferenceSession({text(folder / FILE)})"
    return python(f"import onnxruntime; print([each.name for each in {session}.get_outputs()])")


def _use(place: str, model: Model, classes: bool) -> Sequence[str]:
    channels = encoder_of(model).spec.channels
    size, given = ", ".join(map(str, sides(encoder_of(model).spec.image_size))), f'{{"{INPUT}": images}}'
    return (
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("{FILE}")',
        f"# {INPUT}: float32 (B, {channels}, {size}), normalised as above (the file's metadata says so too)",
        *(
            ("# (B, classes), named in the file's metadata:", f'logits = session.run(["{LOGITS}"], {given})[0]')
            if classes
            else ("# (B, width) and (B, patches, width):", f'cls, patches = session.run(["cls", "patches"], {given})')
        ),
    )


FORM = Form(
    name="onnx",
    title="ONNX",
    writing=Writing(
        write=write,
        files=(FILE, f"{FILE}.data"),
        library="onnx",
        command=_command,
        use=_use,
        decoder="never",
        head=True,
        peculiar=None,
        norm_eps="any",
        missing=lambda: [name for name in LIBRARIES if importlib.util.find_spec(name) is None],
    ),
)
