"""Fine-tuning: the encoder trained on, with a head, to classify; and how well it then does."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from semmae.data.augment import NO_POLICY, LabelledCrops, augmentation
from semmae.data.classes import TrainVal, image_keys
from semmae.data.kept import KeptImages
from semmae.errors import UserError
from semmae.evaluation.accuracy import class_figures
from semmae.evaluation.classifier import CentreCrops, measure_classifier, predict
from semmae.evaluation.protocols import OWN
from semmae.evaluation.protocols.shape import Measured, Protocol
from semmae.files import make_folder
from semmae.formats.folders import CLASSIFIER, CONFIG, digest, save_classifier
from semmae.formats.open import load_classifier
from semmae.models.classifier import Classifier, set_drop_path
from semmae.models.timm_config import timm_config
from semmae.models.vit import Encoder
from semmae.models.weights import NORM_EPS, set_norm_eps
from semmae.options.finetune import FinetuneRecipe
from semmae.run.ranks import is_rank_zero
from semmae.sizes import Size
from semmae.train.batches import Training
from semmae.train.compiling import compiled, resolve_compile
from semmae.train.finetune import FinetuneTask
from semmae.train.stage import Evaluation, FitOptions
from semmae.train.summary import summarised
from semmae.train.together import barrier
from semmae.train.trainer import fit

STAGE = "finetune"
# Of the recipe: the whole run has one seed, and nothing measured depends on the others.
_UNDESCRIBED = ("seed", "val_every", "checkpointing", "compile")


@dataclass(frozen=True)
class Finetune(Protocol[TrainVal]):
    """All weights trained, with a head; the last epoch is measured."""

    name = "finetune"

    recipe: FinetuneRecipe
    training: Training
    image_size: Size
    crop_pct: float  # share of the short side that is shown when measured
    val_share: float  # held out of each class; kept beside the classifier

    def check_encoder(self, encoder: Encoder) -> None:
        if encoder.spec.channels != 3 and self.recipe.augment != NO_POLICY:
            raise UserError(
                f"--augment {self.recipe.augment}: changes pictures of three channels, and the encoder sees "
                f"{encoder.spec.channels}; use --augment {NO_POLICY}"
            )
        if not isinstance(encoder.vit, VisionTransformer):
            raise UserError(
                f"--encoder: of timm's class {type(encoder.vit).__name__} (DINOv3, EVA), which cannot be fine-tuned "
                "here, for it could not be saved; choose a VisionTransformer, such as DINO's or MAE's"
            )

    def prepare(self, encoder: Encoder) -> None:
        """Image size, and norms that a saved classifier can describe.

        Raises:
            UserError: it could not be saved afterwards.
        """
        if any(layer.eps < NORM_EPS for layer in encoder.modules() if isinstance(layer, torch.nn.LayerNorm)):
            # Of Hugging Face's ViTs, 1e-12: timm has no word for it, and training on evens the difference out.
            set_norm_eps(encoder, NORM_EPS)
        if encoder.spec.image_size != self.image_size:
            encoder.set_image_size(self.image_size)
        timm_config(Classifier(copy.deepcopy(encoder), 2, self.recipe.pooling).encoder, ("one", "other"))

    def check(self, data: TrainVal) -> None:
        """Refuse more batches than images, and a rate that would rise in the end."""
        recipe, images = self.recipe, len(data.train)
        self.training.check_images(images)
        rate = self.training.scaled_rate(recipe.blr, images)
        if recipe.min_lr > rate:
            raise UserError(
                f"--min-lr {recipe.min_lr} is above the learning rate {rate:.3g} (--blr {recipe.blr} · batch size "
                f"{self.training.effective(images)} / 256); lower it, or raise --blr"
            )

    def run(self, encoder: Encoder, data: TrainVal, out: Path, name: str = OWN) -> Measured | None:
        """Leaves `classifier/` in `out`; one that lies there already is read, where a run is resumed."""
        make_folder(out)
        classifier, length = self.train(self.new_classifier(encoder, len(data.classes)), data, out, name)
        found = None
        if is_rank_zero():
            found = measure_classifier(classifier, data.val, data.val_targets, data.classes, self.crops)
            found = dataclasses.replace(found, length=length)
        barrier(name)
        return found

    def new_classifier(self, encoder: Encoder, classes: int) -> Classifier:
        """The encoder with a new head, made ready for training."""
        torch.manual_seed(self.recipe.seed)
        classifier = Classifier(encoder, classes, self.recipe.pooling)
        set_drop_path(classifier.vit, self.recipe.drop_path)
        classifier.checkpointing = self.recipe.checkpointing
        return classifier

    def train(
        self, classifier: Classifier, data: TrainVal, out: Path, name: str
    ) -> tuple[Classifier, Mapping[str, float]]:
        """Train in `out` and write `classifier/`; and how long it was trained."""
        folder, images, recipe = out / CLASSIFIER, len(data.train), self.recipe
        stage = STAGE if name == OWN else name
        facts = {
            "epochs": recipe.epochs,
            "image_size": self.image_size,
            "classes": len(data.classes),
            "encoder_digest": digest(classifier),
            "validation_digest": data.val.digest,
        }
        with summarised(out, stage, data.train, [data.val], **facts) as summary:
            if self.training.resume and (folder / CONFIG).is_file():
                return load_classifier(folder)[0], summary.length
            compiling = resolve_compile(recipe.compile, self.training.optimiser_steps(images, recipe.epochs))
            rate = self.training.scaled_rate(recipe.blr, images)
            task = FinetuneTask(classifier, recipe, lr=rate)
            classes = data.train_targets.tolist() if recipe.balanced else None
            loader = self.training.loader(self.train_crops(classifier.encoder, data), rate, classes)
            options = FitOptions(self.training, out, stage, recipe.epochs, recipe.clip)
            with compiled(task, compiling):
                summary.trained(fit(task, loader, options, self.validation(task, data)))
            if is_rank_zero():
                about = {
                    "stage": STAGE,
                    "images": images,
                    "crop_pct": self.crop_pct,
                    "val_share": self.val_share,
                    "seed": recipe.seed,
                }
                learned = image_keys(data.train)
                save_classifier(task.result, folder, data.classes, self.crop_pct, about, learned)
            return task.result, summary.length

    def train_crops(self, encoder: Encoder, data: TrainVal) -> LabelledCrops:
        """The training images' crops."""
        return LabelledCrops(
            KeptImages.of(data.train),
            data.train_targets,
            self.image_size,
            scale=(self.recipe.crop_scale, 1.0),
            seed=self.recipe.seed,
            policy=augmentation(self.recipe.augment, self.image_size, encoder.spec.mean),
        )

    def validation(self, task: FinetuneTask, data: TrainVal) -> Evaluation | None:
        """What is measured while training goes on; None where nothing is asked for."""
        if not self.recipe.val_every:
            return None

        def validated() -> dict[str, float]:
            predictions = predict(task.result, data.val, data.val_targets, self.crops)
            report = class_figures(predictions.ranks, data.val_targets, len(data.classes))
            return {"val_top1": report["top1"], "val_mean_class": report["mean_class"]}

        return Evaluation(validated, self.recipe.val_every)

    @property
    def crops(self) -> CentreCrops:
        """How the images are shown that are measured on, as many at a time as fit while training."""
        batch = max(1, self.training.batch_size // self.training.batches)
        return CentreCrops(self.image_size, self.crop_pct, batch, workers=self.training.num_workers)

    def describe(self, data: TrainVal) -> dict[str, Any]:
        recipe = dataclasses.asdict(self.recipe)
        return {
            "method": "fine-tuning, all weights; the last epoch is measured",
            "image_size": self.image_size,
            "crop_pct": self.crop_pct,
            "split": data.split,
            **{name: value for name, value in recipe.items() if name not in _UNDESCRIBED},
            "precision": self.training.precision,
            "batch_size": self.training.effective(len(data.train)),
        }
