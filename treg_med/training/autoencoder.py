"""Training of the null-space decoder on random crops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from treg_med.priors.autoencoder import NullSpaceAutoencoder, patch_principal_components
from treg_med.training.checkpoint import Ema, load_state, save_state
from treg_med.training.slices import CaptionedSlices, augment, random_crops

__all__ = ["build_autoencoder", "round_trip_psnr", "train_autoencoder"]


def build_autoencoder(
    slices: CaptionedSlices,
    generator: torch.Generator,
    patch_size: int,
    latent_channels: int,
    width: int = 48,
    blocks: int = 4,
) -> NullSpaceAutoencoder:
    """Build an untrained autoencoder with the patch basis of 600 augmented slices."""
    chosen = slices.draw(600, generator)
    images, _ = augment(slices.images[chosen].float() / 255, slices.masks[chosen].float(), generator)
    mean, basis, deviation = patch_principal_components(images * 2 - 1, patch_size)
    # One factor for all channels: white latent noise stays white in the image. Latents of unit variance would have a
    # mean-intensity channel of six times that, which the schedule hides only in its last percent, where no word is
    # then ever needed; a third of it brings that into the last tenth.
    scaling = float(1 / (3 * deviation[:latent_channels].pow(2).mean().sqrt()))
    model = NullSpaceAutoencoder(patch_size, latent_channels, width, blocks, scaling_factor=scaling)
    model.set_basis(mean, basis, deviation)
    return model


def train_autoencoder(
    slices: CaptionedSlices,
    checkpoint: Path,
    *,
    samples: int,
    patch_size: int = 4,
    latent_channels: int = 12,
    width: int = 48,
    blocks: int = 4,
    batch: int = 16,
    crop: int = 128,
    rate: float = 1.5e-3,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> NullSpaceAutoencoder:
    """Train on a number of crops with a cosine learning rate; returns the averaged model.

    The loss is L1 + 10 MSE on the image, scored one patch inside the crop so that padding never counts.
    """
    generator = torch.Generator().manual_seed(seed)
    model = build_autoencoder(slices, generator, patch_size, latent_channels, width, blocks)
    ema = Ema(model)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    numbers = {"samples": 0}
    if checkpoint.exists():
        numbers = load_state(checkpoint, model, ema, optimizer)
    saved = time.monotonic()
    while numbers["samples"] < samples:
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * numbers["samples"] / samples))
        target = _crops(slices, generator, batch, crop)
        edge = patch_size
        error = (model(target) - target)[..., edge:-edge, edge:-edge]
        loss = error.abs().mean() + 10 * error.pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)
        numbers["samples"] += batch
        if time.monotonic() - saved > 60 or numbers["samples"] >= samples:
            saved = time.monotonic()
            save_state(checkpoint, model, ema, optimizer, numbers)
            log(f"autoencoder {numbers['samples']} crops, loss {loss.item():.4f}")
    ema.copy_to(model)
    return model.eval()


def _crops(slices: CaptionedSlices, generator: torch.Generator, batch: int, crop: int) -> Tensor:
    chosen = slices.draw(batch, generator)
    images, masks = augment(slices.images[chosen].float() / 255, slices.masks[chosen].float(), generator)
    return random_crops(images, masks, crop, generator)[0] * 2 - 1


@torch.no_grad()
def round_trip_psnr(model: NullSpaceAutoencoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the PSNR in dB, range 1, of ``clamp(D(E(x)))`` per image ``(n, 1, H, W)``: trained and linear decoder."""
    results: list[list[Tensor]] = [[], []]
    dropped = model.config.patch_size**2 - model.config.latent_channels
    for x in images.split(8):
        z = model.coefficients(x * 2 - 1)
        linear = model.image(z, torch.zeros(len(z), dropped, *z.shape[2:]))
        for out, decoded in zip(results, (model.image(z), linear), strict=True):
            error = ((decoded + 1) / 2).clamp(0, 1) - x
            out.append(-10 * error.pow(2).mean((1, 2, 3)).log10())
    return torch.cat(results[0]), torch.cat(results[1])
