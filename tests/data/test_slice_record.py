"""A slice that is kept is the slice that was reconstructed, to the last bit, or no slice at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.data.ct_files import write_hounsfield, write_htc
from treg_med.data import Geometry, Measurement, Reconstruction, VolumeWriter, open_scan
from treg_med.data.phantoms import phantom_volume
from treg_med.data.slice_record import SliceRecord, shown_values
from treg_med.errors import FormatError, GeometryError, NumericsError, ResourceError


def oblique() -> np.ndarray:
    """An affine whose numbers have no short decimal form."""
    angle = 0.1
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.9, 1.1, np.pi])
    affine[:3, 3] = 1 / 3, -np.e, 1e-7
    return affine


@pytest.fixture(scope="module")
def measurement(tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    path = tmp_path_factory.mktemp("mr") / "a.nii"
    nib.save(nib.Nifti1Image(phantom_volume((24, 20), 3).movedim(0, -1).numpy(), oblique()), path)
    with open_scan(path, acceleration=2.0) as scan:
        return scan[1]


@pytest.fixture(scope="module")
def tomography(tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    path = tmp_path_factory.mktemp("ct") / "a.nii"
    write_hounsfield(path)
    with open_scan(path, views=10) as scan:
        return scan[0]


def mr_record(measurement: Measurement, **changes: object) -> SliceRecord:
    image = measurement.operator.adjoint(measurement.y)
    facts = {
        "residual": 1 / 3,
        "nfe": 8,
        "seconds": 0.5,
        "peak_memory_mb": 12.0,
        "solver": "treg",
        "text": 'a "text", 日本 \\ \n',
        "seed": 2**62,
        "settings": {"steps": 4, "weight": 0.1, "region": torch.eye(64), "device": "cuda:3"},
        "warnings": ("one", "two", "one"),
        "measurement": measurement,
    }
    return SliceRecord.of(Reconstruction(image, **(facts | changes)), 1)


def assert_same(first: SliceRecord, second: SliceRecord) -> None:
    assert first.image.dtype == second.image.dtype
    assert first.image.tobytes() == second.image.tobytes()
    assert first.index == second.index
    assert json.dumps(first.facts, sort_keys=True) == json.dumps(second.facts, sort_keys=True)
    assert (first.source, first.unit, first.cost) == (second.source, second.unit, second.cost)
    assert first.warnings == second.warnings
    if first.geometry is None or second.geometry is None:
        assert first.geometry is second.geometry
        return
    assert first.geometry.affine.tobytes() == second.geometry.affine.tobytes()
    without = {"affine": None}
    assert asdict(first.geometry) | without == asdict(second.geometry) | without
    assert isinstance(second.geometry.storage[0], tuple)


# --- round trip


def test_round_trip_to_the_last_bit(measurement: Measurement, tmp_path: Path) -> None:
    record = mr_record(measurement)
    record.save(tmp_path / "a")
    loaded = SliceRecord.load(tmp_path / "a")
    assert_same(record, loaded)
    assert loaded.image.dtype == np.complex64
    assert loaded.residual == 1 / 3
    assert measurement.geometry is not None
    assert loaded.geometry is not None
    assert loaded.geometry.affine.tobytes() == measurement.geometry.affine.tobytes()
    assert (loaded.geometry.slice_index, loaded.geometry.known) == (1, True)
    assert loaded.facts["text"] == 'a "text", 日本 \\ \n'


@pytest.mark.parametrize(
    "geometry",
    [
        None,
        Geometry(),
        Geometry(shape=(24, 20, 3), slice_index=2, display_rot90=3, display_flip=True, xyzt_units=0),
        Geometry(oblique(), (24, 20, 9), 4, 1, 2, 10, True, ((1, -1), (0, 1), (2, -1))),
    ],
)
def test_every_geometry_comes_back(geometry: Geometry | None, tmp_path: Path) -> None:
    record = SliceRecord(0, np.ones((2, 2), np.float32), geometry=geometry)
    record.save(tmp_path / "a")
    assert_same(record, SliceRecord.load(tmp_path / "a"))


def test_odd_numbers_come_back(tmp_path: Path) -> None:
    tiny = np.array([[0.0, -0.0], [np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max]], np.float32)
    for image in (tiny, tiny + 1j * tiny[::-1], tiny.T[::-1]):
        single = image.astype(np.complex64 if np.iscomplexobj(image) else np.float32, order="K")
        SliceRecord(0, single).save(tmp_path / "a")
        assert SliceRecord.load(tmp_path / "a").image.tobytes() == np.ascontiguousarray(single).tobytes()


def test_what_differs_between_runs_is_only_in_the_cost(measurement: Measurement) -> None:
    first = mr_record(measurement)
    second = mr_record(measurement, seconds=9.0, peak_memory_mb=3.0, settings=dict(first.facts["settings"]))
    other_device = mr_record(measurement, settings={"device": "cuda:0"})
    assert (first.cost, second.cost) == (
        {"seconds": 0.5, "peak_memory_mb": 12.0},
        {"seconds": 9.0, "peak_memory_mb": 3.0},
    )
    assert first.facts["settings"]["device"] == other_device.facts["settings"]["device"] == "cuda"
    assert {k: v for k, v in second.facts.items() if k != "settings"} == {
        k: v for k, v in first.facts.items() if k != "settings"
    }
    assert not {"seconds", "peak_memory_mb"} & first.facts.keys()


def test_unknown_numbers_are_none_and_nan(measurement: Measurement, tmp_path: Path) -> None:
    record = mr_record(measurement, residual=float("nan"), seconds=float("nan"), peak_memory_mb=float("inf"))
    record.save(tmp_path / "a")
    loaded = SliceRecord.load(tmp_path / "a")
    assert loaded.facts["residual_noise_units"] is None
    assert np.isnan(loaded.residual)
    assert loaded.cost == {"seconds": None, "peak_memory_mb": None}


def test_facts_of_the_measurement(measurement: Measurement) -> None:
    record = mr_record(measurement)
    assert record.facts["noise_std"] == measurement.noise_std
    assert record.facts["network_evaluations"] == 8
    assert len(record.facts["settings"]["region"]["sha256"]) == 64
    assert record.source["coils"] == measurement.y.shape[-3]
    assert len(record.source["mask"]["sha256"]) == 64
    assert "warnings" not in record.source
    assert record.unit == {}
    assert any("inverse crime" in warning for warning in record.warnings)
    assert len(set(record.warnings)) == len(record.warnings)


# --- Hounsfield units


def test_attenuation_is_kept_and_hounsfield_units_are_shown(tomography: Measurement, tmp_path: Path) -> None:
    result = Reconstruction(tomography.target, measurement=tomography, solver="truth")
    record = SliceRecord.of(result, 0)
    record.save(tmp_path / "a")
    loaded = SliceRecord.load(tmp_path / "a")
    assert_same(record, loaded)
    assert tomography.target is not None
    assert np.array_equal(loaded.image, tomography.target.numpy())
    assert (loaded.unit["unit"], loaded.unit["mu_water_per_mm"]) == ("HU", tomography.mu_water)
    assert loaded.written.dtype == np.float32
    assert np.allclose(loaded.written, result.hounsfield.numpy(), atol=0.01)
    assert loaded.written.tobytes() == record.written.tobytes()
    assert "coils" not in loaded.source


def test_without_water_attenuation_is_shown(tmp_path: Path) -> None:
    with open_scan(write_htc(tmp_path / "a.h5")) as scan:
        m = scan[0]
    record = SliceRecord.of(Reconstruction(m.target, measurement=m), 0)
    assert record.unit["unit"] == "1/mm"
    assert np.array_equal(record.written, record.image)


def test_what_a_volume_shows() -> None:
    assert shown_values(np.array([[3 + 4j]], np.complex64)).tolist() == [[5.0]]
    assert shown_values(np.array([[-3.0]])).tolist() == [[-3.0]]
    assert shown_values(np.array([[0.0, 0.02, 0.04]]), 0.02) == pytest.approx(np.array([[-1000, 0, 1000]]))
    assert shown_values(np.ones((1, 1)), 0.02).dtype == np.float32


def test_a_volume_of_kept_slices_has_the_same_bytes(tomography: Measurement, tmp_path: Path) -> None:
    for name in ("direct", "kept"):
        (tmp_path / name).mkdir()
        with VolumeWriter(tmp_path / name, "scan") as writer:
            result = Reconstruction(tomography.target, measurement=tomography, solver="truth", seconds=1.0)
            if name == "direct":
                writer.add(result)
            else:
                SliceRecord.of(result, 0).save(tmp_path / "a")
                writer.add_record(SliceRecord.load(tmp_path / "a"))
    for end in (".nii.gz", ".json"):
        assert (tmp_path / "direct" / f"scan{end}").read_bytes() == (tmp_path / "kept" / f"scan{end}").read_bytes()


# --- damage


def _edit(change: Callable[[dict[str, str], dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        with safe_open(path, framework="numpy") as file:
            known, parts = dict(file.metadata()), {"image": file.get_tensor("image")}
        change(known, parts)
        save_file(parts, path, known)

    return edit


def _swap(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("this is no record"),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "cut header": lambda p: p.write_bytes(p.read_bytes()[:20]),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "a bit of the image": lambda p: p.write_bytes(p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 1])),
    "a digit of a fact": lambda p: _swap(p, b'\\"slice\\": 1,', b'\\"slice\\": 2,'),
    "another image": _edit(lambda known, parts: parts.update(image=2 * parts["image"])),
    "no image": _edit(lambda known, parts: parts.update(other=parts.pop("image"))),
    "no checksum": _edit(lambda known, parts: known.pop("sha256") and None),
    "no facts": _edit(lambda known, parts: known.pop("record") and None),
    "another version": _edit(lambda known, parts: known.update(version="0")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_record_is_refused(case: str, measurement: Measurement, tmp_path: Path) -> None:
    path = tmp_path / "00001.safetensors"
    mr_record(measurement).save(path)
    DAMAGE[case](path)
    with pytest.raises(FormatError, match=r"00001\.safetensors"):
        SliceRecord.load(path)


# --- what cannot be kept


def test_an_image_that_cannot_be_kept(measurement: Measurement) -> None:
    image = measurement.operator.adjoint(measurement.y)
    for bad, error in (
        (image[None], GeometryError),
        (image[:-1], GeometryError),
        (image.clone().index_fill_(0, torch.tensor([3]), float("nan")), NumericsError),
        (image.real.clone().index_fill_(0, torch.tensor([3]), float("inf")), NumericsError),
    ):
        with pytest.raises(error):
            SliceRecord.of(Reconstruction(bad, measurement=measurement), 1)


def test_double_precision_is_kept_as_single(measurement: Measurement) -> None:
    image = measurement.operator.adjoint(measurement.y).to(torch.complex128)
    record = SliceRecord.of(Reconstruction(image, measurement=measurement), 1)
    assert record.image.dtype == np.complex64
    conjugate = SliceRecord.of(Reconstruction(image.conj(), measurement=measurement), 1)
    assert np.array_equal(conjugate.image, record.image.conj())
    alone = SliceRecord.of(Reconstruction(torch.ones(2, 3, dtype=torch.float64)), 7)
    assert (alone.image.dtype, alone.index, alone.geometry, alone.source) == (np.float32, 7, None, {})


def test_a_folder_that_is_not_there(measurement: Measurement, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="slice 1"):
        mr_record(measurement).save(tmp_path / "none" / "a")


def test_a_record_replaces_the_one_before_and_leaves_nothing_beside(measurement: Measurement, tmp_path: Path) -> None:
    record = mr_record(measurement)
    record.save(tmp_path / "a")
    replace(record, warnings=("new",)).save(tmp_path / "a")
    assert SliceRecord.load(tmp_path / "a").warnings == ("new",)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
