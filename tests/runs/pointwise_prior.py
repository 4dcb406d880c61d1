"""A prior of pointwise arithmetic that counts its evaluations, and a loop over it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from treg_med.priors.base import Prediction, Prior


class PointwisePrior:
    """A prior of pointwise arithmetic: the same bits in any batch, unless `rounding` adds the rows of an evaluation."""

    image_multiple = 1

    def __init__(self, rounding: float = 0.0, most_rows: int = 10**9) -> None:
        self.alphas_cumprod = torch.linspace(0.999, 0.01, 1000)
        self.rounding, self.most_rows = rounding, most_rows
        self.rows: list[int] = []
        self.threads: set[int] = set()

    def _evaluated(self, value: Tensor) -> Tensor:
        self.rows.append(len(value))
        self.threads.add(threading.get_ident())
        if len(value) > self.most_rows:
            raise torch.OutOfMemoryError(f"tried to allocate {len(value)} rows")
        return value + self.rounding * len(value)

    def encode(self, image: Tensor) -> Tensor:
        return self._evaluated(0.5 * image)

    def decode(self, latent: Tensor) -> Tensor:
        return self._evaluated(2 * latent)

    def embed(self, text: str | Sequence[str]) -> Tensor:
        texts = [text] if isinstance(text, str) else list(text)
        return torch.tensor([[[float(len(entry))]] for entry in texts])

    def text_warnings(self, text: str) -> tuple[str, ...]:
        return ()

    def predict(self, latent: Tensor, timestep: int | Tensor, condition: Tensor) -> Prediction:
        if bool((latent == 666).any()):
            raise ValueError("a row that no network takes")
        steps = torch.as_tensor(timestep).expand(len(latent))
        alpha = self.alphas_cumprod[steps].reshape(-1, 1, 1, 1)
        clean = self._evaluated(0.9 * latent + 1e-3 * condition[..., None])
        return Prediction((latent - alpha.sqrt() * clean) / (1 - alpha).sqrt(), clean)


def loop(prior: Prior, value: float, steps: int = 4) -> Tensor:
    """A loop over the network, one latent that depends on `value`."""
    latent, condition = torch.full((1, 1, 4, 4), value), prior.embed("words")
    for step in range(steps):
        latent = prior.encode(prior.decode(prior.predict(latent, 10 * step, condition).clean))
    return latent


def same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether all tensors are equal to the bit."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
