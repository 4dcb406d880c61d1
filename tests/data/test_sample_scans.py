"""The measured scan that ships with the package."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from treg_med.data import SAMPLES, open_scan, sample_path, validate_source
from treg_med.errors import ConfigError
from treg_med.operators import calibration_region, centered_ifft2


def test_every_sample_is_there_with_its_licence() -> None:
    for name in SAMPLES:
        path = sample_path(name)
        assert path.is_file()
        notice = (path.parent / "NOTICE").read_text()
        assert path.name in notice
        assert path.stat().st_size < 700_000
    assert "Copyright (c) 2019, mikgroup" in notice
    assert "Redistribution and use in source and binary forms" in notice
    assert "Creative Commons Attribution 4.0" in notice
    assert "10.5281/zenodo.8041800" in notice


def test_an_unknown_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="brain_8ch_poisson"):
        sample_path("../secret")


def test_the_header_says_what_it_is() -> None:
    with open_scan(sample_path()) as scan:
        header, geometry = scan.header, scan.geometry
    assert (header.n_slices, header.image_shape, header.coils) == (1, (230, 180), 8)
    assert header.acceleration == pytest.approx(8.04, abs=0.01)
    assert header.text == "axial T1-weighted brain MRI"
    assert not header.simulated
    assert not header.geometry_known
    assert any("unknown geometry" in w for w in header.warnings)
    assert geometry.display_rot90 == 2


def test_the_head_is_shown_forehead_up() -> None:
    with h5py.File(sample_path()) as file:
        kspace = torch.from_numpy(file["kspace"][0])
    with open_scan(sample_path()) as scan:
        upright = scan.geometry.to_display(torch.linalg.vector_norm(centered_ifft2(kspace), dim=0))
    head = upright > 0.15 * upright.max()
    rows = torch.nonzero(head.any(1)).flatten()
    extent = int(rows[-1] - rows[0])
    # A head is wider behind (parietal) than in front: compare a quarter from either end.
    front = int(head[int(rows[0]) + extent // 5].sum())
    back = int(head[int(rows[-1]) - extent // 5].sum())
    assert back > front + 5


@pytest.mark.slow
def test_the_real_scan_keeps_every_promise() -> None:
    with open_scan(sample_path()) as scan:
        assert validate_source(scan)
        m = scan[0]
    assert m.provenance["noise_std"] == "estimated"
    assert m.noise_std is not None
    assert 0.005 < m.noise_std < 0.03
    assert calibration_region(m.operator.mask) == (24, 24)


def test_the_values_are_those_published(shared: Path) -> None:
    with h5py.File(sample_path()) as ours, h5py.File(shared / "kspace" / "brain_8ch_poisson.h5") as published:
        assert np.array_equal(ours["kspace"][()], published["kspace"][()])
        assert np.array_equal(ours["mask"][()], published["mask"][()])
