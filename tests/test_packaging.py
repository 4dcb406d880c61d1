"""The package that is built is the tree in the repository, and importing it is cheap."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import treg_med

LIMIT_MIB = 75


def _tree(repository: Path) -> set[str]:
    """Files of the package as they should lie in site-packages."""
    places = {"treg_med": "treg_med", "treg_med/operators": "operators", "treg_med/data": "data"}
    found = set()
    for installed, source in places.items():
        for path in (repository / source).rglob("*"):
            inside = path.relative_to(repository / source)
            if path.is_file() and not path.is_symlink() and "__pycache__" not in inside.parts:
                found.add(f"{installed}/{inside.as_posix()}")
    # rglob does not follow the links, so treg_med/operators and treg_med/data appear once.
    return found


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("source")
    for name in ("treg_med", "operators", "data"):
        shutil.copytree(
            repository / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_content_is_the_tree(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    assert names == _tree(repository)


@pytest.mark.slow
def test_wheel_is_small_and_has_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert any(n.endswith(".dist-info/licenses/LICENSE") for n in archive.namelist())
    assert wheel.stat().st_size <= LIMIT_MIB * 2**20


def test_package_list_is_complete(repository: Path) -> None:
    setuptools = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    expected = {
        Path(n).parent.as_posix().replace("/", ".") for n in _tree(repository) if n.endswith("/__init__.py")
    }
    assert set(setuptools["packages"]) == expected


@pytest.mark.parametrize("name", ["operators", "data"])
def test_links_lead_to_the_folders_at_the_top(repository: Path, name: str) -> None:
    link = repository / "treg_med" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


def test_nothing_of_the_package_is_ignored_by_git(repository: Path) -> None:
    lines = [line.strip() for line in (repository / ".gitignore").read_text().splitlines()]
    assert not {"data", "data/", "/data", "/data/", "operators/"} & set(lines)


def test_constraints_pin_every_dependency_exactly(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    lines = [
        line for line in (repository / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.!]+", line) for line in lines)
    pinned = {line.partition("==")[0] for line in lines}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.split(r"[\[<>=]", entry)[0] for entry in wanted} - {"treg-med"}
    assert names <= pinned
    assert "torch==2.13.0" in lines


def test_version_is_that_of_the_distribution() -> None:
    try:
        installed = importlib.metadata.version("treg-med")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs an installed treg-med")
    assert treg_med.__version__ == installed


@pytest.mark.parametrize("name", treg_med.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(treg_med, name) is not None
    assert name in dir(treg_med)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        treg_med.no_such_name  # noqa: B018


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.mark.parametrize("statement", ["import treg_med", "import treg_med.cli", "import treg_med.solvers"])
def test_import_does_not_import_torch(statement: str) -> None:
    heavy = "('torch', 'numpy', 'diffusers', 'transformers', 'matplotlib', 'monai')"
    assert (
        _python(f"{statement}\nimport sys\nprint([n for n in {heavy} if n in sys.modules])").strip() == "[]"
    )


def test_help_is_fast_and_does_not_import_torch() -> None:
    code = (
        "import sys; from treg_med.cli import main; sys.argv = ['treg-med', '--help']\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    seconds = []
    for _ in range(3):
        start = os.times()
        out = _python(code)
        end = os.times()
        # Processor time of the child: the wall clock also counts whatever else the machine is doing.
        seconds.append(end.children_user + end.children_system - start.children_user - start.children_system)
        assert "research use only" in out.lower()
        assert out.strip().endswith("False")
    assert min(seconds) < 1.0
