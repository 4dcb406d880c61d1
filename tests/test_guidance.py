"""Guidance: the scale, its schedule, and adaptive negation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.solvers.exact import gaussian_prior
from treg_med.errors import ConfigError
from treg_med.guidance import AdaptiveNegation, Guidance, JointScorer, guided_prediction

WIDTH = 12


class _Scorer:
    def __init__(self, features: Tensor, projection: Tensor | None = None) -> None:
        self.features = features
        self.projection = torch.eye(WIDTH) if projection is None else projection

    def image_features(self, image: Tensor) -> Tensor:
        return self.features

    def text_features(self, states: Tensor, text: str) -> Tensor:
        return torch.nn.functional.normalize(states.mean(1) @ self.projection.T, dim=-1)


def _states(seed: int = 0, width: int = WIDTH) -> Tensor:
    return torch.randn(2, 7, width, generator=torch.Generator().manual_seed(seed))


def _features(width: int = WIDTH) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(2, width, generator=torch.Generator().manual_seed(9)), dim=-1)


IMAGE = torch.zeros(2, 1, 4, 4)


def test_scale_one_is_the_text_and_zero_the_empty_text() -> None:
    prior = gaussian_prior()
    latent = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    text, null = prior.embed("dark"), prior.embed("")
    one, zero = (guided_prediction(prior, latent, 500, text, null, w) for w in (1.0, 0.0))
    assert torch.equal(one.clean, prior.predict(latent, 500, text).clean)
    assert torch.equal(zero.clean, prior.predict(latent, 500, null).clean)
    three = guided_prediction(prior, latent, 500, text, null, 3.0)
    assert torch.allclose(three.clean, zero.clean + 3 * (one.clean - zero.clean))


def test_cfg_plus_plus_keeps_the_noise_of_the_empty_text() -> None:
    prior = gaussian_prior()
    latent = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    text, null = prior.embed("dark"), prior.embed("")
    plain = guided_prediction(prior, latent, 500, text, null, 0.6)
    plus = guided_prediction(prior, latent, 500, text, null, 0.6, "empty")
    assert torch.equal(plus.clean, plain.clean)
    assert torch.allclose(plus.noise, prior.predict(latent, 500, null).noise)
    assert not torch.allclose(plus.noise, plain.noise)
    one = guided_prediction(prior, latent, 500, text, null, 1.0, "empty")
    assert torch.allclose(one.noise, plus.noise)
    assert torch.allclose(one.clean, prior.predict(latent, 500, text).clean)


def test_published_negation_equals_adam_on_its_loss() -> None:
    states, features = _states(), _features()
    value = states.clone().requires_grad_()
    adam = torch.optim.Adam([value], lr=1e-3)
    for _ in range(10):
        loss = (features[:, None] * value).sum(-1).mean(1).sum()
        (value.grad,) = torch.autograd.grad(loss, value)
        adam.step()
    ours = AdaptiveNegation(_Scorer(features), rate=1e-3, steps=10)(IMAGE, states)
    assert torch.allclose(ours, value.detach(), atol=2e-6)


def test_published_negation_drifts_by_the_sign_of_the_features_without_bound() -> None:
    negation = AdaptiveNegation(_Scorer(_features()), rate=1e-3, steps=10)
    null = first = _states()
    for _ in range(57):
        null = negation(IMAGE, null)
    assert torch.allclose(null - first, (-57 * 1e-2 * _features().sign())[:, None].expand_as(first), rtol=0.01)
    assert negation.drift == sorted(negation.drift)
    assert len(negation.drift) == 57


def test_published_negation_needs_equal_widths() -> None:
    with pytest.raises(ConfigError, match="8 and 12; use mode 'bounded'"):
        AdaptiveNegation(_Scorer(_features(8)))(IMAGE, _states())


def test_bounded_negation_lowers_the_cosine_inside_its_ball_for_any_width() -> None:
    projection = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(4))
    scorer = _Scorer(_features(5), projection)
    negation = AdaptiveNegation(scorer, mode="bounded", rate=5e-3, steps=10, radius=0.1)
    null = first = _states()
    cosines = []
    for _ in range(20):
        cosines.append((scorer.features * scorer.text_features(null, "")).sum(1))
        null = negation(IMAGE, null)
    away = (null - first).flatten(1).norm(dim=1) / first.flatten(1).norm(dim=1)
    assert bool((away <= 0.1001).all())
    assert negation.drift[-1] == pytest.approx(0.1, rel=1e-3)
    assert bool((cosines[-1] < cosines[0] - 0.05).all())


def test_bounded_negation_treats_every_item_by_itself() -> None:
    scorer = _Scorer(_features())
    both = AdaptiveNegation(scorer, mode="bounded")(IMAGE, _states())
    scorer.features = _features()[:1]
    alone = AdaptiveNegation(scorer, mode="bounded")(IMAGE[:1], _states()[:1])
    assert torch.allclose(both[:1], alone)


def test_a_mode_that_does_not_exist_is_refused() -> None:
    assert isinstance(_Scorer(_features()), JointScorer)
    with pytest.raises(ConfigError, match="'treg' or 'bounded'"):
        AdaptiveNegation(_Scorer(_features()), mode="strong")


def test_schedules_open_and_close_their_window() -> None:
    schedule = Guidance(scale=4.0, outside=1.0, start=0.25, stop=0.75)
    assert [schedule.at(step, 9) for step in range(9)] == [1, 1, 4, 4, 4, 4, 4, 1, 1]
    cosine = Guidance(scale=4.0, outside=1.0, start=0.25, stop=0.75, shape="cosine")
    assert cosine.at(4, 9) == pytest.approx(4.0)
    assert cosine.at(3, 9) == pytest.approx(cosine.at(5, 9)) == pytest.approx(2.5)
    assert Guidance(scale=2.0).at(0, 1) == 2.0


@pytest.mark.parametrize(
    "settings", [{"start": 0.6, "stop": 0.4}, {"scale": -1.0}, {"stop": 1.5}, {"shape": "square"}]
)
def test_bad_schedules_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Guidance(**settings)  # type: ignore[arg-type]
