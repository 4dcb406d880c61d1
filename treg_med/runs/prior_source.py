"""Where a run takes its prior from, loaded once in each process."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treg_med.priors.latent import LatentPrior

__all__ = ["PriorSource"]


@dataclass
class PriorSource:
    """A prior by its folder, or one that is loaded already.

    Parameters
    ----------
    folder
        Folder of the prior; None is the embedded one.
    adapters
        Folders of adapters on top.
    loaded
        A prior in the memory of this process; it stays here when the source is sent to another one.
    """

    folder: Path | None = None
    adapters: Sequence[Path] = ()
    loaded: LatentPrior | None = None
    _warnings: list[str] = field(default_factory=list)

    def load(self, device: str) -> LatentPrior:
        """Return the prior on a device.

        Raises
        ------
        TregMedError
            If it cannot be loaded.
        """
        if self.loaded is None:
            # A run of classical methods alone need not wait for the libraries of networks.
            from treg_med.priors.latent import LatentPrior

            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                self.loaded = LatentPrior.from_pretrained(self.folder, adapter=self.adapters)
            self._warnings = [str(w.message) for w in caught if w.category is UserWarning]
        if str(self.loaded.device) != device:
            self.loaded.to(device)
        return self.loaded

    def warnings(self) -> tuple[str, ...]:
        """Return what was to be warned of when the prior was loaded."""
        return tuple(self._warnings)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded prior out."""
        return {"folder": self.folder, "adapters": tuple(self.adapters), "loaded": None, "_warnings": []}
