"""The noise schedule that a prior was trained with, whatever sampler its folder was saved with."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.priors.layout import read_json

__all__ = ["load_schedule"]

# All of these noise a latent as z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) n during training; they differ in sampling only.
_SAMPLERS = (
    "DDIMScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
_FIELDS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def load_schedule(folder: Path) -> Any:
    """Read ``scheduler_config.json`` of any variance-preserving sampler as a ``DDIMScheduler``.

    What the file does not say is the default of the class it names, not that of DDIM.

    Raises
    ------
    ConfigError
        For flow matching, continuous time and schedules that DDIM does not have.
    FormatError
        If the file or its numbers cannot be read.
    ResourceError
        If there is no such file.
    """
    import diffusers

    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise ResourceError(f"expected scheduler_config.json in {folder.name}/, got none; copy the prior again")
    config = read_json(path)
    name = config.get("_class_name", "DDIMScheduler")
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if name not in _SAMPLERS or flow or config.get("timestep_type", "discrete") != "discrete":
        raise ConfigError(
            f"expected a discrete variance-preserving scheduler ({', '.join(_SAMPLERS[:5])}, ...) in "
            f"{folder.name}/scheduler_config.json, got {name}{' with flow matching' if flow else ''}; flow-matching "
            "and continuous-time priors are not supported"
        )
    defaults = {
        key: parameter.default for key, parameter in inspect.signature(getattr(diffusers, name)).parameters.items()
    }
    fields = {key: config.get(key, defaults.get(key)) for key in _FIELDS if key in config or key in defaults}
    if fields.get("trained_betas") is None and fields["beta_schedule"] not in _BETA_SCHEDULES:
        raise ConfigError(
            f"expected beta_schedule {', '.join(_BETA_SCHEDULES)} in {folder.name}/scheduler_config.json, got "
            f"{fields['beta_schedule']!r}; write its numbers there as trained_betas"
        )
    try:
        return diffusers.DDIMScheduler(**fields)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise FormatError(
            f"expected numbers of a noise schedule in {folder.name}/scheduler_config.json, got {fields} ({error}); "
            "copy the prior again"
        ) from error
