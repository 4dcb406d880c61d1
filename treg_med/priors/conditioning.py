"""What a denoiser is told beside the noisy latent: a text, a vector of named numbers, or nothing.

Solvers only ever call ``prior.embed(text)``; each conditioning makes of the text what its network takes, and the empty
text is always the null condition.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from treg_med.errors import ConfigError

__all__ = ["Conditioning", "NoConditioning", "TextConditioning", "VectorConditioning"]

_SEPARATOR = re.compile(r"[,;\n]")
_PAIR = re.compile(r"([^=:]+)[=:]([^=:]+)")
_SHOWN = 200
#: Sentences whose states are kept: some 100 MB. A reconstruction needs two, a training has thousands.
_MOST_TEXTS = 2000


class Conditioning(Protocol):
    """How a prior turns texts into conditions."""

    def embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Conditions ``(n, tokens, width)`` of texts."""
        ...

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Sentences about what of a text is not used."""
        ...

    def describe(self) -> str:
        """One phrase for the table of a prior's facts."""
        ...

    def to(self, device: str | torch.device) -> None:
        """Move what is kept between calls."""
        ...


class TextConditioning:
    """Token states of a text encoder, ``(n, tokens, width)``.

    Parameters
    ----------
    text_encoder
        transformers module with ``last_hidden_state``.
    tokenizer
        Its tokenizer.

    Raises
    ------
    ConfigError
        If neither the tokenizer nor the encoder names a token limit.
    """

    def __init__(self, text_encoder: Any, tokenizer: Any) -> None:
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        # A tokenizer without a limit says 1e30, and an encoder with relative positions has none.
        limits = [tokenizer.model_max_length, getattr(text_encoder.config, "max_position_embeddings", math.inf)]
        self.max_tokens = int(min(limit for limit in (*limits, 1e9) if limit))
        if self.max_tokens >= 1e9:
            raise ConfigError(
                "expected a token limit in the prior's tokenizer or text encoder, got none; "
                'write "model_max_length" into tokenizer/tokenizer_config.json'
            )
        self._seen: dict[str, Tensor] = {}

    def embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Return the states of texts; those seen lately come from memory."""
        if len(self._seen) > _MOST_TEXTS:
            self._seen.clear()
        for text in texts:
            if text not in self._seen:
                self._seen[text] = self._states(text, device)
        return torch.stack([self._seen[text] for text in texts])

    def _states(self, text: str, device: torch.device) -> Tensor:
        tokens = self.tokenizer(
            text, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        # Stable Diffusion was trained on unmasked padding; an encoder that wants the mask says so.
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = {"attention_mask": tokens.attention_mask.to(device)} if masked else {}
        with torch.no_grad():
            states = self.text_encoder(tokens.input_ids.to(device), **mask).last_hidden_state
        return states[0].float()

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Say where a text is cut."""
        count = len(self.tokenizer(text).input_ids) if text else 0
        if count <= self.max_tokens:
            return ()
        return (f"the text has {count} tokens; the prior reads the first {self.max_tokens} only",)

    def describe(self) -> str:
        """Return the token limit."""
        return f"{self.max_tokens} tokens"

    def to(self, device: str | torch.device) -> None:
        """Forget the states of the old device."""
        self._seen.clear()


@dataclass(frozen=True)
class VectorConditioning:
    """A vector of named numbers ``(n, 1, width)``, written as text: ``"sex=1, age=0.4"``.

    Pinaya et al.: Brain imaging generation with latent diffusion models, DGM4MICCAI 2022, arXiv 2209.07162.

    Parameters
    ----------
    names
        One per entry of the vector, in its order.
    limits
        Range that the prior's metadata gives for the values; None where they give none.

    Raises
    ------
    ConfigError
        If names are empty or alike.
    """

    names: tuple[str, ...]
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        keys = [_key(name) for name in self.names]
        if not all(keys) or len(set(keys)) < len(keys) or not keys:
            raise ConfigError(f"expected condition names that differ, got {list(self.names)}; give each entry its own")

    def embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Return the vectors of texts; the empty text is the null vector.

        Raises
        ------
        ConfigError
            If a text is not one number for every name.
        """
        return torch.tensor([[self._vector(text)] for text in texts], device=device)

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Name the values outside the range that the prior was trained on."""
        if self.limits is None or not text.strip():
            return ()
        low, high = self.limits
        outside = [
            f"{name}={value:g}"
            for name, value in zip(self.names, self._vector(text), strict=True)
            if not low <= value <= high
        ]
        if not outside:
            return ()
        return (f"outside {low:g} to {high:g}, the range in the prior's metadata: {', '.join(outside)}",)

    def describe(self) -> str:
        """Return an example of the text it takes."""
        return f"values, as in {self._example()!r}"

    def to(self, device: str | torch.device) -> None:
        """Nothing is kept."""

    def _example(self) -> str:
        return ", ".join(f"{name}=0.5" for name in self.names)

    def _vector(self, text: str) -> list[float]:
        if not text.strip():
            return [0.0] * len(self.names)
        keys = [_key(name) for name in self.names]
        values: dict[str, float] = {}
        for part in filter(str.strip, _SEPARATOR.split(text)):
            pair = _PAIR.fullmatch(part)
            number = None if pair is None else _number(pair[2])
            if pair is None or number is None:
                raise self._refusal(text, f"{part.strip()!r} is not a name and a number")
            key = _key(pair[1])
            if key not in keys:
                raise self._refusal(text, f"{pair[1].strip()!r} is not one of the names")
            if key in values:
                raise self._refusal(text, f"{pair[1].strip()!r} comes twice")
            values[key] = number
        missing = [name for name, key in zip(self.names, keys, strict=True) if key not in values]
        if missing:
            raise self._refusal(text, f"no value for {', '.join(missing)}")
        return [values[key] for key in keys]

    def _refusal(self, text: str, why: str) -> ConfigError:
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
        return ConfigError(
            f"this prior is conditioned on the values {', '.join(self.names)}: expected a text such as "
            f"{self._example()!r}, got {shown!r} ({why}); give each name one number, or pass the empty text for no "
            "condition"
        )


@dataclass(frozen=True)
class NoConditioning:
    """An unconditional prior: every text is the null condition, zeros ``(n, 1, width)``."""

    width: int = 1

    def embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Return zeros."""
        return torch.zeros(len(texts), 1, self.width, device=device)

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Say that a text has no effect."""
        return ("the prior is unconditional: the text has no effect on the image",) if text.strip() else ()

    def describe(self) -> str:
        """Return that there is none."""
        return "none"

    def to(self, device: str | torch.device) -> None:
        """Nothing is kept."""


def _key(name: str) -> str:
    """Spelling of a name that case, blanks and dashes do not change."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
