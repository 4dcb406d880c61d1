"""Which arithmetic trains faster on this device: measured, not assumed."""

from __future__ import annotations

import time

import torch
from torch import nn

__all__ = ["faster_precision"]

# bfloat16 must win clearly: float32 is the safer choice.
_MARGIN = 0.9


def faster_precision(device: torch.device, *, repeats: int = 3) -> str:
    """Return ``bfloat16`` or ``float32``, whichever runs a small convolution forward and backward faster.

    Processors without instructions for bfloat16 emulate it, up to fifty times slower.
    """
    times = {precision: _seconds(device, precision, repeats) for precision in (torch.float32, torch.bfloat16)}
    return "bfloat16" if times[torch.bfloat16] < _MARGIN * times[torch.float32] else "float32"


def _seconds(device: torch.device, precision: torch.dtype, repeats: int) -> float:
    layer = nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.SiLU(), nn.Conv2d(128, 64, 3, padding=1)).to(device)
    image = torch.ones(2, 64, 32, 32, device=device)
    best = float("inf")
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
            layer(image).float().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return best
