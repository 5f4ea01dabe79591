"""Learns the parts of one's own images in a plain PyTorch loop, and labels every image with them.

    python examples/learn_parts.py --data photos --encoder timm:vit_small_patch16_224.dino --out runs/parts

The labels are those of `semmae parts` with its defaults in float32, but for rounding; `semmae pretrain --parts` and
examples/masks.py read them. What the verb has besides: a run to go on with, several processes, bf16, attention
beside the labels, part quality, pictures.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import semmae


def learn(
    images: semmae.ImageSet,
    encoder: semmae.Encoder,
    epochs: int = 20,
    batch_size: int = 64,
    workers: int = 2,
    seed: int = 0,
) -> tuple[semmae.PartLearner, list[float]]:
    """A part learner trained on two crops of each image, and the loss of every step; the encoder stays as it is."""
    spec, recipe, device = encoder.spec, semmae.PartsRecipe(), next(encoder.parameters()).device
    torch.manual_seed(seed)
    sizes = semmae.PartsSpec(spec.width, spec.patch_size, head_dim=spec.width // spec.num_heads)
    # Parts start as the heads of the encoder's last block; semmae.PartLearner(sizes) alone would start at random.
    learner = semmae.PartLearner(sizes, encoder, torch.Generator().manual_seed(seed)).to(device)
    crops = semmae.CropDataset(images, spec.image_size, views=2, scale=(0.5, 1.0), seed=seed, colour=True, hue=0.5)
    sampler = semmae.EpochSampler(len(images), seed)
    loader = semmae.make_loader(crops, batch_size, sampler=sampler, workers=workers, drop_last=True)
    steps = epochs * len(loader)
    assert steps, f"{len(images)} images make no batch of {batch_size}"
    optimizer = semmae.adamw(learner, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay)
    rate = semmae.warmup_cosine_rate(optimizer, total_steps=steps, warmup_steps=round(recipe.warmup_share * steps))
    recorded: list[Tensor] = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            views = [semmae.normalise(view.to(device), spec.mean, spec.std) for view in batch["images"].unbind(1)]
            with torch.no_grad():
                features = [encoder.last_block_features(view) for view in views]
            losses = semmae.parts_losses(learner, recipe, views[0], features, batch["crops"].to(device))
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            rate.step()
            recorded.append(losses["loss"].detach())
        print(f"epoch {epoch + 1}/{epochs}, loss {recorded[-1]:.4f}")
    return learner, torch.stack(recorded).tolist()


@torch.inference_mode()
def label(
    images: semmae.ImageSet, encoder: semmae.Encoder, learner: semmae.PartLearner, out: Path, workers: int = 2
) -> semmae.PartStore:
    """The labels of all images, whole, on a grid of 28 × 28 cells."""
    spec, device = encoder.spec, next(encoder.parameters()).device
    store = semmae.PartStore.create(
        out, images=len(images), grid=28, label_names=learner.spec.label_names, manifest_digest=images.digest,
        teacher_digest=semmae.digest(encoder), learner_digest=semmae.digest(learner),
    )  # fmt: skip
    for batch in semmae.make_loader(semmae.WholeDataset(images, spec.image_size), 32, workers=workers):
        pixels = semmae.normalise(batch["image"].to(device), spec.mean, spec.std)
        store.write(batch["row"], learner.labels(encoder.last_block_features(pixels), store.grid))
    store.finish()
    return store


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--encoder", required=True, help="timm:NAME, a run of semmae, or a checkpoint file")
    parser.add_argument("--out", required=True, type=Path, help="folder to write labels and learner to")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    photos = semmae.open_images(given.data)
    frozen = semmae.load_encoder(given.encoder).requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    learned, _ = learn(photos, frozen, given.epochs, given.batch_size)
    label(photos, frozen, learned, given.out)
    semmae.save_learner(learned, given.out / "learner")
