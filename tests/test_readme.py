"""What the README promises is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from treg_med.cli.failures import EXIT_CODES
from treg_med.notice import RESEARCH_ONLY


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


def test_notice_and_exit_codes(readme: str) -> None:
    assert RESEARCH_ONLY in readme
    assert all(f"| {code} | {meaning} |" in readme for code, meaning in EXIT_CODES.items())


def test_linked_files_exist(readme: str, repository: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", readme)
    assert links
    missing = [link for link in links if "://" not in link and not (repository / link).exists()]
    assert not missing


def test_python_examples_compile(readme: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")
