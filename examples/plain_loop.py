"""What `semmae pretrain` trains, as a loop of one's own: plain PyTorch, without Lightning.

    python examples/plain_loop.py --data photos --parts runs/parts --out runs/plain

The losses are those of `semmae pretrain --data photos --parts runs/parts --epochs 100`, step for
step. What the verb has besides:
checkpoints to go on from, several GPUs, accumulation, metrics in files, pictures.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from semmae.checkpoint import save_encoder
from semmae.data.loaders import CropDataset, EpochSampler, make_loader, normalise
from semmae.data.manifest import open_images
from semmae.data.part_store import PartStore
from semmae.masking import semantic_mask
from semmae.memory import keep_freed_memory
from semmae.models.mae import DECODERS, MaskedAutoencoder
from semmae.models.vit import Encoder, EncoderSpec
from semmae.tasks.masks import mask_seed
from semmae.tasks.optimizer import adamw, warmup_cosine_rate
from semmae.tasks.precision import resolve_precision


def train(
    data: str, parts: Path, out: Path, model: str = "vit_small", size: int = 224, patch: int = 16,
    epochs: int = 100, batch: int = 64, workers: int = 2, seed: int = 0, float32: bool = False,
) -> list[float]:  # fmt: skip
    """Pre-train on a folder of images with the part labels that `semmae parts` gave them; the loss of every step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = not float32 and resolve_precision("auto") == "bf16"
    keep_freed_memory()
    images = open_images(data)
    store = PartStore.open(parts, manifest_digest=images.digest)
    dataset = CropDataset(images, size, seed=seed, parts=store, side=size // patch)
    sampler = EpochSampler(len(dataset), seed)
    loader = make_loader(dataset, batch, sampler=sampler, workers=workers, drop_last=True)
    steps = epochs * len(loader)
    assert steps, f"{len(images)} images make no batch of {batch}"

    torch.manual_seed(seed)
    mae = MaskedAutoencoder(Encoder(EncoderSpec.named(model, size, patch)), DECODERS[model]).to(device)
    optimizer = adamw(mae, lr=1.5e-4 * batch / 256, betas=(0.9, 0.95), weight_decay=0.05)
    rate = warmup_cosine_rate(optimizer, total_steps=steps, warmup_steps=round(0.05 * steps))
    losses: list[Tensor] = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for crops in loader:
            generator = torch.Generator(device).manual_seed(mask_seed(seed, len(losses), 0))
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = masked_loss(mae, crops, len(losses) / steps, store.num_labels, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1}/{epochs}, loss {losses[-1]:.4f}")
    save_encoder(mae.encoder, out / "encoder", {"stage": "pretrain", "images": len(images)})
    return torch.stack(losses).tolist()


def masked_loss(
    mae: MaskedAutoencoder, crops: dict[str, Tensor], progress: float, num_labels: int, generator: torch.Generator
) -> Tensor:
    """The loss of a batch whose mask goes from a share of every part to whole parts as `progress` goes from 0 to 1."""
    device, spec = generator.device, mae.encoder.spec
    pixels = normalise(crops["images"][:, 0].to(device, non_blocking=True), spec.mean, spec.std)
    parts = crops["parts"].to(device, non_blocking=True)
    noise = torch.rand(parts.shape, generator=generator, device=device)
    order_noise = torch.rand(len(parts), num_labels, generator=generator, device=device)
    mask = semantic_mask(parts, noise, order_noise, ratio=0.75, blend=progress**2)
    return mae(pixels, mask).loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--parts", required=True, type=Path, help="their part labels, written by semmae parts")
    parser.add_argument("--out", required=True, type=Path, help="folder to write the encoder to")
    train(**vars(parser.parse_args()))
