"""Training pairs for MR: simulated scans of training slices, and the image they are to become.

Every pair has a mask, a phase and noise of its own, made with the parts of `treg_med.data.simulation`, which also
simulate the scans of the benchmark. Native volumes are slices at the pixel size of the scanner, as the benchmark has
them of one subject.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treg_med.data import Measurement, open_scan
from treg_med.data.nifti import NiftiReader
from treg_med.data.sampling import child_generator
from treg_med.data.simulation import KspaceSimulation, smooth_phase
from treg_med.errors import FormatError
from treg_med.operators import CartesianMRI, birdcage_maps, complex_gaussian_noise
from treg_med.solvers.phase import smooth_rotation
from treg_med.training.augmentation import augment
from treg_med.training.slices import CaptionedSlices

__all__ = ["HELD_OUT", "MRInput", "MRSamples", "mr_pair"]

#: The training subject that chooses between networks; it is never trained on.
HELD_OUT = "ms_long_p20"
COILS = (1, 8)
ACCELERATIONS = (4, 8)
MASKS = ("random", "random", "equispaced", "poisson-disc")
NOISE = (0.004, 0.04)
# Shares of the draws: subjects with multiple sclerosis in the slice file, native volumes; the rest are tumours.
_MS_SHARE, _NATIVE_SHARE = 0.7, 0.2
# Poisson discs take long to make: so many of each kind are made and used again, fewer of the native sizes.
_MASK_SEEDS, _NATIVE_MASK_SEEDS = 40, 6
VALIDATION_NOISE = 0.0178
# Low-pass width in pixels: 2 % of a training image lie across such a phase, the least of widths from 2 to 12.
_PHASE_WIDTH = 6.0


@dataclass(frozen=True)
class MRInput:
    """What the network is given of a zero-filled image, and what takes its answer back.

    Attributes
    ----------
    channels
        ``(*batch, 2, H, W)``: the image across and along its smooth phase, divided by `scale`.
    scale
        Root mean square of the image, ``(*batch, 1, 1)``.
    rotation
        Phase factor of the low-passed image, ``(*batch, H, W)`` complex.
    """

    channels: Tensor
    scale: Tensor
    rotation: Tensor

    @classmethod
    def of(cls, zero_filled: Tensor) -> MRInput:
        """Turn a complex image ``(*batch, H, W)``: what is true lies along the phase, aliasing on both sides."""
        rotation = smooth_rotation(zero_filled, _PHASE_WIDTH)
        scale = zero_filled.abs().square().mean((-2, -1), keepdim=True).sqrt().clamp_min(1e-12)
        turned = zero_filled * rotation.conj() / scale
        return cls(torch.stack([turned.imag, turned.real], -3), scale, rotation)

    def image(self, answer: Tensor) -> Tensor:
        """Return the complex image of the network's ``(*batch, 1, H, W)``."""
        return answer[..., 0, :, :] * self.scale * self.rotation


def mr_pair(scan: Measurement, simple: Tensor) -> tuple[Tensor, float]:
    """Return the network's input and target ``(3, H, W)``, scaled alike, and the scale; it is given `simple`."""
    assert scan.target is not None  # noqa: S101 - these scans are simulated
    start = MRInput.of(simple)
    return torch.cat([start.channels, (scan.target.abs() / start.scale)[None]]), float(start.scale)


def _zero_filled(scan: Measurement) -> Tensor:
    image: Tensor = scan.operator.adjoint(scan.y)
    return image


class MRSamples:
    """Draws batches of training pairs, and holds the pairs of the subject kept out.

    Parameters
    ----------
    slices
        Slice file with captions, its training split.
    native
        NIfTI volumes of training subjects.
    batch
        Pairs in a batch.
    seed
        Of everything that is drawn.
    """

    kind = "mri"

    def __init__(self, slices: Path, native: Sequence[Path], batch: int, seed: int) -> None:
        self.slices = CaptionedSlices.load(slices, "train", shares={"ms_": _MS_SHARE})
        held_out = torch.tensor([subject == HELD_OUT for subject in self.slices.subjects])
        self.weights = torch.where(held_out, 0.0, self.slices.weights)
        self.held_out = held_out.nonzero()[:, 0].tolist()
        self.native = [_magnitudes(path) for path in native if HELD_OUT not in path.name]
        self.batch = batch
        self.seed = seed

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs ``(batch, 2, H, W)`` and the magnitudes ``(batch, 1, H, W)`` of a step, scaled alike."""
        generator = child_generator(self.seed, "batch", step)
        images = self._images(generator)
        coils = _choice(COILS, generator)
        scans = [self._scan(image, coils, generator) for image in images]
        start = MRInput.of(torch.stack([_zero_filled(scan) for scan in scans]))
        return start.channels, (images / start.scale)[:, None]

    def draw_scan(self, generator: torch.Generator) -> Measurement:
        """Return a scan of one image, its target the complex image."""
        images = self._images(generator)
        return self._scan(images[0], _choice(COILS, generator), generator)

    def _images(self, generator: torch.Generator) -> Tensor:
        """Draw magnitudes ``(batch, H, W)`` with a maximum of about one."""
        if self.native and _uniform(0, 1, generator) < _NATIVE_SHARE:
            volume = self.native[int(torch.randint(len(self.native), (), generator=generator))]
            rows = torch.randint(len(volume), (self.batch,), generator=generator)
            images = volume[rows, None].float()
        else:
            rows = torch.multinomial(self.weights, self.batch, replacement=True, generator=generator)
            images = self.slices.images[rows].float() / 255
        images = augment(images, torch.zeros_like(images), generator)[0][:, 0]
        turns = int(torch.randint(4, (), generator=generator))
        return torch.rot90(images, turns, (-2, -1))

    def _scan(self, image: Tensor, coils: int, generator: torch.Generator) -> Measurement:
        shape = (image.shape[0], image.shape[1])
        seeds = _MASK_SEEDS if shape == self.slices.images.shape[-2:] else _NATIVE_MASK_SEEDS
        kind, acceleration = _choice(MASKS, generator), _choice(ACCELERATIONS, generator)
        mask = _mask(kind, shape, acceleration, int(torch.randint(1, 1 + seeds, (), generator=generator)))
        target = torch.polar(image, smooth_phase(shape, generator))
        operator = CartesianMRI(mask, _maps(coils, shape) if coils > 1 else None)
        noise_std = math.exp(_uniform(math.log(NOISE[0]), math.log(NOISE[1]), generator))
        noise = complex_gaussian_noise(operator.range_shape, noise_std, generator)
        y = torch.where(mask, operator(target) + noise, torch.zeros((), dtype=noise.dtype))
        return Measurement(y, operator, noise_std=noise_std, target=target)

    def validation(
        self, count: int = 4, simple: Callable[[Measurement], Tensor] = _zero_filled
    ) -> Iterator[tuple[str, Tensor, Tensor, float]]:
        """Give name, input, target and scale of the subject kept out, evenly spaced slices by every acquisition.

        The network is given what `simple` makes of the scan.
        """
        chosen = [self.held_out[int((k + 0.5) * len(self.held_out) / count)] for k in range(count)]
        for coils in COILS:
            for acceleration in ACCELERATIONS:
                for kind in sorted(set(MASKS)):
                    simulation = KspaceSimulation(acceleration, kind, coils, VALIDATION_NOISE)
                    mask = simulation.make_mask((self.slices.images.shape[-2], self.slices.images.shape[-1]))
                    for index in chosen:
                        scan = simulation.slice(self.slices.images[index, 0].float() / 255, index, mask, 1.0)
                        operator = CartesianMRI(mask.mask, scan.maps)
                        measured = Measurement(scan.kspace, operator, noise_std=VALIDATION_NOISE, target=scan.target)
                        pair, scale = mr_pair(measured, simple(measured))
                        name = f"{coils} coil{'s' * (coils > 1)}, R={acceleration}, {kind}"
                        yield name, pair[:2], pair[2:], scale


def _choice(options: Sequence[Any], generator: torch.Generator) -> Any:
    return options[int(torch.randint(len(options), (), generator=generator))]


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


@lru_cache(maxsize=1024)
def _mask(kind: str, shape: tuple[int, int], acceleration: float, seed: int) -> Tensor:
    return KspaceSimulation(acceleration, kind, seed=seed).make_mask(shape).mask


@lru_cache(maxsize=8)
def _maps(coils: int, shape: tuple[int, int]) -> Tensor:
    return birdcage_maps(coils, shape)


def _magnitudes(path: Path) -> Tensor:
    """Return the slices of a volume ``(n, H, W)``, those with something in them, up to about one."""
    with open_scan(path) as scan:
        if not isinstance(scan, NiftiReader):
            raise FormatError(f"expected a NIfTI volume of magnitudes, got {scan.header.format} in {path.name}")
        images = torch.stack([scan.magnitude(i) for i in range(len(scan))])
    images = images / torch.quantile(images[images > 0.05 * images.max()], 0.997)
    return images[images.mean((-2, -1)) > 0.02].clamp(0, 1.5).half()
