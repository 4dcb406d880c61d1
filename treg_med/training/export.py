"""Assemble trained parts into a prior folder with its card (``prior.json``)."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treg_med.notice import RESEARCH_ONLY
from treg_med.priors.latent import LatentPrior
from treg_med.training.captions import SliceAttributes, render_caption, with_other_contrasts
from treg_med.training.slices import CaptionedSlices

__all__ = ["contrast_wins", "denoising_error", "export_prior"]

TIMESTEPS = (4, 12, 31, 69, 145, 282, 487, 695, 838, 970)


@torch.no_grad()
def denoising_error(
    prior: LatentPrior, slices: CaptionedSlices, timesteps: tuple[int, ...] = TIMESTEPS, seed: int = 0
) -> dict[int, float]:
    """Return the rms error per pixel, in [-1, 1] units, of the decoded one-step clean estimate with the right text."""
    generator = torch.Generator().manual_seed(seed)
    images = slices.images.float() / 127.5 - 1
    out = {}
    for t in timesteps:
        squares = []
        for x, texts in zip(images.split(8), _chunks(slices.captions, 8), strict=True):
            noisy = _noised(prior, prior.encode(x), t, generator)
            clean = prior.predict(noisy, t, prior.embed(texts)).clean
            squares.append((prior.decode(clean) - x).square().mean((1, 2, 3)))
        out[t] = float(torch.cat(squares).mean().sqrt())
    return out


@torch.no_grad()
def contrast_wins(
    prior: LatentPrior, slices: CaptionedSlices, timestep: int, draws: int = 2, seed: int = 0
) -> float:
    """Return how often the published caption denoises better than the same caption with another contrast word.

    Every slice meets the words of the other contrasts (T1 with and without contrast agent count as one) under the same
    noise; the squared errors of `draws` noises are added. Chance is one half.
    """
    generator = torch.Generator().manual_seed(seed)
    wins = []
    for x, caption in zip(slices.images.float().split(1), slices.captions, strict=True):
        texts = [caption, *with_other_contrasts(caption)]
        z, condition = prior.encode(x / 127.5 - 1), prior.embed(texts)
        errors = torch.zeros(len(texts))
        for _ in range(draws):
            noisy = _noised(prior, z, timestep, generator).expand(len(texts), -1, -1, -1)
            errors += (prior.predict(noisy, timestep, condition).clean - z).square().mean((1, 2, 3))
        wins += (errors[0] < errors[1:]).tolist()
    return sum(wins) / len(wins)


def export_prior(parts: Path, target: Path, train: CaptionedSlices, validation: CaptionedSlices) -> dict[str, Any]:
    """Write ``target`` as a half-precision prior folder and return its card.

    Parameters
    ----------
    parts : Path
        Folder with vae/, text_encoder/, tokenizer/ and denoiser.ckpt as the training steps leave them.
    target : Path
        Folder to write; replaced as a whole.
    train, validation : CaptionedSlices
        For the list of known words (train) and the metrics (validation).
    """
    staging = target.with_name(target.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    training = _save_half(parts, staging)
    prior = LatentPrior.from_pretrained(staging)
    card = {
        "format": 1,
        "summary": "axial, coronal and sagittal brain MR slices (T1, T1 with contrast agent, T2, FLAIR) with captions",
        "image": {"size": 256, "range": [-1, 1], "background": -1, "one": "99.7 percentile of the head"},
        "training": training,
        "data": _DATA,
        "metrics": _metrics(prior, validation),
        "words": _words(train.attributes),
        "limits": RESEARCH_ONLY + " Trained on five subjects with multiple sclerosis and unidentified tumour slices.",
    }
    files = sorted(p for p in staging.rglob("*") if p.is_file())
    card["sha256"] = {p.relative_to(staging).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    (staging / "prior.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    return card


_DATA = [
    {
        "name": "multiple sclerosis MR, cross-sectional and longitudinal",
        "licence": "CC BY",
        "cite": "Lesjak et al., Neuroinformatics 2016 and 2017",
    },
    {
        "name": "brain tumour MR slices (training only, not redistributed)",
        "licence": "CC0 as declared by the collection",
        "cite": "M. Nickparvar, Brain Tumor MRI Dataset; J. Cheng, figshare 1512427",
    },
]


def _save_half(parts: Path, staging: Path) -> dict[str, float]:
    """Write the components and return the numbers of the denoiser's training."""
    from transformers import AutoTokenizer, CLIPTextModel

    from treg_med.priors.autoencoder import NullSpaceAutoencoder
    from treg_med.training.denoiser import averaged_denoiser, build_scheduler

    denoiser, training = averaged_denoiser(parts / "denoiser.ckpt")

    # The patch basis must stay orthonormal to working precision: the autoencoder is small and is kept in float32.
    NullSpaceAutoencoder.from_pretrained(parts / "vae").save_pretrained(staging / "vae")
    denoiser.half().save_pretrained(staging / "unet", max_shard_size="15MB")
    CLIPTextModel.from_pretrained(parts / "text_encoder").half().save_pretrained(
        staging / "text_encoder", max_shard_size="15MB"
    )
    AutoTokenizer.from_pretrained(parts / "tokenizer").save_pretrained(staging / "tokenizer")
    build_scheduler().save_pretrained(staging / "scheduler")
    return training


def _metrics(prior: LatentPrior, validation: CaptionedSlices) -> dict[str, Any]:
    from treg_med.training.autoencoder import round_trip_psnr

    trained, linear = round_trip_psnr(prior.vae, validation.images.float() / 255)
    return {
        "validation_slices": len(validation),
        "round_trip_psnr_db": {
            "mean": round(float(trained.mean()), 2),
            "worst": round(float(trained.min()), 2),
        },
        "round_trip_psnr_db_linear_decoder": {
            "mean": round(float(linear.mean()), 2),
            "worst": round(float(linear.min()), 2),
        },
        "denoising_error_std": {
            str(t): round(e, 5) for t, e in denoising_error(prior, validation, TIMESTEPS).items()
        },
        "right_contrast_wins": {str(t): round(contrast_wins(prior, validation, t), 3) for t in (69, 145, 487, 900)},
    }


def _words(attributes: list[SliceAttributes]) -> list[str]:
    """Words of the training sentences, numbers left out."""
    rng = random.Random(0)  # noqa: S311 - sentences, not secrets
    seen: set[str] = set()
    for _ in range(5000):
        seen.update(w.strip(".,;:()").lower() for w in render_caption(rng.choice(attributes), rng)[0].split())
    return sorted(w for w in seen if w and not any(c.isdigit() for c in w))


def _noised(prior: LatentPrior, z: Tensor, timestep: int, generator: torch.Generator) -> Tensor:
    alpha = prior.alphas_cumprod[timestep]
    return alpha.sqrt() * z + (1 - alpha).sqrt() * torch.randn(z.shape, generator=generator)


def _chunks(items: list[str], size: int) -> list[list[str]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
