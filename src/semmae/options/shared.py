"""Options that several verbs share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from semmae.cores import own_cores
from semmae.errors import UserError
from semmae.options.fields import MOST, about, option
from semmae.sizes import Size

Model = Literal["vit_mini", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]
Precision = Literal["auto", "float32", "bf16", "fp16"]
Compile = Literal["auto", "on", "off"]
Workers = int | Literal["auto"]
Check = Literal["none", "header", "full"]
Statistics = Literal["auto", "imagenet", "data"]
Strategy = Literal["ddp", "fsdp"]
Gradients = Literal["float32", "bf16"]
Pooling = Literal["cls", "mean"]
AnyPooling = Literal["auto", "cls", "mean"]

EPOCHS, STEPS, PIXELS = 10**6, 10**9, 8192
VAL_SHARE = 0.2  # of each class, or of the images, that is held out where the data has no split
WEIGHT, RATE = 10**6, 1000  # of a loss; of learning
_MOST_WORKERS = 16  # that auto starts: of photos they load more than a GPU takes
# What --teacher may be beside the name of an encoder: the public one where it is to be had, one trained here.
AUTO_TEACHER, OWN_TEACHER = "auto", "own"
# DINOv2 small of Meta AI (arXiv 2304.07193), trained on 142 million images; Apache-2.0.
PUBLIC_TEACHER = "timm:vit_small_patch14_dinov2.lvd142m"


def teacher_option(**facts: Any) -> Any:
    """The field of --teacher, the encoder to learn parts from; with what more may be said of it."""
    return option(AUTO_TEACHER, reads="network", becomes=(PUBLIC_TEACHER, OWN_TEACHER), objects=True, **facts)


@dataclass(frozen=True, kw_only=True)
class SeedOptions:
    """The seed."""

    seed: int = option(0, low=0, high=2**32 - 1)  # of steps and ranks are made from it, none above torch's 64 bits
    """Seed of everything random."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Loading of images."""

    workers: Workers = option("auto", low=0, high=256, on_resume="free")
    """Processes that load images, of each device; auto: one less than its share of the cores, at most 16."""

    @property
    def num_workers(self) -> int:
        """Processes that load images for this one."""
        if self.workers != "auto":
            return self.workers
        share = own_cores(getattr(self, "devices", 1))  # of those who have `DeviceOptions` too
        # Of two cores both: on a CPU processes wait once they are ahead, and beside a GPU there is little else to do.
        return max(min(_MOST_WORKERS, share - 1), min(2, share))


@dataclass(frozen=True, kw_only=True)
class RunOptions(WorkerOptions, SeedOptions):
    """The run."""

    out: Path = field(metadata=about(writes=True, on_resume="free"))
    """Folder to write; must be new or empty, or see --resume and --overwrite."""
    config: Path | None = option(None, reads="file", control=True, on_resume="free")
    """YAML file with options, such as the config.yaml of an earlier run; options given beside it win."""
    resume: bool = option(False, control=True, continues=True, on_resume="free")
    """Resume the run in --out, with its own options."""
    overwrite: bool = option(False, control=True, on_resume="free")
    """Delete the run that lies in --out first."""

    @property
    def shares_folder(self) -> bool:
        """Whether other processes work in --out at the same time, each at a share of its own."""
        return False


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Images."""

    data: str = field(metadata=about(reads="images", objects=True))
    """Images: a folder of any depth, a list of files, Parquet with an `image` column (files, or one at https://…), \
    tar shards (a folder, or x-{000..099}.tar, also at s3://…), or hf:NAME."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(DataOptions, RunOptions):
    """Images."""

    limit: int | None = option(None, low=1, high=MOST)
    """Use only so many of the images (of each split), drawn by the seed."""
    check: Check = option("full")
    """How closely every file is looked at before the start: decoded, once (full), no further than its header, or not \
at all (none); what cannot be read is left out then, and ends the run later."""


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """Arithmetic."""

    precision: Precision = option("auto")
    """Arithmetic: auto is bf16 where the processor computes in it, else float32; fp16 needs a GPU."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """What computes."""

    GROUP: ClassVar[str] = "training"

    devices: int = option(1, low=1, high=1024, on_resume="free")
    """GPUs, or processes on a CPU; of each node."""


@dataclass(frozen=True, kw_only=True)
class NodeOptions(DeviceOptions):
    """What computes."""

    GROUP: ClassVar[str] = "training"

    nodes: int = option(1, low=1, high=2**16, on_resume="free")
    """Machines that share the work, each with --devices; started by torchrun or srun, with one --out for all."""

    @property
    def processes(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.devices


@dataclass(frozen=True, kw_only=True)
class Batching(NodeOptions):
    """How a step is divided."""

    GROUP: ClassVar[str] = "training"

    batch_size: int = option(64, low=1, high=2**20, group="batches")
    """Images per optimiser step, over all devices."""
    # How a step is divided may change on resume: it has the same images and masks, and other sums of their gradients.
    accumulate: int = option(1, low=1, high=2**16, on_resume="free")
    """Batches that make one optimiser step on each device, which hold the fewer images for it: less memory."""
    gradients: Gradients = option("float32", on_resume="free")
    """Arithmetic in which gradients travel between GPUs: bf16 is half of the traffic, and rounds each to 8 bits."""

    @property
    def batches(self) -> int:
        """Batches that make one optimiser step, over all devices."""
        return self.processes * self.accumulate

    def effective(self, images: int) -> int:
        """Images that one optimiser step takes: --batch-size, or fewer where there are fewer images."""
        if images >= self.batch_size:
            return self.batch_size
        return max(self.batches, images // self.batches * self.batches)

    def scaled_rate(self, blr: float, images: int) -> float:
        """The learning rate: `blr` is that of 256 images a step."""
        return blr * self.effective(images) / 256

    def optimiser_steps(self, images: int, epochs: int) -> int:
        """Of a whole training."""
        return epochs * max(1, images // self.effective(images))

    def check_division(self) -> None:
        """Refuse a step that does not divide into batches of the same number of images."""
        if self.batch_size % self.batches:
            factors = {"--nodes": self.nodes, "--devices": self.devices, "--accumulate": self.accumulate}
            shown = [f"{name} {factor}" for name, factor in factors.items() if factor > 1 or name == "--devices"]
            raise UserError(
                f"--batch-size {self.batch_size} is not divisible by {' · '.join(shown)}; use a multiple of "
                f"{self.batches}"
            )

    def check_images(self, images: int) -> None:
        """Refuse to make more batches of a step than there are images."""
        most = -(-images // self.processes)  # of each device; where images are fewer than devices, some are seen twice
        if self.accumulate > most:
            raise UserError(f"--accumulate {self.accumulate}: more batches a step than images a device; at most {most}")


@dataclass(frozen=True, kw_only=True)
class LoggerOptions:
    """Loggers."""

    GROUP: ClassVar[str] = "training"

    logger: str = option("tensorboard", on_resume="free")
    """Where metrics go beside metrics.jsonl, divided by commas: tensorboard, wandb, mlflow, csv; or none."""
    callbacks: tuple[Any, ...] = option((), python=True, control=True, on_resume="free")
    """Callbacks of Lightning for the training of this verb, beside ours; stages within it have none."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(LoggerOptions, Batching, PrecisionOptions, ImageOptions):
    """Training."""


@dataclass(frozen=True, kw_only=True)
class SizeOptions(TrainOptions):
    """The new encoder."""

    model: Model = option("vit_small")
    """Size of the encoder."""
    image_size: Size = option(224, low=8, high=PIXELS)
    """Pixels of the crops the encoder sees: a square's side, or height and width; divisible by the patch size."""
    patch_size: int = option(16, low=2, high=1024)
    """Pixels a side of a patch."""
    channels: int = option(3, low=1, high=1024)
    """Channels of the images: 3 are RGB of 8 bits; 1 is grey, others are those of the files, all of them of 16 bits."""
    statistics: Statistics = option("auto", fits={"imagenet": {"channels": 3}}, beside=("makes_a_new_encoder",))
    """Mean and deviation that pixels are normalised by: ImageNet's (imagenet), or those of the images (data); auto: \
ImageNet's for 3 channels, else the images'. An encoder of --init keeps its own."""

    @property
    def makes_a_new_encoder(self) -> bool:
        """Whether an encoder begins with new weights, and no mean and deviation yet."""
        return True


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """Speed and memory of a step."""

    GROUP: ClassVar[str] = "training"

    checkpointing: bool = option(False, on_resume="free")
    """Compute the blocks' activations again when they are needed, instead of keeping them: slower, less memory."""
    compile: Compile = option("auto", on_resume="free")  # another way to the same sums, but for their last bits
    """Train through torch.compile, a faster step after minutes of compiling; auto: on a GPU, in long runs."""


@dataclass(frozen=True, kw_only=True)
class StrategyOptions:
    """What every device holds."""

    GROUP: ClassVar[str] = "training"

    strategy: Strategy = option("ddp")
    """What every device holds: the whole network (ddp), or a share of it, of its gradients and of the optimiser, for \
networks that fit no other way, such as vit_huge (fsdp)."""


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """Recipes by name."""

    preset: str | None = option(None)
    """Recipe to begin with, by name; options given beside it, or in --config, win."""


@dataclass(frozen=True, kw_only=True)
class HeadsOptions:
    """The encoder."""

    num_heads: int | None = option(None, low=1, high=1024)
    """Heads of the encoder, where its file does not say."""


@dataclass(frozen=True, kw_only=True)
class DecoderHeadsOptions(HeadsOptions):
    """The encoder."""

    decoder_num_heads: int | None = option(None, low=1, high=1024)
    """Heads of the decoder, where its file does not say."""


@dataclass(frozen=True, kw_only=True)
class EncoderOptions(HeadsOptions, ImageOptions):
    """The encoder."""

    encoder: str = field(metadata=about(reads="network", objects=True))
    """Encoder: a run of semmae, timm:NAME, hf:NAME, or a checkpoint file."""
    image_size: Size | None = option(None, low=8, high=PIXELS)
    """Pixels, a square's side or height and width; default: as the encoder was trained."""


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Whole images."""

    batch_size: int = option(128, low=1, high=2**20)
    """Images at a time."""
    crop_pct: float = option(1.0, low=0.1, high=1)
    """Share of the short side that the centre crop shows; 0.875, 224 of 256, is what MAE and DINO measure with."""


@dataclass(frozen=True, kw_only=True)
class PoolingOptions:
    """One vector an image."""

    pooling: AnyPooling = option("auto")
    """One vector an image: the class token, or the mean of the patch tokens; auto: the mean of masked autoencoders."""
