"""`semmae pretrain`: the masked autoencoder with semantic-guided masking; alone, or the whole way."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from semmae.checkpoint import save_autoencoder, save_encoder
from semmae.commands.options import SizeOptions, TrainOptions, check_image_size
from semmae.commands.parts import PartsOptions, learn_parts, true_parts
from semmae.commands.run import UNFINISHED, checked, run_folder
from semmae.commands.teacher import TeacherOptions, check_teacher, train_teacher
from semmae.commands.training import fit_options, open_training_images, summarised, training_loader
from semmae.data.crop import WHOLE, crop_parts
from semmae.data.loaders import CropDataset, WholeDataset, denormalise, normalise
from semmae.data.manifest import ImageSet
from semmae.data.part_store import PartStore
from semmae.errors import UserError
from semmae.evaluation.quality import read_masks
from semmae.loading import load_encoder
from semmae.masking import num_hidden
from semmae.models.mae import DECODERS, DecoderSpec, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.part_samples import spread
from semmae.patches import denormalize_patches, patchify, unpatchify
from semmae.reporting import masks_picture, reconstructions_picture, write_report
from semmae.tasks.pretrain import Masking, PretrainRecipe, PretrainTask, draw_mask
from semmae.tasks.trainer import barrier, fit, is_rank_zero

_PICTURED = 8  # images in the pictures of masks and reconstructions

StageT = TypeVar("StageT", bound=TrainOptions)


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(SizeOptions):
    """Options of `semmae pretrain`."""

    epochs: int = 400
    """Passes over the images."""
    blr: float = 1.5e-4
    """Base learning rate: multiplied by batch size / 256."""
    weight_decay: float = 0.05
    """Weight decay, but for biases, norms and tokens."""
    warmup_share: float = 0.05
    """Share of the steps in which the learning rate rises."""
    masking: Masking = "semantic"
    """What to hide: a share of every part (intra), whole parts (inter), from one to the other (semantic), or random."""
    mask_ratio: float = 0.75
    """Share of the patches to hide."""
    gamma: float = 2.0
    """Exponent of the schedule: the blend is (step / steps)^gamma."""
    norm_pix_loss: bool = True
    """Predict pixels normalised per patch."""
    decoder_width: int | None = None
    """Width of the decoder; default: 512, for vit_small 256, for vit_tiny 192."""
    decoder_depth: int | None = None
    """Blocks of the decoder; default: 8, for vit_small and vit_tiny 4."""
    decoder_heads: int | None = None
    """Heads of the decoder; default: 16, for vit_small 8, for vit_tiny 6."""
    parts: Path | None = None
    """Part labels of these images, written by `semmae parts`."""
    teacher: str | None = None
    """Encoder to learn parts from, when --parts is not given; without both, one is trained first."""
    num_heads: int | None = None
    """Heads of --teacher, where its file does not tell."""
    num_parts: int = 6
    """Parts to learn, when --parts is not given."""
    masks: Path | None = None
    """Folder of PNG labels of true parts, to measure learned parts against."""
    teacher_epochs: int | None = None
    """Epochs of the teacher, when one is trained; default: a quarter of --epochs."""
    teacher_image_size: int | None = None
    """Pixels a side of the crops the teacher is trained on; default: as --image-size. Smaller is faster."""
    parts_epochs: int | None = None
    """Epochs of the part learner, when parts are learned; default: an eighth of --epochs, at least 5."""


def pretrain(options: PretrainOptions) -> Path:
    """Pre-train a masked autoencoder with semantic-guided masking, learning the parts first if need be."""
    options = checked(options)
    check_recipe(options)
    images = open_training_images(options)
    teacher = load_teacher(options)
    if options.parts is not None:
        PartStore.open(options.parts, manifest_digest=images.digest)
    if options.masks is not None:
        read_masks(images.names, options.masks)
    with run_folder(options):
        store = part_labels(options, images, teacher) if options.masking != "random" else None
        train_autoencoder(options, images, store)
        if is_rank_zero():
            write_report(options.out)
    return options.out


def check_recipe(options: PretrainOptions) -> None:
    """Refuse sizes that do not divide, a mask ratio that leaves nothing, and options that contradict each other."""
    check_image_size(options.image_size, options.patch_size)
    check_image_size(options.teacher_image_size or options.image_size, options.patch_size)
    num_hidden((options.image_size // options.patch_size) ** 2, options.mask_ratio)
    decoder_spec(options)
    if options.masking == "random" and (options.parts or options.teacher):
        raise UserError("--masking random reads no parts; leave out --parts and --teacher, or choose semantic")
    if options.parts and options.teacher:
        raise UserError("--parts and --teacher exclude each other: parts are read, or learned; give one of them")
    if options.masks and (options.parts or options.masking == "random"):
        raise UserError("--masks measures parts learned here, and none are; give it to semmae parts, or leave it out")
    if options.masking != "random" and not (options.parts or options.teacher):
        check_teacher(teacher_stage(options))


def load_teacher(options: PretrainOptions) -> Encoder | None:
    """The encoder of --teacher, checked against the image size."""
    if options.teacher is None:
        return None
    encoder = load_encoder(options.teacher, num_heads=options.num_heads)
    check_image_size(options.image_size, encoder.patch_size)
    return encoder


def part_labels(options: PretrainOptions, images: ImageSet, teacher: Encoder | None) -> PartStore:
    """The part labels to mask by: given, or learned inside `out` from the given teacher or from one's own."""
    if options.parts is not None:
        return PartStore.open(options.parts, manifest_digest=images.digest)
    spec = options.teacher or str(own_teacher(options, images))
    epochs = options.parts_epochs or max(5, options.epochs // 8)
    own = {name: getattr(options, name) for name in ("num_heads", "num_parts", "masks")}
    stage = stage_options(options, PartsOptions, "parts", epochs=epochs, teacher=spec, **own)
    if not (stage.resume and _is_complete(stage.out)):
        with run_folder(stage):
            learn_parts(stage, images, teacher or load_encoder(spec), true_parts(stage, images))
            barrier()
    return PartStore.open(stage.out, manifest_digest=images.digest)


def own_teacher(options: PretrainOptions, images: ImageSet) -> Path:
    """Train an encoder on the images themselves inside `out`, unless an earlier start of this run has."""
    stage = teacher_stage(options)
    if not (stage.out / "encoder" / "config.json").exists():
        with run_folder(stage):
            train_teacher(stage, images)
            barrier()
    return stage.out


def teacher_stage(options: PretrainOptions) -> TeacherOptions:
    """Options of the teacher that is trained inside `out`."""
    epochs = options.teacher_epochs or max(1, options.epochs // 4)
    size = options.teacher_image_size or options.image_size
    return stage_options(options, TeacherOptions, "teacher", epochs=epochs, image_size=size)


def stage_options(options: PretrainOptions, kind: type[StageT], name: str, **own: Any) -> StageT:
    """Options of a stage that runs inside this one.

    What every training takes is handed down. Beyond that verbs have a rate, a decay, a mask, each a meaning of
    its own: of these a stage keeps its defaults, but for `own`.
    """
    common = {field.name for field in dataclasses.fields(SizeOptions)}
    known = common & {field.name for field in dataclasses.fields(kind)}
    shared = {name: getattr(options, name) for name in known}
    out = options.out / name
    begun = options.resume and (out / "config.yaml").exists()
    return kind(**{**shared, "out": out, "resume": begun, "overwrite": False, "config": None, **own})


def _is_complete(parts: Path) -> bool:
    return (parts / "parts.json").exists() and not (parts / UNFINISHED).exists()


def train_autoencoder(options: PretrainOptions, images: ImageSet, store: PartStore | None) -> None:
    """Stage 2 in `options.out`, begun or gone on with: writes `encoder/`, `autoencoder/` and pictures."""
    torch.manual_seed(options.seed)
    encoder = Encoder(EncoderSpec.named(options.model, options.image_size, options.patch_size))
    mae = MaskedAutoencoder(encoder, decoder_spec(options), options.norm_pix_loss)
    recipe = PretrainRecipe(
        lr=options.blr * options.batch_size / 256,
        weight_decay=options.weight_decay,
        warmup_share=options.warmup_share,
        masking=options.masking,
        mask_ratio=options.mask_ratio,
        gamma=options.gamma,
        num_labels=store.num_labels if store else 0,
        seed=options.seed,
    )
    side = options.image_size // options.patch_size
    dataset = CropDataset(images, options.image_size, seed=options.seed, parts=store, side=side)
    facts = {
        "epochs": options.epochs,
        "image_size": options.image_size,
        "model": options.model,
        "masking": options.masking,
    }
    with summarised(options.out, "pretrain", images, **facts):
        loader = training_loader(dataset, options)
        how = fit_options(options, options.out, "pretrain", options.epochs)
        fit(PretrainTask(mae, recipe), loader, how, options.resume)
        if is_rank_zero():
            about = {"stage": "pretrain", "masking": options.masking, "images": len(images)}
            save_encoder(encoder, options.out / "encoder", about)
            save_autoencoder(mae, options.out / "autoencoder")
            draw_masks(options.out / "pictures", images, store, mae, recipe)


def decoder_spec(options: PretrainOptions) -> DecoderSpec:
    """The decoder that fits the encoder, with the sizes that were asked for."""
    usual = DECODERS[options.model]
    width, heads = options.decoder_width or usual.width, options.decoder_heads or usual.num_heads
    if width % heads or width % 4:
        raise UserError(f"--decoder-width {width} is not divisible by 4 and by --decoder-heads {heads}; change one")
    return DecoderSpec(width, options.decoder_depth or usual.depth, heads)


@torch.inference_mode()
def draw_masks(
    folder: Path, images: ImageSet, store: PartStore | None, mae: MaskedAutoencoder, recipe: PretrainRecipe
) -> None:
    """masks.png, masks at five points of the schedule; reconstructions.png, at its first."""
    spec = mae.encoder.spec
    mae = mae.cpu().eval()
    rows = spread(len(images), _PICTURED)
    # The same whole images as in the store, seen as one crop that keeps everything.
    whole = WholeDataset(images, spec.image_size)
    pixels = torch.stack([whole[row]["image"] for row in rows])
    side = spec.image_size // spec.patch_size
    parts = None if store is None else torch.stack([crop_parts(store.labels[row], WHOLE, side) for row in rows])
    masks = []
    for point in (0.0, 0.25, 0.5, 0.75, 1.0):
        blend = recipe.blend_at(point)
        generator = torch.Generator().manual_seed(recipe.seed)  # the same noise: only the blend changes
        title = f"{point:.0%} · blend {blend:.2f}"
        masks.append((title, draw_mask(recipe, (len(rows), side * side), parts, blend, generator)))
    grids = None if store is None else store.labels[rows]
    names = [] if store is None else store.label_names
    masks_picture(pixels, grids, names, masks, folder / "masks.png")
    mask = masks[0][1]
    images_float = normalise(pixels, spec.mean, spec.std)
    patches = patchify(images_float, spec.patch_size)
    prediction = mae(images_float, mask).pred
    if mae.norm_pix_loss:
        # Only the true patch knows its mean and deviation: borrowed from it, as MAE's own demonstration does.
        prediction = denormalize_patches(prediction, patches)
    rebuilt = denormalise(unpatchify(prediction, spec.patch_size), spec.mean, spec.std)
    reconstructions_picture(pixels, mask, rebuilt, folder / "reconstructions.png")
