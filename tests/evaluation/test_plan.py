"""What a configuration is expanded to, and what is refused before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.studies import ARMS, CONFIG, SUBJECTS, study, written
from treg_med.errors import ConfigError
from treg_med.evaluation.config import ConfigFile
from treg_med.evaluation.plan import make_plan


@pytest.fixture
def config(tmp_path: Path) -> ConfigFile:
    return study(tmp_path)


def test_what_cannot_be_run_is_told_before_anything_runs(config: ConfigFile) -> None:
    changes = {
        "solver: tv,": ("solver: tvx,", r"methods\[1\] \(tv\): .*did you mean 'tv'"),
        "max_iterations: 5": ("max_iteration: 5", r"methods\[1\] \(tv\)"),
        "solver: zero-filled": ("solver: zero-filled, control: true", "prior can be removed"),
        "acceleration: 4": ("accelerate: 4", "dataset 'brain', scenario 'r4'"),
        "scans/*": ("scan/*", "got none"),
    }
    for old, (new, said) in changes.items():
        with pytest.raises(ConfigError, match=said):
            make_plan(written(config.root, CONFIG.replace(old, new)), config.root / "out")
    assert not (config.root / "out").exists()


def test_seeds_are_for_what_draws_random_numbers(config: ConfigFile) -> None:
    text = CONFIG + "seeds: [0, 1]\n"
    plan = make_plan(written(config.root, text), config.root / "out")
    assert {case.seed for case in plan.cases} == {0}
    assert plan.cases[0].place == Path("brain/r2/seed-0")


def test_prompt_arms_are_planned(config: ConfigFile) -> None:
    lines = [{"file": f"p{i}_T2w.nii.gz", "caption": f"axial T2w brain MRI of patient {i}"} for i in range(SUBJECTS)]
    (config.root / "scans" / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    plan = make_plan(written(config.root, ARMS), config.root / "out")
    assert len(plan.cases) == 2 * SUBJECTS
    first = plan.cases[0]
    assert [v.label for v in first.variants] == [
        "tv",
        "treg-control",
        "treg",
        "treg-empty",
        "treg-wrong",
        "treg-shuffled",
    ]
    assert [(v.method, v.arm, v.control) for v in first.variants[:3]] == [
        ("tv", "none", False),
        ("treg-control", "none", True),
        ("treg", "right", False),
    ]
    texts = {v.arm: v.text for v in first.variants}
    assert texts["right"] == "axial T2w brain MRI of patient 0"
    assert texts["empty"] == ""
    assert "T1" in str(texts["wrong"])
    assert texts["shuffled"] in {line["caption"] for line in lines[1:]}
    assert first.job is not None
    methods: Mapping[str, Any] = {m.label: m for m in first.job.methods}  # type: ignore[union-attr]
    assert methods["treg-control"].settings["use_prior"] is False
    assert methods["treg"].text == texts["right"]
    # The second seed: neither the classical method nor, of equal images for all seeds, the control.
    later = plan.cases[SUBJECTS]
    assert later.seed == 1
    assert [v.label for v in later.variants] == ["treg", "treg-empty", "treg-wrong", "treg-shuffled"]
