"""What an evaluation compares, read from one YAML file: every key is known, every error names the key and the fix."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.runs.method import LABEL
from treg_med.runs.names import VARIANTS

__all__ = [
    "ConfigFile",
    "DatasetConfig",
    "EvaluationConfig",
    "MethodConfig",
    "PredictionConfig",
    "ScenarioConfig",
    "StatisticsConfig",
    "read_config",
]

_LARGEST = 2**20


def _checked_label(label: str) -> str:
    if not LABEL.fullmatch(label) or ".." in label or label.endswith("."):
        raise ValueError("expected at most 40 letters, digits, '.', '-' and '_', as it becomes part of file names")
    return label


def _checked_subject(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"expected a regular expression with one group, the subject, it has {groups}")
    return pattern


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Label = Annotated[str, AfterValidator(_checked_label)]
Patterns = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Labels = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Arm = Literal["right", "empty", "wrong", "shuffled"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatasetConfig(_Strict):
    """Scans of one kind.

    ``files``: globs, or a (BIDS) folder; ``subject``: a regular expression with one group on the path relative to the
    configuration; ``captions``: a ``captions.jsonl``, or its folder; ``slices``: as in Python; ``target``: ``scan``
    (the reference that a scan holds or was simulated from), or a glob of NIfTI volumes; ``masks``: globs of NIfTI
    volumes that are not 0 in the region of interest; ``boxes``: a table of fastMRI+.
    """

    name: Label
    files: Patterns
    subject: Annotated[str, AfterValidator(_checked_subject)] | None = None
    captions: str | None = None
    slices: str | None = None
    target: str = "scan"
    masks: Patterns | None = None
    boxes: str | None = None


class ScenarioConfig(_Strict):
    """A way of measuring: options of the reader, and the datasets it is for (default: all)."""

    name: Label
    reader: dict[str, Any] = {}
    datasets: Labels | None = None


class MethodConfig(_Strict):
    """A solver with its settings, its control (the prior removed) and the prompts it is run with."""

    label: Label
    solver: str
    preset: str = "default"
    settings: dict[str, Any] = {}
    samples: Annotated[int, Field(ge=1)] = 1
    control: bool = False
    arms: Annotated[list[Arm], BeforeValidator(_as_list), Field(min_length=1)] = ["right"]
    datasets: Labels | None = None


class PredictionConfig(_Strict):
    """Volumes that another program made; ``{dataset}`` and ``{scenario}`` in ``files`` are replaced by the names."""

    label: Label
    files: Patterns
    datasets: Labels | None = None
    scenarios: Labels | None = None


class StatisticsConfig(_Strict):
    """Bootstrap resamples, and the seed of these and of the shuffled prompts."""

    resamples: Annotated[int, Field(ge=99, le=1_000_000)] = 9999
    seed: Annotated[int, Field(ge=0)] = 0


class EvaluationConfig(_Strict):
    """The whole configuration; ``version`` is that of its schema."""

    version: Literal[1]
    datasets: Annotated[list[DatasetConfig], Field(min_length=1)]
    scenarios: Annotated[list[ScenarioConfig], Field(min_length=1)] = [ScenarioConfig(name="as-stored")]
    methods: list[MethodConfig] = []
    predictions: list[PredictionConfig] = []
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    protocols: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)] = ["fastmri", "volume"]
    compare_to: str | None = None
    require: Annotated[list[str], BeforeValidator(_as_list)] = []
    prior: str | None = None
    adapters: Annotated[list[str], BeforeValidator(_as_list)] = []
    statistics: StatisticsConfig = StatisticsConfig()

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if not self.methods and not self.predictions:
            raise ValueError("expected at least one entry in methods or predictions, got none")
        datasets, scenarios = [d.name for d in self.datasets], [s.name for s in self.scenarios]
        labels = [label for method in self.methods for label in _labels(method)]
        labels += [prediction.label for prediction in self.predictions]
        _refuse_twice("datasets", [name.lower() for name in datasets])
        _refuse_twice("scenarios", [name.lower() for name in scenarios])
        _refuse_twice("labels of methods", [_in_file_names(label) for label in labels])
        _refuse_twice("seeds", self.seeds)
        _refuse_twice("protocols", self.protocols)
        for method in self.methods:
            _refuse_twice(f"arms of {method.label}", method.arms)
        for only in [entry.datasets for group in (self.scenarios, self.methods, self.predictions) for entry in group]:
            _refuse_unknown("datasets", only or (), datasets)
        for prediction in self.predictions:
            _refuse_unknown("scenarios", prediction.scenarios or (), scenarios)
        if self.compare_to is not None:
            shown = [m.label for m in self.methods] + [f"{m.label}-control" for m in self.methods if m.control]
            _refuse_unknown("compare_to", [self.compare_to], shown + [p.label for p in self.predictions])
        return self


def _labels(method: MethodConfig) -> list[str]:
    """Return the labels that a method takes up in file names: its own and those of its control and prompts."""
    others = (["control"] if method.control else []) + [arm for arm in method.arms if arm != "right"]
    return [method.label, *(f"{method.label}-{other}" for other in others)]


def _in_file_names(label: str) -> str:
    """Return what file names keep of a label: letters and digits, and apart from them the variant."""
    name, dash, variant = label.lower().rpartition("-")
    if not name or variant not in VARIANTS:
        name, dash, variant = label.lower(), "", ""
    return re.sub(r"[^a-z0-9]+", "", name) + dash + variant


def _refuse_twice(what: str, names: Sequence[object]) -> None:
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected different {what} (case and punctuation do not count), got {', '.join(twice)} twice")


def _refuse_unknown(key: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: expected {', '.join(known)}, got {name!r}{_closest(name, known)}")


def _closest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class ConfigFile:
    """A configuration and where it came from.

    Parameters
    ----------
    path
        The file; relative paths in it start at its folder.
    text
        Its content.
    settings
        What it says.
    """

    path: Path
    text: str
    settings: EvaluationConfig

    @property
    def root(self) -> Path:
        """Folder that relative paths start at."""
        return self.path.parent

    def resolve(self, name: str) -> Path:
        """Return a path of the configuration as an absolute one."""
        return self.root / Path(name).expanduser()


def read_config(path: Path) -> ConfigFile:
    """Read and check a configuration.

    Raises
    ------
    ResourceError
        If the file is not there or cannot be read.
    FormatError
        If it is no YAML.
    ConfigError
        Naming every key that is unknown, missing, given twice or of a value that cannot be used.
    """
    path = path.absolute()
    try:
        if path.stat().st_size > _LARGEST:
            raise FormatError(f"expected a configuration of at most {_LARGEST} bytes, got {path.stat().st_size}")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"expected YAML in UTF-8 in {path.name!r}, got other bytes; save it as UTF-8") from error
    except FormatError:
        raise
    except OSError as error:
        raise ResourceError(
            f"expected a configuration, got {path.name!r}: {error.strerror or error}; check the path"
        ) from error
    content = _parsed(text, path.name)
    if not isinstance(content, dict):
        raise ConfigError(f"expected 'version: 1' and other keys in {path.name}, got {type(content).__name__}")
    try:
        return ConfigFile(path, text, EvaluationConfig.model_validate(content))
    except ValidationError as error:
        raise ConfigError(f"{path.name}: " + "; ".join(_sentence(entry) for entry in error.errors())) from error


class _Loader(yaml.SafeLoader):
    """YAML without the traps: a key given twice is an error, and 1e-2 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call,unused-ignore]
            if isinstance(key, list | dict):
                break  # refused below, with the place
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parsed(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1} of " if mark else ""
        raise ConfigError(f"expected YAML in {where}{name}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"expected YAML in {name}, got: {' '.join(str(error).split())[:200]}") from error


def _sentence(entry: Any) -> str:
    """Return one problem as a sentence of ours: key, expected, got, closest known key."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in entry["loc"]).removeprefix(".")
    if entry["type"] == "extra_forbidden":
        known = _keys_at(entry["loc"][:-1])
        return f"{where}: unknown key; known are {', '.join(known)}{_closest(str(entry['loc'][-1]), known)}"
    if entry["type"] == "missing":
        return f"{where}: expected a value, got none; add it"
    message = entry["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = message[0].lower() + message[1:]
    if not where:
        return message
    return f"{where}: {message}, got {entry['input']!r:.60}"


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Return the keys that a place of the configuration has."""
    model: type[BaseModel] = EvaluationConfig
    for part in location:
        entry = model.model_fields.get(str(part))
        if entry is not None:
            inner = (entry.annotation, *typing.get_args(entry.annotation))
            model = next(kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
