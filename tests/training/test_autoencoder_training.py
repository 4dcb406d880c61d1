"""The null-space decoder learns, and a stopped run goes on as if it had not been."""

from pathlib import Path

import torch

from treg_med.training.autoencoder import round_trip_psnr, train_autoencoder
from treg_med.training.config import AutoencoderSettings
from treg_med.training.slices import CaptionedSlices

TINY = {"patch_size": 4, "latent_channels": 2, "width": 16, "blocks": 1, "batch": 8, "crop": 32}


def test_training_beats_the_linear_decoder(slice_file: Path, tmp_path: Path) -> None:
    slices = CaptionedSlices.load(slice_file, "train")
    model = train_autoencoder(slices, tmp_path / "a.ckpt", AutoencoderSettings(samples=800, **TINY))
    assert model is not None
    trained, linear = round_trip_psnr(model, slices.images.float() / 255)
    assert trained.mean() > linear.mean() + 0.2


def test_stopped_and_resumed_equals_uninterrupted(slice_file: Path, tmp_path: Path) -> None:
    slices = CaptionedSlices.load(slice_file, "train")
    settings = AutoencoderSettings(samples=48, **TINY)
    whole = train_autoencoder(slices, tmp_path / "whole.ckpt", settings)
    assert train_autoencoder(slices, tmp_path / "b.ckpt", settings, seconds=0.0) is None
    calls = 0
    resumed = None
    while resumed is None and calls < 50:
        resumed = train_autoencoder(slices, tmp_path / "b.ckpt", settings, seconds=0.02)
        calls += 1
    assert whole is not None and resumed is not None
    ours = resumed.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in whole.state_dict().items())
