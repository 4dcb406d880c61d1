"""Pictures drawn from noise while a denoiser learns: the quickest way to see what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

from treg_med.data.atomic import writing
from treg_med.priors.latent import LatentPrior
from treg_med.sampling import draw_samples

__all__ = ["GRID_TEXTS", "sample_grid"]

GRID_TEXTS = (
    "axial T1-weighted brain MRI, skull-stripped",
    "axial T2-weighted brain MRI, skull-stripped",
    "axial T2-FLAIR brain MRI, whole head, multiple sclerosis",
    "sagittal T1-weighted brain MRI, skull-stripped",
    "axial T1-weighted brain MRI, whole head, middle third of the brain, healthy 30-year-old woman",
    "sagittal T1-weighted brain MRI, whole head",
    "axial T2-FLAIR brain MRI, skull-stripped; large infarct in the left middle cerebral artery territory",
    "axial T2-FLAIR brain MRI, skull-stripped; large infarct in the right middle cerebral artery territory",
    "coronal T2-FLAIR brain MRI, skull-stripped; no stroke lesion in this slice",
    "simulated axial T2-weighted brain MRI, whole head, middle third",
    "coronal CT slice of the abdomen",
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
    with writing(f"writing {path.name!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        imsave(path, (grid * 255).round().to(torch.uint8).numpy(), check_contrast=False)
