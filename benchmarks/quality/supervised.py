"""The supervised networks of the benchmark as a solver, ``benchmarks.quality.supervised:SupervisedUNet``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.quality.ct_input import ct_channels, to_attenuation
from benchmarks.quality.mr_samples import MRInput
from benchmarks.quality.unet import UNet, load_unet
from treg_med.errors import ConfigError
from treg_med.operators import LinearOperator, Scaled, conjugate_gradient
from treg_med.operators.ct_operator import CTOperator
from treg_med.operators.weighted import Weighted
from treg_med.settings import setting
from treg_med.solvers.base import Solver
from treg_med.solvers.data_step import to_noise_level
from treg_med.solvers.problem import Problem, per_image
from treg_med.solvers.total_variation import TotalVariation

__all__ = ["SupervisedUNet"]

_SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class SupervisedUNet(Solver):
    r"""A U-Net that was trained on pairs of a simple and the true image, and no prior.

    MR: the zero-filled image A^H y, of several coils combined by their maps, or the one of total variation, from which
    the methods with a prior start; along its smooth phase and across it. CT: filtered backprojection and SIRT. With
    ``data_consistency`` the network's image x0 is brought to the data until the residual is one noise unit, as the
    methods with a prior end:

    .. math:: \arg\min_x \tfrac12 \|A x - y\|^2 + \tfrac{w}{2} \|x - x_0\|^2

    Every image goes through the network alone, so that none depends on its neighbours.

    Zbontar et al.: fastMRI, arXiv 1811.08839. Jin, McCann, Froustey, Unser: Deep convolutional neural network for
    inverse problems in imaging, IEEE Trans. Image Process. 26 (2017) 4509.
    """

    name: ClassVar[str] = "unet"

    start: str = setting("zero-filled", choices=("zero-filled", "tv"), help="MR: the image that the network is given")
    weights: str | None = setting(None, help="safetensors file of the network; None: that of the benchmark")
    data_consistency: bool = setting(False, help="bring the network's image to the data")
    iterations: int = setting(30, minimum=1, maximum=1000, help="conjugate-gradient iterations of a data step")

    def solve(self, problem: Problem) -> Tensor:
        """Return the image ``(*batch, H, W)`` in working units.

        Raises
        ------
        ConfigError
            If the network is for another kind of data.
        ResourceError, FormatError
            If the weights are not there, or of something else.
        """
        mr = "mri" if self.start == "zero-filled" else "mri-tv"
        kind = mr if problem.operator.is_complex else "ct"
        path = _SHIPPED / f"{kind}.safetensors" if self.weights is None else Path(self.weights)
        unet = _network(path, path.stat().st_mtime_ns if path.is_file() else 0, str(problem.y.device))
        if unet.config.kind != kind:
            raise ConfigError(
                f"expected a network for {kind}, got one for {unet.config.kind} in {path.name}; choose other weights"
            )
        image = self._ct(problem, unet) if kind == "ct" else self._mr(problem, unet)
        problem.nfe += 1
        problem.log(self.name, 1, 1, image=image, residual=problem.residual(image))
        return self._with_data(problem, image) if self.data_consistency else image

    def _mr(self, problem: Problem, unet: UNet) -> Tensor:
        simple = problem.linear.adjoint(problem.y) if self.start == "zero-filled" else TotalVariation().solve(problem)
        start = MRInput.of(simple)
        return start.image(_alone(unet, start.channels))

    def _ct(self, problem: Problem, unet: UNet) -> Tensor:
        if problem.mu_water is None:
            raise ConfigError(
                "expected a scan with a Hounsfield scale, got one without mu_water; this network knows bodies, use "
                "pwls-tv for other objects"
            )
        operator, sinogram = _line_integrals(problem)
        start = ct_channels(operator, sinogram, problem.mu_water)
        image = _alone(unet, start)[..., 0, :, :]
        return to_attenuation(image, problem.mu_water) * per_image(problem.scale)

    def _with_data(self, problem: Problem, image: Tensor) -> Tensor:
        gram, backprojected = problem.linear.gram, problem.linear.adjoint(problem.y)

        def towards_data(error_std: Tensor, start: Tensor) -> Tensor:
            weight = per_image((problem.noise_std / error_std).square())
            remaining = backprojected + weight * image - gram(start) - weight * start
            step = conjugate_gradient(
                lambda x: gram(x) + weight * x, remaining, max_iter=self.iterations, rtol=1e-4, event_ndim=2
            )
            return start + step.x

        return to_noise_level(problem, image, towards_data)


@lru_cache(maxsize=4)
def _network(path: Path, changed: int, device: str) -> UNet:
    """Return the network of a file, read again when the file has changed."""
    return load_unet(path).to(device)


def _alone(unet: UNet, channels: Tensor) -> Tensor:
    """Apply the network to images ``(*batch, 2, H, W)``, each by itself."""
    flat = channels.reshape(-1, *channels.shape[-3:]).to(torch.float32)
    improved = torch.cat([unet(image[None]) for image in flat])
    return improved.reshape(*channels.shape[:-3], *improved.shape[-3:]).to(channels.dtype)


def _line_integrals(problem: Problem) -> tuple[CTOperator, Tensor]:
    """Return the projector and the line integrals in physical units, without their statistical weights."""
    operator: LinearOperator = problem.linear
    sinogram = problem.y / per_image(problem.scale)
    if isinstance(operator, Scaled):
        sinogram = sinogram / operator.factor
        operator = operator.operator
    if isinstance(operator, Weighted):
        roots = operator.weights.to(sinogram.dtype).sqrt()
        operator, sinogram = operator.operator, torch.where(roots > 0, sinogram / roots, 0.0)
    if not isinstance(operator, CTOperator):
        raise ConfigError(
            f"expected a parallel or fan beam, got {type(problem.operator).__name__}; use a method without a network"
        )
    return operator, sinogram
