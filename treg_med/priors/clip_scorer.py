"""Agreement of an image and a text by a CLIP folder, for adaptive negation and for scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.errors import ConfigError, ResourceError
from treg_med.priors.components import readable
from treg_med.priors.layout import read_json
from treg_med.priors.weights import component_variant

__all__ = ["CLIPScorer"]

# Of the images that the published models were trained on; a folder with a preprocessor says its own.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPScorer:
    """Unit vectors of images and texts in the joint space of a CLIP model; a `guidance.JointScorer`.

    Parameters
    ----------
    model
        transformers ``CLIPModel``.
    tokenizer
        Its tokenizer.
    mean, std : sequence of float
        Of the colour channels, as the model was trained.

    Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, arXiv 2103.00020.
    """

    def __init__(
        self, model: Any, tokenizer: Any, mean: Sequence[float] = _MEAN, std: Sequence[float] = _STD
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.mean, self.std = (torch.tensor(list(values)).view(1, 3, 1, 1) for values in (mean, std))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Open a folder with a CLIP model (``config.json``, safetensors) and its tokenizer.

        Raises
        ------
        ResourceError
            If there is no such folder.
        UnsafeFileError, FormatError
            If its weights are pickled or cannot be read.
        """
        from transformers import AutoTokenizer, CLIPModel

        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise ResourceError(f"expected a folder with a CLIP model and its config.json, got {str(path)!r}")
        variant = component_variant(folder)
        with readable(folder.name):
            model = CLIPModel.from_pretrained(folder, variant=variant, use_safetensors=True, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        card = folder / "preprocessor_config.json"
        facts = read_json(card) if card.is_file() else {}
        return cls(model.float(), tokenizer, facts.get("image_mean", _MEAN), facts.get("image_std", _STD))

    @torch.no_grad()
    def image_features(self, image: Tensor) -> Tensor:
        """Return unit vectors ``(n, d)`` of prior images ``(n, 1, H, W)`` in [-1, 1]."""
        size = self.model.config.vision_config.image_size
        shown = functional.interpolate(
            ((image.float() + 1) / 2).clamp(0, 1), size=(size, size), mode="bicubic", antialias=True
        )
        pixels = (shown.expand(-1, 3, -1, -1) - self.mean.to(shown)) / self.std.to(shown)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(self.model.visual_projection(pooled), dim=-1)

    def text_features(self, states: Tensor, text: str) -> Tensor:
        """Return unit vectors ``(n, d)`` of last hidden states ``(n, tokens, width)`` of `text`; differentiable.

        The states are those of a prior's text encoder, which must be that of this model: they are read at the token
        that ends the text, and projected.

        Raises
        ------
        ConfigError
            If the states have another width.
        """
        projection = self.model.text_projection
        if states.shape[-1] != projection.in_features:
            raise ConfigError(
                f"expected text states of width {projection.in_features}, that of the scorer, got {states.shape[-1]}; "
                "take the CLIP model whose text encoder the prior has"
            )
        tokens = self.tokenizer(text, truncation=True, max_length=states.shape[1])["input_ids"]
        return functional.normalize(projection(states[:, len(tokens) - 1].float()), dim=-1)
