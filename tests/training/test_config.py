"""Training settings from TOML: checked, and wrong ones named."""

from pathlib import Path

import pytest

import treg_med.training
from treg_med.errors import ConfigError, ResourceError
from treg_med.training.config import read_config

DATA = '[[data]]\npath = "a.h5"\n'


def read(tmp_path: Path, text: str):  # noqa: ANN201
    """The configuration of a text."""
    (tmp_path / "c.toml").write_text(text)
    return read_config(tmp_path / "c.toml")


def test_the_shipped_configuration_is_valid() -> None:
    config = read_config(Path(treg_med.training.__file__).parent / "default.toml")
    assert config.denoiser.samples >= 300_000 and config.data[0].shares == {"ms_": 0.7}
    assert sum(entry.share for entry in config.data) == pytest.approx(1)
    assert config.prior.data[0]["licence"] == "CC BY"


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    config = read(tmp_path, DATA + "[denoiser]\nrate = 1\n")
    assert config.denoiser.rate == 1 and config.autoencoder.patch_size == 4 and config.data[0].share == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"at least one \[\[data\]\]"),
        ("[denoiser", "expected TOML"),
        (DATA + "[denoiser]\nsteps = 3\n", "denoiser among samples, .*got steps"),
        (DATA + "[denoiser]\nsamples = 0\n", r"DenoiserSettings\.samples: expected a value of at least 1"),
        (DATA + "[denoiser]\nprecision = 'half'\n", "one of 'auto'"),
        (DATA + "[denoiser]\nsamples = 'many'\n", "expected int"),
        (DATA + "share = -1\n", r"SliceFile\.share"),
        ("data = 3\n", "expected list"),
        ("denoiser = 3\n" + DATA, "expected a table"),
        ("[[data]]\nshare = 1\n", "with a path"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="not there"):
        read_config(tmp_path / "absent.toml")
