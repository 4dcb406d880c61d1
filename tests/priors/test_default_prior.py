"""The prior that ships: complete, small, offline, and as good as its card says."""

import json
import socket
from pathlib import Path

import pytest
import torch

from treg_med.priors import DEFAULT_PRIOR, LatentPrior

MIB = 2**20


@pytest.fixture(scope="module")
def prior() -> LatentPrior:
    """The embedded prior, opened once with every socket blocked."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the loader reached for the network")

        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return LatentPrior.from_pretrained()


def test_files_are_small_complete_and_never_pickled() -> None:
    files = [p for p in DEFAULT_PRIOR.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 60 * MIB
    assert max(p.stat().st_size for p in files) <= 16 * MIB
    assert {p.suffix for p in files} <= {".json", ".safetensors"}
    card = json.loads((DEFAULT_PRIOR / "prior.json").read_text(encoding="utf-8"))
    listed = set(card["sha256"])
    assert listed == {p.relative_to(DEFAULT_PRIOR).as_posix() for p in files} - {"prior.json"}
    assert all({"name", "licence", "cite"} <= set(entry) for entry in card["data"])


def test_parameters_are_finite(prior: LatentPrior) -> None:
    for module in (prior.vae, prior.unet, prior.text_encoder, prior.scorer):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values())


def test_basis_is_orthonormal_so_encoding_inverts_decoding(prior: LatentPrior) -> None:
    basis = prior.vae.basis.double()
    assert (basis.T @ basis - torch.eye(len(basis), dtype=torch.float64)).abs().max() < 1e-5
    z = torch.randn(1, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (prior.encode(prior.decode(z)) - z).abs().max() < 1e-4


def test_words_stay_apart_and_none_is_unknown(prior: LatentPrior) -> None:
    texts = ["axial T1-weighted brain MRI", "axial T2-weighted brain MRI", "axial T2-FLAIR brain MRI", ""]
    for text in texts:
        assert prior.tokenizer.unk_token_id not in prior.tokenizer(text).input_ids
    states = prior.embed(texts)
    for first in range(4):
        for second in range(first):
            distance = (states[first] - states[second]).norm() / states[first].norm()
            assert distance > 0.2, (texts[first], texts[second])
    assert prior.text_warnings(texts[0]) == ()
    assert "aquarium" in prior.text_warnings("axial aquarium")[0]
    assert prior.text_warnings("contrast-enhanced T1-weighted brain MRI showing a glioma") == ()


def test_denoiser_removes_noise_from_an_image_it_can_represent(prior: LatentPrior) -> None:
    """A disc is not a brain, but whoever cannot clean it has not learnt anything."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
    disc = torch.where(rows**2 / 0.5 + columns**2 / 0.35 < 1, 0.1, -1.0)[None, None]
    with torch.no_grad():
        z = prior.encode(disc)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        for timestep in (100, 200, 400):
            alpha = prior.alphas_cumprod[timestep]
            noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
            clean = prior.predict(noisy, timestep, prior.embed("brain MRI")).clean
            kept = ((1 - alpha) / alpha).sqrt()
            assert float((clean - z).square().mean().sqrt()) < 0.75 * float(kept), timestep


def _said(prior: LatentPrior) -> dict[str, dict[str, float]]:
    return prior.card["metrics"]["by_group"]["multiple sclerosis"]  # type: ignore[no-any-return]


def test_unseen_subjects_round_trip_as_the_card_says(prior: LatentPrior, shared: Path) -> None:
    from treg_med.training.autoencoder import round_trip_psnr
    from treg_med.training.slices import CaptionedSlices

    slices = CaptionedSlices.load(shared / "slices" / "brain_mr_slices_2d.h5", "val", subjects_only="ms_").every(24)
    trained, linear = round_trip_psnr(prior.vae, slices.images.float() / 255)
    assert trained.mean() >= 39
    assert bool((trained > linear - 0.05).all()), "the trained part may not harm a slice"
    assert float(trained.mean()) == pytest.approx(_said(prior)["round_trip_psnr_db"]["mean"], abs=1.5)


def test_prior_denoises_unseen_subjects_as_its_card_says(prior: LatentPrior, shared: Path) -> None:
    from treg_med.assessment.one_step import denoising_error
    from treg_med.training.slices import CaptionedSlices

    slices = CaptionedSlices.load(shared / "slices" / "brain_mr_slices_2d.h5", "val", subjects_only="ms_").every(60)
    said = {int(t): error for t, error in _said(prior)["denoising_error_std"].items() if int(t) > 50}
    for timestep, error in denoising_error(prior, slices, tuple(said)).items():
        assert error == pytest.approx(said[timestep], rel=0.35)


def test_the_scorer_tells_contrasts_and_planes_of_phantoms_it_never_saw(prior: LatentPrior) -> None:
    from treg_med.assessment.agreement import scorer_wins
    from treg_med.assessment.slice_sets import phantom_slices

    assert prior.scorer is not None
    phantoms = phantom_slices(24, 256, 1, torch.Generator().manual_seed(77), lesion_share=0.7)
    wins = scorer_wins(prior.scorer, prior.embed, phantoms, ["contrast", "plane"])
    assert min(rate.wins for rate in wins.values()) > 0.85
