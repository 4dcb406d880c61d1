"""Pictures drawn from noise while a denoiser learns: the quickest way to see what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

from treg_med.priors.latent import LatentPrior
from treg_med.sampling import draw_samples

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
_COLUMNS = 4


def sample_grid(
    prior: LatentPrior, path: Path, *, prompts: Sequence[str] = GRID_TEXTS, steps: int = 12, size: int = 256
) -> None:
    """Write a PNG of DDIM samples, one per prompt, all from the same noise; `size` is the side of one in pixels."""
    from skimage.io import imsave

    side = size // prior.vae_factor
    noise = torch.randn(1, prior.unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    images = draw_samples(prior, noise.to(prior.device), list(prompts), steps=steps).cpu()
    rows = [torch.cat(list(row), 1) for row in images.split(_COLUMNS)]
    width = max(row.shape[1] for row in rows)
    grid = torch.cat([functional.pad(row, (0, width - row.shape[1])) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, (grid * 255).round().to(torch.uint8).numpy(), check_contrast=False)
