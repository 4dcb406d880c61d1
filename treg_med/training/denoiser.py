"""Training of the text-conditioned latent denoiser (v-prediction, cosine schedule, zero terminal SNR)."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from treg_med.priors.autoencoder import NullSpaceAutoencoder
from treg_med.training.captions import SliceAttributes, render_caption
from treg_med.training.checkpoint import Ema, load_state, save_state
from treg_med.training.muon import MuonAdamW
from treg_med.training.slices import CaptionedSlices, augment, random_crops
from treg_med.training.text_encoder import MAX_TOKENS
from treg_med.training.workers import agreed, average_gradients, worker

__all__ = [
    "CaptionBank",
    "DenoiserSettings",
    "averaged_denoiser",
    "build_denoiser",
    "build_scheduler",
    "latent_error",
    "train_denoiser",
]


CHANNELS = (64, 128, 160, 192)
_REPORTED = (4, 12, 31, 69, 145, 282, 487, 700, 900, 970)
_SECONDS_BETWEEN_SAVES = 120.0
_SECONDS_BETWEEN_REPORTS = 900.0


def build_scheduler() -> DDIMScheduler:
    """Return the noise schedule that training and every solver share."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def build_denoiser(latent_channels: int, channels: tuple[int, ...] = CHANNELS) -> UNet2DConditionModel:
    """Build a small UNet for 64x64 latents, one level per entry of `channels`.

    Contrast, plane and skull stripping concern the whole slice: a pooled text state is added to the time embedding and
    so reaches every block; attention to single words is kept to the coarsest level.
    """
    levels = len(channels)
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        cross_attention_dim=256,
        attention_head_dim=4,
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


class CaptionBank:
    """Text states of many captions per slice, computed once: the encoder is frozen while the denoiser learns."""

    def __init__(
        self,
        attributes: list[SliceAttributes],
        captions: list[str],
        tokenizer: PreTrainedTokenizerFast,
        encoder: CLIPTextModel,
        *,
        variants: int = 6,
        seed: int = 0,
    ) -> None:
        rng = random.Random(seed)  # noqa: S311 - sentences, not secrets
        texts: dict[str, int] = {"": 0}
        rows = []
        for known, caption in zip(attributes, captions, strict=True):
            # From full sentences to a bare "FLAIR brain MRI": users write either.
            dropouts = (0.8 * (k + 0.5) / variants for k in range(variants))
            written = [caption, *(render_caption(known, rng, dropout)[0] for dropout in dropouts)]
            rows.append([texts.setdefault(text, len(texts)) for text in written])
        self.rows = torch.tensor(rows)
        self.states = encode_texts(list(texts), tokenizer, encoder)

    def draw(self, slices: Tensor, generator: torch.Generator, dropout: float) -> Tensor:
        """Text states ``(n, tokens, width)`` of one random caption per slice, empty with probability `dropout`."""
        count = len(slices)
        column = torch.randint(0, self.rows.shape[1], (count,), generator=generator)
        row = self.rows[slices, column]
        row[torch.rand(count, generator=generator) < dropout] = 0
        return self.states[row]


@torch.no_grad()
def encode_texts(texts: list[str], tokenizer: PreTrainedTokenizerFast, encoder: CLIPTextModel) -> Tensor:
    """Last hidden states ``(n, tokens, width)`` of the frozen text encoder."""
    states = []
    for start in range(0, len(texts), 64):
        tokens = tokenizer(
            texts[start : start + 64],
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        states.append(encoder(tokens.input_ids).last_hidden_state)
    return torch.cat(states)


@dataclass(frozen=True)
class DenoiserSettings:
    """Settings of one training run; stored in the prior's card.

    A share of the steps shows crops at low noise, where the estimate is local and a crop teaches as much per pixel
    at a fraction of the cost; the other steps show whole slices at every noise level.
    """

    samples: int = 100_000
    batch: int = 16
    rate: float = 6e-4
    muon_rate: float = 0.008
    decay_share: float = 0.3
    warmup: int = 200
    caption_dropout: float = 0.1
    lesion_weight: float = 4.0
    low_noise_share: float = 0.5
    high_noise_share: float = 0.25
    crop: int = 128
    crop_share: float = 0.5
    crop_timesteps: int = 350
    bfloat16: bool = False
    seed: int = 0

    def schedule(self, samples: int) -> float:
        """Share of the full rates: warm-up, one, then linear to zero over the last `decay_share` of the samples."""
        left = (1 - samples / self.samples) / self.decay_share
        return min(1.0, samples / (self.warmup * self.batch), max(left, 1e-3))

    def shows_crops(self, step: int) -> bool:
        """Whether a step shows crops: evenly spread steps, the same ones in every process."""
        return math.floor((step + 1) * self.crop_share) > math.floor(step * self.crop_share)


def draw_timesteps(count: int, low_noise_share: float, high_noise_share: float, generator: torch.Generator) -> Tensor:
    """Stratified timesteps, ``(count,)``, with extra mass at both ends.

    Below 250 live the solvers that start from a reconstruction; only above 850, where even the mean intensity of a
    patch is lost in the noise, must the network take the contrast from the words.
    """
    u = _shuffled_strata(count, generator)
    middle = 1 - low_noise_share - high_noise_share
    t = torch.where(
        u < low_noise_share,
        250 * u / low_noise_share,
        torch.where(
            u < low_noise_share + middle,
            1000 * (u - low_noise_share) / middle,
            1000 - 150 * (1 - u) / high_noise_share,
        ),
    )
    return t.long().clamp(0, 999)


def draw_crop_timesteps(count: int, end: int, generator: torch.Generator) -> Tensor:
    """Stratified timesteps below `end`, ``(count,)``, evenly spread in the logarithm of ``t + 1``."""
    return (torch.exp(_shuffled_strata(count, generator) * math.log(end)) - 1).long()


def _shuffled_strata(count: int, generator: torch.Generator) -> Tensor:
    """One uniform number from each of `count` equal parts of [0, 1), in random order."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return u[torch.randperm(count, generator=generator)]


def train_denoiser(
    slices: CaptionedSlices,
    validation: CaptionedSlices,
    autoencoder: NullSpaceAutoencoder,
    tokenizer: PreTrainedTokenizerFast,
    encoder: CLIPTextModel,
    checkpoint: Path,
    settings: DenoiserSettings,
    *,
    minutes: float = 1e9,
    initial: UNet2DConditionModel | None = None,
    earlier_samples: int = 0,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train until `settings.samples` are seen or the budget ends; returns samples seen and seconds spent.

    ``v = sqrt(ab) eps - sqrt(1 - ab) z`` is regressed with the squared error weighted by ``1 + w`` inside lesions.
    """
    model = initial or build_denoiser(autoencoder.config.latent_channels)
    ema = Ema(model, 0.998)
    precision = torch.bfloat16 if settings.bfloat16 else torch.float32
    optimizer = MuonAdamW(model.named_parameters(), settings.rate, settings.muon_rate, dtype=precision)
    numbers: dict[str, Any] = {
        "samples": 0,
        "earlier_samples": earlier_samples,
        "seconds": 0.0,
        "channels": list(model.config.block_out_channels),
    }
    if checkpoint.exists():
        numbers = load_state(checkpoint, model, ema, optimizer)
        log(f"resumed at {numbers['samples']} samples")
    numbers["settings"] = asdict(settings)
    rank, workers = worker()
    generator = torch.Generator()
    bank = CaptionBank(slices.attributes, slices.captions, tokenizer, encoder, seed=settings.seed)
    alphas = build_scheduler().alphas_cumprod
    begun, before, saved, reported = time.monotonic(), numbers["seconds"], time.monotonic(), 0.0
    while agreed(numbers["samples"] < settings.samples and time.monotonic() - begun < 60 * minutes):
        optimizer.schedule = settings.schedule(int(numbers["samples"]))
        crops = settings.shows_crops(numbers["samples"] // settings.batch)
        # Seeded by the samples seen: an interrupted run draws what an uninterrupted one would have drawn.
        generator.manual_seed(settings.seed + (numbers["samples"] + rank * (settings.batch // workers)) * 1_000_003)
        loss = _loss(model, slices, bank, autoencoder, alphas, settings, crops, settings.batch // workers, generator)
        loss.backward()
        average_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        numbers["samples"] += settings.batch
        numbers["seconds"] = before + time.monotonic() - begun
        if rank > 0:
            continue
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            saved = time.monotonic()
            save_state(checkpoint, model, ema, optimizer, numbers)
            log(f"{numbers['samples']} samples {numbers['seconds']:.0f} s loss {loss.item():.4f}")
        if numbers["seconds"] - reported > _SECONDS_BETWEEN_REPORTS:
            reported = numbers["seconds"]
            log(f"{numbers['samples']} samples: " + _report(model, ema, validation, autoencoder, tokenizer, encoder))
    if rank == 0:
        save_state(checkpoint, model, ema, optimizer, numbers)
    return numbers


def averaged_denoiser(checkpoint: Path) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    """Return the averaged weights of a checkpoint, also of a run that is still going on, and its numbers."""
    with safe_open(checkpoint, "pt") as file:
        numbers: dict[str, Any] = json.loads(file.metadata()["numbers"])
        weights = {name.removeprefix("ema/"): file.get_tensor(name) for name in file.keys() if name.startswith("ema/")}  # noqa: SIM118
    model = build_denoiser(weights["conv_in.weight"].shape[1], tuple(numbers.get("channels", CHANNELS)))
    model.load_state_dict(weights)
    return model.eval(), numbers


def _loss(
    model: UNet2DConditionModel,
    slices: CaptionedSlices,
    bank: CaptionBank,
    autoencoder: NullSpaceAutoencoder,
    alphas: Tensor,
    settings: DenoiserSettings,
    crops: bool,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    chosen = slices.draw(count, generator)
    images, masks = augment(slices.images[chosen].float() / 255, slices.masks[chosen].float(), generator)
    if crops:
        images, masks = random_crops(images, masks, settings.crop, generator)
        t = draw_crop_timesteps(count, settings.crop_timesteps, generator)
    else:
        t = draw_timesteps(count, settings.low_noise_share, settings.high_noise_share, generator)
    with torch.no_grad():
        z = autoencoder.coefficients(images * 2 - 1) * autoencoder.config.scaling_factor
    weight = 1 + settings.lesion_weight * functional.adaptive_max_pool2d(masks, z.shape[-2:])
    noise = torch.randn(z.shape, generator=generator)
    signal, spread = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
    text = bank.draw(chosen, generator, settings.caption_dropout)
    with torch.autocast(z.device.type, torch.bfloat16, enabled=settings.bfloat16):
        predicted = model(signal * z + spread * noise, t, text).sample
    return (weight * (predicted.float() - (signal * noise - spread * z)).pow(2)).mean()


@torch.no_grad()
def latent_error(
    model: UNet2DConditionModel,
    slices: CaptionedSlices,
    autoencoder: NullSpaceAutoencoder,
    states: Tensor,
    timestep: int,
    *,
    seed: int = 0,
) -> Tensor:
    """Squared error of the one-step clean estimate per slice, in units of the mean latent variance."""
    z = autoencoder.coefficients(slices.images.float() / 127.5 - 1) * autoencoder.config.scaling_factor
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    alpha = build_scheduler().alphas_cumprod[timestep]
    noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
    errors = []
    for part, text, target in zip(noisy.split(8), states.split(8), z.split(8), strict=True):
        v = model(part, torch.full((len(part),), timestep), text).sample
        errors.append((alpha.sqrt() * part - (1 - alpha).sqrt() * v - target).pow(2).mean((1, 2, 3)))
    return torch.cat(errors)


def _report(
    model: UNet2DConditionModel,
    ema: Ema,
    validation: CaptionedSlices,
    autoencoder: NullSpaceAutoencoder,
    tokenizer: PreTrainedTokenizerFast,
    encoder: CLIPTextModel,
) -> str:
    """Return the validation error of the averaged weights at noise levels; the live weights are restored."""
    live = {n: p.detach().clone() for n, p in model.named_parameters()}
    ema.copy_to(model)
    states = encode_texts(validation.captions, tokenizer, encoder)
    line = " ".join(
        f"t{t} {latent_error(model, validation, autoencoder, states, t).mean():.5f}" for t in _REPORTED
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(live[name])
    return line
