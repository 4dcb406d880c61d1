"""The records and their pictures."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from treg_med.data import RESEARCH_ONLY, Geometry, Measurement, Reconstruction
from treg_med.data.assemble import robust_scale
from treg_med.data.orientation import unknown_geometry
from treg_med.data.phantoms import brain_phantom, phantom_volume
from treg_med.data.simulation import KspaceSimulation
from treg_med.errors import ConfigError, GeometryError, NumericsError
from treg_med.operators import CartesianMRI

SHAPE = (32, 24)


def _measurement(**changes: object) -> Measurement:
    operator = CartesianMRI(torch.ones(SHAPE))
    image = brain_phantom(SHAPE)
    facts: dict[str, object] = {
        "noise_std": 0.1,
        "target": image,
        "geometry": unknown_geometry((*SHAPE, 1), display_rot90=2),
    }
    return Measurement(y=operator(image), operator=operator, **(facts | changes))  # type: ignore[arg-type]


def test_records_are_frozen_and_copy_their_provenance() -> None:
    facts = {"simulated": True, "warnings": ["w"]}
    m = _measurement(provenance=facts)
    facts["simulated"] = False
    assert m.simulated
    assert m.warnings == ("w",)
    with pytest.raises(FrozenInstanceError):
        m.scale = 2.0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Geometry().slice_index = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        Geometry().affine[0, 0] = 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"y": torch.zeros(1, 24, 32, dtype=torch.complex64)}, GeometryError),
        ({"target": torch.zeros(24, 32)}, GeometryError),
        ({"noise_std": -1.0}, NumericsError),
        ({"noise_std": float("nan")}, NumericsError),
        ({"scale": 0.0}, NumericsError),
        ({"scale": float("inf")}, NumericsError),
    ],
)
def test_measurements_that_do_not_fit_are_refused(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        replace(_measurement(), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"affine": np.eye(3)},
        {"affine": np.full((4, 4), np.inf)},
        {"affine": np.zeros((4, 4))},
        {"slice_index": 1},
        {"slice_index": -1},
    ],
)
def test_geometry_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(GeometryError, match="expected"):
        Geometry(**changes)  # type: ignore[arg-type]


def test_batches_fit_and_pickle_works() -> None:
    m = _measurement()
    batch = replace(m, y=m.y.expand(3, *m.y.shape))
    assert batch.y.shape == (3, 1, *SHAPE)
    copy = pickle.loads(pickle.dumps(m))  # noqa: S301 - our own bytes
    assert torch.equal(copy.y, m.y)
    assert np.array_equal(copy.geometry.affine, m.geometry.affine)


def test_moving_leaves_the_original() -> None:
    m = _measurement()
    moved = m.to("meta")
    assert moved.y.device.type == moved.operator.mask.device.type == moved.target.device.type == "meta"
    assert m.y.device.type == m.operator.mask.device.type == "cpu"
    assert m.to("cpu") is m
    rec = Reconstruction(m.y[0], measurement=m).to("meta")
    assert rec.image.device.type == rec.measurement.y.device.type == "meta"


def test_representations_are_short_and_complete() -> None:
    m = _measurement(
        provenance={"simulated": True, "warnings": ["<inverse crime>"], "noise_std": "estimated"}
    )
    assert "(1, 32, 24)" in repr(m)
    assert "simulated" in repr(m)
    assert "estimated" in repr(m)
    assert "&lt;inverse crime&gt;" in m._repr_html_()
    rec = Reconstruction(m.y[0], residual=1.01, solver="tv", text="<b>", measurement=m, warnings=("w",))
    assert "1.010 noise units" in repr(rec)
    page = rec._repr_html_()
    assert "data:image/png;base64," in page
    assert RESEARCH_ONLY in page
    assert "<b>'" not in page
    assert "Geometry((32, 24, 1)" in repr(m.geometry)


def test_magnitude_and_upright() -> None:
    m = _measurement()
    rec = Reconstruction(m.target, measurement=m)
    assert torch.equal(rec.upright, m.target.abs().flip(0, 1))
    real = Reconstruction(torch.tensor([[-1.0, 2.0]]))
    assert torch.equal(real.magnitude, torch.tensor([[-1.0, 2.0]]))
    with pytest.raises(GeometryError, match="H, W"):
        Reconstruction(torch.zeros(4))


def test_a_picture_is_upright_grey_and_needs_no_display() -> None:
    m = _measurement()
    rec = Reconstruction(m.target, residual=1.25, solver="tv", measurement=m)
    figure = rec.show()
    assert isinstance(figure, Figure)
    (ax,) = figure.axes
    (shown,) = ax.images
    assert np.array_equal(shown.get_array(), rec.upright.numpy())
    assert shown.origin == "upper"
    assert shown.get_cmap().name == "gray"
    assert "residual 1.25 noise units" in ax.get_title()
    assert not mpl._pylab_helpers.Gcf.get_all_fig_managers()  # type: ignore[attr-defined]


def test_a_picture_fits_into_given_axes() -> None:
    figure = Figure()
    ax = figure.add_subplot()
    assert Reconstruction(torch.rand(4, 5)).show(ax) is figure
    assert len(ax.images) == 1


def test_a_comparison_shares_one_window_and_shows_errors() -> None:
    m = _measurement(provenance={"simulated": True})
    good = Reconstruction(m.target, residual=1.0, solver="good", measurement=m)
    bright = Reconstruction(2 * m.target, residual=9.0, solver="bright", measurement=m)
    figure = good.compare([bright])
    axes = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title().split("\n")[0] for ax in axes[:3]] == ["good", "bright", "target"]
    assert len({ax.images[0].get_clim() for ax in axes[:3]}) == 1
    errors = [float(np.max(ax.images[0].get_array())) for ax in axes[3:]]
    assert errors[0] == 0
    assert errors[1] > 0.5
    assert "Simulated" in figure.get_supxlabel()
    assert RESEARCH_ONLY in figure.get_supxlabel()
    plain = good.compare([bright], difference=False)
    assert len([ax for ax in plain.axes if ax.images]) == 3


def test_a_comparison_without_target_has_one_row() -> None:
    m = _measurement(target=None)
    rec = Reconstruction(m.y[0], measurement=m)
    assert len(rec.compare([rec, rec]).axes) == 3
    with pytest.raises(GeometryError, match="one shape"):
        rec.compare([Reconstruction(torch.ones(3, 3))])
    with pytest.raises(GeometryError, match="one image"):
        Reconstruction(torch.ones(2, 3, 3)).show()
    assert Reconstruction(torch.ones(2, 3, 3))._repr_html_()


def test_pixels_that_are_not_square_are_drawn_in_proportion() -> None:
    m = _measurement(geometry=unknown_geometry((*SHAPE, 1), (2.0, 1.0, 5.0)))
    assert Reconstruction(m.target, measurement=m).show().axes[0].get_aspect() == 2.0
    m = _measurement(geometry=unknown_geometry((*SHAPE, 1), (2.0, 1.0, 5.0), display_rot90=1))
    assert Reconstruction(m.target, measurement=m).show().axes[0].get_aspect() == 0.5


@pytest.mark.parametrize("kind", ["random", "equispaced", "gaussian-2d", "poisson-disc", "radial", "full"])
@pytest.mark.parametrize("coils", [1, 4])
def test_the_scale_brings_the_image_to_about_one(kind: str, coils: int) -> None:
    image = 300 * brain_phantom((96, 80)).abs()
    simulation = KspaceSimulation(6.0, kind, coils, 0.01)
    mask = simulation.make_mask((96, 80))
    result = simulation.slice(image, 0, mask, 300.0)
    scale = robust_scale(result.kspace, mask.mask, result.maps)
    assert 0.75 < scale * float(image.flatten().quantile(0.999)) < 1.35


def test_the_scale_survives_an_unsampled_centre_and_an_empty_slice() -> None:
    image = 300 * brain_phantom((96, 80))
    mask = torch.zeros(96, 80, dtype=torch.bool)
    mask[:, ::3] = True
    kspace = CartesianMRI(mask)(image)
    assert 0.5 < robust_scale(kspace, mask) * 300 < 2
    assert robust_scale(torch.zeros_like(kspace), mask) == 1.0


def test_the_phantom_has_no_symmetry() -> None:
    image = brain_phantom((64, 64)).abs()
    assert float(image.max()) == pytest.approx(1.0)
    others = [torch.rot90(image, k) for k in range(4)] + [torch.rot90(image.flip(0), k) for k in range(4)]
    for other in others[1:]:
        assert torch.linalg.vector_norm(other - image) > 0.1 * torch.linalg.vector_norm(image)
    # Every slice differs from every other, so that a wrong order shows.
    volume = phantom_volume((32, 32), 5)
    for i in range(5):
        for j in range(i):
            assert torch.linalg.vector_norm(volume[i] - volume[j]) > 0.02 * torch.linalg.vector_norm(
                volume[i]
            )
    assert brain_phantom((9, 8), dtype=torch.complex128).dtype == torch.complex128
    with pytest.raises(ConfigError):
        brain_phantom((4, 4))
