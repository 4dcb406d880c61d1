"""What a training run tells: a JSON line now and then, and one line for the eye."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from treg_med.data.atomic import writing

__all__ = ["Journal"]

#: Upper ends of the noise levels, in timesteps, by which the loss is split.
_LEVELS = (100, 300, 600, 850, 1000)


class Journal:
    """Progress of a training run: an entry after the first step of a call and then every so many samples.

    Parameters
    ----------
    path : Path, optional
        JSON lines are appended here.
    say : callable
        Receives lines for people.
    progress : callable, optional
        Receives samples seen, samples in all and a short text, after every step.
    every : int
        Samples between two entries: counted, not timed, so that the same run writes the same losses again.
    """

    def __init__(
        self,
        path: Path | None = None,
        say: Callable[[str], None] = print,
        progress: Callable[[int, int, str], None] | None = None,
        every: int = 1024,
    ) -> None:
        self.path, self.say, self.progress, self.every = path, say, progress, every
        self._total = self._first = self._before = 0
        self._begun = self._last = 0.0
        self._clear()

    def begin(self, total: int, samples: int) -> None:
        """Start to count at `samples` of `total`."""
        self._total, self._before, self._first = total, samples, samples
        self._begun = self._last = time.monotonic()
        self._clear()

    def step(self, numbers: Mapping[str, Any], timesteps: Tensor, errors: Tensor, norm: float, rate: float) -> None:
        """Count a step's errors per sample ``(n,)``; write an entry when it is time.

        Parameters
        ----------
        numbers : Mapping
            Samples seen and seconds spent.
        timesteps, errors : Tensor ``(n,)``
            Of the samples of the step.
        norm : float
            Gradient norm before clipping.
        rate : float
            Share of the full learning rates.
        """
        for t, error in zip(timesteps.tolist(), errors.tolist(), strict=True):
            level = next(end for end in _LEVELS if t < end)
            self._sums[level][0] += error
            self._sums[level][1] += 1
        self._norms.append(norm)
        samples, now = numbers["samples"], time.monotonic()
        speed = (samples - self._first) / max(now - self._begun, 1e-9)
        if self.progress:
            self.progress(samples, self._total, f"{speed:.1f} samples/s, {self._text()}")
        first = self._before == self._first
        if not first and samples // self.every == self._before // self.every:
            return
        window = (samples - self._before) / max(now - self._last, 1e-9)
        self.write(
            {
                "samples": samples,
                "seconds": round(numbers["seconds"], 1),
                "samples_per_second": round(window, 2),
                "loss": {f"t<{end}": round(s / n, 5) for end, (s, n) in self._sums.items() if n},
                "gradient_norm": round(sum(self._norms) / len(self._norms), 4),
                "rate": round(rate, 4),
            }
        )
        self.say(f"{samples} of {self._total} samples, {speed:.1f}/s, {self._text()}")
        self._last, self._before = now, samples
        self._clear()

    def validation(self, numbers: Mapping[str, Any], errors: Mapping[str, Mapping[int, float]]) -> None:
        """Write the validation error of every group of slices by timestep."""
        rounded = {name: {f"t{t}": round(e, 6) for t, e in of_group.items()} for name, of_group in errors.items()}
        self.write({"samples": numbers["samples"], "validation": rounded})
        for name, of_group in errors.items():
            text = " ".join(f"t{t} {e:.5f}" for t, e in of_group.items())
            self.say(f"{numbers['samples']} samples, validation, {name}: {text}")

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one JSON line."""
        if self.path is not None:
            with writing(f"writing {self.path.name!r}"):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")

    def _text(self) -> str:
        return "loss " + " ".join(f"t<{end} {s / n:.4f}" for end, (s, n) in self._sums.items() if n)

    def _clear(self) -> None:
        self._sums = {end: [0.0, 0] for end in _LEVELS}
        self._norms: list[float] = []
