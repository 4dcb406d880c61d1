"""Methods, the comparisons beside them, and what a header completes."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from torch import Tensor

from treg_med.data.plain import plain
from treg_med.data.source import ScanHeader
from treg_med.errors import ConfigError
from treg_med.runs.method import Method, MethodChoice, with_controls
from treg_med.settings import setting
from treg_med.solvers import Problem, Solver, registry
from treg_med.words.scan_words import ScanWords


def header(*, views: int | None = None, medical: bool = True, **words: str) -> ScanHeader:
    return ScanHeader("test", 1, (8, 8), 1, words=ScanWords(**words), views=views, medical=medical)


MRI = header(modality="MRI", contrast="FLAIR", plane="axial", anatomy="brain")
CT = header(modality="CT", anatomy="chest", plane="axial", views=60)
DISC = header(views=60, medical=False)


def chosen(choice: MethodChoice, scan: ScanHeader) -> list[str]:
    return [method.label for method in choice.methods(scan)[0]]


# --- methods


@pytest.mark.parametrize("label", ["", "-treg", "a/b", "a b", "x" * 41, "a\n", "ä"])
def test_a_label_is_a_name(label: str) -> None:
    with pytest.raises(ConfigError, match="label"):
        Method(label, "tv")


def test_which_methods_use_a_prior() -> None:
    treg, control = Method("treg", "treg"), Method("c", "treg", settings={"use_prior": False})
    tv = Method("tv", "tv")
    assert [m.needs_prior for m in (treg, control, tv)] == [True, True, False]
    assert [m.uses_prior for m in (treg, control, tv)] == [True, False, False]
    assert [m.has_control for m in (treg, tv)] == [True, False]


def test_facts_are_everything_that_decides() -> None:
    facts = Method("treg", "treg", settings={"steps": 7}, text="brain", samples=2).facts()
    assert (facts["solver"], facts["preset"], facts["text"], facts["samples"]) == ("treg", "default", "brain", 2)
    assert facts["settings"]["steps"] == 7
    assert len(facts["settings"]) > 5
    json.dumps(plain(facts))
    # A setting that is spelled out and the same one as a default are one method, whatever it is called.
    default = Method("a", "tv").facts()
    assert Method("b", "tv", settings={"phase": default["settings"]["phase"]}).facts() == default
    assert Method("a", "tv", preset="complex").facts() != default


@pytest.mark.parametrize(
    "method",
    [Method("x", "trge"), Method("x", "tv", "best"), Method("x", "tv", settings={"colour": 1})],
    ids=["solver", "preset", "setting"],
)
def test_facts_of_what_there_is_not(method: Method) -> None:
    with pytest.raises(ConfigError):
        method.facts()


def test_comparisons_stand_before_a_learned_method() -> None:
    method = Method("mine", "treg", settings={"steps": 3}, text="brain", samples=4)
    start, control, last = with_controls(method)
    assert (start.label, start.solver, start.text) == ("tv", "tv", None)
    assert (control.label, control.samples, control.text) == ("mine-control", 1, "brain")
    assert control.settings == {"steps": 3, "use_prior": False}
    assert last is method
    assert with_controls(method, "pwls-tv")[0].solver == "pwls-tv"
    assert with_controls(Method("tv", "tv")) == (Method("tv", "tv"),)
    assert method.settings == {"steps": 3}


@dataclass(frozen=True, kw_only=True)
class Bare(Solver):
    """A learned solver that cannot run without its prior, and has iterations."""

    name = "bare"
    needs_prior = True
    iterations: int = setting(5, minimum=1)

    def solve(self, problem: Problem) -> Tensor:
        return problem.operator.adjoint(problem.y)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(registry, "_ADDRESSES", dict(registry._ADDRESSES))
    registry.register_solver("bare", f"{__name__}:Bare")
    return "bare"


def test_a_learned_method_without_control_has_its_start(bare: str) -> None:
    method = Method("bare", bare)
    assert not method.has_control
    assert with_controls(method) == (Method("tv", "tv"), method)


# --- choices


def test_the_header_completes_a_choice() -> None:
    methods, notes = MethodChoice().methods(MRI)
    assert [m.label for m in methods] == ["tv", "treg-control", "treg"]
    assert (methods[-1].preset, methods[-1].text) == ("default", "axial T2-FLAIR brain MRI")
    assert len(notes) == 1
    assert "axial T2-FLAIR brain MRI" in notes[0]
    assert "--text" in notes[0]


def test_a_text_of_the_user_comes_first() -> None:
    methods, notes = MethodChoice(text="").methods(MRI)
    assert (methods[-1].text, notes) == ("", ())
    assert MethodChoice(text="knee").methods(MRI)[0][-1].text == "knee"


def test_tomography_has_its_own_preset_and_start() -> None:
    (start, control, last), _ = MethodChoice().methods(CT)
    assert (start.label, start.solver) == ("pwls-tv", "pwls-tv")
    assert (control.preset, last.preset) == ("ct", "ct")
    assert MethodChoice(preset="default").methods(CT)[0][-1].preset == "default"
    assert MethodChoice("fbp").methods(CT)[0][-1].preset == "default"


def test_what_is_no_body_gets_no_prior() -> None:
    methods, notes = MethodChoice().methods(DISC)
    assert [m.label for m in methods] == ["pwls-tv"]
    assert methods[0].text is None
    assert len(notes) == 1
    assert "no medical prior applies" in notes[0]
    asked, said = MethodChoice("treg", text="a disc").methods(DISC)
    assert asked[-1].label == "treg"
    assert said == ()


def test_without_controls() -> None:
    assert chosen(MethodChoice(controls=False), MRI) == ["treg"]
    assert chosen(MethodChoice("tv"), MRI) == ["tv"]


def test_settings_and_samples_reach_the_method() -> None:
    choice = MethodChoice("treg", settings={"guidance_scale": 2.0}, steps=5, samples=3)
    method = choice.methods(MRI)[0][-1]
    assert method.settings == {"guidance_scale": 2.0, "steps": 5}
    assert method.samples == 3
    assert choice.settings == {"guidance_scale": 2.0}


@pytest.mark.parametrize(
    ("solver", "name"),
    [("treg", "steps"), ("dds", "steps"), ("tv", "max_iterations"), ("sirt", "max_iterations"), ("bare", "iterations")],
)
def test_steps_go_to_the_setting_of_the_solver(solver: str, name: str, bare: str) -> None:
    choice = MethodChoice(solver, steps=3)
    choice.check()
    assert choice.methods(CT if solver == "sirt" else MRI)[0][-1].settings == {name: 3}


def test_a_solver_without_steps_says_so() -> None:
    for use in (MethodChoice("zero-filled", steps=3).check, lambda: MethodChoice("zero-filled", steps=3).methods(MRI)):
        with pytest.raises(ConfigError, match="zero-filled"):
            use()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (MethodChoice("trge"), "did you mean 'treg'"),
        (MethodChoice("tv", "best"), "best"),
        (MethodChoice("tv", settings={"colour": 3}), "colour"),
        (MethodChoice("treg", steps=0), "steps"),
        (MethodChoice(samples=0), "--samples"),
    ],
    ids=["solver", "preset", "setting", "steps", "samples"],
)
def test_what_is_wrong_is_found_without_a_scan(choice: MethodChoice, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choice.check()


def test_a_choice_without_a_solver_is_checked_with_the_scan() -> None:
    choice = MethodChoice(settings={"colour": 3})
    choice.check()
    with pytest.raises(ConfigError, match="colour"):
        choice.methods(MRI)
