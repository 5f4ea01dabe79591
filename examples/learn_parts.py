"""Learns the parts of one's own images in a plain PyTorch loop, and labels every image with them.

    python examples/learn_parts.py --data photos --encoder timm:vit_small_patch14_dinov2.lvd142m --out runs/parts

The labels are those of `semmae parts`, but for rounding; `semmae pretrain --parts` and examples/masks.py read them.
The verb also has runs to go on with, several processes, bf16, tokens on disk, attention, part quality, pictures.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import semmae


@torch.no_grad()
def look(
    images: semmae.ImageSet, encoder: semmae.Encoder, image_size: int, workers: int = 2
) -> tuple[semmae.PartLearner, semmae.PartTokens]:
    """A part learner that has learned nothing yet, and the encoder's tokens of all images, reduced by it."""
    device = next(encoder.parameters()).device
    learner = semmae.PartLearner(semmae.PartsSpec.of(encoder)).to(device)
    views = []
    for batch in semmae.make_loader(semmae.WholeDataset(images, image_size), 32, workers=workers):
        pixels = semmae.normalise(batch["image"].to(device), encoder.spec.mean, encoder.spec.std)
        seen, _, _ = encoder.token_views(pixels)
        views.append([tokens.half() for tokens in seen])
    everything = semmae.TokenViews(*(torch.cat(each) for each in zip(*views, strict=True)))
    learner.fit_reductions(everything)
    return learner, learner.reduce(everything)


def learn(
    learner: semmae.PartLearner, tokens: semmae.PartTokens, steps: int = 100, batch_size: int = 32, seed: int = 0
) -> list[float]:
    """Train the learner, from where it starts on these tokens; the loss of every step."""
    recipe = semmae.PartsRecipe()
    learner.start_from_clusters(tokens, seed, mapped=True)
    optimizer = semmae.adamw(learner, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay)
    rate = semmae.warmup_cosine_rate(optimizer, total_steps=steps, warmup_steps=round(recipe.warmup_share * steps))
    sampler = semmae.StepSampler(len(tokens.last), seed, steps=steps, batch_size=batch_size)
    recorded: list[Tensor] = []
    for batch in semmae.make_loader(semmae.TokenDataset(tokens._asdict()), batch_size, sampler=sampler):
        losses = semmae.parts_losses(learner, recipe, semmae.PartTokens(**batch))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        rate.step()
        recorded.append(losses["loss"].detach())
    return torch.stack(recorded).tolist()


@torch.inference_mode()
def label(
    images: semmae.ImageSet,
    encoder: semmae.Encoder,
    learner: semmae.PartLearner,
    tokens: semmae.PartTokens,
    out: Path,
    workers: int = 2,
) -> semmae.PartStore:
    """The labels of all images on a grid of 32 × 32 cells, their borders drawn to those of the images."""
    store = semmae.PartStore.create(
        out, images=len(images), grid=32, label_names=learner.spec.label_names, manifest_digest=images.digest,
        teacher_digest=semmae.digest(encoder), learner_digest=semmae.digest(learner),
    )  # fmt: skip
    side = round(tokens.last.shape[1] ** 0.5) * encoder.patch_size
    for batch in semmae.make_loader(semmae.WholeDataset(images, side), 32, workers=workers):
        own = semmae.PartTokens(*(each[batch["row"]] for each in tokens))
        store.write(batch["row"], learner.labels(own, semmae.guides(batch["image"], store.grid)))
    store.finish()
    return store


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--encoder", required=True, help="timm:NAME, hf:NAME, a run of semmae, or a checkpoint file")
    parser.add_argument("--out", required=True, type=Path, help="folder to write labels and learner to")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    photos = semmae.open_images(given.data)
    frozen = semmae.load_encoder(given.encoder, image_size=given.image_size).requires_grad_(False)
    learned, seen = look(photos, frozen, given.image_size)
    learn(learned, seen, given.steps)
    label(photos, frozen, learned, seen, given.out)
    semmae.save_learner(learned, given.out / "learner")
