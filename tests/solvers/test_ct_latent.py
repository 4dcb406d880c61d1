"""Latent methods on sinograms: Hounsfield window, soft clip, and a classical start that knows the weights."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conformance.solvers import MU_WATER, SHAPE, ct_measurement, gaussian_prior
from treg_med.data.records import Measurement
from treg_med.solvers import get_solver
from treg_med.solvers.base import Solver
from treg_med.solvers.prior_space import PriorSpace, codec_for
from treg_med.solvers.problem import Problem

_METHODS = {
    "treg": {},
    "ldps": {},
    "psld": {},
    "mpgd": {},
    "dds": {},
    "diffpir": {},
    "projdiff": {},
    "p2l": {},
    "resample": {"latent_iterations": 5, "image_iterations": 5},
}


class _Space(Solver):
    """Hands its problem out as a prior sees it."""

    name = "space"

    def solve(self, problem: Problem) -> Tensor:
        """Return zeros."""
        made.append(PriorSpace(problem, gaussian_prior(), codec_for(problem, gaussian_prior())))
        return torch.zeros(*problem.batch_shape, *problem.operator.domain_shape)


made: list[PriorSpace] = []


def _space(data: Measurement) -> PriorSpace:
    _Space()(data)
    return made.pop()


def _truth(space: PriorSpace, hounsfield: Tensor) -> Tensor:
    return space.codec.encode(MU_WATER * (1 + hounsfield / 1000) * space.problem.scale)


@pytest.mark.parametrize("name", _METHODS)
def test_every_method_fits_a_sinogram(name: str) -> None:
    solver = get_solver(name, steps=3, **_METHODS[name])
    rec = solver(ct_measurement(), prior=gaussian_prior(), generator=torch.Generator().manual_seed(0))
    assert rec.image.dtype == torch.float32
    assert 0.5 < rec.residual < 1.1
    assert rec.settings["codec"] == {
        "window_hu": [-1000, 1000],
        "mu_water": MU_WATER,
        "knee": 2.0,
        "softness": 2.0,
    }
    again = replace(ct_measurement(), scale=2.5 / MU_WATER)
    other = solver(again, prior=gaussian_prior(), generator=torch.Generator().manual_seed(0))
    # The prior sees the same image whatever the working units are.
    assert float((other.image - rec.image).norm() / rec.image.norm()) < 0.02


def test_encoded_values_are_hounsfield_units_over_a_thousand() -> None:
    space = _space(ct_measurement())
    hounsfield = torch.zeros(SHAPE)
    hounsfield[:8], hounsfield[8:16], hounsfield[16:20], hounsfield[20:22] = -1000, -950, 3000, 20000
    image = _truth(space, hounsfield)
    torch.testing.assert_close(image[0, 0], hounsfield / 1000, rtol=1e-5, atol=1e-5)
    # This prior encodes by the identity: what comes back went through the soft clip and out again.
    torch.testing.assert_close(space.decode(space.encode(image)), image, rtol=1e-4, atol=1e-5)
    assert float(space.encode(image).max()) < 7


def test_forward_model_stays_affine_under_the_shoulder() -> None:
    space = _space(ct_measurement())
    bone = _truth(space, torch.full(SHAPE, 3000.0))
    water = _truth(space, torch.zeros(SHAPE))
    between = space.misfit((bone + water) / 2)
    torch.testing.assert_close(between, (space.misfit(bone) + space.misfit(water)) / 2, rtol=1e-4, atol=1e-4)
    step = space.data_step(bone, 1e-3, max_iter=100, rtol=1e-6)
    slope = space.backproject(space.misfit(step)) + 1e-3 * (step - bone)
    assert float(slope.norm()) < 1e-3 * float(space.backproject(space.misfit(bone)).norm())


def test_without_water_the_upper_level_is_the_end_of_the_range() -> None:
    data = replace(ct_measurement(), mu_water=None)
    solver = get_solver("treg", steps=2)
    rec = solver(data, prior=gaussian_prior(), generator=torch.Generator().manual_seed(0))
    assert "codec" not in rec.settings
    assert _space(data).codec.soft_clip is None


def test_control_is_the_weighted_classical_image() -> None:
    data = ct_measurement()
    control = get_solver("treg", use_prior=False, steps=1)(data, prior=gaussian_prior())
    classical = get_solver("pwls-tv")(data)
    assert float((control.image - classical.image).norm() / classical.image.norm()) < 0.03


def test_batch_items_have_their_own_water() -> None:
    data = ct_measurement()
    both = replace(data, y=torch.stack([data.y, data.y * 0.5]), scale=1.0, target=None)
    space = _space(both)
    assert space.codec.scale.shape == (2,) if isinstance(space.codec.scale, Tensor) else False
    image = space.codec.encode(MU_WATER * torch.ones(2, *SHAPE) * space.problem.scale[:, None, None])
    torch.testing.assert_close(image, torch.zeros(2, 1, *SHAPE), rtol=0, atol=1e-5)
