"""Coarse scans teach the noise levels that hide what they lack, and no crops."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from treg_med.training.denoiser import build_scheduler
from treg_med.training.native_resolution import least_timesteps, missing_power
from treg_med.training.noise_draw import above
from treg_med.training.slices import CaptionedSlices

ALPHAS = build_scheduler().alphas_cumprod


def test_power_of_a_wave_is_missing_where_voxels_are_longer_than_half_of_it() -> None:
    wave = (2 * math.pi * torch.arange(32) / 4).cos().expand(1, 1, 32, 32)  # a period of four pixels
    assert missing_power(wave, 1.5) == pytest.approx(0.0, abs=1e-10)
    assert missing_power(wave, 2.5) == pytest.approx(0.5)


def test_levels_of_coarse_slices_have_noise_over_the_detail_of_fine_ones(slice_file: Path) -> None:
    slices = CaptionedSlices.load(slice_file, "train")
    assert not least_timesteps(slices, ALPHAS, 1.0).any()  # nothing is known of them
    noise = torch.randint(0, 255, (2, 1, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    voxels = torch.tensor([1.0, 1.0, 2.0, 4.0] + [2.0] * 6)
    sharp = replace(slices, images=torch.cat([noise, slices.images[2:]]), native_pixels=voxels)
    least = least_timesteps(sharp, ALPHAS, 0.8)
    assert least[:2].tolist() == [0, 0] and 0 < least[2] < least[3] + 1 and len(set(least[4:].tolist())) == 1
    power = missing_power(noise.float() / 127.5 - 1, 2.0)
    level = (1 - ALPHAS) / ALPHAS / 0.64 * 0.75
    assert level[least[2]] >= 50 * power > level[least[2] - 1]
    assert not least_timesteps(replace(sharp, native_pixels=torch.full((10,), 2.0)), ALPHAS, 0.8).any()


def test_timesteps_are_squeezed_and_not_cut() -> None:
    t = above(torch.tensor([0, 500, 999, 0]), torch.tensor([200, 200, 200, 0]))
    assert t.tolist() == [200, 600, 999, 0]
