"""``treg-med info``: versions, devices, priors, and what is wrong with the installation."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from rich.table import Table

from treg_med import __version__
from treg_med.cli.console import print_json, print_warnings, stdout
from treg_med.environment import installed_version, torchvision_warning
from treg_med.notice import RESEARCH_ONLY
from treg_med.plugins import GROUPS, installed_plugins, plugin_problems

__all__ = ["collect", "run"]

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "monai",
    "nibabel",
    "scikit-image",
    "h5py",
    "safetensors",
    "numpy",
)


def run(as_json: bool) -> None:
    """Print the report."""
    report = collect()
    if as_json:
        print_json(report)
        return
    table = Table(title=f"treg-med {report['treg_med']}, Python {report['python']}", show_header=False)
    for name, found in report["packages"].items():
        table.add_row(name, found or "not installed")
    table.add_row("devices", ", ".join(report["devices"]))
    table.add_row("threads", str(report["threads"]))
    table.add_row("solvers", ", ".join(report["solvers"]))
    for plugin in report["plugins"]:
        table.add_row(f"plug-in, {plugin['kind']}", f"{plugin['name']} ({plugin['package']}, {plugin['address']})")
    for prior in report["priors"]:
        table.add_row(f"prior {prior['name']}", prior["summary"])
    stdout().print(table)
    stdout().print(RESEARCH_ONLY)
    print_warnings(report["warnings"])


def collect() -> dict[str, Any]:
    """Return the report as plain data."""
    import torch

    from treg_med.solvers import available_solvers

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    warning = torchvision_warning()
    return {
        "treg_med": __version__,
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in _PACKAGES},
        "devices": devices,
        "threads": torch.get_num_threads(),
        "solvers": list(available_solvers()),
        "plugins": [asdict(plugin) for kind in GROUPS for plugin in installed_plugins(kind)],
        "priors": _priors(),
        "warnings": [*([warning] if warning else []), *_plugin_problems()],
        "notice": RESEARCH_ONLY,
    }


def _plugin_problems() -> list[str]:
    from treg_med.data.source import ScanReader
    from treg_med.operators import Operator
    from treg_med.operators.registry import OWN_OPERATORS
    from treg_med.solvers.base import Solver
    from treg_med.solvers.registry import OWN_SOLVERS

    return [
        *plugin_problems("readers", ScanReader).values(),
        *plugin_problems("solvers", Solver, own=OWN_SOLVERS).values(),
        *plugin_problems("operators", Operator, own=OWN_OPERATORS).values(),
    ]


def _priors() -> list[dict[str, Any]]:
    card = files("treg_med.priors").joinpath("default", "prior.json")
    if not card.is_file():
        return []
    content = json.loads(card.read_text(encoding="utf-8"))
    return [{"name": "default", "summary": str(content.get("summary", "")), "card": content}]
