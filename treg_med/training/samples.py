"""Pictures drawn from noise while a denoiser learns: the quickest way to see what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from treg_med.priors.autoencoder import NullSpaceAutoencoder
from treg_med.training.batches import TextStates
from treg_med.training.denoiser import build_scheduler

__all__ = ["GRID_TEXTS", "sample_grid"]

GRID_TEXTS = (
    "axial T1-weighted brain MRI, skull-stripped",
    "axial T2-weighted brain MRI, skull-stripped",
    "coronal T2-FLAIR brain MRI, skull-stripped",
    "sagittal T1-weighted brain MRI, skull-stripped",
    "axial T2-weighted brain MRI, middle third of the stack",
    "simulated axial T2-weighted brain MRI with large tumour in the left frontal lobe",
    "simulated axial T2-weighted brain MRI with large tumour in the right frontal lobe",
    "axial CT of the chest, wide window",
)


@torch.no_grad()
def sample_grid(
    model: UNet2DConditionModel,
    autoencoder: NullSpaceAutoencoder,
    texts: TextStates,
    path: Path,
    *,
    prompts: Sequence[str] = GRID_TEXTS,
    steps: int = 12,
    guidance_scale: float = 2.0,
    size: int = 256,
    seed: int = 0,
) -> None:
    """Write a PNG of DDIM samples, one per prompt, all from the same noise.

    Parameters
    ----------
    model : UNet2DConditionModel
        Predicts v.
    autoencoder : NullSpaceAutoencoder
        Gives the pictures.
    texts : TextStates
        Of the text encoder.
    path : Path
        File to write.
    prompts : sequence of str
        One picture each.
    steps, guidance_scale
        Of the sampler.
    size : int
        Side of a picture in pixels.
    seed : int
        Of the noise.
    """
    from skimage.io import imsave

    device = next(model.parameters()).device
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    side = size // autoencoder.config.patch_size
    noise = torch.randn(
        1, autoencoder.config.latent_channels, side, side, generator=torch.Generator().manual_seed(seed)
    )
    z = noise.to(device).expand(len(prompts), -1, -1, -1)
    states = torch.cat([texts([""]).expand(len(prompts), -1, -1), texts(list(prompts))]).to(device)
    for t in scheduler.timesteps:
        null, said = model(torch.cat([z, z]), t.to(device), states).sample.float().chunk(2)
        z = scheduler.step(null + guidance_scale * (said - null), t, z).prev_sample
    images = ((autoencoder.image(z / autoencoder.config.scaling_factor)[:, 0] + 1) / 2).clamp(0, 1).cpu()
    columns = min(4, len(images))
    rows = [torch.cat(list(row), 1) for row in images.split(columns)]
    grid = torch.cat([torch.nn.functional.pad(row, (0, columns * size - row.shape[1])) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, (grid * 255).round().to(torch.uint8).numpy(), check_contrast=False)
