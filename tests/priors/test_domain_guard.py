"""The number that says how far an image lies from a prior's domain, and the way of its warning to a user."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import treg_med as tm
from treg_med.assessment.slice_sets import phantom_slices
from treg_med.cli import app
from treg_med.data import simulate_scan
from treg_med.data.phantoms import phantom_volume
from treg_med.errors import FormatError
from treg_med.priors import GaussianPrior, LatentPrior
from treg_med.priors.adapter_files import AdapterFolder
from treg_med.priors.adapters import _note
from treg_med.priors.base import Prediction
from treg_med.priors.domain_guard import DOMAIN, DomainGuard, calibrate_domain, domain_features
from treg_med.runs.batching import AdaptiveBatch

SIZE = 64
LEVELS = (69, 282, 838)


@pytest.fixture(scope="module")
def prior(tiny_prior_folder: Path) -> LatentPrior:
    return LatentPrior.from_pretrained(tiny_prior_folder)


@pytest.fixture(scope="module")
def slices() -> Any:
    return phantom_slices(60, SIZE, 8, torch.Generator().manual_seed(1), 0.5)


@pytest.fixture(scope="module")
def entry(prior: LatentPrior, slices: Any) -> dict[str, Any]:
    found = calibrate_domain(prior, slices)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def guarded(tiny_prior_folder: Path, entry: dict[str, Any]) -> LatentPrior:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    prior.card = {DOMAIN: json.loads(json.dumps(entry))}
    return prior


def images(count: int, seed: int) -> torch.Tensor:
    drawn = phantom_slices(count, SIZE, 8, torch.Generator().manual_seed(seed), 0.5)
    return drawn.images.float() / 127.5 - 1


def distances(prior: LatentPrior, shown: torch.Tensor) -> torch.Tensor:
    guard = DomainGuard.of(prior)
    assert guard is not None
    return guard.distance(prior, shown)


def test_slices_like_those_of_the_calibration_are_near(guarded: LatentPrior, entry: dict[str, Any]) -> None:
    found = distances(guarded, images(40, 7))
    assert float((found > 1).double().mean()) <= 0.05
    assert 0.1 < float(found.median()) < 0.9
    assert entry["slices"] == 60 and entry["levels"] == list(LEVELS)
    assert list(entry["quantiles"]) == ["0.5", "0.9", "0.98", "1.0"]
    assert entry["quantiles"]["0.98"] == pytest.approx(1 / 1.1, abs=1e-3)


@pytest.mark.parametrize("kind", ["noise", "flat", "crop", "tiny", "inverted"])
def test_what_is_none_of_them_is_far(guarded: LatentPrior, kind: str) -> None:
    near = images(4, 3)
    generator = torch.Generator().manual_seed(0)
    strange = {
        "noise": 2 * torch.rand(near.shape, generator=generator) - 1,
        "flat": torch.ones_like(near),
        "crop": near[..., 24:40, 24:40],
        "tiny": torch.nn.functional.avg_pool2d(near, 8),
        "inverted": -near,
    }[kind]
    assert float(distances(guarded, strange).min()) > 1


def test_features_are_as_written(prior: LatentPrior) -> None:
    shown = images(1, 0)
    latent = prior.encode(shown)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    a = prior.alphas_cumprod[282]
    with torch.no_grad():
        clean = prior.predict(a.sqrt() * latent + (1 - a).sqrt() * noise, 282, prior.embed("")).clean
    windows = torch.nn.functional.pad(latent, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    variance = windows.flatten(-2).var(-1, correction=0)
    spread = (1 - a) / a
    reference = (variance * spread / (variance + spread)).mean().log()
    features = domain_features(prior, shown, (282,), torch.Generator().manual_seed(0))[0]
    assert float(features[0]) == pytest.approx(float((clean - latent).square().mean().log() - reference), abs=1e-4)
    assert float(features[1]) == pytest.approx(float(((shown > -0.8).sum() + 1).log()), abs=1e-5)
    assert float(features[2]) == 0
    assert domain_features(prior, torch.ones(1, 1, 10, 20), LEVELS).shape == (1, 7)


def test_neighbours_and_texts_change_nothing(guarded: LatentPrior) -> None:
    shown = images(3, 5)
    together = distances(guarded, shown)
    alone = torch.cat([distances(guarded, one[None]) for one in shown])
    assert together.tolist() == pytest.approx(alone.tolist(), rel=1e-3)
    assert torch.equal(distances(guarded, shown), together), "the noise is fixed"


def test_background_around_the_object_changes_no_reference(prior: LatentPrior) -> None:
    shown = torch.nn.functional.pad(images(4, 9).clamp_min(-0.9).sub(0.1).clamp_min(-1), [8] * 4, value=-1.0)
    padded = torch.nn.functional.pad(shown, (8, 8, 16, 0), value=-1.0)
    alone, wider = domain_features(prior, shown, LEVELS), domain_features(prior, padded, LEVELS)
    assert torch.allclose(alone[:, 3:], wider[:, 3:], atol=1e-3)


class Counted(LatentPrior):
    """Counts the rows that its denoiser sees."""

    rows = 0

    def predict(self, latent: torch.Tensor, *args: Any, **kwargs: Any) -> Prediction:
        self.rows += len(latent)
        return super().predict(latent, *args, **kwargs)


def test_a_slice_costs_three_evaluations_and_a_calibration_at_most_120_slices(
    tiny_prior_folder: Path, entry: dict[str, Any]
) -> None:
    prior = Counted.from_pretrained(tiny_prior_folder)
    prior.card = {DOMAIN: entry}
    distances(prior, images(2, 0))
    assert prior.rows == 6
    prior.rows = 0
    many = calibrate_domain(prior, phantom_slices(130, 16, 8, torch.Generator().manual_seed(0), 0.5))
    assert prior.rows == 360 and many is not None and many["slices"] == 120


def test_few_slices_make_no_guard(prior: LatentPrior, slices: Any) -> None:
    assert calibrate_domain(prior, slices.take(range(20))) is None


def test_priors_without_an_entry_have_no_guard(prior: LatentPrior) -> None:
    gaussian = GaussianPrior({"": torch.zeros(4, 4)}, torch.eye(16))
    assert DomainGuard.of(prior) is None and DomainGuard.of(gaussian) is None
    result = tm.reconstruct(measurement(), solver="treg", prior=prior, steps=1)
    assert result.domain_distance is None and "domain" not in repr(result)
    assert not any("trained on" in warning for warning in result.warnings)


def test_a_broken_entry_says_so(tiny_prior_folder: Path, entry: dict[str, Any]) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    wrong: list[Any] = [
        [],
        {**entry, "mean": entry["mean"][:3]},
        {**entry, "levels": [69, 282, 5000]},
        {**entry, "limit": 0},
        {**entry, "covariance": [[-v for v in row] for row in entry["covariance"]]},
        {key: value for key, value in entry.items() if key != "limit"},
    ]
    for broken in wrong:
        prior.card = {DOMAIN: broken}
        with pytest.raises(FormatError, match="export the prior again"):
            DomainGuard.of(prior)


def test_an_adapter_takes_the_guard_off(guarded: LatentPrior, tiny_prior_folder: Path) -> None:
    adapted = LatentPrior.from_pretrained(tiny_prior_folder)
    adapted.card = guarded.card
    _note(adapted, AdapterFolder("knees", "unet", "whole", {}, None, {}, {}), "", ())
    assert DOMAIN not in adapted.card and DOMAIN in guarded.card


def measurement(seed: int = 0) -> tm.Measurement:
    """Noise in place of a head."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(SIZE, SIZE, generator=generator) + 0.1
    operator = tm.operators.CartesianMRI(torch.ones(SIZE, SIZE))
    return tm.Measurement(y=operator(image), operator=operator, noise_std=0.02)


def test_a_result_far_away_is_warned_of_and_a_control_is_not(guarded: LatentPrior) -> None:
    result = tm.reconstruct(measurement(), solver="treg", prior=guarded, steps=2)
    assert result.domain_distance is not None and result.domain_distance > 1
    (warning,) = (w for w in result.warnings if "outside what the prior was trained on" in w)
    assert "--solver tv " in warning
    assert "domain distance" in repr(result)
    control = tm.reconstruct(measurement(), solver="treg", prior=guarded, steps=2, use_prior=False)
    assert control.domain_distance is None and control.nfe == 0
    plain = LatentPrior.from_pretrained(guarded.source)
    without = tm.reconstruct(measurement(), solver="treg", prior=plain, steps=2)
    assert torch.equal(result.image, without.image), "the guard only looks"
    assert result.nfe == without.nfe + 3
    mean = tm.reconstruct(measurement(), solver="treg", prior=guarded, steps=1, samples=2)
    assert mean.domain_distance is not None
    assert sum("outside what" in w for w in mean.warnings) == 1


def test_slices_in_flight_together_get_the_same_numbers(guarded: LatentPrior) -> None:
    def numbers(size: int) -> list[float | None]:
        batch = AdaptiveBatch(size, network_batch=4)
        solved = batch.run(
            [0, 1, 2], lambda k, given: tm.reconstruct(measurement(k), solver="treg", prior=given, steps=1), guarded
        )
        return [result.domain_distance for result in solved if isinstance(result, tm.Reconstruction)]

    assert len(numbers(3)) == 3 and numbers(3) == numbers(1)


def test_number_and_warning_reach_the_user(tiny_prior_folder: Path, entry: dict[str, Any], tmp_path: Path) -> None:
    prior = tmp_path / "prior"
    shutil.copytree(tiny_prior_folder, prior)
    (prior / "prior.json").write_text(json.dumps({DOMAIN: entry}))
    scan = simulate_scan(phantom_volume((24, 24), 2), tmp_path / "scan.h5", acceleration=2.0)
    arguments = ["reconstruct", scan, "-o", tmp_path / "out", "--prior", prior, "--steps", 1]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "outside what the prior was trained on" in result.stderr and "--solver tv" in result.stderr
    assert result.stderr.count("outside what") == 1, "once for all slices"
    assert "domain distance" in result.stdout
    folder = tmp_path / "out/sub-scan/anat"
    facts = json.loads((folder / "sub-scan_rec-treg_image.json").read_text())
    assert facts["domain_distance"]["max"] > 1
    assert all(one["domain_distance"] > 1 for one in facts["slices"])
    assert any("outside what" in warning for warning in facts["warnings"])
    sidecars = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    told = {sidecar["method"]["label"]: "domain_distance" in sidecar for sidecar in sidecars}
    assert told == {"tv": False, "treg-control": False, "treg": True}
    (page,) = (tmp_path / "out").rglob("*.html")
    assert "outside what the prior was trained on" in page.read_text() and "Domain distance of treg" in page.read_text()
    again = CliRunner().invoke(app, [str(a) for a in (*arguments, "--overwrite", "--json")])
    (volume,) = json.loads(again.stdout)["volumes"]
    assert volume["results"][-1]["domain_distance"] == facts["domain_distance"]["max"]
