"""Rows of a tidy table, made up."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def row(subject: str = "01", method: str = "tv", **changed: Any) -> Row:
    """One row of a volume."""
    return {
        "dataset": "brain",
        "subject": subject,
        "session": "",
        "scan": f"sub-{subject}_T2w",
        "scenario": "mc-r4",
        "method": method,
        "solver": method.removesuffix("-control"),
        "preset": "default",
        "control": method.endswith("-control"),
        "arm": "none",
        "text": None,
        "seed": 0,
        "protocol": "fastmri",
        "protocol_version": 1,
        "level": "volume",
        "slice": None,
        "data_range": 1.0,
        "crop": None,
        "mask": None,
        "nan_pixels": 0,
        "run_hash": "0" * 8,
    } | changed


#: What each method gains over the subject, in dB.
GAINS = {
    ("tv", "none"): 0.0,
    ("treg", "right"): 1.0,
    ("treg", "empty"): 0.7,
    ("treg", "wrong"): 0.4,
    ("treg", "shuffled"): 0.6,
    ("treg-control", "none"): 0.2,
}


def table(subjects: int = 8, **changed: Any) -> list[Row]:
    """Rows of all methods and arms; the text helps in every subject, by a little more in each."""
    rows = []
    for index in range(subjects):
        for (method, arm), gain in GAINS.items():
            psnr = 30 + index + gain * (1 + 0.05 * index)
            scores = {"psnr": psnr, "ssim": psnr / 50, "nmse": 10 ** (-psnr / 10), "residual": 1.0}
            rows.append(row(f"{index:02d}", method, arm=arm, **scores) | changed)
    return rows
