"""(g) How good samples are: whether they show what was said, look real, and cover what is real."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from treg_med.assessment.agreement import scorer_wins
from treg_med.assessment.drawn_slices import varied_rows
from treg_med.assessment.one_step import prior_images
from treg_med.assessment.statistics import Rate
from treg_med.errors import ConfigError
from treg_med.guidance import JointScorer
from treg_med.priors.latent import LatentPrior
from treg_med.training.slices import CaptionedSlices

__all__ = ["NEIGHBOURS", "SampleQuality", "precision_and_recall", "sample_quality"]

#: k of the nearest neighbours that span a manifold.
NEIGHBOURS = 3
_BATCH = 32


@dataclass(frozen=True)
class SampleQuality:
    """What a scorer of images and texts says of samples.

    Attributes
    ----------
    samples, validation : int
        How many were compared.
    attributes : dict of str to Rate
        How often a sample agrees better with its caption than with the same one with one word exchanged.
    precision, recall : float
        Share of samples that look like validation slices, and of validation slices that samples look like.
    precision_of_training, recall_of_training : float
        The same with training slices in place of samples: more than that is not to be had.
    """

    samples: int
    validation: int
    attributes: dict[str, Rate]
    precision: float
    recall: float
    precision_of_training: float
    recall_of_training: float


@torch.no_grad()
def sample_quality(
    prior: LatentPrior, samples: CaptionedSlices, validation: CaptionedSlices, train: CaptionedSlices, *, seed: int = 0
) -> SampleQuality:
    """Score samples by their captions and against validation slices, in the image features of the prior's scorer.

    The scorer is small and learned from the same slices, so it judges coarse anatomy and contrast, not fine detail.

    Parameters
    ----------
    prior : LatentPrior
        With a scorer.
    samples : CaptionedSlices
        From `drawn_slices`.
    validation, train : CaptionedSlices
        At most as many validation slices as there are samples are taken, evenly spaced, and as many training slices, of
        the kinds that the samples were asked for.
    seed : int
        Of the choice among several wrong words and of the training slices.

    Raises
    ------
    ConfigError
        If the prior has no scorer.
    """
    scorer = prior.scorer
    if scorer is None:
        raise ConfigError("expected a prior with a scorer of images and texts, got none; set prior.scorer")
    held = validation.evenly(len(samples))
    seen = train.take(varied_rows(train, len(samples), torch.Generator().manual_seed(seed)))
    real, drawn, best = (_features(scorer, prior.device, slices) for slices in (held, samples, seen))
    precision, recall = precision_and_recall(real, drawn)
    best_precision, best_recall = precision_and_recall(real, best)
    return SampleQuality(
        len(samples),
        len(held),
        scorer_wins(scorer, prior.embed, samples, seed=seed),
        precision,
        recall,
        best_precision,
        best_recall,
    )


def precision_and_recall(real: Tensor, drawn: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    r"""Return the shares of drawn features on the real manifold and of real features on the drawn one.

    A feature f lies on the manifold of a set :math:`\Phi` where for some member

    .. math:: \|f - \phi\| \le \|\phi - NN_k(\phi, \Phi)\|

    with the k-th nearest other member of the set.

    Parameters
    ----------
    real, drawn : Tensor ``(n, d)``, ``(m, d)``
        Image features, each set of more than `neighbours`.
    neighbours : int
        k.

    Raises
    ------
    ConfigError
        If a set is too small.

    Kynkaanniemi et al.: Improved Precision and Recall Metric for Assessing Generative Models, NeurIPS 2019,
    arXiv 1904.06991.
    """
    fewest = min(len(real), len(drawn))
    if fewest <= neighbours:
        raise ConfigError(f"expected more than {neighbours} images of either kind, got {fewest}; draw more samples")
    return _share_on(real, drawn, neighbours), _share_on(drawn, real, neighbours)


def _share_on(members: Tensor, others: Tensor, neighbours: int) -> float:
    # Differences and not products: equal features are then at distance zero exactly.
    radii = torch.cdist(members, members, compute_mode="donot_use_mm_for_euclid_dist").topk(
        neighbours + 1, dim=1, largest=False
    )
    distances = torch.cdist(others, members, compute_mode="donot_use_mm_for_euclid_dist")
    return float((distances <= radii.values[:, -1]).any(1).float().mean())


def _features(scorer: JointScorer, device: torch.device, slices: CaptionedSlices) -> Tensor:
    parts = prior_images(slices).split(_BATCH)
    return torch.cat([scorer.image_features(part.to(device)).cpu() for part in parts])
