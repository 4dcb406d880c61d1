"""Adaptation on a tiny prior: what it leaves alone, what it writes, and that stopping does not change it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.priors import LatentPrior
from treg_med.priors.word_map_unet import WordMapUNet
from treg_med.training.adaptation import AdaptationSettings, adapt_prior, load_adaptation_slices
from treg_med.training.adaptation.loss import autoencoder_errors, denoiser_errors, shortened
from treg_med.training.adaptation.weights import adapted_layers, trained_weights
from treg_med.training.slices import CaptionedSlices

WEIGHTS = "pytorch_lora_weights.safetensors"
TINY: dict[str, Any] = {"steps": 4, "batch": 2, "crop": 32, "rank": 2, "warmup": 1, "precision": "float32"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every step, and measure few slices."""
    monkeypatch.setattr("treg_med.training.adaptation.run._SECONDS_BETWEEN_SAVES", -1.0)
    monkeypatch.setattr("treg_med.training.adaptation.run._TIMESTEPS", (69, 487))


@pytest.fixture
def adapt(tiny_prior_folder: Path, slice_file: Path, tmp_path: Path) -> Callable[..., dict[str, Any] | None]:
    """Adapt the tiny prior into a named folder."""

    def run(component: str, name: str, *, data: Path = slice_file, **options: Any) -> dict[str, Any] | None:
        calls = {k: options.pop(k) for k in ("seconds", "resume", "say", "progress", "images") if k in options}
        calls.setdefault("say", lambda _: None)
        settings = AdaptationSettings(**(TINY | options))
        return adapt_prior(tiny_prior_folder, data, tmp_path / name, component, settings, **calls)

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def images() -> Tensor:
    return torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- what it leaves alone and what it changes


@pytest.mark.parametrize("method", ["full", "lora"])
def test_adapted_decoder_keeps_the_latent_space_to_the_bit(
    adapt: Callable[..., dict[str, Any] | None], tiny_prior_folder: Path, tmp_path: Path, method: str
) -> None:
    card = adapt("vae", "out", method=method)
    assert card is not None and card["component"] == "vae"
    before = LatentPrior.from_pretrained(tiny_prior_folder)
    after = LatentPrior.from_pretrained(tiny_prior_folder, adapter=tmp_path / "out")
    with torch.no_grad():
        z = before.encode(images())
        assert torch.equal(after.encode(images()), z)
        assert not torch.equal(after.decode(z), before.decode(z))
        assert torch.allclose(after.encode(after.decode(z)), z, atol=1e-4)
    for name in ("mean", "basis", "deviation"):
        assert torch.equal(after.vae.get_buffer(name), before.vae.get_buffer(name))
    assert all(torch.equal(a, b) for a, b in zip(after.unet.parameters(), before.unet.parameters(), strict=True))
    expected = {"adapter.json", WEIGHTS} if method == "lora" else {
        "adapter.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    assert set(files(tmp_path / "out")) == expected


def test_decoder_of_diffusers_is_adapted_and_its_encoder_is_not(tiny_prior_folder: Path, slice_file: Path) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    torch.manual_seed(0)
    prior.vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=6, block_out_channels=(8, 8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    ).eval()  # fmt: skip
    slices = CaptionedSlices.load(slice_file, "train")
    assert "post_quant_conv" in adapted_layers(prior, "vae")
    assert not any(name.startswith(("encoder", "quant_conv")) for name in adapted_layers(prior, "vae"))
    weights = trained_weights(prior, "vae", "full", 2, torch.Generator())
    assert {name.split("/")[0] for name in weights} == {"decoder", "post_quant_conv"}
    errors = autoencoder_errors(prior, slices, AdaptationSettings(**TINY), torch.Generator().manual_seed(0))
    errors.loss.backward()
    assert errors.squares.shape == (2,)
    assert {n for n, p in prior.vae.named_parameters() if p.grad is not None} == {n.replace("/", ".") for n in weights}


def test_factors_of_the_denoiser_load_in_diffusers(
    adapt: Callable[..., dict[str, Any] | None], tiny_prior_folder: Path, tmp_path: Path
) -> None:
    adapt("unet", "out")
    with_library = WordMapUNet.from_pretrained(tiny_prior_folder / "unet")
    with_library.load_lora_adapter(tmp_path / "out", weight_name=WEIGHTS, use_safetensors=True, prefix=None)
    ours = LatentPrior.from_pretrained(tiny_prior_folder, adapter=tmp_path / "out")
    base = LatentPrior.from_pretrained(tiny_prior_folder)
    z = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = ours.embed("axial T1")
        assert torch.equal(text, base.embed("axial T1"))
        predictions = [unet(z, 300, text).sample for unet in (with_library, ours.unet, base.unet)]
    assert torch.allclose(predictions[0], predictions[1], atol=1e-5)
    assert (predictions[0] - predictions[2]).abs().max() > 1e-4
    names = {name.split(".lora_")[0] for name in load_file(tmp_path / "out" / WEIGHTS)}
    ends = {name.rsplit(".", 1)[-1] for name in names if not name.endswith("to_out.0")}
    assert ends == {"to_q", "to_k", "to_v", "conv1", "conv2", "conv_in", "conv_out"}
    assert any(name.endswith("to_out.0") for name in names)


def test_full_denoiser_trains_all_weights_but_the_word_map(
    adapt: Callable[..., dict[str, Any] | None], tiny_prior_folder: Path, tmp_path: Path
) -> None:
    adapt("unet", "out", method="full", caption_dropout=0.0)
    before = LatentPrior.from_pretrained(tiny_prior_folder)
    after = LatentPrior.from_pretrained(tiny_prior_folder, adapter=tmp_path / "out")
    pairs = zip(before.unet.named_parameters(), after.unet.parameters(), strict=True)
    kept = {name for (name, a), b in pairs if torch.equal(a, b)}
    assert kept == {name for name, _ in before.unet.named_parameters() if name.startswith("word_map.")} != set()
    assert all(torch.equal(a, b) for a, b in zip(before.vae.parameters(), after.vae.parameters(), strict=True))


def test_adaptation_learns(adapt: Callable[..., dict[str, Any] | None]) -> None:
    card = adapt("vae", "vae", method="full", steps=40, batch=4, rate=5e-3)
    assert card is not None
    assert card["after"]["round_trip_psnr_db"]["mean"] > card["before"]["round_trip_psnr_db"]["mean"] + 1
    card = adapt("unet", "unet", method="lora", steps=50, batch=4, rank=8, rate=1e-2, ema=0.8)
    assert card is not None
    # The decoder's own error is all there is at t=69 and not for the denoiser to mend.
    floor = card["before"]["denoising_error_std"]["69"] ** 2
    before, after = (card[when]["denoising_error_std"]["487"] ** 2 - floor for when in ("before", "after"))
    assert after < 0.7 * before


# --- what it minimises


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_loss_is_the_error_of_what_the_network_predicts(
    tiny_prior_folder: Path, slice_file: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    prior.prediction_type = kind
    slices = CaptionedSlices.load(slice_file, "train")
    slices = replace(slices, masks=torch.zeros_like(slices.masks))
    seen: dict[str, Any] = {}
    encode, forward = prior.encode, prior.unet.forward

    def watched_encode(image: Tensor) -> Tensor:
        seen["clean"] = encode(image)
        return seen["clean"]

    def watched_forward(noisy: Tensor, steps: Tensor, **told: Tensor) -> Any:
        seen.update(noisy=noisy, steps=steps, text=told["encoder_hidden_states"])
        seen["output"] = forward(noisy, steps, **told).sample
        return forward(noisy, steps, **told)

    monkeypatch.setattr(prior, "encode", watched_encode)
    monkeypatch.setattr(prior.unet, "forward", watched_forward)
    settings = AdaptationSettings(**(TINY | {"batch": 4}))
    errors = denoiser_errors(prior, slices, settings, 0, torch.Generator().manual_seed(3))
    alpha = prior.alphas_cumprod[seen["steps"]].view(-1, 1, 1, 1)
    noise = (seen["noisy"] - alpha.sqrt() * seen["clean"]) / (1 - alpha).sqrt()
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * seen["clean"]
    target = {"epsilon": noise, "v_prediction": velocity, "sample": seen["clean"]}[kind]
    expected = (seen["output"] - target).square().mean((1, 2, 3)).detach()
    assert torch.allclose(errors.squares, expected, rtol=1e-3)
    assert float(errors.loss.detach()) == pytest.approx(float(expected.mean()), rel=1e-3)


def test_lesions_weigh_more(tiny_prior_folder: Path, slice_file: Path) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    slices = CaptionedSlices.load(slice_file, "train")

    def loss(**options: float) -> float:
        settings = AdaptationSettings(**TINY, **options)
        errors = denoiser_errors(prior, slices, settings, 0, torch.Generator().manual_seed(0))
        return float(errors.loss.detach())

    everywhere = replace(slices, masks=torch.ones_like(slices.masks))
    assert loss(lesion_weight=4.0) > 1.001 * loss(lesion_weight=0.0)
    plain = loss(lesion_weight=0.0)
    slices = everywhere
    assert 1.5 * plain < loss(lesion_weight=1.0) <= 2.001 * plain


def test_captions_come_from_the_data_follow_the_mirror_and_are_dropped(
    tiny_prior_folder: Path, slice_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    slices = CaptionedSlices.load(slice_file, "train")
    slices = replace(slices, captions=["knee, left side"] * len(slices))
    asked: list[str] = []
    embed = prior.embed
    monkeypatch.setattr(prior, "embed", lambda texts: (asked.extend(texts), embed(texts))[1])
    for seed in range(8):
        settings = AdaptationSettings(**(TINY | {"batch": 8, "caption_dropout": 0.25, "crop_share": 1.0}))
        denoiser_errors(prior, slices, settings, 0, torch.Generator().manual_seed(seed))
    assert set(asked) == {"", "knee", "knee, left side", "knee, right side"}
    assert 6 <= asked.count("") <= 28
    rng = random.Random(0)  # noqa: S311
    texts = [shortened("Axial CT of the chest, woman; no contrast.", rng) for _ in range(200)]
    assert set(texts) == {"Axial CT of the chest", "Axial CT of the chest, woman; no contrast."}
    assert 30 < texts.count("Axial CT of the chest") < 90


# --- stopping and going on


@pytest.mark.parametrize(("component", "method"), [("unet", "lora"), ("vae", "full")])
def test_stopped_run_equals_an_uninterrupted_one(
    adapt: Callable[..., dict[str, Any] | None], tmp_path: Path, component: str, method: str
) -> None:
    def interrupt(done: int, _total: int, _text: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    lines: list[str] = []
    adapt(component, "whole", method=method)
    torch.manual_seed(99)  # nothing may hang on the global generator
    with pytest.raises(KeyboardInterrupt):
        adapt(component, "broken", method=method, progress=interrupt)
    assert not (tmp_path / "broken").exists()
    torch.manual_seed(7)
    adapt(component, "broken", method=method, say=lines.append)
    assert "resumed at step 2" in lines or "resumed at step 3" in lines
    one, two = (load_file(next((tmp_path / folder).rglob("*.safetensors"))) for folder in ("whole", "broken"))
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    cards = [json.loads((tmp_path / folder / "adapter.json").read_text()) for folder in ("whole", "broken")]
    assert cards[0]["after"] == cards[1]["after"] and cards[0]["before"] == cards[1]["before"]


def test_time_limit_stops_without_half_an_adapter_and_the_same_call_goes_on(
    adapt: Callable[..., dict[str, Any] | None], tmp_path: Path
) -> None:
    adapt("vae", "whole", method="full")
    calls = 0
    while adapt("vae", "out", method="full", seconds=1e-6 if calls == 0 else 0.3) is None:
        assert not (tmp_path / "out").exists() and (tmp_path / "out.training" / "state.safetensors").is_file()
        calls += 1
        assert calls < 50
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert calls >= 1 and files(tmp_path / "out")[weights] == files(tmp_path / "whole")[weights]
    assert not (tmp_path / "out.training" / "state.safetensors").exists()


def test_finished_adapter_is_kept_until_something_else_is_asked_for(
    adapt: Callable[..., dict[str, Any] | None], tmp_path: Path
) -> None:
    steps: list[int] = []
    counted = {"progress": lambda done, _total, _text: steps.append(done)}
    first = adapt("vae", "out", method="full", **counted)
    assert len(steps) == 4
    written = files(tmp_path / "out")
    assert adapt("vae", "out", method="full", **counted) == first
    assert len(steps) == 4 and files(tmp_path / "out") == written
    assert adapt("vae", "out", method="full", resume=False, **counted) is not None and len(steps) == 8
    assert adapt("vae", "out", method="full", seed=1, **counted) != first and len(steps) == 12
    assert files(tmp_path / "out") != written


def test_unfinished_run_is_neither_changed_nor_thrown_away_by_accident(
    adapt: Callable[..., dict[str, Any] | None], tmp_path: Path
) -> None:
    assert adapt("vae", "out", method="full", seconds=0.0) is None
    with pytest.raises(ConfigError, match=r"settings.*--no-resume"):
        adapt("vae", "out", method="full", batch=3)
    with pytest.raises(ConfigError, match="component"):
        adapt("unet", "out", method="full")
    (tmp_path / "out.training" / "state.safetensors").write_bytes(b"half")
    with pytest.raises(FormatError, match="--no-resume"):
        adapt("vae", "out", method="full")
    assert adapt("vae", "out", method="full", batch=3, resume=False) is not None


# --- what it takes and writes


def test_card_says_what_was_done(adapt: Callable[..., dict[str, Any] | None], tmp_path: Path) -> None:
    card = adapt("unet", "out")
    assert card == json.loads((tmp_path / "out" / "adapter.json").read_text())
    assert card["rank"] == card["alpha"] == 2 and card["steps"] == 4
    assert card["data"] == {"file": "slices.h5", "images": ["images"], "train_slices": 10, "subjects": 2}
    assert card["measured_on"] == {"split": "val", "slices": 2}
    assert set(card["before"]["denoising_error_std"]) == {"69", "487"} and card["after"]["round_trip_psnr_db"]["worst"]
    assert card["settings"]["rate"] > 0 and "lesions" in card["words"] and "2" not in card["words"]
    assert str(tmp_path) not in json.dumps(card)
    assert set(files(tmp_path / "out")) == {"adapter.json", WEIGHTS}
    header = (tmp_path / "out.training" / "journal.jsonl").read_text().splitlines()
    assert json.loads(header[0])["samples"] == 2


def test_what_is_in_the_way_is_kept(adapt: Callable[..., dict[str, Any] | None], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ResourceError, match="something else"):
        adapt("vae", "out")
    assert files(tmp_path / "out") == {"notes.txt": b"mine"} and not (tmp_path / "out.training").exists()
    with pytest.raises(ConfigError, match="vae or unet"):
        adapt("text", "new")


def test_odd_sizes_are_padded_and_several_windows_are_mixed(slice_file: Path, tmp_path: Path) -> None:
    import h5py

    copy = tmp_path / "odd.h5"
    with h5py.File(slice_file) as source, h5py.File(copy, "w") as target:
        for name in source:
            if name not in ("images", "lesion_masks"):
                source.copy(name, target)
        target["images"] = source["images"][:, 3:, :61]
        target["images_soft"] = 255 - source["images"][:, 3:, :61]
    train, validation = load_adaptation_slices(copy, ("images", "images_soft"), 8, tmp_path, print)
    assert train.images.shape == (20, 1, 64, 64) and len(validation) == 4
    assert train.images[:, :, :, 62:].max() == 0 and train.images[10:, :, 1:62, 1:62].min() > 0
    with pytest.raises(FormatError, match="images_bone"):
        load_adaptation_slices(copy, ("images_bone",), 8, tmp_path, print)


def test_folder_of_scans_is_prepared(slice_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def prepare(source: Path, target: Path, **_: Any) -> Path:
        asked.extend((source, target))
        return slice_file

    monkeypatch.setattr("treg_med.training.prepare.prepare_slices", prepare)
    (tmp_path / "scans").mkdir()
    train, _ = load_adaptation_slices(tmp_path / "scans", ("images",), 8, tmp_path / "work", print)
    assert len(train) == 10 and asked == [tmp_path / "scans", tmp_path / "work" / "scans.h5"]


def test_network_of_another_library_is_refused(tiny_prior_folder: Path) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    prior.unet = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(ConfigError, match="layout of diffusers"):
        trained_weights(prior, "unet", "full", 2, torch.Generator())


def test_missing_packages_are_named_before_any_work(
    adapt: Callable[..., dict[str, Any] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r"accelerate.*treg-med\[train\]"):
        adapt("unet", "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(ResourceError, match=r"peft.*treg-med\[train\]"):
        adapt("unet", "out")
