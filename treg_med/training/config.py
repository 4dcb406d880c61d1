"""Settings of the training steps, read from one TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treg_med.errors import ConfigError, ResourceError
from treg_med.settings import check_settings, setting
from treg_med.training.noise_draw import evenly_spread

__all__ = [
    "AutoencoderSettings",
    "DenoiserSettings",
    "DrawnShares",
    "PriorFacts",
    "ScorerSettings",
    "SliceFile",
    "TextSettings",
    "TrainingConfig",
    "WordMapSettings",
    "read_config",
]


def _warmed_and_decayed(samples: int, total: int, warmup: int, decay_share: float) -> float:
    """Share of a full rate: warm-up, one, then linear to zero over the last `decay_share` of the samples."""
    left = (1 - samples / total) / decay_share
    return min(1.0, samples / warmup, max(left, 1e-3))


class _Checked:
    def __post_init__(self) -> None:
        check_settings(self)


class _Short(_Checked):
    """A training of minutes, without a checkpoint."""

    steps: int

    def schedule(self, step: int) -> float:
        """Share of the full rate at a step: warm-up, one, then linear to zero over the last 40 percent."""
        return _warmed_and_decayed(step + 1, self.steps, min(50, self.steps), 0.4)


@dataclass(frozen=True, kw_only=True)
class SliceFile(_Checked):
    """One slice file, or a folder that is prepared into one."""

    path: str = setting("", help="file or folder, relative to the configuration")
    share: float = setting(1.0, above=0.0, help="how often its slices are drawn, against the other files")
    images: str = setting("images", help="dataset of the images; images_soft: CT in its soft-tissue window")
    subjects_only: str = setting("", help="keep the subjects whose name starts so")
    subjects_except: list[str] = field(default_factory=list)  # starts of the names of subjects that are left out
    patient_left_is: str = setting("", choices=("", "left", "right"), help="side of the images that shows it")
    validation_only: str = setting("", help="the same, for the validation slices")
    validation_every: int = setting(1, minimum=1, help="every n-th validation slice is scored")
    shares: dict[str, float] | None = setting(None, help="start of a subject's name -> share of the draws")


@dataclass(frozen=True, kw_only=True)
class DrawnShares(_Checked):
    """How often the heads that are drawn with exact words come from each source; the rest are geometric phantoms."""

    folder: str = setting("", help="folder of label maps and lesion masks, relative to the data")
    leave_out: list[str] = field(default_factory=list)  # parts of the names of lesion masks, of subjects to validate on
    label_maps: float = setting(0.0, minimum=0.0, maximum=1.0, help="share of heads synthesised from label maps")
    transplants: float = setting(0.0, minimum=0.0, maximum=1.0, help="share of slices with a transplanted lesion")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_maps + self.transplants > 1:
            raise ConfigError(
                f"expected shares of drawn heads of at most one together, got {self.label_maps + self.transplants:g}"
            )
        if self.label_maps and not self.folder:
            raise ConfigError("expected the folder of the label maps in drawn.folder, got none")


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(_Checked):
    """Settings of the null-space autoencoder."""

    patch_size: int = setting(4, minimum=2, maximum=32, help="side of a patch in pixels")
    latent_channels: int = setting(12, minimum=1, help="coefficients kept of a patch")
    width: int = setting(48, minimum=4, help="channels of the null-space decoder")
    blocks: int = setting(4, minimum=1, help="residual blocks of the null-space decoder")
    samples: int = setting(25_000, minimum=1, help="crops seen")
    batch: int = setting(16, minimum=1, help="crops per step")
    crop: int = setting(128, minimum=16, help="side of a crop in pixels")
    rate: float = setting(1.5e-3, above=0.0, help="learning rate")


@dataclass(frozen=True, kw_only=True)
class TextSettings(_Checked):
    """Settings of the text encoder's pre-training on the attributes of a caption."""

    steps: int = setting(1500, minimum=1, help="steps")
    batch: int = setting(32, minimum=1, help="sentences per step")
    rate: float = setting(5e-4, above=0.0, help="learning rate")


@dataclass(frozen=True, kw_only=True)
class WordMapSettings(_Short):
    """Settings of the word map, which draws what a caption alone says."""

    steps: int = setting(600, minimum=1, help="steps")
    batch: int = setting(256, minimum=1, help="examples per step")
    rate: float = setting(1e-3, above=0.0, help="learning rate")
    weight_decay: float = setting(0.05, minimum=0.0, help="weight decay")
    slices: int = setting(4000, minimum=1, help="augmented slices, drawn once")
    phantoms: int = setting(7000, minimum=0, help="phantoms, drawn once")
    sentences: int = setting(2, minimum=1, help="sentences about each of them")
    caption_dropout: float = setting(0.05, minimum=0.0, maximum=1.0, help="share of empty captions")
    lesion_weight: float = setting(2.0, minimum=0.0, help="weight of the lesion map's cross-entropy")


@dataclass(frozen=True, kw_only=True)
class ScorerSettings(_Short):
    """Settings of the scorer of images and texts."""

    steps: int = setting(1200, minimum=1, help="steps")
    batch: int = setting(64, minimum=2, help="pictures per step")
    rate: float = setting(1e-3, above=0.0, help="learning rate")
    weight_decay: float = setting(0.05, minimum=0.0, help="weight decay")
    slices: int = setting(5000, minimum=1, help="augmented slices, drawn once")
    phantoms: int = setting(5000, minimum=0, help="phantoms, drawn once")


@dataclass(frozen=True, kw_only=True)
class DenoiserSettings(_Checked):
    """Settings of one denoiser training; stored in the prior's card.

    A share of the steps shows crops at low noise, where the estimate is local and a crop teaches as much per pixel
    at a fraction of the cost; the other steps show whole slices and phantoms at every noise level.
    """

    samples: int = setting(300_000, minimum=1, help="samples seen")
    batch: int = setting(16, minimum=1, help="samples per step, over all processes")
    rate: float = setting(6e-4, above=0.0, help="learning rate of AdamW: first and last layers, biases, norms")
    muon_rate: float = setting(0.008, above=0.0, help="learning rate of Muon: the hidden weights")
    decay_share: float = setting(0.3, above=0.0, maximum=1.0, help="last share of the samples, with falling rates")
    warmup: int = setting(200, minimum=1, help="steps of rising rates")
    clip: float = setting(1.0, above=0.0, help="largest gradient norm")
    ema: float = setting(0.998, minimum=0.0, maximum=0.99999, help="decay of the averaged weights")
    caption_dropout: float = setting(0.1, minimum=0.0, maximum=1.0, help="share of empty captions")
    lesion_weight: float = setting(4.0, minimum=0.0, help="extra weight of the loss inside lesions")
    low_noise_share: float = setting(0.4, minimum=0.0, maximum=1.0, help="of whole slices, extra below t = 250")
    high_noise_share: float = setting(0.3, minimum=0.0, maximum=1.0, help="of whole slices, extra above t = 850")
    crop: int = setting(128, minimum=16, help="side of a crop in pixels")
    crop_share: float = setting(0.4, minimum=0.0, maximum=1.0, help="share of the steps that show crops")
    crop_timesteps: int = setting(350, minimum=1, maximum=1000, help="crops are shown below this timestep")
    phantom_share: float = setting(0.2, minimum=0.0, maximum=1.0, help="share of phantoms among whole slices")
    phantom_low_noise_share: float = setting(0.25, minimum=0.0, maximum=1.0, help="of phantoms, extra below t = 250")
    phantom_high_noise_share: float = setting(0.5, minimum=0.0, maximum=1.0, help="of phantoms, extra above t = 850")
    phantom_blind_share: float = setting(0.35, minimum=0.0, maximum=1.0, help="of phantoms, at the last timestep")
    twin_weight: float = setting(20.0, minimum=0.0, help="weight of the difference of twins at the last timestep")
    channels: list[int] = field(default_factory=lambda: [64, 128, 160, 192])
    layers: int = setting(1, minimum=1, help="residual blocks a level; a prior to start from with fewer is deepened")
    precision: str = setting("auto", choices=("auto", "bfloat16", "float32"), help="auto: the faster of the two, timed")
    seed: int = setting(0, minimum=0, help="of every random number")

    def schedule(self, samples: int) -> float:
        """Share of the full rates at a number of samples."""
        return _warmed_and_decayed(samples, self.samples, self.warmup * self.batch, self.decay_share)

    def shows_crops(self, step: int) -> bool:
        """Whether a step shows crops: evenly spread steps, the same ones in every process."""
        return evenly_spread(step, self.crop_share)


@dataclass(frozen=True, kw_only=True)
class PriorFacts(_Checked):
    """What the card of the exported prior says and nobody can measure."""

    name: str = setting("prior", help="short name")
    summary: str = setting("", help="one sentence: what it was trained on")
    limits: str = setting("", help="what it must not be taken for")
    data: list[dict[str, str]] = field(default_factory=list)  # name, licence, cite


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(_Checked):
    """Everything that a training needs; every table of the TOML file is one field."""

    data: list[SliceFile] = field(default_factory=list)
    drawn: DrawnShares = field(default_factory=DrawnShares)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    text: TextSettings = field(default_factory=TextSettings)
    word_map: WordMapSettings = field(default_factory=WordMapSettings)
    scorer: ScorerSettings = field(default_factory=ScorerSettings)
    denoiser: DenoiserSettings = field(default_factory=DenoiserSettings)
    prior: PriorFacts = field(default_factory=PriorFacts)


def read_config(path: Path) -> TrainingConfig:
    """Read and check a configuration.

    Raises
    ------
    ResourceError
        If the file is not there.
    ConfigError
        Naming the table and the setting that is unknown or out of range.
    """
    if not path.is_file():
        raise ResourceError(f"expected a TOML configuration, got {str(path)!r}, which is not there")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected TOML in {path.name}, got: {error}") from error
    config: TrainingConfig = _built(TrainingConfig, content, path.name)
    if not config.data or not all(entry.path for entry in config.data):
        raise ConfigError(f"expected at least one [[data]] table with a path in {path.name}, got none")
    return config


def _built(cls: Any, content: Any, where: str) -> Any:
    """Make nested dataclasses of nested tables; an unknown name is an error."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"expected a table for {where}, got {content!r}")
    hints = typing.get_type_hints(cls)
    names = [entry.name for entry in dataclasses.fields(cls)]
    unknown = sorted(set(content) - set(names))
    if unknown:
        raise ConfigError(f"expected settings of {where} among {', '.join(names)}; got {', '.join(unknown)}")
    values = {}
    for name, value in content.items():
        inner = typing.get_args(hints[name])
        if dataclasses.is_dataclass(hints[name]):
            value = _built(hints[name], value, f"{where}: {name}")
        elif isinstance(value, list) and inner and dataclasses.is_dataclass(inner[0]):
            value = [_built(inner[0], entry, f"{where}: {name}[{i}]") for i, entry in enumerate(value)]
        values[name] = value
    return cls(**values)
