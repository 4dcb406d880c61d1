"""What the README and the pages under docs/ promise is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from treg_med import Measurement, reconstruct
from treg_med.cli.failures import EXIT_CODES
from treg_med.notice import RESEARCH_ONLY
from treg_med.operators import CartesianMRI

PAGES = [
    "architecture",
    "command_line",
    "computed_tomography",
    "methods",
    "prior",
    "training",
    "evaluation",
    "extending",
    "solvers",
]


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def test_two_set_up_commands_of_one_line_each(readme: str) -> None:
    first_screen = readme.split("## ")[0]
    commands = re.findall(r"```bash\n(.*?)\n```", first_screen, flags=re.DOTALL)
    assert len(commands) == 2
    assert all("\n" not in command and "pip install -c constraints.txt" in command for command in commands)
    assert commands[0].endswith("treg-med demo")
    assert commands[1].endswith("pytest -n 2")


def test_continuous_integration_runs_the_test_command(readme: str, repository: Path) -> None:
    assert "<!-- test-command -->\n```bash\npython3 " in readme
    assert "test-command" in (repository / ".ci" / "run").read_text()


def test_the_readme_is_short(readme: str) -> None:
    assert len(readme.split()) <= 900


def test_notice_and_exit_codes(readme: str, repository: Path) -> None:
    assert RESEARCH_ONLY in readme
    page = (repository / "docs" / "command_line.md").read_text(encoding="utf-8")
    assert all(f"| {code} | {meaning} |" in page for code, meaning in EXIT_CODES.items())


@pytest.fixture(params=["README.md", *(f"docs/{name}.md" for name in PAGES)])
def page(request: pytest.FixtureRequest, repository: Path) -> Path:
    return repository / str(request.param)


def test_linked_files_and_headings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"(?m)^#+ (.+)$", text)}
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        assert not file or (page.parent / file).exists(), link
        assert file or heading in headings, link


def test_python_examples_compile(page: Path) -> None:
    for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        compile(example, page.name, "exec")


def test_the_page_on_extending_runs(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator, a composition, a solver and a reader, as a newcomer would copy them."""
    text = (repository / "docs" / "extending.md").read_text(encoding="utf-8")
    module = ModuleType("extending")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where pickle and dataclasses look
    names: dict[str, Any] = module.__dict__
    for example in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(example, names)  # noqa: S102 - our own page
    assert "FAIL" not in capsys.readouterr().out
    assert isinstance(names["cartesian"], CartesianMRI)
    operator = names["BoxBlur"]((32, 32))
    y = operator(torch.ones(32, 32)) + 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    rec = reconstruct(Measurement(y, operator), solver=names["Backprojection"](), device="cpu")
    assert rec.solver == "backprojection" and rec.settings["noise_std"] == pytest.approx(0.1, rel=0.2)
