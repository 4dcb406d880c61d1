"""A failure on its way from a worker to a user."""

from __future__ import annotations

import pytest

from treg_med import errors
from treg_med.errors import ResourceError, TregMedError
from treg_med.runs.tasks import WORKER_DIED, Failure, describe_failure, failure_error


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "TregMedError"])
def test_an_error_of_this_package_stays_what_it_was(name: str) -> None:
    made = getattr(errors, name)("expected this, got that")
    error = failure_error(describe_failure(made))
    assert type(error) is type(made)
    assert str(error) == "expected this, got that"


@pytest.mark.parametrize("kind", ["KeyError", "annotations", "exit_code", "os"])
def test_any_other_is_a_defect_that_names_its_class(kind: str) -> None:
    error = failure_error(Failure(kind, "boom", 1, "Traceback (most recent call last): ..."))
    assert type(error) is RuntimeError
    assert str(error) == f"{kind}: boom"
    assert any("most recent call last" in note for note in error.__notes__)


def test_a_worker_that_died_is_a_resource_error() -> None:
    error = failure_error(Failure(WORKER_DIED, "the worker was lost, tried 2 times", ResourceError.exit_code))
    assert type(error) is ResourceError
    assert isinstance(error, TregMedError)
    assert error.exit_code == 5
