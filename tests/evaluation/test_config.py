"""The configuration of an evaluation: what it may say, and what is said of what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.evaluation.config import ConfigFile, read_config

MINIMAL = """\
version: 1
datasets: [{name: brain, files: "*.nii.gz"}]
methods: [{label: tv, solver: tv}]
"""


def read(folder: Path, text: str) -> ConfigFile:
    path = folder / "evaluation.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value)


def test_defaults(tmp_path: Path) -> None:
    settings = read(tmp_path, MINIMAL).settings
    assert settings.datasets[0].files == ["*.nii.gz"]
    assert settings.datasets[0].target == "scan"
    assert [s.name for s in settings.scenarios] == ["as-stored"]
    assert settings.methods[0].arms == ["right"]
    assert settings.seeds == [0]
    assert settings.statistics.resamples == 9999


def test_everything_at_once(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """\
version: 1
datasets:
  - {name: brain, files: [a/*.nii.gz, b/*.nii.gz], subject: "p([0-9]+)", captions: a, slices: "::8", target: t/*.nii.gz}
scenarios:
  - {name: mc-r4, reader: {acceleration: 4, mask: random, coils: 8, noise: 1e-2}, datasets: brain}
methods:
  - {label: treg, solver: treg, settings: {steps: 20}, control: true, arms: [right, empty, wrong, shuffled]}
predictions:
  - {label: vendor, files: "vendor/{scenario}/*.nii.gz", scenarios: [mc-r4]}
seeds: [0, 1]
protocols: fastmri
compare_to: treg-control
require: ["treg:ssim>=0.85"]
prior: null
adapters: []
statistics: {resamples: 999, seed: 3}
""",
    )
    settings = config.settings
    assert settings.scenarios[0].reader["noise"] == 0.01  # YAML 1.1 would read text
    assert settings.protocols == ["fastmri"]
    assert settings.compare_to == "treg-control"
    assert config.resolve("a/x") == tmp_path / "a" / "x"
    assert config.root == tmp_path


def test_an_unknown_key_names_its_place_and_the_closest_one(tmp_path: Path) -> None:
    message = refused(tmp_path, MINIMAL.replace("solver: tv", "solver: tv, setings: {}"))
    assert "methods[0].setings" in message
    assert "did you mean 'settings'?" in message
    message = refused(tmp_path, MINIMAL + "protocol: fastmri\n")
    assert "protocol: unknown key" in message
    assert "did you mean 'protocols'?" in message
    message = refused(tmp_path, MINIMAL + "statistics: {resample: 10}\n")
    assert "statistics.resample: unknown key" in message
    assert "did you mean 'resamples'?" in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, MINIMAL.replace("version: 1", "version: 2").replace("files:", "fils:"))
    assert "version" in message
    assert "expected 1, got 2" in message
    assert "datasets[0].files: expected a value" in message
    assert "datasets[0].fils: unknown key" in message


def test_a_key_given_twice_names_the_line(tmp_path: Path) -> None:
    message = refused(tmp_path, MINIMAL + "seeds: [0]\nseeds: [1]\n")
    assert "line 5" in message
    assert "'seeds' is given twice" in message
    assert "'solver' is given twice" in refused(tmp_path, MINIMAL.replace("solver: tv", "solver: tv, solver: fbp"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("label: tv", "label: a/b", "letters, digits"),
        ("label: tv", "label: '..'", "letters, digits"),
        ("label: tv", "label: 3", "methods[0].label: expected a valid string"),
        ("solver: tv}", "solver: tv, samples: 0}", "methods[0].samples"),
        ("solver: tv}", "solver: tv, samples: '2'}", "methods[0].samples"),
        ("solver: tv}", "solver: tv, arms: [left]}", "'right', 'empty', 'wrong' or 'shuffled'"),
        ("solver: tv}", "solver: tv, arms: [empty, empty]}", "empty twice"),
        ("solver: tv}", "solver: tv, datasets: [brian]}", "did you mean 'brain'?"),
        ("solver: tv}", "solver: tv}, {label: TV, solver: tv}", "tv twice"),
        ("solver: tv}", "solver: tv, control: true}, {label: tv-control, solver: tv}", "tv-control twice"),
        ("solver: tv}", "solver: tv}, {label: t.v, solver: tv}", "tv twice"),
        ("[{label: tv, solver: tv}]", "[]", "at least one entry in methods or predictions"),
        ("brain,", "brain, subject: 'sub-[0-9]+',", "one group"),
        ("brain,", "brain, subject: '(',", "regular expression"),
        ("version: 1", "version: 1\ncompare_to: tw", "compare_to: expected tv, got 'tw'"),
        ("version: 1", "version: 1\nseeds: []", "seeds"),
        ("version: 1", "version: 1\nseeds: [-1]", "seeds[0]"),
        ("version: 1", "version: 1\nstatistics: {resamples: 3}", "statistics.resamples"),
        ('files: "*.nii.gz"', "files: []", "datasets[0].files"),
    ],
)
def test_values_that_cannot_be_used(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in refused(tmp_path, MINIMAL.replace(old, new))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    assert "version: 1" in refused(tmp_path, "")
    assert "version: 1" in refused(tmp_path, "- a\n- b\n")
    assert "line 3" in refused(tmp_path, "version: 1\nmethods: [\n")
    assert "expected YAML" in refused(tmp_path, "? [a, b]\n: 1\n")
    assert "expected YAML" in refused(tmp_path, "a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ResourceError, match="check the path"):
        read_config(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="UTF-8"):
        read_config(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_text("#" * (2**20 + 1))
    with pytest.raises(FormatError, match="at most"):
        read_config(tmp_path / "large.yaml")


def test_masks_and_boxes(tmp_path: Path) -> None:
    text = MINIMAL.replace("brain,", "brain, masks: seg/*.nii.gz, boxes: brain.csv,")
    dataset = read(tmp_path, text).settings.datasets[0]
    assert (dataset.masks, dataset.boxes) == (["seg/*.nii.gz"], "brain.csv")
    dataset = read(tmp_path, MINIMAL).settings.datasets[0]
    assert (dataset.masks, dataset.boxes) == (None, None)
    assert "did you mean 'masks'" in refused(tmp_path, MINIMAL.replace("brain,", "brain, mask: seg,"))
    assert "datasets[0].boxes" in refused(tmp_path, MINIMAL.replace("brain,", "brain, boxes: [a.csv],"))
