"""(c) What words alone say: the expected slice and where a lesion is expected, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass

from treg_med.assessment.figures import picture_grid
from treg_med.assessment.paired import CONTRAST_TEXTS, SIDE_TEXTS
from treg_med.priors.latent import LatentPrior

__all__ = ["WordsAlone", "words_alone"]


@dataclass(frozen=True)
class WordsAlone:
    """Texts and, for each, the expected slice above the probability of a lesion."""

    texts: dict[str, str]
    picture: str


def words_alone(prior: LatentPrior) -> WordsAlone | None:
    """Draw what the texts of the paired samples say; None where the denoiser has no word map."""
    if prior.word_map is None:
        return None
    texts = {"no words": "", **CONTRAST_TEXTS, **{f"lesion: {name}": text for name, text in SIDE_TEXTS.items()}}
    images, lesions = prior.words_alone(list(texts.values()))
    return WordsAlone(texts, picture_grid([list(images), list(lesions)], list(texts), ["expected", "lesion"]))
