"""Training of the text-conditioned latent denoiser (v-prediction, cosine schedule, zero terminal SNR)."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from treg_med.priors.autoencoder import NullSpaceAutoencoder
from treg_med.priors.latent import LatentPrior
from treg_med.priors.word_map import WordMap
from treg_med.training.batches import Batch, CaptionedBatches, TextStates
from treg_med.training.checkpoint import Ema, load_state, save_state
from treg_med.training.config import DenoiserSettings
from treg_med.training.deeper import deepened
from treg_med.training.denoiser import build_denoiser, build_scheduler, latent_error, with_word_map
from treg_med.training.drawn_heads import HeadSource
from treg_med.training.journal import Journal
from treg_med.training.muon import MuonAdamW
from treg_med.training.native_resolution import least_timesteps
from treg_med.training.phantoms import draw_phantoms
from treg_med.training.precision import faster_precision
from treg_med.training.samples import sample_grid
from treg_med.training.slices import CaptionedSlices

__all__ = ["train_denoiser"]

_SECONDS_BETWEEN_SAVES = 120.0
_SECONDS_BETWEEN_REPORTS = 900.0
# Signal power that counts as none.
_BLIND = 1e-6
_REPORTED = (4, 12, 31, 69, 145, 282, 487, 700, 900, 970)
#: Validation slices of a report, which interrupts the training.
_MOST_REPORTED = 64


def train_denoiser(
    slices: CaptionedSlices,
    validation: CaptionedSlices,
    autoencoder: NullSpaceAutoencoder,
    texts: TextStates,
    word_map: WordMap,
    checkpoint: Path,
    settings: DenoiserSettings,
    *,
    drawn: HeadSource = draw_phantoms,
    accelerator: Accelerator | None = None,
    seconds: float = float("inf"),
    initial: UNet2DConditionModel | None = None,
    earlier_samples: int = 0,
    journal: Journal | None = None,
) -> dict[str, Any]:
    r"""Train until `settings.samples` are seen or the time is over; returns samples seen and seconds spent.

    .. math::
        v = \sqrt{\bar\alpha}\,\epsilon - \sqrt{1 - \bar\alpha}\, z, \qquad
        L = (1 + w\, m)\, \|v_\theta(z_t, t, c) - v\|^2
            + w_2\, \|(v_\theta - v) - (v'_\theta - v')\|^2

    with the lesion mask m. The second term compares a phantom with its twin under the same noise, where there is
    nothing but noise: both terms have the same minimum there, and what the twins share drops out of the second. What a
    step draws depends on the seed and the samples seen alone: a run that was stopped and resumed
    equals one that was not. The checkpoint is replaced whole, never written in place.

    Salimans, Ho: Progressive Distillation, arXiv 2202.00512; Lin et al.: Common Diffusion Noise Schedules are Flawed,
    arXiv 2305.08891.

    Parameters
    ----------
    slices, validation : CaptionedSlices
        To train on and to report on; the second may be empty.
    autoencoder : NullSpaceAutoencoder
        Frozen; gives the latents.
    texts : TextStates
        Of the frozen text encoder.
    word_map : WordMap
        Frozen; the denoiser sees what it draws.
    checkpoint : Path
        Resumed from when it is there; the journal and sample grids are written beside it.
    settings : DenoiserSettings
        Of the run.
    drawn : HeadSource, optional
        Source of the heads with exact words; by default geometric phantoms.
    accelerator : Accelerator, optional
        Device, precision and processes; by default the CPU and the settings' precision.
    seconds : float
        Time budget of this call.
    initial : UNet2DConditionModel, optional
        Weights to start from without a checkpoint; deepened where `settings.layers` asks for more blocks.
    earlier_samples : int
        Samples behind `initial`, kept for the card.
    journal : Journal, optional
        Receives the progress.
    """
    accelerator = accelerator or Accelerator(cpu=True)
    device = accelerator.device
    autoencoder = autoencoder.to(device)
    journal = journal or Journal(checkpoint.with_suffix(".jsonl"))
    torch.manual_seed(settings.seed)  # first weights
    if initial is None:
        initial = build_denoiser(autoencoder.config.latent_channels, tuple(settings.channels), settings.layers)
    model = with_word_map(deepened(initial, settings.layers), word_map).to(device).train()
    ema = Ema(model, settings.ema)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = MuonAdamW(trained, settings.rate, settings.muon_rate)
    numbers: dict[str, Any] = {
        "samples": 0,
        "earlier_samples": earlier_samples,
        "seconds": 0.0,
        "channels": list(model.config.block_out_channels),
        "layers": model.config.layers_per_block,
        "precision": _precision(settings.precision, accelerator),
    }
    if checkpoint.exists():
        numbers |= load_state(checkpoint, model, ema, optimizer)
        journal.say(f"resumed at {numbers['samples']} samples")
    optimizer.dtype = getattr(torch, numbers["precision"])
    numbers["settings"] = asdict(settings)
    network = accelerator.prepare(model)
    alphas = build_scheduler().alphas_cumprod.to(device)
    least = least_timesteps(slices, alphas.cpu(), float(autoencoder.config.scaling_factor))
    batches = CaptionedBatches(slices, texts, settings, device, drawn=drawn, least=least)
    share = settings.batch // accelerator.num_processes
    generator = torch.Generator()
    begun, before, saved, reported = time.monotonic(), numbers["seconds"], time.monotonic(), numbers["seconds"]
    journal.begin(settings.samples, numbers["samples"])
    while _agreed(numbers["samples"] < settings.samples and time.monotonic() - begun < seconds, accelerator):
        optimizer.schedule = settings.schedule(int(numbers["samples"]))
        crops = settings.shows_crops(numbers["samples"] // settings.batch)
        generator.manual_seed(settings.seed + (numbers["samples"] + accelerator.process_index * share) * 1_000_003)
        batch = batches.draw(share, crops, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=optimizer.dtype is torch.bfloat16):
            errors, weighted = _errors(network, batch, autoencoder, alphas, settings, generator)
        optimizer.zero_grad()
        accelerator.backward(weighted.mean())
        norm = accelerator.clip_grad_norm_(network.parameters(), settings.clip)
        optimizer.step()
        ema.update(model)
        numbers["samples"] += share * accelerator.num_processes
        numbers["seconds"] = before + time.monotonic() - begun
        if not accelerator.is_main_process:
            continue
        journal.step(numbers, batch.timesteps, errors, float(norm), optimizer.schedule)
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            saved = time.monotonic()
            save_state(checkpoint, model, ema, optimizer, numbers)
        if numbers["seconds"] - reported > _SECONDS_BETWEEN_REPORTS:
            reported = numbers["seconds"]
            _report(model, ema, validation, autoencoder, texts, checkpoint.parent, numbers, journal)
    if accelerator.is_main_process:
        save_state(checkpoint, model, ema, optimizer, numbers)
    accelerator.wait_for_everyone()
    return numbers


def _precision(wanted: str, accelerator: Accelerator) -> str:
    """Precision of the run, the same in every process."""
    if wanted != "auto":
        return wanted
    fast = faster_precision(accelerator.device) == "bfloat16"
    return "bfloat16" if _agreed(fast, accelerator) else "float32"


def _errors(
    network: torch.nn.Module,
    batch: Batch,
    autoencoder: NullSpaceAutoencoder,
    alphas: Tensor,
    settings: DenoiserSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mean squared error of v per sample ``(n,)``, plain and weighted inside lesions and between twins."""
    with torch.no_grad(), torch.autocast(batch.images.device.type, enabled=False):
        z = autoencoder.coefficients(batch.images * 2 - 1) * autoencoder.config.scaling_factor
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    twins = slice(len(z) - batch.pairs, len(z))
    heads = slice(len(z) - 2 * batch.pairs, len(z) - batch.pairs)
    noise[twins] = noise[heads]
    alpha = alphas[batch.timesteps].view(-1, 1, 1, 1)
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    predicted = network(signal * z + spread * noise, batch.timesteps, batch.text, window=batch.windows).sample.float()
    error = predicted - (signal * noise - spread * z)
    weight = 1 + settings.lesion_weight * functional.adaptive_max_pool2d(batch.masks, z.shape[-2:])
    weighted = (weight * error.square()).mean((1, 2, 3))
    # Where nothing but noise is seen, words alone tell twins apart, and the head that they share cancels.
    blind = settings.twin_weight * (alpha[twins].flatten() < _BLIND)
    between = (error[heads] - error[twins]).square()
    weighted = torch.cat([weighted[: twins.start], weighted[twins] + blind * between.mean((1, 2, 3))])
    return error.detach().square().mean((1, 2, 3)), weighted


def _agreed(decision: bool, accelerator: Accelerator) -> bool:
    """Return the decision of the first process, so that none waits for one that has left."""
    if accelerator.num_processes == 1:
        return decision
    return bool(broadcast(torch.tensor(float(decision), device=accelerator.device), from_process=0))


def _report(
    model: UNet2DConditionModel,
    ema: Ema,
    validation: CaptionedSlices,
    autoencoder: NullSpaceAutoencoder,
    texts: TextStates,
    folder: Path,
    numbers: dict[str, Any],
    journal: Journal,
) -> None:
    """Journal the validation error of the averaged weights and a grid of samples."""
    averaged = copy.deepcopy(model).eval()
    ema.copy_to(averaged)
    if len(validation):
        journal.validation(numbers, _validation_errors(averaged, validation, autoencoder, texts))
    prior = LatentPrior(autoencoder, averaged, build_scheduler(), texts.encoder, texts.tokenizer)
    sample_grid(prior, folder / "samples" / f"{numbers['samples']:07d}.png")


def _validation_errors(
    model: UNet2DConditionModel, validation: CaptionedSlices, autoencoder: NullSpaceAutoencoder, texts: TextStates
) -> dict[str, dict[int, float]]:
    """Mean error by timestep of evenly spaced validation slices, by disease, with CT a group of its own."""
    slices = validation.every(-(-len(validation) // _MOST_REPORTED))
    return {
        name: {t: float(latent_error(model, group, autoencoder, texts(group.captions), t).mean()) for t in _REPORTED}
        for name, group in slices.by_group().items()
    }
