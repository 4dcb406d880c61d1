r"""Tissues of a head, the label codes that name them, and their MR signal.

A tissue's signal follows the equations of `treg_med.training.phantoms.signal` with relaxation times that scatter; a
draw whose tissues are not in the order that its contrast is known by is drawn again.

.. math::
    T_k' = T_k\, e^{\sigma n_k}, \qquad n_k \sim N(0, 1)

Times in ms, proton density relative to water, :math:`\sigma` without unit.

Codes are those of the FreeSurfer colour table and, from 500 on, the extracerebral classes of SynthSeg (Billot B et al.,
SynthSeg, Med Image Anal 2023). Relaxation times are rounded values for 1.5 to 3 T (Bernstein, King, Zhou: Handbook of
MRI Pulse Sequences, 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from treg_med.training.phantoms.signal import inversion_recovery, spin_echo

__all__ = [
    "BRAIN",
    "CODES",
    "CONTRASTS",
    "FLUID",
    "LEFT",
    "PLAQUE_BED",
    "RIGHT",
    "TEXTURE",
    "TISSUES",
    "draw_signal",
    "index_of",
]

#: tissue -> T1 (ms), T2 (ms), proton density, strength of the texture
_PROPERTIES: Mapping[str, tuple[float, float, float, float]] = {
    "air": (1000.0, 10.0, 0.0, 0.0),
    "skin": (800.0, 45.0, 0.70, 0.10),
    "fat": (320.0, 160.0, 0.66, 0.08),
    "soft": (1050.0, 45.0, 0.74, 0.07),
    "muscle": (1100.0, 45.0, 0.78, 0.06),
    "mucosa": (1300.0, 100.0, 0.80, 0.20),
    "bone": (500.0, 8.0, 0.05, 0.30),
    "marrow": (380.0, 110.0, 0.52, 0.25),
    "eye": (3900.0, 1300.0, 1.00, 0.01),
    "optic nerve": (850.0, 80.0, 0.72, 0.05),
    "vein": (1500.0, 70.0, 0.35, 0.15),
    "artery": (1500.0, 70.0, 0.15, 0.15),
    "csf": (4000.0, 1600.0, 1.00, 0.03),
    "ventricle": (4000.0, 1600.0, 1.00, 0.02),
    "choroid": (1700.0, 130.0, 0.80, 0.10),
    "grey": (1190.0, 94.0, 0.83, 0.035),
    "white": (760.0, 78.0, 0.70, 0.025),
    "cerebellar grey": (1180.0, 91.0, 0.81, 0.035),
    "cerebellar white": (780.0, 79.0, 0.71, 0.025),
    "hippocampus": (1250.0, 100.0, 0.84, 0.03),
    "thalamus": (1020.0, 84.0, 0.78, 0.03),
    "caudate": (1170.0, 88.0, 0.81, 0.025),
    "putamen": (1120.0, 82.0, 0.79, 0.025),
    "pallidum": (900.0, 64.0, 0.74, 0.025),
    "brainstem": (850.0, 80.0, 0.73, 0.03),
    "cord": (850.0, 80.0, 0.73, 0.03),
    "infarct": (1750.0, 150.0, 0.92, 0.07),
    "plaque": (1500.0, 135.0, 0.87, 0.05),
}
TISSUES = tuple(_PROPERTIES)

_TABLE = np.array(list(_PROPERTIES.values()))
#: Share by which the texture of a tissue changes its signal.
TEXTURE: NDArray[np.float32] = _TABLE[:, 3].astype(np.float32)

#: T1 (ms) and proton density with a gadolinium agent: blood, and what has no barrier against it.
_ENHANCED = {
    "vein": (260.0, 0.80), "artery": (280.0, 0.60), "choroid": (420.0, 0.90), "mucosa": (420.0, 0.80),
    "muscle": (850.0, 0.78), "skin": (600.0, 0.70),
}  # fmt: skip

#: FreeSurfer number of the left structure -> (number of the right one, tissue)
_PAIRED = {
    2: (41, "white"), 3: (42, "grey"), 4: (43, "ventricle"), 5: (44, "ventricle"), 6: (45, "cerebellar grey"),
    7: (46, "cerebellar white"), 8: (47, "cerebellar grey"), 10: (49, "thalamus"), 11: (50, "caudate"),
    12: (51, "putamen"), 13: (52, "pallidum"), 17: (53, "hippocampus"), 18: (54, "grey"), 25: (57, "white"),
    26: (58, "caudate"), 28: (60, "brainstem"), 29: (61, "csf"), 30: (62, "csf"), 31: (63, "choroid"),
    136: (163, "choroid"), 137: (164, "choroid"),
}  # fmt: skip
_SINGLE = {
    0: "air", 14: "ventricle", 15: "ventricle", 16: "brainstem", 24: "csf", 72: "ventricle", 77: "white",
    85: "optic nerve", 165: "bone", 251: "white", 252: "white", 253: "white", 254: "white", 255: "white",
    258: "soft", 259: "eye", 502: "artery", 506: "eye", 507: "soft", 508: "muscle", 509: "mucosa", 511: "skin",
    512: "cord", 514: "vein", 515: "bone", 516: "marrow", 530: "optic nerve",
}  # fmt: skip
#: FreeSurfer number -> tissue
CODES: Mapping[int, str] = {
    **_SINGLE,
    **{left: tissue for left, (_, tissue) in _PAIRED.items()},
    **{right: tissue for right, tissue in _PAIRED.values()},
}
#: Codes of the cerebrum on the left and on the right of the patient.
LEFT, RIGHT = (2, 3), (41, 42)


def index_of(*tissues: str) -> NDArray[np.uint8]:
    """Positions of tissues in `TISSUES`.

    Raises
    ------
    ValueError
        For an unknown tissue.
    """
    return np.array([TISSUES.index(tissue) for tissue in tissues], dtype=np.uint8)


BRAIN = (
    "grey", "white", "cerebellar grey", "cerebellar white", "hippocampus", "thalamus", "caudate", "putamen",
    "pallidum", "brainstem",
)  # fmt: skip
#: What lies in the ventricles; a skull-stripped brain keeps it.
FLUID = ("ventricle", "choroid")
#: Where plaques of multiple sclerosis are drawn.
PLAQUE_BED = ("white", "cerebellar white", "brainstem", "thalamus")

#: contrast -> how often it is drawn; T2w is the one that public slices lack
CONTRASTS: Mapping[str, float] = {"T1w": 0.2, "T1w+Gd": 0.1, "T2w": 0.4, "PDw": 0.1, "FLAIR": 0.2}

#: contrast -> ranges of TR, TE and TI in ms (TI 0: spin echo); one of the sequences is drawn
_SEQUENCES: Mapping[str, Sequence[tuple[tuple[float, float], ...]]] = {
    "T1w": (((400, 650), (8, 15), (0, 0)), ((1900, 2300), (2, 5), (900, 1050))),
    "T1w+Gd": (((400, 650), (8, 15), (0, 0)), ((1900, 2300), (2, 5), (900, 1050))),
    "T2w": (((3500, 6500), (80, 115), (0, 0)),),
    "PDw": (((2500, 4500), (10, 25), (0, 0)),),
    "FLAIR": (((8000, 11000), (95, 140), (0, 0)),),
}
#: Share of FLAIR and T2w images whose fat is suppressed, as scanners often do.
_FAT_SUPPRESSED = {"T2w": 0.2, "FLAIR": 0.8}
#: contrast -> tissues from bright to dark; neighbours differ by `_MARGIN` at least
_ORDERS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "T1w": (
        ("fat", "white", "grey", "ventricle"), ("cerebellar white", "cerebellar grey"), ("grey", "infarct"),
        ("grey", "csf"), ("white", "plaque"), ("white", "thalamus"), ("white", "artery"),
    ),
    "T1w+Gd": (
        ("vein", "white", "grey", "ventricle"), ("fat", "white"), ("cerebellar white", "cerebellar grey"),
        ("grey", "infarct"), ("grey", "csf"), ("white", "plaque"),
    ),
    "T2w": (
        ("ventricle", "infarct", "grey", "white"), ("csf", "plaque", "grey"), ("cerebellar grey", "cerebellar white"),
        ("white", "bone"), ("eye", "grey"),
    ),
    "PDw": (("infarct", "grey", "white"), ("plaque", "grey"), ("cerebellar grey", "cerebellar white")),
    "FLAIR": (
        ("infarct", "grey", "white", "ventricle"), ("plaque", "grey"), ("white", "csf"), ("white", "eye"),
        ("cerebellar grey", "cerebellar white"),
    ),
}  # fmt: skip
_MARGIN = 1.06
_TRIES = 40


def draw_signal(contrast: str, rng: np.random.Generator, scatter: float = 0.05) -> NDArray[np.float32]:
    """Signal of every tissue in one scan, ``(tissues,)``, relative.

    Parameters
    ----------
    contrast : str
        One of `CONTRASTS`.
    rng : numpy.random.Generator
        Source of sequence, relaxation times and deviations.
    scatter : float
        Share by which T1, T2 and proton density scatter, each on its own.

    Raises
    ------
    KeyError
        For an unknown contrast.
    """
    for attempt in range(_TRIES + 1):
        signal = _scan(contrast, rng, scatter if attempt < _TRIES else 0.0)
        if _in_order(signal, contrast):
            break
    return signal


def _scan(contrast: str, rng: np.random.Generator, scatter: float) -> NDArray[np.float32]:
    sequences = _SEQUENCES[contrast]
    tr, te, ti = (rng.uniform(*span) for span in sequences[int(rng.integers(len(sequences)))])
    table = _TABLE[:, :3].copy()
    if contrast == "T1w+Gd":
        for tissue, (t1, density) in _ENHANCED.items():
            table[TISSUES.index(tissue), [0, 2]] = t1, density
    table = table * np.exp(scatter * rng.standard_normal(table.shape))
    # Outside the brain there is more to differ: marrow, flow, fat.
    flow = np.exp(4 * scatter * rng.standard_normal(len(table)))
    for tissue in ("vein", "artery", "marrow", "fat", "mucosa", "soft"):
        table[TISSUES.index(tissue), 2] *= min(float(flow[TISSUES.index(tissue)]), 1.3)
    table[TISSUES.index("ventricle"), :2] = table[TISSUES.index("csf"), :2]
    table[TISSUES.index("eye"), 0] = table[TISSUES.index("csf"), 0] * rng.uniform(0.93, 1.0)
    if contrast == "FLAIR":  # the scanner chooses the inversion time that nulls the fluid
        t1 = table[TISSUES.index("csf"), 0]
        ti = t1 * np.log(2 / (1 + np.exp(-tr / t1))) * rng.uniform(0.96, 1.02)
    if contrast.startswith("T1w") and ti:  # short readouts dephase the protons of fat
        table[[TISSUES.index("fat"), TISSUES.index("marrow")], 2] *= rng.uniform(0.5, 0.8)
    if contrast == "T2w":  # trains of refocusing pulses keep fat bright
        table[[TISSUES.index("fat"), TISSUES.index("marrow")], 2] *= rng.uniform(1.0, 1.9)
    if rng.random() < _FAT_SUPPRESSED.get(contrast, 0.0):
        for tissue in ("fat", "marrow", "soft"):
            table[TISSUES.index(tissue), 2] *= rng.uniform(0.2, 0.45) if tissue != "soft" else 0.9
    t1, t2, density, times = *torch.from_numpy(table.T), torch.tensor([tr, te, ti], dtype=torch.float64)
    echo = inversion_recovery(t1, t2, density, *times) if ti else spin_echo(t1, t2, density, *times[:2])
    signal = echo.numpy().astype(np.float32)
    # Deep grey matter is a mixture of both, and so is the stem; iron makes the pallidum darker than either.
    mixed = index_of("thalamus", "caudate", "putamen", "brainstem", "cord")
    signal[mixed] = np.clip(signal[mixed], *np.sort(signal[index_of("grey", "white")]))
    return signal


def _in_order(signal: NDArray[np.float32], contrast: str) -> bool:
    return all(
        signal[TISSUES.index(bright)] > _MARGIN * signal[TISSUES.index(dark)]
        for order in _ORDERS[contrast]
        for bright, dark in zip(order, order[1:], strict=False)
    )
