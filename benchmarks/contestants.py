"""One training step of a masked autoencoder, by this project and by its peers, at the same sizes.

Each is what a user gets who follows that project's own example: its model, its masks, AdamW as it sets it up; the
images are the same normalised noise, which costs nothing to make. A contestant runs in a process of its own, so that
none shares memory, threads or a setting of the C library with another; it steps in whichever arithmetic it is asked to.
"""

import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from torch import Tensor

MASK_RATIO, PARTS = 0.75, 7
BETAS, DECAY, RATE = (0.9, 0.95), 0.05, 1e-4
COMPILED = ExitStack()  # what of ours is compiled stays so until this is closed

Precision = Literal["float32", "bf16"]
Step = Callable[[Precision], None]


@dataclass(frozen=True)
class Setting:
    """What all contestants have in common."""

    model: str = "vit_base"
    batch: int = 16
    threads: int = 2
    compiled: bool = False  # by torch.compile: ours block by block, the peers' loss as a whole
    size: int = 224
    patch: int = 16

    @property
    def device(self) -> str:
        """Where the step runs."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def images(self) -> Tensor:
        """Noise (B, 3, S, S) float32."""
        torch.manual_seed(0)
        return torch.randn(self.batch, 3, self.size, self.size, device=self.device)


def ours(
    setting: Setting,
    plain_blocks: bool = False,
    freed: bool = False,
    subset: bool = False,
    checkpointing: bool = False,
    bf16_residual: bool = False,
) -> Step:
    """This project: semantic masks of seven parts.

    Args:
        setting: sizes.
        plain_blocks: with timm's blocks throughout.
        freed: without `keep_freed_memory`.
        subset: patches of half the size, of which the most attended quarter takes part.
        checkpointing: activations of blocks are computed again backward.
        bf16_residual: what blocks add to is bf16.
    """
    from semmae.masking import most_attended, num_hidden, semantic_mask
    from semmae.memory import keep_freed_memory
    from semmae.models import bf16
    from semmae.models.mae import DECODERS, MaskedAutoencoder
    from semmae.models.vit import Encoder, EncoderSpec
    from semmae.train.compiling import compiled
    from semmae.train.optimizer import adamw

    if setting.device == "cpu" and not freed:
        keep_freed_memory()
    if plain_blocks:
        bf16.applies = lambda *_: False
    patch = setting.patch // 2 if subset else setting.patch
    encoder = Encoder(EncoderSpec.named(setting.model, setting.size, patch))
    mae = MaskedAutoencoder(encoder, DECODERS[setting.model]).to(setting.device)
    mae.checkpointing, mae.bf16_residual = checkpointing, bf16_residual
    optimizer = adamw(mae, lr=RATE, betas=BETAS, weight_decay=DECAY)
    if setting.compiled:
        COMPILED.enter_context(compiled(mae))
    images, side = setting.images(), setting.size // patch
    # Parts as images have them: areas that hang together.
    columns = torch.arange(side**2, device=setting.device) % side
    parts = (columns * PARTS // side).expand(setting.batch, -1)
    scores = torch.rand(setting.batch, side**2, device=setting.device)

    def loss() -> Tensor:
        chosen = most_attended(scores, torch.rand_like(scores), side**2 // 4) if subset else None
        labels = parts if chosen is None else parts.gather(1, chosen)
        count = labels.shape[1]
        noise, order = (torch.rand(setting.batch, n, device=setting.device) for n in (count, PARTS))
        mask = semantic_mask(labels, noise, order, MASK_RATIO, 0.5)
        result: Tensor = mae(images, mask, chosen, num_hidden(count, MASK_RATIO)).loss
        return result

    return _training(setting, loss, optimizer)


def transformers(setting: Setting) -> Step:
    """Hugging Face `ViTMAEForPreTraining`, as its example run_mae.py sets it up."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from semmae.models.vit import MODELS

    width, depth, heads = MODELS[setting.model]
    config = ViTMAEConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width,
        image_size=setting.size, patch_size=setting.patch, mask_ratio=MASK_RATIO, norm_pix_loss=True,
    )  # fmt: skip
    model = ViTMAEForPreTraining(config).train().to(setting.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)
    images = setting.images()
    return _training(setting, _compiled(setting, lambda: model(images).loss), optimizer)


def lightly(setting: Setting) -> Step:
    """lightly's building blocks, put together as the MAE example of its documentation does."""
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    from semmae.models.vit import MODELS

    width, depth, heads = MODELS[setting.model]
    vit = VisionTransformer(setting.size, setting.patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0)
    backbone = MaskedVisionTransformerTIMM(vit=vit)
    count = vit.patch_embed.num_patches
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightly|contestants")  # of its next version
    decoder = MAEDecoderTIMM(count, setting.patch, embed_dim=width)
    model = torch.nn.ModuleList([backbone, decoder]).train().to(setting.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)
    images = setting.images()

    def loss() -> Tensor:
        size = (len(images), count + 1)
        kept, hidden = utils.random_token_mask(size, mask_ratio=MASK_RATIO, device=images.device)
        encoded = decoder.embed(backbone.encode(images=images, idx_keep=kept))
        tokens = utils.repeat_token(decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, kept, encoded.type_as(tokens))
        predicted = decoder.predict(utils.get_at_index(decoder.decode(tokens), hidden))
        patches = utils.get_at_index(utils.patchify(images, setting.patch), hidden - 1)
        return torch.nn.functional.mse_loss(predicted, utils.normalize_mean_var(patches, dim=-1))

    return _training(setting, _compiled(setting, loss), optimizer)


def _compiled(setting: Setting, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return torch.compile(loss) if setting.compiled else loss


def _training(setting: Setting, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Step:
    def step(precision: Precision) -> None:
        with torch.autocast(setting.device, torch.bfloat16, enabled=precision == "bf16"):
            result = loss()
        result.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


CONTESTANTS: dict[str, Callable[[Setting], Step]] = {
    "ours": ours,
    "transformers": transformers,
    "lightly": lightly,
    "ours, timm's blocks": partial(ours, plain_blocks=True),
    "ours, memory given back": partial(ours, freed=True),
    "ours, a quarter of patches half the size": partial(ours, subset=True),
}


class Contestant:
    """A contestant in a process of its own, which takes steps when called and then waits."""

    def __init__(self, name: str, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, setting, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, precision: Precision, steps: int = 1) -> None:
        """So many steps, one after the other."""
        self._ask("step", precision, steps)

    def peak_bytes(self) -> tuple[int, int]:
        """The most memory that the process has held, and what it held before the model was made."""
        before, peak = self._ask("peak")
        return peak, before

    def profile(self, precision: Precision) -> dict[str, float]:
        """Seconds of one step by kind of work, as `KINDS` has them, and "step", the seconds of it by the clock."""
        seconds: dict[str, float] = self._ask("profile", precision)
        return seconds

    def close(self) -> None:
        """End the process."""
        self._pipe.send(("end", None, 0))
        self._process.join()

    def _ask(self, what: str, precision: Precision | None = None, steps: int = 1) -> Any:
        self._pipe.send((what, precision, steps))
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError("a contestant's process ended; its message stands above") from None


def _serve(name: str, setting: Setting, pipe: Connection) -> None:
    torch.set_num_threads(setting.threads)
    before = _peak(setting)
    step = CONTESTANTS[name](setting)
    while (asked := pipe.recv())[0] != "end":
        what, precision, steps = asked
        if what == "peak":
            pipe.send((before, _peak(setting)))
        elif what == "profile":
            pipe.send(profiled(step, precision))
        else:
            for _ in range(steps):
                step(precision)
            _wait()
            pipe.send(None)


def _wait() -> None:
    """Until the GPU, where there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Kinds of work, and how torch's operations that do them are named; what no name fits is "other".
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "attention": ("scaled_dot_product", "bmm", "softmax", "_Attention"),
    "GELU": ("gelu",),
    "norms": ("layer_norm", "var_mean"),
    "copies, casts": ("copy_", "aten::cat", "gather", "clone"),
    "sums": ("aten::add", "aten::sum", "aten::sub", "aten::mul", "aten::div", "mse_loss"),
    "AdamW": ("adam", "lerp", "addcdiv", "addcmul", "sqrt"),
}
# All that is done inside of these is attention: torch's own is one operation, ours is many.
WHOLE_ATTENTION = ("_Attention", "scaled_dot_product", "ScaledDotProduct")
# On a GPU kernels do the work, which have names of their own; the first kind that fits counts.
KERNELS = {
    "attention": ("flash", "fmha", "softmax"),
    "matrix products": ("gemm", "nvjet", "xmma", "cutlass", "splitk"),
    "AdamW": ("multi_tensor", "adam"),
    "made by torch.compile": ("triton",),
    "copies, casts": ("memcpy", "memset", "copy", "cat", "gather"),
    "norms": ("layer_norm", "gammabeta"),
    "element by element": ("elementwise", "reduce"),
    "masks": ("sort", "scan", "distribution"),
}


def profiled(step: Step, precision: Precision, steps: int = 1) -> dict[str, float]:
    """Seconds of so many steps by kind of work, each operation less those inside of it; "step" is all, by the clock.

    On a GPU by kind of kernel.
    """
    gpu = torch.cuda.is_available()
    activities = [torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU]
    _wait()
    with torch.profiler.profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in range(steps):
            step(precision)
        _wait()
        whole = time.perf_counter() - began
    seconds = dict.fromkeys([*(KERNELS if gpu else KINDS), "other"], 0.0)
    for event in profiler.events():
        if not gpu:
            seconds[kind_of(event)] += event.self_cpu_time_total / 1e6
        elif event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            seconds[kind_of_kernel(event.name)] += event.time_range.elapsed_us() / 1e6
    return {**seconds, "step": whole}


def kind_of_kernel(name: str) -> str:
    """The kind of work of a GPU's kernel."""
    return next((kind for kind, parts in KERNELS.items() if any(part in name.lower() for part in parts)), "other")


def kind_of(event: Any) -> str:
    """The kind of work of a profiler's event."""
    above: Any = event
    while above is not None:
        if any(name in above.name for name in WHOLE_ATTENTION):
            return "attention"
        above = above.cpu_parent
    return next((kind for kind, names in KINDS.items() if any(name in event.name for name in names)), "other")


def _peak(setting: Setting) -> int:
    if setting.device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def flops_an_image(model: str, size: int = 224, patch: int = 16) -> float:
    """Operations of the matrix products of one image's step: forward, and twice that backward."""
    from semmae.models.mae import DECODERS
    from semmae.models.vit import MODELS

    count = (size // patch) ** 2
    visible = int(count * (1 - MASK_RATIO))
    width, depth, _ = MODELS[model]
    decoder = DECODERS[model]
    pixels = 3 * patch**2

    def blocks(tokens: int, channels: int, number: int) -> float:
        return number * (24 * tokens * channels**2 + 4 * tokens**2 * channels)

    ends = (
        2 * pixels * (visible * width + (count - visible) * decoder.width) + 2 * (visible + 1) * width * decoder.width
    )
    return 3 * (ends + blocks(visible + 1, width, depth) + blocks(count + 1, decoder.width, decoder.depth))
