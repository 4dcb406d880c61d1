"""What is run on a scan: a solver with its settings and text, and the comparisons that belong beside it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from treg_med.errors import ConfigError
from treg_med.solvers.registry import available_presets, get_solver, solver_class

if TYPE_CHECKING:
    from treg_med.data.source import ScanHeader

__all__ = ["LABEL", "Method", "MethodChoice", "with_controls"]

# What "how many steps" is called by the solvers that have it.
_STEP_SETTINGS = ("steps", "max_iterations", "iterations")

#: Form of method labels.
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True)
class Method:
    """A solver with its settings and text; everything but the data.

    Parameters
    ----------
    label
        Name in tables and file names: at most 40 letters, digits, ``.``, ``-``, ``_``.
    solver, preset, settings
        As in `treg_med.get_solver`.
    text
        Prompt; None is the empty prompt.
    samples
        Posterior samples to average.

    Raises
    ------
    ConfigError
        If the label is no name.
    """

    label: str
    solver: str
    preset: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    samples: int = 1

    def __post_init__(self) -> None:
        if not LABEL.fullmatch(self.label):
            raise ConfigError(
                f"expected a label of at most 40 letters, digits, '.', '-' and '_', got {ascii(self.label)[:60]}"
            )

    @property
    def needs_prior(self) -> bool:
        """Whether the solver needs a diffusion prior."""
        return solver_class(self.solver).needs_prior

    @property
    def uses_prior(self) -> bool:
        """Whether the prior has a say: a control needs one and does not use it."""
        return self.needs_prior and bool(self.settings.get("use_prior", True))

    @property
    def has_control(self) -> bool:
        """Whether the solver can run the same pipeline with the prior removed."""
        return "use_prior" in {entry.name for entry in dataclasses.fields(solver_class(self.solver, self.preset))}

    def facts(self) -> dict[str, Any]:
        """Everything that decides what the method does, with the settings spelled out.

        Raises
        ------
        ConfigError
            For an unknown solver, preset or setting.
        """
        solver = get_solver(self.solver, self.preset, **self.settings)
        return {
            "solver": self.solver,
            "preset": self.preset,
            "settings": dataclasses.asdict(solver),
            "text": self.text,
            "samples": self.samples,
        }


def with_controls(method: Method, classical: str = "tv") -> tuple[Method, ...]:
    """Put the comparisons of a learned method before it: its classical start, itself without prior.

    A method that uses no prior stands alone. The classical start of CT is ``"pwls-tv"``.
    """
    if not method.needs_prior:
        return (method,)
    start = Method(classical, classical)
    if not method.has_control:
        return (start, method)
    settings = {**method.settings, "use_prior": False}
    return (start, replace(method, label=f"{method.label}-control", settings=settings, samples=1), method)


@dataclass(frozen=True)
class MethodChoice:
    """A method that the header of a scan completes.

    Parameters
    ----------
    solver
        None: ``treg``, or ``pwls-tv`` for a scan of what is no body, where no prior of bodies applies.
    preset
        None: ``ct`` for CT where the solver has it, else ``default``.
    settings, samples
        As in `Method`.
    steps
        Iterations, by whatever name the solver has for them.
    text
        None: the text that the header suggests.
    controls
        Put the comparisons before a learned method.
    """

    solver: str | None = None
    preset: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    text: str | None = None
    samples: int = 1
    controls: bool = True

    def check(self) -> None:
        """Find what is wrong without a scan.

        Raises
        ------
        ConfigError
            For settings that the solver does not have.
        """
        if self.samples < 1:
            raise ConfigError(f"expected --samples of at least 1, got {self.samples}")
        if self.solver is not None:
            preset = self.preset or "default"
            get_solver(self.solver, preset, **self._settings(self.solver, preset))

    def methods(self, header: ScanHeader) -> tuple[tuple[Method, ...], tuple[str, ...]]:
        """Return what to run on a scan, and what was decided for the user, one sentence each.

        Raises
        ------
        ConfigError
            As `check`.
        """
        notes = []
        text = self.text
        if text is None and header.text is not None:
            text = header.text
            notes.append(f"text from the scan's header: {text!r} (change it with --text)")
        solver = self.solver or ("treg" if header.medical else "pwls-tv")
        if self.solver is None and not header.medical:
            notes.append("no medical prior applies to this scan: solver pwls-tv (change it with --solver)")
        tomography = header.views is not None
        preset = self.preset or ("ct" if tomography and "ct" in available_presets(solver) else "default")
        settings = self._settings(solver, preset)
        get_solver(solver, preset, **settings)
        method = Method(solver.rpartition(":")[2], solver, preset, settings, text, self.samples)
        start = "pwls-tv" if tomography else "tv"
        return (with_controls(method, start) if self.controls else (method,)), tuple(notes)

    def _settings(self, solver: str, preset: str) -> dict[str, Any]:
        settings = dict(self.settings)
        if self.steps is not None:
            names = {entry.name for entry in dataclasses.fields(solver_class(solver, preset))}
            name = next((name for name in _STEP_SETTINGS if name in names), None)
            if name is None:
                raise ConfigError(f"expected a solver with iterations for --steps, got {solver!r}, which has none")
            settings[name] = self.steps
        return settings
