"""The autoencoder's grid moves under the image, and TReg looks at the last image from all of its places."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from treg_med.data.records import Measurement
from treg_med.errors import ConfigError
from treg_med.operators import Inpainting, random_pixel_mask
from treg_med.priors import LatentPrior
from treg_med.solvers import get_solver
from treg_med.solvers.grid_shifts import grid_shifts, moved


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (1, [(0, 0)]),
        (2, [(0, 0), (1, 1), (0, 1), (1, 0)]),
        (4, [(0, 0), (2, 2), (1, 3), (3, 1)]),
        (8, [(0, 0), (4, 4), (2, 6), (6, 2)]),
    ],
)
def test_shifts_spread_over_a_latent_pixel(side: int, expected: list[tuple[int, int]]) -> None:
    assert list(grid_shifts(SimpleNamespace(vae_factor=side))) == expected  # type: ignore[arg-type]


def test_a_prior_that_does_not_tell_its_factor_stands_still() -> None:
    assert list(grid_shifts(object())) == [(0, 0)]  # type: ignore[arg-type]


def test_images_move_there_and_back() -> None:
    image = torch.arange(20.0).reshape(1, 1, 4, 5)
    there = moved(image, (1, 3))
    assert float(there[0, 0, 1, 3]) == 0.0 and torch.equal(moved(there, (1, 3), -1), image)
    assert moved(image, (0, 0)) is image


def test_the_last_step_takes_the_mean_over_the_grids(tiny_prior_folder: Path) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    assert prior.vae_factor > 1
    truth = torch.zeros(32, 32)
    truth[8:24, 10:20] = 1.0
    operator = Inpainting(random_pixel_mask((32, 32), 0.6, generator=torch.Generator().manual_seed(0)))
    measurement = Measurement(y=operator(truth), operator=operator, noise_std=0.01)

    def run(**settings: bool) -> tuple[int, torch.Tensor]:
        rec = get_solver("treg", steps=5, **settings)(
            measurement, prior=prior, text="", generator=torch.Generator().manual_seed(1)
        )
        return rec.nfe, rec.image

    moving, image = run()
    still, other = run(cycle_spinning=False)
    assert (still, moving) == (10, 2 * 4 + 2 * 4) and not torch.equal(image, other)
    assert torch.equal(image, run()[1])
    assert run(antithetic=False)[0] == 4 + 4


def test_noise_that_is_carried_over_keeps_its_grid() -> None:
    with pytest.raises(ConfigError, match=r"noise_memory 0 with cycle_spinning.*set cycle_spinning to false"):
        get_solver("treg", noise_memory=0.5)
    assert get_solver("treg", noise_memory=0.5, cycle_spinning=False).noise_memory == 0.5  # type: ignore[attr-defined]
