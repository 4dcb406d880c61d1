"""Raw k-space files: what is read, what is inferred, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from treg_med.data import open_scan
from treg_med.data.phantoms import write_raw_kspace
from treg_med.errors import ConfigError, FormatError, GeometryError, NumericsError, UnsafeFileError


def _kspace(*shape: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(np.complex64)


def _write(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
    return path


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 1, 12, 10), (3, 1, 12, 10)), ((1, 12, 10), (1, 1, 12, 10)), ((12, 10), (1, 1, 12, 10))],
)
def test_axes_of_kspace(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    kspace = _kspace(*shape)
    with open_scan(_write(tmp_path / "a.h5", kspace=kspace)) as scan:
        assert (len(scan), scan.header.coils, *scan.header.image_shape) == expected
        assert np.array_equal(scan[-1].y.numpy(), kspace.reshape(expected)[-1])


def test_double_precision_and_byte_order(tmp_path: Path) -> None:
    kspace = _kspace(12, 10)
    with open_scan(_write(tmp_path / "a.h5", kspace=kspace.astype(">c16"))) as scan:
        assert scan[0].y.dtype == torch.complex64
        assert np.array_equal(scan[0].y[0].numpy(), kspace)


def test_a_missing_mask_is_inferred_and_said(tmp_path: Path) -> None:
    kspace = _kspace(2, 1, 12, 20)
    kspace[..., ::2] = 0
    with open_scan(_write(tmp_path / "a.h5", kspace=kspace)) as scan:
        m = scan[0]
    assert m.operator.mask[:, 1::2].all()
    assert not m.operator.mask[:, ::2].any()
    assert m.provenance["mask_source"] == "inferred from exact zeros"
    assert any("no mask" in w for w in m.warnings)


def test_samples_outside_the_mask_are_dropped(tmp_path: Path) -> None:
    mask = np.zeros(20)
    mask[5:15] = 1
    with open_scan(_write(tmp_path / "a.h5", kspace=-_kspace(12, 20), mask=mask)) as scan:
        m = scan[0]
    assert m.operator.acceleration == 2
    assert not m.y[..., :5].any()
    assert not torch.signbit(torch.view_as_real(m.y[..., :5].contiguous())).any()


def test_given_facts_are_used(tmp_path: Path) -> None:
    kspace = _kspace(2, 2, 12, 10)
    maps = _kspace(2, 12, 10)
    path = _write(
        tmp_path / "a.h5",
        kspace=kspace,
        mask=np.ones((12, 10), bool),
        sensitivity_maps=maps,
        target=np.ones((2, 12, 10)),
    )
    with h5py.File(path, "a") as file:
        file.attrs.update(
            {"noise_std": 0.25, "anatomy": "Brain", "contrast": b"flair", "plane": "JOHN SMITH"}
        )
    with open_scan(path) as scan:
        m = scan[1]
        assert scan.header.text == "T2-FLAIR brain MRI"
    assert m.noise_std == 0.25
    assert m.provenance["noise_std"] == "given"
    assert np.array_equal(m.operator.sensitivity_maps.numpy(), maps)
    assert m.target is not None
    assert m.target.dtype == torch.float32
    with open_scan(path, noise_std=0.5) as scan:
        assert scan[0].noise_std == 0.5


def test_noise_is_estimated_and_said(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5", shape=(96, 96), n_slices=1, noise=0.05)
    with open_scan(tmp_path / "a.h5") as scan:
        m = scan[0]
    assert m.provenance["noise_std"] == "estimated"
    assert m.noise_std == pytest.approx(0.05, rel=0.15)
    assert any("estimated" in w for w in m.warnings)


def test_coil_maps_come_from_the_calibration_region(tmp_path: Path) -> None:
    images = write_raw_kspace(tmp_path / "a.h5", shape=(64, 64), n_slices=1, coils=4, noise=0.001)
    with open_scan(tmp_path / "a.h5") as scan:
        m = scan[0]
    maps = m.operator.sensitivity_maps
    inside = images[0] > 0.1
    assert torch.allclose(torch.linalg.vector_norm(maps, dim=0)[inside], torch.ones(()), atol=1e-3)
    combined = m.operator.adjoint(m.y).abs()
    assert torch.linalg.vector_norm((combined - images[0])[inside]) < 0.02 * torch.linalg.vector_norm(
        images[0]
    )


def test_a_complete_scan_is_its_own_reference(tmp_path: Path) -> None:
    images = write_raw_kspace(tmp_path / "a.h5", coils=3, noise=0.0001)
    with open_scan(tmp_path / "a.h5", acceleration=2.0, mask="poisson-disc", noise_std=0.0001) as scan:
        m = scan[1]
        header = scan.header
    assert m.target is not None
    assert torch.allclose(m.target, images[1], atol=2e-3)
    assert m.operator.acceleration == pytest.approx(2.0, rel=0.03)
    assert header.acceleration == m.operator.acceleration
    assert m.provenance["operations"] == [
        {"operation": "retrospective undersampling", "acceleration": 2.0, "mask": "poisson-disc", "seed": 0}
    ]
    assert not m.simulated


def test_an_undersampled_scan_is_not_undersampled_again(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5", acceleration=3.0)
    with pytest.raises(ConfigError, match="already undersampled"):
        open_scan(tmp_path / "a.h5", acceleration=2.0)


def test_display_can_be_overridden(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5", attributes={"display_rot90": 1, "display_flip": True})
    with open_scan(tmp_path / "a.h5") as scan:
        assert (scan.geometry.display_rot90, scan.geometry.display_flip) == (1, True)
    with open_scan(tmp_path / "a.h5", rot90=3, flip=False) as scan:
        assert (scan[0].geometry.display_rot90, scan[0].geometry.display_flip) == (3, False)


@pytest.mark.parametrize(
    ("datasets", "error", "message"),
    [
        ({"kspace": np.ones((4, 4))}, FormatError, "complex64"),
        ({"kspace": np.ones((4, 4, 2))}, FormatError, "1j"),
        ({"kspace": np.array([b"text"])}, FormatError, "complex"),
        ({"kspace": _kspace(5)}, FormatError, "ky, kx"),
        ({"kspace": _kspace(1, 1, 1, 4, 4)}, FormatError, "ky, kx"),
        ({"kspace": _kspace(2, 1, 0, 4)}, FormatError, "empty"),
        ({"kspace": _kspace(6, 4), "mask": np.ones((4, 6))}, GeometryError, "transpose"),
        ({"kspace": _kspace(6, 4), "mask": np.ones(6)}, GeometryError, r"\(6, 4\) or \(4,\)"),
        ({"kspace": _kspace(6, 4), "mask": np.zeros((6, 4))}, FormatError, "all zeros"),
        ({"kspace": _kspace(6, 4), "mask": np.full((6, 4), 0.5)}, FormatError, "0 and 1"),
        ({"kspace": _kspace(6, 4), "mask": np.full((6, 4), np.nan)}, FormatError, "0 and 1"),
        ({"kspace": _kspace(6, 4), "mask": np.array([b"a"] * 4)}, FormatError, "mask"),
        ({"kspace": _kspace(6, 4), "target": np.ones((4, 6))}, GeometryError, "target"),
        (
            {"kspace": _kspace(2, 6, 4), "sensitivity_maps": _kspace(3, 6, 4)},
            GeometryError,
            "sensitivity_maps",
        ),
        ({"kspace": _kspace(2, 6, 4), "sensitivity_maps": np.ones((2, 6, 4))}, FormatError, "complex"),
    ],
)
def test_what_does_not_fit_is_refused_on_opening(
    tmp_path: Path, datasets: dict[str, np.ndarray], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_scan(_write(tmp_path / "a.h5", **datasets))


def test_a_group_called_kspace_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("kspace")
    with pytest.raises(FormatError, match="dataset"):
        open_scan(tmp_path / "a.h5")


@pytest.mark.parametrize("bad", [np.nan, np.inf, complex(0, np.nan)])
def test_nan_is_refused_with_its_index(tmp_path: Path, bad: complex) -> None:
    kspace = _kspace(2, 2, 12, 10)
    kspace[1, 1, 7, 3] = bad
    with open_scan(_write(tmp_path / "a.h5", kspace=kspace, sensitivity_maps=_kspace(2, 12, 10))) as scan:
        assert scan[0].y.isfinite().all()
        with pytest.raises(NumericsError, match=r"slice 1.*\(1, 7, 3\)"):
            scan[1]


def test_an_empty_slice_is_refused(tmp_path: Path) -> None:
    with open_scan(_write(tmp_path / "a.h5", kspace=np.zeros((1, 8, 8), np.complex64))) as scan:
        with pytest.raises(FormatError, match="only zeros"):
            scan[0]
    with open_scan(_write(tmp_path / "b.h5", kspace=np.zeros((8, 8), np.complex64), mask=np.ones(8))) as scan:
        with pytest.raises(NumericsError, match="only zeros"):
            scan[0]


@pytest.mark.parametrize(
    ("attributes", "error"),
    [
        ({"noise_std": "much"}, FormatError),
        ({"noise_std": np.nan}, FormatError),
        ({"noise_std": [1.0, 2.0]}, FormatError),
        ({"affine": np.zeros((4, 4))}, GeometryError),
        ({"affine": np.full((4, 4), np.nan)}, GeometryError),
        ({"affine": np.eye(3)}, GeometryError),
        ({"affine": np.eye(4), "storage": np.zeros((3, 2), int)}, FormatError),
        ({"operations": "{"}, FormatError),
        ({"operations": "{}"}, FormatError),
        ({"operations": "[" * 2000}, FormatError),
    ],
)
def test_bad_attributes_are_refused(
    tmp_path: Path, attributes: dict[str, Any], error: type[Exception]
) -> None:
    write_raw_kspace(tmp_path / "a.h5", attributes=attributes)
    with pytest.raises(error):
        open_scan(tmp_path / "a.h5")


def test_a_long_list_of_operations_is_refused(tmp_path: Path) -> None:
    write_raw_kspace(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.create_dataset("x", data=0)
        long = json.dumps([{"operation": "simulate"}] * 2000)
        assert len(long) < 64000, "attributes hold less than 64 KiB"
        file.attrs["operations"] = long
    with open_scan(tmp_path / "a.h5") as scan:
        assert len(scan.header.operations) == 2000
    with pytest.raises(UnsafeFileError, match="short list"):
        from treg_med.data.generic_hdf5 import read_operations

        read_operations({"operations": " " * 200_000})  # type: ignore[arg-type]


def test_free_text_of_a_file_reaches_no_provenance(tmp_path: Path) -> None:
    canary = "CANARY^JANE"
    operations = json.dumps(
        [{"operation": "simulate", "mask": canary, canary: 1, "noise": 0.1}, canary, {"seed": [canary]}]
    )
    attributes = dict.fromkeys(
        ("description", "source", "patient", "anatomy", "contrast", "plane", "modality"), canary
    )
    write_raw_kspace(tmp_path / "a.h5", noise=0.01, attributes=attributes | {"operations": operations})
    with open_scan(tmp_path / "a.h5") as scan:
        assert canary not in json.dumps(dict(scan[0].provenance))
        assert canary not in (scan.header.text or "")
        assert {"operation": "simulate", "noise": 0.1} in [dict(o) for o in scan.header.operations]
