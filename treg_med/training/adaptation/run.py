"""Adapting a prior to other images: its decoder or its denoiser, by low-rank factors or in full.

The result is an adapter folder (`treg_med.priors.adapter_files`); the prior itself is not changed. While the training
is under way its state lies beside that folder, in ``<name>.training/``.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from treg_med.data.whole_folder import check_replaceable
from treg_med.errors import ConfigError, FormatError
from treg_med.priors.adapter_files import ADAPTER_CARD, read_adapter_folder
from treg_med.priors.adapters import base_sha256, require_package
from treg_med.priors.latent import LatentPrior
from treg_med.settings import check_settings, setting
from treg_med.training.adaptation.loss import Errors, autoencoder_errors, denoiser_errors
from treg_med.training.adaptation.weights import trained_weights
from treg_med.training.adaptation.writer import write_adapter
from treg_med.training.checkpoint import Ema, load_state, save_state
from treg_med.training.journal import Journal
from treg_med.training.noise_draw import evenly_spread
from treg_med.training.precision import faster_precision
from treg_med.training.slices import CaptionedSlices

__all__ = ["AdaptationSettings", "adapt_prior", "load_adaptation_slices"]

_SECONDS_BETWEEN_SAVES = 60.0
_MEASURED_SLICES = 40
_TIMESTEPS = (69, 145, 282, 487)
_RATES = {("vae", "full"): 1e-3, ("vae", "lora"): 2e-3, ("unet", "full"): 2e-4, ("unet", "lora"): 2e-3}


@dataclass(frozen=True, kw_only=True)
class AdaptationSettings:
    """Settings of one adaptation; stored in the adapter's card."""

    method: str = setting("lora", choices=("lora", "full"), help="lora: low-rank factors; full: all weights")
    steps: int = setting(1000, minimum=1, help="training steps")
    batch: int = setting(8, minimum=1, help="samples per step")
    rate: float | None = setting(None, above=0.0, help="learning rate; by default that of the component and method")
    rank: int = setting(8, minimum=1, maximum=1024, help="rank of the low-rank factors")
    seed: int = setting(0, minimum=0, help="of every random number")
    crop: int = setting(128, minimum=16, help="side of a crop in pixels")
    warmup: int = setting(20, minimum=1, help="steps of rising rate")
    clip: float = setting(1.0, above=0.0, help="largest gradient norm")
    ema: float = setting(0.99, minimum=0.0, maximum=0.99999, help="decay of the averaged weights")
    caption_dropout: float = setting(0.1, minimum=0.0, maximum=1.0, help="share of empty captions")
    lesion_weight: float = setting(4.0, minimum=0.0, help="extra weight of the loss inside lesions")
    crop_share: float = setting(0.5, minimum=0.0, maximum=1.0, help="share of the steps that show crops")
    crop_timesteps: int = setting(350, minimum=1, maximum=1000, help="crops are shown below this timestep of 1000")
    low_noise_share: float = setting(0.4, minimum=0.0, maximum=1.0, help="of whole slices, extra below t = 250")
    high_noise_share: float = setting(0.15, minimum=0.0, maximum=1.0, help="of whole slices, extra above t = 850")
    precision: str = setting("auto", choices=("auto", "bfloat16", "float32"), help="of the denoiser; auto: the faster")

    def __post_init__(self) -> None:
        check_settings(self)

    def schedule(self, step: int) -> float:
        """Share of the full rate: warm-up, then half a cosine to zero."""
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def shows_crops(self, step: int) -> bool:
        """Whether a step shows crops: evenly spread steps."""
        return evenly_spread(step, self.crop_share)


def adapt_prior(
    prior: Path | None,
    data: Path,
    out: Path,
    component: str,
    settings: AdaptationSettings,
    *,
    images: Sequence[str] = ("images",),
    seconds: float = math.inf,
    resume: bool = True,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = print,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any] | None:
    """Adapt one component of a prior and write the adapter folder; returns its card, or None when time ran out.

    What a step draws depends on the seed and the step alone: a run that was stopped and resumed equals one that was
    not. The state is replaced whole, never written in place.

    Parameters
    ----------
    prior : Path, optional
        Folder of the base; the embedded one by default.
    data : Path
        Slice file, or a folder of captioned scans (see `treg_med.training.prepare.prepare_slices`).
    out : Path
        Adapter folder to write; an earlier adapter there is replaced when the new one is complete.
    component : str
        ``vae``: the decoder, which leaves the latent space as it is; ``unet``: the denoiser.
    settings : AdaptationSettings
        Of the training.
    images : sequence of str
        Datasets of the slice file that hold images; CT may come in several windows.
    seconds : float
        Time budget of this call.
    resume : bool
        Go on with an unfinished run and keep a finished adapter of the same settings; otherwise start again.
    device : torch.device or str
        Where to train.
    say, progress : callable
        Receive lines for people; samples seen, samples in all and a short text.

    Raises
    ------
    ConfigError
        For an unknown component, or an unfinished run with other settings.
    ResourceError
        If prior, data or an extra is missing, or ``out`` holds something else.
    FormatError
        If the data have no slices to train on.
    """
    require_package("accelerate")
    from accelerate import Accelerator

    begun = time.monotonic()
    if component not in ("vae", "unet"):
        raise ConfigError(f"expected the component vae or unet, got {component!r}")
    check_replaceable(out, ADAPTER_CARD)
    work = out.with_name(f"{out.name}.training")
    checkpoint = work / "state.safetensors"
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    accelerator = Accelerator(cpu=torch.device(device).type == "cpu")
    opened = LatentPrior.from_pretrained(prior, device=accelerator.device)
    train, validation = load_adaptation_slices(data, images, opened.image_multiple, work, say)
    measured = validation if len(validation) else train
    weights = trained_weights(
        opened, component, settings.method, settings.rank, torch.Generator().manual_seed(settings.seed)
    )
    asked: dict[str, Any] = {
        "component": component,
        "settings": asdict(settings),
        "base": base_sha256(opened),
        "data": {"file": data.resolve().name, "images": list(images), "train_slices": len(train)},
    }
    done = _finished_card(out, asked) if resume and not checkpoint.is_file() else None
    if done is not None:
        say(f"{out.name} is complete; --no-resume adapts again")
        return done
    training = _Training(opened, component, weights, settings, accelerator, checkpoint, asked)
    journal = Journal(work / "journal.jsonl", say, progress)
    if checkpoint.is_file():
        training.restore(say)
    else:
        training.numbers["before"] = _measured(opened, measured, say, "before")
        training.save()
    finished = training.run(train, journal, begun + seconds)
    if not finished:
        say(f"stopped at step {training.step} of {settings.steps}")
        return None
    facts = {
        "data": {**asked["data"], "subjects": len(set(train.subjects))},
        "settings": {**asdict(settings), "rate": training.rate, "precision": training.numbers["precision"]},
        "steps": settings.steps,
        "seconds": round(training.numbers["seconds"], 1),
        "measured_on": {"split": "val" if len(validation) else "train", "slices": len(_thinned(measured))},
        "before": training.numbers["before"],
        "after": _measured(opened, measured, say, "after"),
    }
    card = write_adapter(opened, component, settings, train.captions, facts, out)
    checkpoint.unlink()
    return card


def load_adaptation_slices(
    data: Path, images: Sequence[str], multiple: int, work: Path, say: Callable[[str], None]
) -> tuple[CaptionedSlices, CaptionedSlices]:
    """Slices to train on and to measure on, padded with background to sides that the prior takes.

    Raises
    ------
    ConfigError
        If no dataset of images is named.
    FormatError
        If there are no slices to train on.
    """
    if not images:
        raise ConfigError("expected at least one dataset of images, got none")
    if data.is_dir():
        from treg_med.training.prepare import prepare_slices

        work.mkdir(parents=True, exist_ok=True)
        data = prepare_slices(data, work / f"{data.resolve().name}.h5", log=say)

    def load(split: str) -> CaptionedSlices:
        parts = [(CaptionedSlices.load(data, split, images=name), 1.0) for name in images]
        return CaptionedSlices.mixed(parts).padded(multiple)

    train, validation = load("train"), load("val")
    if not len(train):
        raise FormatError(f"expected slices of the split train in {data.name}, got none; prepare the data again")
    return train, validation


def _rate(component: str, settings: AdaptationSettings) -> float:
    return settings.rate or _RATES[component, settings.method]


def _finished_card(out: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Card of an adapter that an earlier call has finished, if it is the one asked for."""
    if not (out / ADAPTER_CARD).is_file():
        return None
    card = read_adapter_folder(out).card
    settings = AdaptationSettings(**asked["settings"])
    wanted = {**asked["settings"], "rate": _rate(asked["component"], settings)}
    if settings.precision == "auto":
        wanted["precision"] = card["settings"]["precision"]
    same = (
        card["component"] == asked["component"]
        and card["base"]["sha256"] == asked["base"]
        and card["settings"] == wanted
        and {name: card["data"].get(name) for name in asked["data"]} == asked["data"]
    )
    return card if same else None


class _Training:
    """Weights, their average and optimiser, and how far they have come."""

    def __init__(
        self,
        prior: LatentPrior,
        component: str,
        weights: nn.ParameterDict,
        settings: AdaptationSettings,
        accelerator: Any,
        checkpoint: Path,
        asked: Mapping[str, Any],
    ) -> None:
        self.prior, self.component, self.weights, self.settings = prior, component, weights, settings
        self.accelerator, self.checkpoint = accelerator, checkpoint
        self.rate = _rate(component, settings)
        self.ema = Ema(weights, settings.ema)
        self.optimizer = torch.optim.AdamW(weights.parameters(), self.rate, weight_decay=0.0)
        self.numbers: dict[str, Any] = {
            "samples": 0,
            "seconds": 0.0,
            "precision": self._precision(),
            "asked": json.loads(json.dumps(asked)),
        }

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.numbers["samples"]) // self.settings.batch

    def _precision(self) -> str:
        if self.component == "vae":
            return "float32"
        wanted = self.settings.precision
        return faster_precision(self.accelerator.device) if wanted == "auto" else wanted

    def save(self) -> None:
        save_state(self.checkpoint, self.weights, self.ema, self.optimizer, self.numbers)

    def restore(self, say: Callable[[str], None]) -> None:
        """Go on where the state was saved, unless another training is asked for."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.checkpoint, "pt") as file:
                saved = json.loads(file.metadata()["numbers"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"expected the state of an adaptation in {self.checkpoint.name}, got: {error}; "
                "start again with --no-resume"
            ) from error
        for name, value in self.numbers["asked"].items():
            if saved["asked"].get(name) != value:
                raise ConfigError(
                    f"expected the {name} of the unfinished run in {self.checkpoint.parent.name}, "
                    f"{saved['asked'].get(name)}, got {value}; ask for the same, or start again with --no-resume"
                )
        self.numbers = load_state(self.checkpoint, self.weights, self.ema, self.optimizer)
        say(f"resumed at step {self.step}")

    def run(self, slices: CaptionedSlices, journal: Journal, deadline: float) -> bool:
        """Train to the last step or the deadline; the averaged weights are then in place if it was the last."""
        settings, numbers = self.settings, self.numbers
        device = self.accelerator.device
        bfloat16 = numbers["precision"] == "bfloat16"
        generator = torch.Generator()
        begun, before, saved = time.monotonic(), numbers["seconds"], time.monotonic()
        journal.begin(settings.steps * settings.batch, numbers["samples"])
        while self.step < settings.steps and time.monotonic() < deadline:
            share = settings.schedule(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * share
            generator.manual_seed(settings.seed + (self.step + 1) * 1_000_003)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                errors = self._errors(slices, generator)
            self.optimizer.zero_grad()
            self.accelerator.backward(errors.loss)
            norm = self.accelerator.clip_grad_norm_(self.weights.parameters(), settings.clip)
            self.optimizer.step()
            self.ema.update(self.weights)
            numbers["samples"] += settings.batch
            numbers["seconds"] = before + time.monotonic() - begun
            journal.step(numbers, errors.timesteps, errors.squares, float(norm), share)
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                saved = time.monotonic()
                self.save()
        self.save()
        if self.step < settings.steps:
            return False
        self.ema.copy_to(self.weights)
        return True

    def _errors(self, slices: CaptionedSlices, generator: torch.Generator) -> Errors:
        if self.component == "vae":
            return autoencoder_errors(self.prior, slices, self.settings, generator)
        return denoiser_errors(self.prior, slices, self.settings, self.step, generator)


@torch.no_grad()
def _measured(
    prior: LatentPrior, slices: CaptionedSlices, say: Callable[[str], None], when: str
) -> dict[str, dict[str, float]]:
    """Round trip in dB (data range: the slice's maximum) and rms error of denoising per noise level."""
    from treg_med.assessment.one_step import denoising_error
    from treg_med.assessment.round_trip import measure_round_trip

    chosen = _thinned(slices)
    chosen = replace(chosen, images=chosen.images.to(prior.device))
    trip = measure_round_trip(prior, chosen, "").overall
    total = len(prior.alphas_cumprod)
    levels = {t: min(t * total // 1000, total - 1) for t in _TIMESTEPS}
    rms = denoising_error(prior, chosen, tuple(levels.values()))
    out = {
        "round_trip_psnr_db": {"mean": round(trip.mean, 2), "worst": round(trip.worst, 2)},
        "denoising_error_std": {str(t): round(rms[level], 5) for t, level in levels.items()},
    }
    errors = " ".join(f"t{t} {value:.4f}" for t, value in out["denoising_error_std"].items())
    say(f"{when}: round trip {trip.mean:.2f} dB mean, {trip.worst:.2f} worst; denoising rms {errors}")
    return out


def _thinned(slices: CaptionedSlices) -> CaptionedSlices:
    return slices.every(max(1, math.ceil(len(slices) / _MEASURED_SLICES)))
