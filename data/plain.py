"""Values as JSON can hold them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treg_med.errors import ConfigError

__all__ = ["plain"]

# Longer arrays, such as the region of a guidance, are recorded by their checksum.
_LONGEST_LIST = 256


def plain(value: Any) -> Any:
    """Return a value that JSON can hold: NaN and Inf become null, short arrays lists, long ones their fingerprint.

    Raises
    ------
    ConfigError
        If a value has no plain form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Tensor | np.ndarray):
        return plain(value.tolist()) if math.prod(value.shape) <= _LONGEST_LIST else _fingerprint(value)
    if isinstance(value, os.PathLike):
        # A path may name a person; its last part would too.
        return "(path)"
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    raise ConfigError(f"expected plain values for the sidecar, got {type(value).__name__}")


def _fingerprint(array: Tensor | npt.NDArray[Any]) -> dict[str, Any]:
    if isinstance(array, Tensor):
        kind = str(array.dtype).removeprefix("torch.")
        # As bytes first: numpy has no bfloat16.
        content = array.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    else:
        kind, content = str(array.dtype), np.ascontiguousarray(array).tobytes()
    return {"shape": list(array.shape), "type": kind, "sha256": hashlib.sha256(content).hexdigest()}
