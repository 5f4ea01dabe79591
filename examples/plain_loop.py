"""What `semmae pretrain` trains, as a loop of one's own: plain PyTorch, without Lightning.

    python examples/plain_loop.py --data photos --parts runs/parts --out runs/plain

The losses are those of `semmae pretrain --data photos --parts runs/parts --epochs 100`, step for step. What the verb
has besides: checkpoints to go on from, several GPUs, accumulation, metrics in files, pictures.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import semmae


def train(
    data: str, parts: Path, out: Path, model: str = "vit_small", size: int = 224, patch: int = 16,
    epochs: int = 100, batch: int = 64, workers: int = 2, seed: int = 0, float32: bool = False,
) -> list[float]:  # fmt: skip
    """Pre-train on a folder of images with the part labels that `semmae parts` gave them; the loss of every step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = not float32 and semmae.resolve_precision("auto") == "bf16"
    semmae.keep_freed_memory()
    images = semmae.open_images(data)
    store = semmae.PartStore.open(parts, manifest_digest=images.digest)
    dataset = semmae.CropDataset(images, size, seed=seed, parts=store, side=size // patch)
    sampler = semmae.EpochSampler(len(dataset), seed)
    loader = semmae.make_loader(dataset, batch, sampler=sampler, workers=workers, drop_last=True)
    steps = epochs * len(loader)
    assert steps, f"{len(images)} images make no batch of {batch}"

    torch.manual_seed(seed)
    encoder = semmae.Encoder(semmae.EncoderSpec.named(model, size, patch))
    mae = semmae.MaskedAutoencoder(encoder, semmae.DecoderSpec.named(model)).to(device)
    optimizer = semmae.adamw(mae, lr=1.5e-4 * batch / 256, betas=(0.9, 0.95), weight_decay=0.05)
    rate = semmae.warmup_cosine_rate(optimizer, total_steps=steps, warmup_steps=round(0.05 * steps))
    losses: list[Tensor] = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for crops in loader:
            generator = torch.Generator(device).manual_seed(semmae.mask_seed(seed, len(losses), 0))
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = masked_loss(mae, crops, len(losses) / steps, store.num_labels, generator)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()  # here, so that no gradients are held while the next forward pass runs
            rate.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1}/{epochs}, loss {losses[-1]:.4f}")
    semmae.save_encoder(mae.encoder, out / "encoder", {"stage": "pretrain", "images": len(images)})
    return torch.stack(losses).tolist()


def masked_loss(
    mae: semmae.MaskedAutoencoder,
    crops: dict[str, Tensor],
    progress: float,
    num_labels: int,
    generator: torch.Generator,
) -> Tensor:
    """The loss of a batch whose mask goes from a share of every part to whole parts as `progress` goes from 0 to 1."""
    device, spec = generator.device, mae.encoder.spec
    pixels = semmae.normalise(crops["images"][:, 0].to(device, non_blocking=True), spec.mean, spec.std)
    parts = crops["parts"].to(device, non_blocking=True)
    noise = torch.rand(parts.shape, generator=generator, device=device)
    order_noise = torch.rand(len(parts), num_labels, generator=generator, device=device)
    mask = semmae.semantic_mask(parts, noise, order_noise, ratio=0.75, blend=progress**2)
    return mae(pixels, mask).loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--parts", required=True, type=Path, help="their part labels, written by semmae parts")
    parser.add_argument("--out", required=True, type=Path, help="folder to write the encoder to")
    train(**vars(parser.parse_args()))
