"""Resumable training state without pickle: tensors in safetensors, numbers in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from treg_med.data.atomic import writing

__all__ = ["Ema", "load_state", "save_state"]


class Ema:
    """Exponential moving average of a module's parameters, with a warm-up of the decay."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.steps = 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        names = list(self.shadow)
        live = dict(module.named_parameters())
        torch._foreach_lerp_([self.shadow[n] for n in names], [live[n].detach() for n in names], 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        """Write the average into the module."""
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self.shadow[name])


def _optimizer_tensors(optimizer: torch.optim.Optimizer, names: Iterable[str]) -> dict[str, Tensor]:
    out = {}
    for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"optimizer/{key}/{name}"] = value.detach().clone().contiguous()
    return out


def save_state(
    path: Path, module: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, numbers: dict[str, Any]
) -> None:
    """Write the whole training state to ``path`` (safetensors), with its numbers; the earlier one stays until then.

    Raises
    ------
    ResourceError
        If the disk is full or failed.
    """
    tensors = {f"module/{n}": t.detach().clone().contiguous() for n, t in module.state_dict().items()}
    tensors |= {f"ema/{n}": t.contiguous() for n, t in ema.shadow.items()}
    tensors |= _optimizer_tensors(optimizer, [n for n, p in module.named_parameters() if p.requires_grad])
    partial = path.with_suffix(".part")
    with writing(f"writing {path.name!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, partial, metadata={"numbers": json.dumps({**numbers, "ema_steps": ema.steps})})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def load_state(path: Path, module: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what `save_state` wrote; returns its numbers."""
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        numbers: dict[str, Any] = json.loads(file.metadata()["numbers"])
    module.load_state_dict({n.removeprefix("module/"): t for n, t in tensors.items() if n.startswith("module/")})
    ema.shadow = {n.removeprefix("ema/"): t for n, t in tensors.items() if n.startswith("ema/")}
    ema.steps = numbers["ema_steps"]
    for name, parameter in ((n, p) for n, p in module.named_parameters() if p.requires_grad):
        state = {
            n.split("/")[1]: t for n, t in tensors.items() if n.startswith("optimizer/") and n.split("/", 2)[2] == name
        }
        if state:
            optimizer.state[parameter] = state
    return numbers
