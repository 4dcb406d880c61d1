"""Training of the null-space decoder on random crops."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from treg_med.priors.autoencoder import NullSpaceAutoencoder, patch_principal_components
from treg_med.training.augmentation import augment, random_crops
from treg_med.training.checkpoint import Ema, load_state, save_state
from treg_med.training.config import AutoencoderSettings
from treg_med.training.journal import Journal
from treg_med.training.slices import CaptionedSlices

__all__ = ["build_autoencoder", "round_trip_psnr", "train_autoencoder"]

_SECONDS_BETWEEN_SAVES = 60.0


def build_autoencoder(
    slices: CaptionedSlices,
    generator: torch.Generator,
    settings: AutoencoderSettings,
) -> NullSpaceAutoencoder:
    """Build an untrained autoencoder with the patch basis of 600 augmented slices."""
    chosen = slices.draw(600, generator)
    images, _, _ = augment(slices.images[chosen].float() / 255, slices.masks[chosen].float(), generator)
    mean, basis, deviation = patch_principal_components(images * 2 - 1, settings.patch_size)
    # One factor for all channels: white latent noise stays white in the image. Latents of unit variance would have a
    # mean-intensity channel of six times that, which the schedule hides only in its last percent, where no word is
    # then ever needed; a third of it brings that into the last tenth.
    scaling = float(1 / (3 * deviation[: settings.latent_channels].pow(2).mean().sqrt()))
    model = NullSpaceAutoencoder(
        settings.patch_size, settings.latent_channels, settings.width, settings.blocks, scaling_factor=scaling
    )
    model.set_basis(mean, basis, deviation)
    return model


def train_autoencoder(
    slices: CaptionedSlices,
    checkpoint: Path,
    settings: AutoencoderSettings,
    *,
    seed: int = 0,
    seconds: float = float("inf"),
    journal: Journal | None = None,
) -> NullSpaceAutoencoder | None:
    """Train on a number of crops with a cosine learning rate; returns the averaged model, or None when time ran out.

    The loss is L1 + 10 MSE on the image, scored one patch inside the crop so that padding never counts. Every step is
    seeded by the crops seen: a run that was stopped and resumed equals one that was not.
    """
    journal = journal or Journal(None, lambda _: None)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = build_autoencoder(slices, generator, settings)
    ema = Ema(model)
    optimizer = torch.optim.Adam(model.parameters(), settings.rate)
    numbers: dict[str, Any] = {"samples": 0, "seconds": 0.0}
    if checkpoint.exists():
        numbers = load_state(checkpoint, model, ema, optimizer)
    begun, before, saved = time.monotonic(), numbers["seconds"], time.monotonic()
    journal.begin(settings.samples, numbers["samples"])
    edge = settings.patch_size
    while numbers["samples"] < settings.samples and time.monotonic() - begun < seconds:
        share = 0.5 * (1 + math.cos(math.pi * numbers["samples"] / settings.samples))
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * share
        generator.manual_seed(seed + numbers["samples"] * 1_000_003)
        target = _crops(slices, generator, settings.batch, settings.crop)
        error = (model(target) - target)[..., edge:-edge, edge:-edge]
        loss = error.abs().mean() + 10 * error.pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        optimizer.step()
        ema.update(model)
        numbers["samples"] += settings.batch
        numbers["seconds"] = before + time.monotonic() - begun
        squares = error.detach().pow(2).mean((1, 2, 3))
        journal.step(numbers, torch.zeros(len(squares)), squares, float(norm), share)
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            saved = time.monotonic()
            save_state(checkpoint, model, ema, optimizer, numbers)
    save_state(checkpoint, model, ema, optimizer, numbers)
    if numbers["samples"] < settings.samples:
        return None
    ema.copy_to(model)
    return model.eval()


def _crops(slices: CaptionedSlices, generator: torch.Generator, batch: int, crop: int) -> Tensor:
    chosen = slices.draw(batch, generator)
    images, masks, _ = augment(slices.images[chosen].float() / 255, slices.masks[chosen].float(), generator)
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
