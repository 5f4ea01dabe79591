"""Options of `semmae segment`, and what of them is refused before anything is written."""

from semmae.errors import UserError
from semmae.models.segmenter import LEVELS, smallest_image, usual_blocks
from semmae.models.vit import Encoder
from semmae.options.segment import Head, SegmentOptions
from semmae.verbs.training import check_batches

_ROUNDS = 10  # that a training has, unless --val-steps tells otherwise
_RATES: dict[Head, float] = {"upernet": 1e-4, "linear": 1e-2}


def check_segment(options: SegmentOptions) -> None:
    """Refuse options that contradict each other."""
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
