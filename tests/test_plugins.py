"""Plug-ins of other packages: found in every process, named when they are broken, and taking nothing else with them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runs.driving import needs_ray
from treg_med import plugins
from treg_med.data import open_scan
from treg_med.errors import ConfigError
from treg_med.operators import available_operators, operator_class
from treg_med.solvers import available_solvers, get_solver

OPERATOR = """
from torch import Tensor
from treg_med.operators import LinearOperator

class Tripling(LinearOperator):
    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__(shape, shape, is_complex=False)
    def _forward(self, x: Tensor) -> Tensor:
        return 3 * x
    def _adjoint(self, y: Tensor) -> Tensor:
        return 3 * y
"""
FAILING_READER = """
from treg_med.data import ScanReader

class Failing(ScanReader):
    @staticmethod
    def recognises(content: object) -> bool:
        raise RuntimeError("out of luck")
"""
READER = """
from pathlib import Path
import numpy as np
import torch
from tripling_operator import Tripling
from treg_med.data import FileContent, Geometry, Measurement, ScanHeader, ScanReader

class TripleReader(ScanReader):
    format = "triple"
    def __init__(self, path: Path) -> None:
        super().__init__(path, {})
        raw = Path(path).read_bytes()[6:]
        self.values = torch.from_numpy(np.frombuffer(raw, dtype="<f4").reshape(-1, 16, 16).copy())
        self.geometry = Geometry(shape=(16, 16, len(self.values)))
        self.header = ScanHeader(format="triple", n_slices=len(self.values), image_shape=(16, 16), coils=1)
    @staticmethod
    def recognises(content: FileContent) -> bool:
        return content.head.startswith(b"TRIPLE")
    def _measure(self, index: int) -> Measurement:
        place = self.geometry.at_slice(index)
        return Measurement(
            self.values[index], Tripling((16, 16)), noise_std=0.1, geometry=place, provenance=self._provenance()
        )
"""
SOLVER = """
from dataclasses import dataclass
from typing import ClassVar
from torch import Tensor
from treg_med.solvers import Problem, Solver

@dataclass(frozen=True, kw_only=True)
class Third(Solver):
    name: ClassVar[str] = "third"
    def solve(self, problem: Problem) -> Tensor:
        return problem.linear.start(problem.y)
"""


def install(folder: Path, name: str, entries: dict[str, str], **modules: str) -> None:
    """Put a package of single modules where Python finds it, with its entry points ("kind name" -> address)."""
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[treg_med.{key.split()[0]}]\n{key.split()[1]} = {address}\n" for key, address in entries.items()]
    (facts / "entry_points.txt").write_text("".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, seen by this process and its children."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    _forget()
    yield folder
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    importlib.invalidate_caches()
    plugins.installed_plugins.cache_clear()
    importlib.import_module("treg_med.data.scan_formats")._plugged_readers.cache_clear()


def _install_all(site: Path) -> None:
    entries = {
        "operators tripling": "tripling_operator:Tripling",
        "readers triple": "triple_reader:TripleReader",
        "solvers third": "third_solver:Third",
    }
    modules = {"tripling_operator": OPERATOR, "triple_reader": READER, "third_solver": SOLVER}
    install(site, "tripling", entries, **modules)
    _forget()


def _scan(folder: Path) -> Path:
    path = folder / "scan.triple"
    images = np.linspace(0.5, 1, 2 * 256, dtype="<f4")
    path.write_bytes(b"TRIPLE" + (3 * images).tobytes())
    return path


def _run(*command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "treg_med", *command, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "workers",
    [("--workers", "1"), ("--workers", "2"), pytest.param(("--executor", "ray", "--workers", "2"), marks=needs_ray)],
    ids=["one", "two", "ray"],
)
def test_a_plugin_works_in_every_worker(site: Path, tmp_path: Path, workers: tuple[str, ...]) -> None:
    _install_all(site)
    out = tmp_path / "out"
    copies = [_scan(tmp_path), tmp_path / "again.triple"]
    copies[1].write_bytes(copies[0].read_bytes())
    _run("reconstruct", *map(str, copies), "--out", str(out), "--solver", "third", *workers)
    sidecars = sorted(out.rglob("*_image.json"))
    assert len(sidecars) == 2
    for sidecar in sidecars:
        facts = json.loads(sidecar.read_text())
        assert facts["solver"] == ["third"] and facts["input"]["format"] == "triple"
        assert facts["residual_noise_units"]["max"] == pytest.approx(0, abs=1e-4)


def test_info_lists_them(site: Path) -> None:
    _install_all(site)
    report = _run("info")
    assert [(p["kind"], p["name"], p["package"]) for p in report["plugins"]] == [
        ("readers", "triple", "tripling 1.0"),
        ("solvers", "third", "tripling 1.0"),
        ("operators", "tripling", "tripling 1.0"),
    ]
    assert "third" in report["solvers"] and not any("plug-in" in warning for warning in report["warnings"])


def test_a_broken_plugin_is_named_and_the_rest_works(site: Path, tmp_path: Path) -> None:
    _install_all(site)
    broken = {
        "readers bad": "broken:Reader",
        "solvers bad": "broken:Solver",
        "operators odd": "tripling_operator:Tensor",
    }
    install(site, "faulty", broken, broken="raise OSError('no such library')")
    _forget()
    with pytest.warns(UserWarning, match=r"'bad' of faulty 1\.0 cannot be imported.*OSError: no such library"):
        scan = open_scan(_scan(tmp_path))
    assert scan.header.format == "triple"
    assert get_solver("third").name == "third" and get_solver("tv").name == "tv"
    with pytest.raises(ConfigError, match=r"'bad' of faulty 1\.0 cannot be imported"):
        get_solver("bad")
    with pytest.raises(ConfigError, match="expected a subclass of Operator"):
        operator_class("odd")
    assert {"tripling", "blur"} <= set(available_operators())
    report = _run("info")
    assert sum("faulty 1.0" in warning for warning in report["warnings"]) == 3


def test_two_plugins_of_one_name_are_refused_by_name(site: Path) -> None:
    _install_all(site)
    install(
        site, "rival", {"solvers third": "rival_solver:Third", "solvers tv": "rival_solver:Third"}, rival_solver=SOLVER
    )
    _forget()
    with pytest.raises(ConfigError, match=r"two plug-ins are called 'third'.*rival 1\.0 and .*tripling 1\.0"):
        get_solver("third")
    assert get_solver("rival_solver:Third").name == "third"
    assert get_solver("tv").__class__.__module__ == "treg_med.solvers.total_variation"
    assert available_solvers().count("third") == 1
    warned = " ".join(_run("info")["warnings"])
    assert "'tv' of rival 1.0 has a name that is taken" in warned and "two plug-ins are called 'third'" in warned


def test_a_reader_that_fails_is_passed_over(site: Path, tmp_path: Path) -> None:
    _install_all(site)
    install(site, "unlucky", {"readers aaa": "unlucky:Failing"}, unlucky=FAILING_READER)
    _forget()
    with pytest.warns(UserWarning, match=r"'aaa' of unlucky 1\.0 failed on this file \(RuntimeError: out of luck\)"):
        assert open_scan(_scan(tmp_path)).header.format == "triple"
