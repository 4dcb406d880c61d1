"""The steps of a training in order: autoencoder, text encoder, word map, scorer, denoiser, export.

A step leaves its part in the work folder: ``vae/``, ``tokenizer/`` and ``text_encoder/``, ``word_map/``,
``scorer/``, ``denoiser.ckpt``. A part that is not there is taken from the prior that training starts from, where one
is given. The long steps resume from their checkpoints.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treg_med.errors import ConfigError, ResourceError
from treg_med.priors.weights import save_component
from treg_med.training.config import SliceFile, TrainingConfig
from treg_med.training.journal import Journal
from treg_med.training.slices import CaptionedSlices

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from treg_med.priors.autoencoder import NullSpaceAutoencoder
    from treg_med.priors.word_map import WordMap
    from treg_med.training.batches import TextStates
    from treg_med.training.drawn_heads import DrawnHeads
    from treg_med.training.label_heads import LabelHeads

__all__ = ["Training"]


@dataclass(frozen=True)
class Training:
    """One training: what to train on, where its parts are and how long it may take.

    Parameters
    ----------
    config : TrainingConfig
        Settings of every step.
    data : Path
        Folder that the paths of the configuration are relative to.
    work : Path
        Folder of the checkpoints and trained parts.
    initial : Path, optional
        Prior to start from.
    device : torch.device
        Where the denoiser is trained; the small steps run on the CPU.
    seconds : float
        Time budget of a call.
    say : callable
        Receives lines for people.
    progress : callable, optional
        Receives samples seen, samples in all and a short text.
    """

    config: TrainingConfig
    data: Path
    work: Path
    initial: Path | None = None
    device: torch.device = torch.device("cpu")
    seconds: float = float("inf")
    say: Callable[[str], None] = print
    progress: Callable[[int, int, str], None] | None = None

    def slices(self, split: str) -> CaptionedSlices:
        """All slices of a split; those of the validation are thinned as the configuration tells."""
        parts = [(self._load(entry, split), entry.share) for entry in self.config.data]
        parts = [(slices, share) for slices, share in parts if len(slices)]
        if not parts:
            raise ConfigError(f"expected slices of the split {split!r} in the data files, got none")
        slices = CaptionedSlices.mixed(parts)
        for note in slices.notes:
            self.say(note)
        return slices

    def _load(self, entry: SliceFile, split: str) -> CaptionedSlices:
        path = self.data / entry.path
        if path.is_dir():
            from treg_med.training.prepare import prepare_slices

            path = prepare_slices(path, self.work / "prepared" / f"{path.name}.h5", log=self.say)
        training = split == "train"
        slices = CaptionedSlices.load(
            path,
            split,
            entry.subjects_only if training else entry.validation_only or entry.subjects_only,
            subjects_except=entry.subjects_except,
            images=entry.images,
            shares=entry.shares if training else None,
            patient_left=entry.patient_left_is,
        )
        return slices if training else slices.every(entry.validation_every)

    def drawn_heads(self, slices: CaptionedSlices) -> DrawnHeads:
        """Heads with exact words, from the sources that the configuration names."""
        from treg_med.training.drawn_heads import DrawnHeads

        shares, heads = self.config.drawn, None
        if shares.label_maps:
            heads = _label_heads(self.data / shares.folder, tuple(shares.leave_out)).draw
        return DrawnHeads(slices, shares, heads)

    def train_autoencoder(self) -> dict[str, float]:
        """Fit the patch basis and train the null-space decoder; return its round trip in dB."""
        from treg_med.training.autoencoder import round_trip_psnr, train_autoencoder

        settings = self.config.autoencoder
        model = train_autoencoder(
            self.slices("train"),
            self.work / "autoencoder.ckpt",
            settings,
            seconds=self.seconds,
            journal=Journal(self.work / "autoencoder.jsonl", self.say, self.progress),
        )
        if model is None:
            return {}
        save_component(model, self.work / "vae")
        trained, _ = round_trip_psnr(model, self.slices("val").images.float() / 255)
        return {"round trip mean (dB)": float(trained.mean()), "round trip worst (dB)": float(trained.min())}

    def train_text(self) -> dict[str, float]:
        """Train the tokenizer and pre-train the text encoder; return the held-out accuracy of every attribute."""
        from treg_med.training.phantoms import draw_attributes
        from treg_med.training.text_encoder import train_text_encoder

        slices = self.slices("train")
        rng = random.Random(0)  # noqa: S311 - sentences, not secrets
        settings = self.config.text
        tokenizer, model, accuracy = train_text_encoder(
            slices.attributes + [draw_attributes(rng) for _ in range(len(slices.attributes) // 2 + 1)],
            slices.captions,
            steps=settings.steps,
            batch=settings.batch,
            rate=settings.rate,
            log=self.say,
        )
        tokenizer.save_pretrained(self.work / "tokenizer")
        save_component(model, self.work / "text_encoder")
        return accuracy

    def train_word_map(self) -> dict[str, float]:
        """Train the word map; return the share of the validation latents' error that captions take away."""
        from treg_med.training.word_map_training import explained_by_words, train_word_map

        autoencoder, texts = self._autoencoder(), self._texts()
        slices = self.slices("train")
        drawn = self.drawn_heads(slices)
        model = train_word_map(slices, autoencoder, texts, self.config.word_map, drawn=drawn, log=self.say)
        save_component(model, self.work / "word_map")
        return {"explained by the captions": explained_by_words(model, self.slices("val"), autoencoder, texts)}

    def train_scorer(self) -> dict[str, float]:
        """Train the scorer; return how often a validation caption scores above a wrong one, by attribute."""
        from treg_med.assessment.agreement import scorer_wins
        from treg_med.training.scorer_training import train_scorer

        texts = self._texts()
        slices = self.slices("train")
        model = train_scorer(slices, texts, self.config.scorer, drawn=self.drawn_heads(slices), log=self.say)
        save_component(model, self.work / "scorer")
        found = scorer_wins(model, texts, self.slices("val"))
        return {f"right {attribute} wins": rate.wins for attribute, rate in found.items()}

    def train_denoiser(self) -> dict[str, Any]:
        """Train the denoiser on the other parts; return samples seen and seconds spent."""
        from accelerate import Accelerator

        from treg_med.training.denoiser_training import train_denoiser

        accelerator = Accelerator(cpu=self.device.type == "cpu")
        initial = self._initial_denoiser()
        slices = self.slices("train")
        return train_denoiser(
            slices,
            self.slices("val"),
            self._autoencoder(),
            self._texts(accelerator.device),
            self._word_map(initial),
            self.work / "denoiser.ckpt",
            self.config.denoiser,
            drawn=self.drawn_heads(slices),
            accelerator=accelerator,
            seconds=self.seconds,
            initial=initial,
            earlier_samples=self._samples_seen(),
            journal=Journal(self.work / "denoiser.jsonl", self.say, self.progress)
            if accelerator.is_main_process
            else Journal(None, lambda _: None),
        )

    def export(self, target: Path) -> dict[str, Any]:
        """Assemble the parts into a prior folder and return its card."""
        from treg_med.training.export import export_prior

        parts = {name: self.part(name) for name in ("vae", "tokenizer", "text_encoder")}
        if scorer := self._folder("scorer"):
            parts["scorer"] = scorer
        return export_prior(
            parts, self.work / "denoiser.ckpt", target, self.config.prior, self.slices("train"), self.slices("val")
        )

    def part(self, name: str) -> Path:
        """Folder of a trained part: of this training, else of the prior it starts from."""
        if folder := self._folder(name):
            return folder
        raise ResourceError(
            f"expected {name}/ in {str(self.work)!r}, got none; train it first, or start from a prior that has it"
        )

    def _folder(self, name: str) -> Path | None:
        folders = [folder / name for folder in (self.work, self.initial) if folder is not None]
        return next((folder for folder in folders if folder.is_dir()), None)

    def _autoencoder(self) -> NullSpaceAutoencoder:
        from treg_med.priors.autoencoder import NullSpaceAutoencoder

        return NullSpaceAutoencoder.from_pretrained(self.part("vae"), torch_dtype=torch.float32).eval()

    def _texts(self, device: torch.device | str = "cpu") -> TextStates:
        from treg_med.priors.components import load_text_parts
        from treg_med.training.batches import TextStates

        parts = load_text_parts(self.part("text_encoder"), self.part("tokenizer"), torch.float32)
        return TextStates(parts["tokenizer"], parts["text_encoder"].to(device).eval())

    def _initial_denoiser(self) -> UNet2DConditionModel | None:
        from treg_med.priors.components import load_denoiser

        return load_denoiser(self.initial / "unet", torch.float32) if self.initial else None

    def _word_map(self, initial: UNet2DConditionModel | None) -> WordMap:
        """Word map of this training, else the one inside the denoiser it starts from."""
        from treg_med.priors.word_map import WordMap
        from treg_med.priors.word_map_unet import WordMapUNet

        if isinstance(initial, WordMapUNet) and not (self.work / "word_map").is_dir():
            return initial.word_map
        return WordMap.from_pretrained(self.part("word_map"), torch_dtype=torch.float32)

    def _samples_seen(self) -> int:
        """Return the samples behind the initial weights, as their card tells."""
        card = self.initial / "prior.json" if self.initial else None
        if card is None or not card.is_file():
            return 0
        training = json.loads(card.read_text(encoding="utf-8")).get("training", {})
        return int(training.get("samples", 0)) + int(training.get("earlier_samples", 0))


@cache
def _label_heads(folder: Path, leave_out: tuple[str, ...]) -> LabelHeads:
    """Label maps of a folder, which three steps draw from."""
    from treg_med.training.label_heads import LabelHeads

    return LabelHeads.load(folder, leave_out)
