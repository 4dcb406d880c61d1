"""The quality benchmark: exported cases, the supervised network as a solver, and its training pairs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from treg_med.data import Measurement, open_scan
from treg_med.data.ct_volume import HounsfieldReader
from treg_med.data.simulation import KspaceSimulation
from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.operators import MU_WATER, CartesianMRI
from treg_med.solvers import get_solver
from treg_med.solvers.phase import smooth_rotation
from treg_med.training.prepare.captions_jsonl import read_captions

# The benchmarks stay in the repository and are not part of the wheel.
ct_input = pytest.importorskip("benchmarks.quality.ct_input")
ct_samples = pytest.importorskip("benchmarks.quality.ct_samples")
mr_samples = pytest.importorskip("benchmarks.quality.mr_samples")
mr_tv_samples = pytest.importorskip("benchmarks.quality.mr_tv_samples")
prepare = pytest.importorskip("benchmarks.quality.prepare")
supervised = pytest.importorskip("benchmarks.quality.supervised")
train_unet = pytest.importorskip("benchmarks.quality.train_unet")
unet_module = pytest.importorskip("benchmarks.quality.unet")

UNET = "benchmarks.quality.supervised:SupervisedUNet"

SIZE = 32


def write_slices(path: Path, rows: list[dict[str, Any]], images: np.ndarray, **more: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["images"] = images
        for name, values in more.items():
            file[name] = values
        for name in rows[0]:
            values = [row[name] for row in rows]
            if isinstance(values[0], str):
                file.create_dataset(name, data=values, dtype=h5py.string_dtype())
            else:
                file[name] = np.array(values)


def brain_rows() -> list[dict[str, Any]]:
    rows = []
    for subject, split in (("ms_a", "val"), ("ms_b", "val"), ("ms_long_p20", "train"), ("ms_c", "train")):
        for k in range(6):
            caption = f"Axial T2-FLAIR brain MRI, {'lower' if k < 3 else 'upper'} third of the stack, man; {k} lesions."
            rows.append(
                {"subject": subject, "split": split, "captions": caption, "contrast": "FLAIR", "plane": "axial",
                 "slice_index": 10 + 3 * k, "pixel_spacing_mm": 1.0}
            )  # fmt: skip
    rows.append({**rows[0], "subject": "unknown:1"})
    return rows


@pytest.fixture
def brain(tmp_path: Path) -> tuple[Path, np.ndarray]:
    rows = brain_rows()
    images = np.random.default_rng(0).integers(1, 256, (len(rows), SIZE, SIZE), dtype=np.uint8)
    write_slices(tmp_path / "brain.h5", rows, images)
    return tmp_path / "brain.h5", images


@pytest.fixture
def body(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    rows = [
        {"subject": subject, "split": split, "captions": f"Axial CT slice of the {part}, woman, 5 mm slice thickness.",
         "plane": "axial", "contrast_agent": "no", "slice_index": place, "pixel_spacing_mm": 10.0,
         "slice_thickness_mm": 5.0}
        for subject, split in (("P1", "val"), ("P2", "train"), ("P3", "train"))
        for part, place in (("chest", 0), ("upper abdomen", 4))
    ]  # fmt: skip
    hu = np.full((len(rows), SIZE, SIZE), -1000.0)
    hu[:, 6:26, 8:24] = 40.0
    hu[:, 12:18, 12:20] = 700.0
    wide = np.rint((hu + 1000) / 2000 * 255).astype(np.uint8)
    soft = np.rint((hu.clip(-160, 240) + 160) / 400 * 255).astype(np.uint8)
    write_slices(tmp_path / "ct.h5", rows, wide, images_soft=soft)
    return tmp_path / "ct.h5", wide, hu


def test_cases_are_stacks_with_geometry_and_captions(
    brain: tuple[Path, np.ndarray], body: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    volumes = tmp_path / "nifti"
    volumes.mkdir()
    stored = np.arange(8 * 8 * 12, dtype=np.int16).reshape(8, 8, 12)
    affine = np.diag([-0.7, 0.7, 3.0, 1.0])
    affine[:3, 3] = 5, -6, 7
    nib.save(nib.Nifti1Image(stored, affine), volumes / "ms_b_s1_FLAIR.nii.gz")
    out = tmp_path / "cases"
    lines = prepare.prepare(out, brain=brain[0], ct=body[0], nifti=volumes, split="val", per_subject=3)

    assert [line["file"] for line in lines] == [
        "sub-msa/anat/sub-msa_acq-axial_FLAIR.nii.gz",
        "sub-msb/anat/sub-msb_acq-axial_FLAIR.nii.gz",
        "sub-P1/ct/sub-P1_acq-axial_ct.nii.gz",
    ]
    assert lines[0]["caption"] == "Axial T2-FLAIR brain MRI, man."
    assert lines[2]["caption"] == "Axial CT slice, woman, 5 mm slice thickness."
    entries, warnings = read_captions(out)
    assert (len(entries), warnings) == (3, [])

    with open_scan(out / lines[0]["file"], acceleration=2, mask="random", coils=2) as scan:
        assert (len(scan), scan.header.words.plane) == (3, "axial")
        np.testing.assert_allclose(scan.header.spacing_mm, (1.0, 1.0, 6.0))
        # Slices 1, 3 and 5; shown with the patient's left on the right, stored the other way.
        shown = scan[1].target
        assert shown is not None
        np.testing.assert_allclose(shown.abs().numpy(), brain[1][3][:, ::-1], rtol=1e-4)

    cut = nib.load(out / lines[1]["file"])
    np.testing.assert_array_equal(np.asarray(cut.dataobj), stored[:, :, [2, 6, 10]])
    np.testing.assert_allclose(cut.affine @ [0, 0, 1, 1], affine @ [0, 0, 6, 1])

    with open_scan(out / lines[2]["file"], views=8) as scan:
        assert isinstance(scan, HounsfieldReader)
        np.testing.assert_allclose(scan.header.spacing_mm, (10.0, 10.0, 20.0))
        target = scan[0].target
        assert target is not None
        found = target.numpy() / MU_WATER * 1000 - 1000
    # Within the soft-tissue window its finer steps are used.
    assert np.abs(found - body[2][0])[body[2][0] == 40.0].max() <= 1.0
    assert np.abs(found - body[2][0]).max() <= 4.5


def test_export_refuses_what_it_cannot_use(brain: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one slice"):
        prepare.prepare(tmp_path / "out", brain=brain[0], per_subject=0)
    with pytest.raises(ResourceError, match=r"nothing\.h5"):
        prepare.prepare(tmp_path / "out", brain=tmp_path / "nothing.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(FormatError, match="slice file"):
        prepare.prepare(tmp_path / "out", brain=tmp_path / "other.h5")


def weights(path: Path, kind: str, *, trained: bool = True) -> str:
    torch.manual_seed(0)
    unet = unet_module.UNet(unet_module.UNetConfig(kind, width=4, depth=3))
    if trained:
        torch.nn.init.normal_(unet.last.weight, std=0.5)
    unet_module.save_unet(unet, path)
    return str(path)


def mr_scan(images: int = 2) -> Measurement:
    simulation = KspaceSimulation(acceleration=2, coils=2, noise=0.01)
    mask = simulation.make_mask((SIZE, SIZE))
    picture = torch.zeros(images, SIZE, SIZE)
    for number in range(images):
        picture[number, 6 : 20 + number, 8:24] = 1.0 - 0.3 * number
    scans = [simulation.slice(image, index, mask, 1.0) for index, image in enumerate(picture)]
    operator = CartesianMRI(mask.mask, scans[0].maps)
    return Measurement(y=torch.stack([scan.kspace for scan in scans]), operator=operator, noise_std=0.01)


def test_network_is_deterministic_and_every_image_its_own(tmp_path: Path) -> None:
    solver = get_solver(UNET, weights=weights(tmp_path / "w.safetensors", "mri"))
    scan = mr_scan()
    both = solver(scan).image
    again = solver(scan).image
    first = solver(Measurement(y=scan.y[0], operator=scan.operator, noise_std=0.01)).image
    assert torch.equal(both, again)
    torch.testing.assert_close(both[0], first, rtol=1e-5, atol=1e-6)


def test_untrained_network_returns_its_input(tmp_path: Path) -> None:
    scan = mr_scan()
    image = get_solver(UNET, weights=weights(tmp_path / "w.safetensors", "mri", trained=False))(scan).image
    zero_filled = scan.operator.adjoint(scan.y)
    rotation = smooth_rotation(zero_filled, mr_samples._PHASE_WIDTH)
    along = (zero_filled * rotation.conj()).real * rotation
    torch.testing.assert_close(image, along, rtol=1e-4, atol=1e-6)


def test_a_network_may_start_from_total_variation(tmp_path: Path) -> None:
    scan = mr_scan()
    path = weights(tmp_path / "w.safetensors", "mri-tv", trained=False)
    tv = get_solver("tv")(scan).image
    along = mr_samples.MRInput.of(tv)
    expected = along.image(along.channels[..., -1:, :, :])
    torch.testing.assert_close(get_solver(UNET, weights=path, start="tv")(scan).image, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(ConfigError, match="network for mri, got one for mri-tv"):
        get_solver(UNET, weights=path)(scan)


def test_data_consistency_brings_the_network_to_the_noise(tmp_path: Path) -> None:
    path = weights(tmp_path / "w.safetensors", "mri")
    scan = mr_scan()
    alone = get_solver(UNET, weights=path)(scan)
    joined = get_solver(UNET, weights=path, data_consistency=True)(scan)
    assert alone.residual > 3
    assert 0.8 < joined.residual < 1.05


def ct_case(body: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> Measurement:
    out = tmp_path / "cases"
    lines = prepare.prepare(out, ct=body[0], split="val")
    with open_scan(out / lines[0]["file"], views=24, photons=1e4) as scan:
        return scan[0]


def test_network_for_ct_sees_line_integrals_in_their_units(
    body: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    scan = ct_case(body, tmp_path)
    image = get_solver(UNET, weights=weights(tmp_path / "w.safetensors", "ct", trained=False))(scan).image
    channels = ct_input.ct_channels(scan.operator, scan.y, MU_WATER)
    expected = ct_input.to_attenuation(channels[1], MU_WATER)
    torch.testing.assert_close(image, expected, rtol=1e-3, atol=1e-5)
    joined = get_solver(UNET, weights=str(tmp_path / "w.safetensors"), data_consistency=True, iterations=100)(scan)
    assert joined.residual < 1.1


def test_wrong_weights_are_refused(body: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    scan = mr_scan(1)
    with pytest.raises(ResourceError, match="train"):
        get_solver(UNET, weights=str(tmp_path / "none.safetensors"))(scan)
    with pytest.raises(ConfigError, match="network for mri"):
        get_solver(UNET, weights=weights(tmp_path / "ct.safetensors", "ct"))(scan)
    with pytest.raises(ConfigError, match="network for ct"):
        get_solver(UNET, weights=weights(tmp_path / "mri.safetensors", "mri"))(ct_case(body, tmp_path))
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match="supervised-unet"):
        get_solver(UNET, weights=str(tmp_path / "other.safetensors"))(scan)
    whole = (tmp_path / "mri.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="complete"):
        get_solver(UNET, weights=str(tmp_path / "cut.safetensors"))(scan)
    save_file({"a": torch.zeros(2)}, tmp_path / "keys.safetensors", {"format": "supervised-unet", "config": "{}"})
    with pytest.raises(FormatError, match="complete"):
        get_solver(UNET, weights=str(tmp_path / "keys.safetensors"))(scan)


def test_odd_sizes_keep_their_shape() -> None:
    unet = unet_module.UNet(unet_module.UNetConfig("mri", width=4, depth=3))
    assert unet(torch.randn(1, 2, 19, 30)).shape == (1, 1, 19, 30)


def test_training_pairs_do_not_hold_the_subject_kept_out(brain: tuple[Path, np.ndarray]) -> None:
    samples = mr_samples.MRSamples(brain[0], [], batch=2, seed=1)
    assert {samples.slices.subjects[row] for row in samples.held_out} == {mr_samples.HELD_OUT}
    assert float(samples.weights[samples.held_out].sum()) == 0.0
    start, target = samples.draw(3)
    assert (start.shape, target.shape) == ((2, 2, SIZE, SIZE), (2, 1, SIZE, SIZE))
    assert torch.equal(start, samples.draw(3)[0])
    assert not torch.equal(start, samples.draw(4)[0])
    torch.testing.assert_close(start.square().sum(1).mean((-2, -1)), torch.ones(2))


def check_made_once(make_files: Callable[[argparse.Namespace], None], slices: Path, out: Path) -> None:
    arguments = argparse.Namespace(slices=slices, out=out, pairs=3, seed=0, threads=1)
    make_files(arguments)
    (file,) = out.iterdir()
    assert file.name == "pairs-000.safetensors"
    written = file.stat().st_mtime_ns
    make_files(arguments)
    assert file.stat().st_mtime_ns == written


def test_pairs_of_total_variation_are_made_once_and_moved(
    brain: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mr_tv_samples, "PAIRS_IN_FILE", 3)
    check_made_once(mr_tv_samples.make_files, brain[0], tmp_path / "pairs")
    samples = mr_tv_samples.TVSamples(brain[0], tmp_path / "pairs", batch=4, seed=0)
    start, target = samples.draw(0)
    assert (start.shape, target.shape) == ((4, 2, SIZE, SIZE), (4, 1, SIZE, SIZE))
    assert torch.equal(start, samples.draw(0)[0])
    assert not torch.equal(start, samples.draw(1)[0])
    # Input and target are moved together; the images are noise, of which total variation keeps a part.
    for along, true in zip(start[:, 1], target[:, 0], strict=True):
        together, apart = (torch.corrcoef(torch.stack([along.flatten(), t.flatten()])) for t in (true, true.roll(1)))
        assert float(together[0, 1]) > 0.3 + abs(float(apart[0, 1]))
    names = [name for name, *_ in samples.validation(1)]
    assert len(set(names)) == len(names) == 12
    with pytest.raises(ResourceError, match="mr_tv_samples"):
        mr_tv_samples.TVSamples(brain[0], tmp_path / "none", batch=4, seed=0)


def test_training_goes_on_where_it_was_stopped(brain: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    samples = mr_samples.MRSamples(brain[0], [], batch=1, seed=1)
    config = unet_module.UNetConfig("mri", width=4, depth=2)
    torch.manual_seed(0)
    whole = train_unet.Training(unet_module.UNet(config), 1e-2)
    for step in range(4):
        whole.learn(*samples.draw(step), 0.0)
        if step == 1:
            whole.save(tmp_path / "state.ckpt")
    second = train_unet.Training(unet_module.UNet(config), 1e-2)
    second.resume(tmp_path / "state.ckpt")
    for step in range(second.step, 4):
        second.learn(*samples.draw(step), 0.0)
    assert second.step == 4
    for expected, found in zip(whole.average.parameters(), second.average.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_ct_pairs_are_made_once_and_turned(
    body: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ct_samples, "PAIRS_IN_FILE", 3)
    slices = ct_samples._Slices.load(body[0])
    assert ct_samples.held_out_subjects(slices.subjects) == {"P2"}
    check_made_once(ct_samples.make_files, body[0], tmp_path / "pairs")
    samples = ct_samples.CTSamples(body[0], tmp_path / "pairs", batch=4, seed=0)
    start, target = samples.draw(0)
    assert (start.shape, target.shape) == ((4, 2, SIZE, SIZE), (4, 1, SIZE, SIZE))
    assert torch.equal(start, samples.draw(0)[0])
    # Input and target are turned together: the smooth image resembles the slice.
    for smooth, true in zip(start[:, 1], target[:, 0], strict=True):
        assert float(torch.corrcoef(torch.stack([smooth.flatten(), true.flatten()]))[0, 1]) > 0.7
