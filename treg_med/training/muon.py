"""Muon for the hidden weights of a network, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MuonAdamW", "orthogonalised"]

# Fifth-order polynomial whose iteration brings every singular value near one from far away (K. Jordan, Muon, 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, *, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Return a matrix with the singular vectors of `matrix` and singular values near one.

    With ``X_0 = M / ||M||`` each step is :math:`X \gets a X + (b X X^T + c (X X^T)^2) X`. The values end between 0.7
    and 1.2, which is all that a descent direction needs.

    Parameters
    ----------
    matrix : Tensor ``(m, n)``
    steps : int
        Iterations.
    dtype : torch.dtype
        Precision of the products; bfloat16 is enough where the hardware is fast at it.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = (wide / (wide.norm() + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x if wide is matrix else x.T).to(matrix.dtype)


class MuonAdamW(torch.optim.Optimizer):
    r"""Momentum orthogonalised by Newton-Schulz for hidden weight matrices, AdamW for the other parameters.

    A convolution kernel ``(out, in, k, k)`` counts as the matrix ``(out, in k k)``. Its step is
    :math:`\sqrt{\max(1, m/n)}` times the orthogonalised Nesterov momentum, so `muon_rate` is the spectral size of one
    step whatever the gradient's scale.

    Parameters
    ----------
    named : iterable of (str, Parameter)
        All parameters to train.
    rate, muon_rate : float
        Learning rates of the two rules; `schedule`, set before a step, multiplies both.
    betas : tuple of float
        Of AdamW; the momentum of the matrices is 0.95.
    weight_decay : float
        Decoupled decay, per unit of the rule's own rate.
    dtype : torch.dtype
        Of the orthogonalisation.

    References
    ----------
    K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024;
    J. Liu et al., Muon is scalable for LLM training, arXiv 2502.16982.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        rate: float = 6e-4,
        muon_rate: float = 0.008,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-2,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        named = list(named)
        super().__init__([parameter for _, parameter in named], {})
        self.schedule = 1.0
        self.rate, self.muon_rate, self.betas = rate, muon_rate, betas
        self.weight_decay, self.dtype = weight_decay, dtype
        self.hidden = {parameter for name, parameter in named if _is_hidden(name, parameter)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None:
                continue
            hidden = parameter in self.hidden
            rate = self.schedule * (self.muon_rate if hidden else self.rate)
            parameter.mul_(1 - rate * self.weight_decay)
            direction = (self._muon if hidden else self._adam)(parameter, parameter.grad)
            parameter.sub_(direction, alpha=rate)
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        momentum.lerp_(gradient, 0.05)
        matrix = gradient.lerp(momentum, 0.95).flatten(1)
        stretch = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        return stretch * orthogonalised(matrix, dtype=self.dtype).view_as(parameter)

    def _adam(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state.update(step=torch.zeros(()), first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
        first, second = state["first"], state["second"]
        state["step"] += 1
        first.lerp_(gradient, 1 - self.betas[0])
        second.lerp_(gradient.square(), 1 - self.betas[1])
        bias = [1 - beta ** float(state["step"]) for beta in self.betas]
        return (first / bias[0]) / ((second / bias[1]).sqrt() + 1e-8)


def _is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether a parameter maps features to features: first and last layers, biases and norms do not."""
    return parameter.ndim >= 2 and not name.startswith(("conv_in.", "conv_out.", "add_embedding."))
