"""Settings are validated, and the registry finds and refuses by name."""

from dataclasses import dataclass
from typing import Any

import pytest

from treg_med.errors import ConfigError
from treg_med.settings import check_settings, setting
from treg_med.solvers import (
    available_presets,
    available_solvers,
    get_solver,
    register_solver,
    registry,
    solver_class,
)


@dataclass(frozen=True)
class _Example:
    steps: int = setting(3, minimum=1, maximum=9)
    weight: float | None = setting(None, above=0.0)
    rule: str = setting("a", choices=("a", "b"))
    flag: bool = setting(True)


@pytest.mark.parametrize(
    "values",
    [{}, {"steps": 9}, {"weight": 1}, {"weight": 0.5}, {"weight": None}, {"rule": "b"}, {"flag": False}],
)
def test_good_values_pass(values: dict[str, Any]) -> None:
    check_settings(_Example(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps: expected a value of at least 1, got 0"),
        ({"steps": 10}, "at most 9"),
        ({"steps": 2.0}, "expected int, got 2.0"),
        ({"steps": True}, "expected int, got True"),
        ({"steps": "3"}, "expected int, got '3'"),
        ({"weight": 0.0}, "above 0.0"),
        ({"weight": float("nan")}, "finite"),
        ({"weight": "1"}, "float or None"),
        ({"rule": "c"}, "one of 'a', 'b'"),
        ({"flag": 1}, "expected bool"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(_Example(**values))


def test_unknown_solver_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        get_solver("wavelets")
    assert "did you mean 'wavelet'" in str(caught.value)
    for name in available_solvers():
        assert name in str(caught.value)


def test_every_method_has_its_name() -> None:
    classical = {"zero-filled", "cg-sense", "tv", "wavelet", "fbp", "sirt", "cgls", "pwls-tv"}
    latent = {"treg", "ldps", "psld", "p2l", "dds", "diffpir", "mpgd", "resample", "projdiff"}
    assert set(available_solvers()) == classical | latent
    for name in available_solvers():
        assert get_solver(name).name == name


def test_a_preset_may_be_another_loop() -> None:
    assert available_presets("treg") == ("default", "ct", "generative", "paper", "paper-gradient")
    assert get_solver("treg", "paper").name == "treg"
    assert type(get_solver("treg", "paper")) is solver_class("treg", "paper") is not solver_class("treg")
    with pytest.raises(ConfigError, match="among default, ct, generative, paper, paper-gradient; got 'papers'"):
        get_solver("treg", "papers")


def test_preset_is_overridden_by_settings() -> None:
    assert get_solver("tv", "complex").phase == "none"  # type: ignore[attr-defined]
    assert get_solver("tv", "complex", phase="smooth").phase == "smooth"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="phase"):
        get_solver("tv", phase="rough")


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ADDRESSES", dict(registry._ADDRESSES))
    register_solver("adjoint", "treg_med.solvers.zero_filled:ZeroFilled")
    assert get_solver("adjoint").name == "zero-filled"
    with pytest.raises(ConfigError, match="taken"):
        register_solver("tv", "treg_med.solvers.zero_filled:ZeroFilled")
    with pytest.raises(ConfigError, match="package.module:Class"):
        register_solver("other", "treg_med.solvers.zero_filled")
