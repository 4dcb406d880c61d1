r"""Signal of tissues: spin echo, inversion recovery and CT attenuation.

.. math::
    S_{SE} &= \rho\,(1 - e^{-TR/T_1})\, e^{-TE/T_2} \\
    S_{IR} &= \rho\,|1 - 2 e^{-TI/T_1} + e^{-TR/T_1}|\, e^{-TE/T_2}

Times in ms, proton density :math:`\rho` relative to water, attenuation in HU.

Bernstein, King, Zhou: Handbook of MRI Pulse Sequences, 2004. Relaxation times are rounded values for 1.5 to 3 T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from treg_med.training.phantoms.anatomy import TISSUES

__all__ = ["inversion_recovery", "spin_echo", "tissue_signal"]

#: tissue -> T1 (ms), T2 (ms), proton density, attenuation (HU)
_PROPERTIES = {
    "air": (1000.0, 10.0, 0.0, -1000.0),
    "fat": (300.0, 75.0, 0.90, -90.0),
    "bone": (500.0, 5.0, 0.10, 900.0),
    "csf": (4000.0, 1600.0, 1.00, 8.0),
    "grey": (1200.0, 95.0, 0.82, 38.0),
    "white": (750.0, 75.0, 0.70, 29.0),
    "deep grey": (1050.0, 80.0, 0.78, 36.0),
    "oedema": (1500.0, 160.0, 0.92, 18.0),
    "tumour": (1400.0, 125.0, 0.88, 45.0),
    "haemorrhage": (420.0, 45.0, 0.75, 70.0),
    "infarct": (1350.0, 145.0, 0.88, 20.0),
    "cyst": (3700.0, 1300.0, 1.00, 10.0),
}
#: T1 of a tissue with a gadolinium agent that leaks into it.
_ENHANCED_T1 = {"tumour": 330.0}

#: contrast -> ranges of TR, TE and TI in ms (TI 0: spin echo)
_SEQUENCES = {
    "T1w": ((400, 700), (8, 18), (0, 0)),
    "T1w+Gd": ((400, 700), (8, 18), (0, 0)),
    "T2w": ((3500, 6500), (85, 120), (0, 0)),
    "PDw": ((2200, 4500), (10, 25), (0, 0)),
    "FLAIR": ((8000, 11000), (95, 140), (2250, 2600)),
}
#: window -> HU at zero and at one
_WINDOWS = {"brain": (-10.0, 90.0), "wide": (-1000.0, 1000.0)}


def spin_echo(t1: Tensor, t2: Tensor, density: Tensor, tr: Tensor, te: Tensor) -> Tensor:
    """Spin-echo signal; every argument broadcasts, times in ms."""
    return density * (1 - torch.exp(-tr / t1)) * torch.exp(-te / t2)


def inversion_recovery(t1: Tensor, t2: Tensor, density: Tensor, tr: Tensor, te: Tensor, ti: Tensor) -> Tensor:
    """Magnitude of the inversion-recovery signal; every argument broadcasts, times in ms."""
    return density * (1 - 2 * torch.exp(-ti / t1) + torch.exp(-tr / t1)).abs() * torch.exp(-te / t2)


def tissue_signal(kind: str, count: int, generator: torch.Generator, scatter: float = 0.06) -> Tensor:
    """Signal of every tissue, ``(count, tissues)``, for a contrast (``T1w`` ...) or a CT window (``brain``, ``wide``).

    MR signals are relative; CT is 0 to 1 inside the window. Tissue properties scatter by the share `scatter`.

    Raises
    ------
    KeyError
        For an unknown contrast or window.
    """
    table = torch.tensor([_PROPERTIES[tissue] for tissue in TISSUES])
    varied = table * torch.exp(scatter * torch.randn(count, *table.shape, generator=generator))
    if kind in _WINDOWS:
        low, high = _WINDOWS[kind]
        return ((varied[..., 3] - low) / (high - low)).clamp(0, 1)
    t1, t2, density = varied[..., 0], varied[..., 1], varied[..., 2]
    if kind == "T1w+Gd":
        for tissue, value in _ENHANCED_T1.items():
            t1[:, TISSUES.index(tissue)] = value
    tr, te, ti = (low + (high - low) * torch.rand(count, 1, generator=generator) for low, high in _SEQUENCES[kind])
    if kind == "FLAIR":
        return inversion_recovery(t1, t2, density, tr, te, ti)
    return spin_echo(t1, t2, density, tr, te)
