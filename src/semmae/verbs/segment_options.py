"""Options of `semmae segment`, and what of them is refused before anything is written."""

from dataclasses import dataclass, fields

from semmae.errors import UserError
from semmae.models.segmenter import LEVELS, Head, smallest_image, usual_blocks
from semmae.models.vit import Encoder
from semmae.verbs.features import EncoderOptions
from semmae.verbs.options import PresetOptions, TrainOptions, flag
from semmae.verbs.training import check_batches

_ROUNDS = 10  # that a training has, unless --val-steps tells otherwise
_RATES: dict[Head, float] = {"upernet": 1e-4, "linear": 1e-2}
_OF_UPERNET: tuple[str, ...] = ("layer_decay", "drop_path", "checkpointing", "blocks", "decoder_channels", "aux_weight")
_OF_TRAINING: tuple[str, ...] = (
    *_OF_UPERNET, "head", "num_heads", "image_size", "batch_size", "accumulate", "devices", "nodes", "steps",
    "val_steps", "lr", "weight_decay", "warmup_share", "clip", "val_share", "min_scale", "max_scale", "most_of_one",
    "colour",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(PresetOptions, EncoderOptions, TrainOptions):
    """Options of `semmae segment`."""

    encoder: str
    """Encoder: a run of semmae, timm:NAME, or a checkpoint file; with --eval-only a run of semmae segment."""
    data: str
    """Folder with images/train, images/val and masks/train, masks/val (or as ADE20K names them); \
a mask is an 8-bit PNG of class numbers."""
    image_size: int | None = None
    """Pixels a side of the crops to train on and the windows to measure with; default: as the encoder was trained."""
    batch_size: int = 16
    """Images per optimiser step, over all devices."""
    head: Head = "upernet"
    """UPerNet with the whole encoder trained, or one linear layer on the frozen encoder's last patch tokens."""
    steps: int = 2000
    """Optimiser steps to train."""
    val_steps: int | None = None
    """Steps between validations; must divide --steps; default: about a tenth."""
    lr: float | None = None
    """Learning rate, of any batch size; default: 1e-4, of a linear head 1e-2."""
    weight_decay: float = 0.05
    """Weight decay, but for biases, norms and tokens."""
    layer_decay: float = 0.65
    """Learning rate of a block, as a share of that of the block above it."""
    drop_path: float = 0.1
    """Chance that the last block is left out for an image in training; less in those below it."""
    warmup_share: float = 0.05
    """Share of the steps in which the learning rate rises; afterwards it falls linearly to 0."""
    clip: float = 0.0
    """Highest norm of the gradient; 0 = unlimited."""
    checkpointing: bool = False
    """Compute the blocks' activations again when they are needed, instead of keeping them: slower, less memory."""
    blocks: str | None = None
    """Four blocks whose tokens UPerNet reads, counted from 0; default: 3,5,7,11 of twelve."""
    decoder_channels: int | None = None
    """Channels of UPerNet; default: 512, for vit_small 256, for vit_tiny 128."""
    aux_weight: float = 0.4
    """Weight of the loss of a second, small head that helps to train; 0 = without."""
    ignore_index: int = 255
    """Number in the masks of pixels that neither train nor count."""
    reduce_zero_label: bool = False
    """Ignore 0 too and count classes from 1: the masks of ADE20K."""
    val_share: float = 0.2
    """Share of the images held out to measure on, where the data has no folders of splits."""
    min_scale: float = 0.5
    """Short side of an image in training, in sides of the crop, at least."""
    max_scale: float = 2.0
    """And at most."""
    most_of_one: float = 0.75
    """Share of a crop that one class may fill; others are drawn instead, ten times at most. 1 = no limit."""
    colour: bool = True
    """Change brightness, contrast, saturation and hue in training."""
    stride: float = 2 / 3
    """Distance of the windows in measuring, in sides of a window."""
    pictures: int = 8
    """Validation images to show in predictions.png."""
    untrained: bool = False
    """Train beside it the same encoder with new weights, by the same recipe but for layer decay, to see what \
pre-training brought."""
    eval_only: bool = False
    """Only measure the run of semmae segment that --encoder names, on images that it was not trained on."""


def check_segment(options: SegmentOptions) -> None:
    """Refuse options that contradict each other."""
    _refuse_without_effect(options)
    check_batches(options)
    together = options.batch_size // options.batches
    if options.head == "upernet" and together < 2 and not options.eval_only:
        least = 2 * options.batches
        raise UserError(f"--batch-size {options.batch_size}: UPerNet norms need two images together; at least {least}")
    if options.val_steps and options.steps % options.val_steps:
        raise UserError(
            f"--val-steps {options.val_steps} does not divide --steps {options.steps}; use "
            f"{options.steps // rounds(options)}"
        )
    if options.min_scale > options.max_scale:
        raise UserError(f"--min-scale {options.min_scale} is above --max-scale {options.max_scale}; exchange them")
    if options.eval_only and options.untrained:
        raise UserError("--eval-only trains nothing, and --untrained is a training; leave one of them out")


def _refuse_without_effect(options: SegmentOptions) -> None:
    """Refuse what was given and would change nothing; a preset may give it, for several heads have it in common."""
    if options.eval_only:
        idle, why = _OF_TRAINING, "--eval-only, which measures what was trained, as it was trained"
    elif options.head == "linear":
        idle, why = _OF_UPERNET, "--head linear, below which the encoder is frozen"
    else:
        return
    defaults = {field.name: field.default for field in fields(options)}
    given = [name for name in idle if getattr(options, name) != defaults[name]]
    if given and options.preset is None:
        value = getattr(options, given[0])
        raise UserError(f"{flag(given[0])} {value}: without effect with {why}; leave it out")


def rounds(options: SegmentOptions) -> int:
    """How many equal rounds of steps a training has: ten, or what --val-steps tells, or the nearest that divides."""
    wanted = options.steps / options.val_steps if options.val_steps else min(_ROUNDS, options.steps)
    most = min(options.steps, 2 * round(wanted) + 1)
    divisors = [count for count in range(1, most + 1) if options.steps % count == 0]
    return min(divisors, key=lambda count: (abs(count - wanted), -count))


def check_encoder(options: SegmentOptions, encoder: Encoder) -> int:
    """Refuse an encoder too short, or a size too small, for UPerNet; the size to train at."""
    size = options.image_size or encoder.spec.image_size
    depth, patch = encoder.spec.depth, encoder.patch_size
    if options.head == "upernet":
        if depth < LEVELS:
            raise UserError(f"--encoder {options.encoder}: {depth} blocks, UPerNet reads four; use --head linear")
        if size < smallest_image(patch):
            raise UserError(f"--image-size {size}: at least {smallest_image(patch)} for UPerNet on patches of {patch}")
        read_blocks(options, depth)
    return size


def read_blocks(options: SegmentOptions, depth: int) -> tuple[int, ...]:
    """The blocks of --blocks, or the usual ones of an encoder of that depth."""
    if options.blocks is None:
        return usual_blocks(depth)
    try:
        blocks = tuple(int(number) for number in options.blocks.split(","))
    except ValueError:
        blocks = ()
    if len(blocks) != LEVELS or list(blocks) != sorted(set(blocks)) or not 0 <= blocks[0] <= blocks[-1] < depth:
        usual = ",".join(map(str, usual_blocks(depth)))
        raise UserError(
            f"--blocks {options.blocks!r}: must be four rising numbers from 0 to {depth - 1}, such as {usual}"
        )
    return blocks


def rate_of(options: SegmentOptions) -> float:
    """The learning rate: as told, else by the head."""
    return _RATES[options.head] if options.lr is None else options.lr


def stride_of(options: SegmentOptions, size: int) -> int:
    """Pixels between windows."""
    return max(1, round(options.stride * size))
