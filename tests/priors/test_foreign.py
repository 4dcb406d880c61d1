"""Other people's priors: opened from their folders, used in a reconstruction, refused with the fix."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.priors import foreign_folders as build
from treg_med import reconstruct
from treg_med.data.records import Measurement, Reconstruction
from treg_med.errors import ConfigError, FormatError, ResourceError, TregMedError, UnsafeFileError
from treg_med.operators import CartesianMRI, complex_gaussian_noise, random_mask
from treg_med.priors import LatentPrior, Prior
from treg_med.priors.conditioning import VectorConditioning
from treg_med.priors.noise_schedule import load_schedule
from treg_med.solvers import get_solver
from treg_med.solvers.total_variation import TotalVariation

NOISE = 0.02
MAISI = "monai.apps.generation.maisi.networks.autoencoderkl_maisi"


def _reconstruct(
    prior: LatentPrior | Path, text: str, shape: tuple[int, int] = (30, 21), **settings: Any
) -> Reconstruction:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(shape[0], 1, generator=generator) < 0.5).expand(shape).clone()
    mask[shape[0] // 2 - 4 : shape[0] // 2 + 4] = True
    operator = CartesianMRI(mask)
    image = torch.zeros(shape, dtype=torch.complex64)
    image[6:-6, 4:-4] = 1
    noise = complex_gaussian_noise(operator.range_shape, NOISE, generator=generator)
    measurement = Measurement(y=operator(image) + noise * operator.mask, operator=operator, noise_std=NOISE)
    return reconstruct(measurement, text=text, prior=prior, device="cpu", **{"steps": 2, **settings})


def _latent(prior: LatentPrior, side: int = 8) -> torch.Tensor:
    channels = prior.unet.config["in_channels"]
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def sd(sd_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(sd_folder, tmp_path / "sd"))


@pytest.fixture(scope="module")
def vector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vector")
    build.monai_bundle(folder, folder / "canary", diffusion_def=build.DENOISER | build.VECTOR)
    return folder


@pytest.fixture
def bundle(vector_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vector_folder, tmp_path / "bundle"))


# Stable Diffusion layout


def test_stable_diffusion_folder_reconstructs(sd_folder: Path) -> None:
    prior = LatentPrior.from_pretrained(sd_folder)
    assert isinstance(prior, Prior)
    assert (prior.max_tokens, prior.vae_factor, prior.image_multiple, prior.prediction_type) == (77, 4, 8, "epsilon")
    # The tokenizer is Stable Diffusion's: byte pairs with word ends, not single unknown tokens.
    assert len(set(prior.tokenizer("axial").input_ids)) == 6
    result = _reconstruct(sd_folder, "axial brain")
    assert result.image.shape == (30, 21) and result.residual < 1.1 and result.warnings == ()
    z = _latent(prior)
    with torch.no_grad():
        said, other = (prior.predict(z, 500, prior.embed([text, ""])).noise for text in ("axial", "sagittal"))
    assert not torch.allclose(said[0], other[0]) and torch.equal(said[1], other[1])


@pytest.mark.parametrize("name", ["treg", "diffpir", "psld"])
def test_with_an_encoder_that_is_not_linear_an_item_does_not_depend_on_its_neighbour(
    sd_folder: Path, name: str
) -> None:
    prior = LatentPrior.from_pretrained(sd_folder)
    generator = torch.Generator().manual_seed(0)
    operator = CartesianMRI(random_mask((24, 32), 2.0, 0.2, generator=generator).mask)
    images = torch.stack([torch.rand(24, 32, generator=generator), torch.linspace(0, 0.2, 32).expand(24, 32)])
    y = operator(images.to(torch.complex64))
    solver = get_solver(name, steps=4)

    def solve(data: torch.Tensor) -> torch.Tensor:
        measurement = Measurement(y=data, operator=operator, noise_std=0.01)
        return solver(measurement, prior=prior, text="axial", generator=torch.Generator().manual_seed(1)).image

    together = solve(y)
    for item, alone in zip(together, y, strict=True):
        assert torch.linalg.vector_norm(item - solve(alone)) < 1e-4 * torch.linalg.vector_norm(item)


def test_prediction_is_that_of_the_components(sd_folder: Path) -> None:
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    prior = LatentPrior.from_pretrained(sd_folder)
    vae = AutoencoderKL.from_pretrained(sd_folder / "vae")
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet")
    alphas = PNDMScheduler.from_pretrained(sd_folder / "scheduler").alphas_cumprod
    assert torch.allclose(prior.alphas_cumprod, alphas)
    x = torch.rand(1, 1, 16, 24) * 2 - 1
    with torch.no_grad():
        z = vae.encode(x.expand(-1, 3, -1, -1)).latent_dist.mode() * 0.18215
        assert torch.allclose(prior.encode(x), z, atol=1e-5)
        text = prior.embed("axial")
        assert torch.allclose(prior.predict(z, 300, text).noise, unet(z, 300, text).sample, atol=1e-5)


def test_v_prediction_of_another_text_width(sd: Path) -> None:
    shutil.rmtree(sd / "text_encoder")
    shutil.rmtree(sd / "tokenizer")
    build.text_parts(sd, width=32)
    build.tiny_unet(cross_attention_dim=32).save_pretrained(sd / "unet")
    build.edit_json(sd / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    prior = LatentPrior.from_pretrained(sd)
    assert prior.prediction_type == "v_prediction" and prior.embed("").shape == (1, 77, 32)
    assert _reconstruct(prior, "axial").residual < 1.1


def test_missing_scaling_factor_is_that_of_the_class_or_of_the_caller(sd: Path) -> None:
    build.edit_json(sd / "vae" / "config.json", scaling_factor=None)
    assert LatentPrior.from_pretrained(sd).vae.config["scaling_factor"] == 0.18215
    x = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        plain = LatentPrior.from_pretrained(sd).encode(x)
        given = LatentPrior.from_pretrained(sd, scaling_factor=2.0, shift_factor=0.5)
        assert torch.allclose(given.encode(x), (plain / 0.18215 - 0.5) * 2, atol=1e-4)
        assert torch.allclose(given.decode(given.encode(x)), LatentPrior.from_pretrained(sd).decode(plain), atol=1e-4)
    with pytest.raises(ConfigError, match="scaling_factor"):
        LatentPrior.from_pretrained(sd, scaling_factor=0.0)


def test_null_scaling_factor_is_asked_for(sd: Path) -> None:
    config = json.loads((sd / "vae" / "config.json").read_text()) | {"scaling_factor": None}
    (sd / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="scaling_factor=.*prior.json"):
        LatentPrior.from_pretrained(sd)
    (sd / "prior.json").write_text(json.dumps({"scaling_factor": 0.7}))
    assert LatentPrior.from_pretrained(sd).vae.config["scaling_factor"] == 0.7


def test_standardised_latents_follow_the_diffusers_convention(sd: Path) -> None:
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    x = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        raw = LatentPrior.from_pretrained(sd, scaling_factor=1.0).encode(x)
        build.edit_json(sd / "vae" / "config.json", latents_mean=mean, latents_std=std, scaling_factor=0.5)
        prior = LatentPrior.from_pretrained(sd)
        expected = (raw - torch.tensor(mean).view(1, 4, 1, 1)) * 0.5 / torch.tensor(std).view(1, 4, 1, 1)
        assert torch.allclose(prior.encode(x), expected, atol=1e-5)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
def test_half_precision_variant(sd_folder: Path, tmp_path: Path, shards: dict[str, str]) -> None:
    folder = build.stable_diffusion(tmp_path / "half", variant="fp16", **shards)
    text = folder / "text_encoder" / "model.safetensors"
    text.rename(text.with_name("model.fp16.safetensors"))
    assert (len(list((folder / "unet").glob("*.fp16*.safetensors"))) > 1) == bool(shards)
    x = torch.rand(1, 1, 16, 16)
    opened, whole = LatentPrior.from_pretrained(folder), LatentPrior.from_pretrained(sd_folder)
    with torch.no_grad():
        assert torch.allclose(opened.encode(x), whole.encode(x))
    half = LatentPrior.from_pretrained(folder, dtype=torch.float16)
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)  # force_upcast


def test_other_subfolder_names(sd: Path) -> None:
    names = {
        "vae": "first_stage",
        "unet": "denoiser",
        "scheduler": "noise",
        "text_encoder": "words",
        "tokenizer": "pieces",
    }
    for role, name in names.items():
        (sd / role).rename(sd / name)
    assert _reconstruct(LatentPrior.from_pretrained(sd), "axial").residual < 1.1
    shutil.copytree(sd / "denoiser", sd / "denoiser_ema")
    with pytest.raises(ConfigError, match=r"denoiser, denoiser_ema; pass subfolders"):
        LatentPrior.from_pretrained(sd)
    assert LatentPrior.from_pretrained(sd, subfolders={"unet": "denoiser_ema"}).max_tokens == 77
    (sd / "prior.json").write_text(json.dumps({"subfolders": {"unet": "denoiser"}}))
    assert LatentPrior.from_pretrained(sd).max_tokens == 77


@pytest.mark.parametrize(
    ("subfolders", "error"),
    [
        ({"unet": "none"}, ResourceError),
        ({"unet": "../elsewhere"}, UnsafeFileError),
        ({"encoder": "vae"}, ConfigError),
        ({"unet": 3}, ConfigError),
        ({"unet": "vae"}, ConfigError),
    ],
)
def test_subfolders_that_cannot_be(sd_folder: Path, subfolders: Any, error: type[TregMedError]) -> None:
    with pytest.raises(error, match="expected .* got"):
        LatentPrior.from_pretrained(sd_folder, subfolders=subfolders)


def test_folder_without_index_and_with_parts_nobody_needs(sd: Path) -> None:
    (sd / "model_index.json").unlink()
    (sd / "safety_checker").mkdir()
    config = {"architectures": ["StableDiffusionSafetyChecker"], "model_type": "clip"}
    (sd / "safety_checker" / "config.json").write_text(json.dumps(config))
    (sd / "safety_checker" / "pytorch_model.bin").write_bytes(b"never read")
    (sd / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never read")
    assert LatentPrior.from_pretrained(sd).max_tokens == 77


@pytest.mark.parametrize("attention", [True, False])
def test_unconditional_folder_runs_and_says_that_words_do_nothing(sd: Path, attention: bool) -> None:
    from diffusers import UNet2DModel

    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(sd / name)
    with pytest.raises(ResourceError, match="text_encoder"):
        LatentPrior.from_pretrained(sd)
    build.edit_json(sd / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    if not attention:
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        UNet2DModel(
            in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks
        ).save_pretrained(sd / "unet")
    prior = LatentPrior.from_pretrained(sd)
    assert prior.embed("").shape[:2] == (1, 1) and prior.text_warnings("") == () and prior.max_tokens == 0
    silent, said = _reconstruct(prior, ""), _reconstruct(prior, "axial brain")
    assert torch.equal(silent.image, said.image)
    assert silent.warnings == () and "no effect" in said.warnings[0]


@pytest.mark.parametrize("name", ["text_encoder", "tokenizer"])
def test_half_of_the_text_parts(sd: Path, name: str) -> None:
    (sd / "model_index.json").unlink()
    shutil.rmtree(sd / name)
    with pytest.raises(ResourceError, match=f"expected the component {name!r}"):
        LatentPrior.from_pretrained(sd)


@pytest.mark.parametrize(
    "name",
    ["DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "HeunDiscrete", "LCM"],
)
def test_schedule_of_any_sampler(name: str, tmp_path: Path) -> None:
    import diffusers

    original = getattr(diffusers, f"{name}Scheduler")(prediction_type="v_prediction", num_train_timesteps=400)
    original.save_pretrained(tmp_path)
    # An old file that does not name every field leaves it to the class, whose defaults differ.
    build.edit_json(tmp_path / "scheduler_config.json", beta_start=None, beta_end=None, beta_schedule=None)
    schedule = load_schedule(tmp_path)
    assert torch.allclose(schedule.alphas_cumprod, original.alphas_cumprod.float())
    assert len(schedule.alphas_cumprod) == 400 and schedule.config["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, ConfigError),
        ({"_class_name": "EDMEulerScheduler"}, ConfigError),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, ConfigError),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, ConfigError),
        ({"_class_name": "StableDiffusionPipeline"}, ConfigError),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, ConfigError),
        ({"_class_name": "DDPMScheduler", "beta_start": "small"}, FormatError),
    ],
)
def test_schedules_that_are_refused(tmp_path: Path, config: dict[str, Any], error: type[TregMedError]) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(error, match="expected .* got"):
        load_schedule(tmp_path)


# What does not fit together


@pytest.mark.parametrize(
    ("vae", "unet", "message"),
    [
        ({"latent_channels": 16}, {}, r"in_channels 4 and latent_channels 16"),
        ({}, {"in_channels": 9}, r"in_channels 9 and latent_channels 4"),
        ({}, {"out_channels": 8}, r"out_channels 8 and latent_channels 4"),
        ({}, {"cross_attention_dim": 40}, r"hidden_size 24 and cross_attention_dim 40"),
        ({"in_channels": 2, "out_channels": 2}, {}, r"in_channels 2 and out_channels 2"),
        ({"in_channels": 1}, {}, r"in_channels 1 and out_channels 3"),
        ({}, {"num_class_embeds": 5}, r"num_class_embeds 5"),
    ],
)
def test_components_that_do_not_fit(sd: Path, vae: dict[str, Any], unet: dict[str, Any], message: str) -> None:
    if vae:
        build.tiny_vae(**vae).save_pretrained(sd / "vae")
    if unet:
        build.tiny_unet(**unet).save_pretrained(sd / "unet")
    with pytest.raises((FormatError, ConfigError), match=message):
        LatentPrior.from_pretrained(sd)


def test_one_channel_autoencoder_of_sixteen_latents(sd: Path) -> None:
    changed = {"in_channels": 1, "out_channels": 1, "latent_channels": 16, "scaling_factor": 1.003}
    build.tiny_vae(**changed).save_pretrained(sd / "vae")
    build.tiny_unet(in_channels=16, out_channels=16).save_pretrained(sd / "unet")
    assert _reconstruct(LatentPrior.from_pretrained(sd), "axial").residual < 1.1


def test_classes_are_never_looked_up_by_name_alone(sd: Path) -> None:
    build.edit_json(sd / "vae" / "config.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(ConfigError, match="_class_name AutoencoderKL.*StableDiffusionPipeline"):
        LatentPrior.from_pretrained(sd)


# Damaged folders


def _cut(sd: Path) -> None:
    weights = sd / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _garbage(sd: Path) -> None:
    (sd / "text_encoder" / "model.safetensors").write_bytes(b"\x00" * 64)


def _gap(sd: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = sd / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["mid_block.resnets.0.conv1.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})


def _shard(sd: Path) -> None:
    build.tiny_unet().save_pretrained(sd / "unet", max_shard_size="20KB")
    (sd / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    sorted((sd / "unet").glob("*-of-*.safetensors"))[0].unlink()


def _cut_shard(sd: Path) -> None:
    build.tiny_unet().save_pretrained(sd / "unet", max_shard_size="20KB")
    (sd / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    shard = sorted((sd / "unet").glob("*-of-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])


def _index_gone(sd: Path) -> None:
    _shard(sd)
    next((sd / "unet").glob("*.index.json")).unlink()


def _index_elsewhere(sd: Path) -> None:
    _shard(sd)
    index = next((sd / "unet").glob("*.index.json"))
    index.write_text(json.dumps({"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}))


def _index_broken(sd: Path) -> None:
    _shard(sd)
    next((sd / "unet").glob("*.index.json")).write_text("{")


def _pickled(sd: Path, suffix: str = ".bin") -> None:
    weights = sd / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(suffix))


def _renamed(sd: Path) -> None:
    weights = sd / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("unet.safetensors"))


def _empty(sd: Path) -> None:
    (sd / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _no_config(sd: Path) -> None:
    (sd / "unet" / "config.json").unlink()


def _bad_config(sd: Path) -> None:
    build.edit_json(sd / "unet" / "config.json", block_out_channels="many")


def _no_tokens(sd: Path) -> None:
    (sd / "tokenizer" / "vocab.json").write_text("[")


def _no_denoiser(sd: Path) -> None:
    (sd / "unet").rename(sd / "transformer")
    build.edit_json(sd / "transformer" / "config.json", _class_name="SD3Transformer2DModel")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_cut, FormatError, r"unet/diffusion_pytorch_model.safetensors, which is cut.*copy the prior"),
        (_garbage, FormatError, r"text_encoder/model.safetensors, which is cut.*copy the prior"),
        (_gap, FormatError, r"none for mid_block.resnets.0.conv1.weight .*copy the prior"),
        (_shard, ResourceError, r"expected the shard .*-00001-of-.*copy the prior"),
        (_cut_shard, FormatError, r"-of-.*which is cut.*copy the prior"),
        (_index_gone, ResourceError, r"expected the index.*copy the prior"),
        (_index_elsewhere, UnsafeFileError, r"\.\./vae"),
        (_index_broken, FormatError, r"weight_map.*copy the prior"),
        (_pickled, UnsafeFileError, r"\.bin.*convert it to safetensors.*Bring your own prior"),
        (partial(_pickled, suffix=".pt"), UnsafeFileError, r"\.pt.*convert it to safetensors"),
        (partial(_pickled, suffix=".ckpt"), UnsafeFileError, r"\.ckpt.*convert it to safetensors"),
        (partial(_pickled, suffix=".pth"), UnsafeFileError, r"\.pth.*convert it to safetensors"),
        (_renamed, FormatError, r"unet.safetensors; rename"),
        (_empty, ResourceError, r"no weights; copy the prior"),
        (_no_config, FormatError, r"config.json"),
        (_bad_config, FormatError, r"readable component in unet/"),
        (_no_tokens, FormatError, r"readable component in tokenizer/"),
        (_no_denoiser, ResourceError, r"'unet'.*transformer/ \(SD3Transformer2DModel\)"),
    ],
)
def test_damaged_folder(sd: Path, spoil: Any, error: type[TregMedError], message: str) -> None:
    spoil(sd)
    with pytest.raises(error, match=message):
        LatentPrior.from_pretrained(sd)


def test_single_files(tmp_path: Path) -> None:
    for name, error in (("model.ckpt", UnsafeFileError), ("model.safetensors", FormatError)):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(error, match="expected"):
            LatentPrior.from_pretrained(tmp_path / name)


# Sizes


def test_prior_for_64_pixels_reconstructs_513_by_401(sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The classical start and the data steps are not what is tested, and take most of the time at this size.
    short = partial(TotalVariation, max_iterations=1, phase_rounds=0)
    monkeypatch.setattr("treg_med.solvers.treg.TotalVariation", short)
    prior = LatentPrior.from_pretrained(sd_folder)
    assert prior.unet.config["sample_size"] * prior.vae_factor == 64
    result = _reconstruct(prior, "axial", (513, 401), steps=2, data_iterations=1, antithetic=False)
    assert result.image.shape == (513, 401) and result.nfe == 1 + 4  # the last step looks from four grids


def test_round_trip_pads_and_crops(sd_folder: Path) -> None:
    prior = LatentPrior.from_pretrained(sd_folder)
    image = torch.rand(2, 3, 17, 22)
    trip = prior.round_trip(image)
    assert trip.shape == image.shape and trip.dtype == torch.float32 and not trip.requires_grad
    assert torch.allclose(prior.round_trip(image[1, 2]), trip[1, 2], atol=1e-5)
    whole = torch.rand(1, 16, 24)
    with torch.no_grad():
        direct = (prior.decode(prior.encode(whole[:, None] * 2 - 1))[:, 0] + 1) / 2
    assert torch.allclose(prior.round_trip(whole), direct, atol=1e-5)
    asked = torch.rand(9, 7, requires_grad=True)
    prior.round_trip(asked).sum().backward()
    assert asked.grad is not None and asked.grad.abs().sum() > 0


def test_round_trip_of_an_exact_autoencoder_is_not_clamped(tiny_prior_folder: Path) -> None:
    prior = LatentPrior.from_pretrained(tiny_prior_folder)
    image = prior.round_trip(torch.rand(5, 16, 16)) * 3  # a decoded latent, so that encoding loses nothing
    with torch.no_grad():
        latent = prior.encode(image[:, None] * 2 - 1)
        decoded = (prior.decode(latent)[:, 0] + 1) / 2
    assert decoded.max() > 1 and torch.allclose(prior.round_trip(decoded), decoded, atol=1e-4)


# MONAI bundles


def test_vector_bundle_reconstructs_and_is_never_run(bundle: Path, tmp_path: Path) -> None:
    prior = LatentPrior.from_pretrained(bundle)
    assert isinstance(prior, Prior)
    assert (prior.vae_factor, prior.image_multiple, prior.prediction_type) == (4, 8, "epsilon")
    text = "sex"
    with pytest.raises(ConfigError, match=r"Gender, Age, Ventricular volume, Brain volume.*Gender=0.5"):
        _reconstruct(prior, text)
    text = "Age=0.3, gender=1; ventricular_volume=0.2, Brain-volume: 0.4"
    assert torch.equal(prior.embed([text, ""])[:, 0], torch.tensor([[1, 0.3, 0.2, 0.4], [0, 0, 0, 0]]))
    result = _reconstruct(bundle, text)
    assert result.residual < 1.1 and result.warnings == ()
    assert "age=63" in prior.text_warnings(text.replace("0.3", "63"))[0].lower()
    assert not list(tmp_path.rglob("canary"))


def test_vector_prediction_is_that_of_the_bundles_sampler(tmp_path: Path) -> None:
    vae, unet = build.monai_bundle(
        tmp_path / "b", tmp_path / "canary", diffusion_def=build.DENOISER | build.VECTOR
    )
    prior = LatentPrior.from_pretrained(tmp_path / "b")
    values = torch.tensor([[[1, 0.3, 0.2, 0.4]]])
    z = _latent(prior)[:1]
    x = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        concatenated = values.squeeze(1)[..., None, None].expand(-1, -1, 8, 8)
        expected = unet(torch.cat([z, concatenated], 1), timesteps=torch.tensor([300]), context=values)
        condition = prior.embed("Gender=1, Age=0.3, Ventricular volume=0.2, Brain volume=0.4")
        assert torch.allclose(prior.predict(z, 300, condition).noise, expected, atol=1e-6)
        assert not torch.allclose(prior.predict(z, 300, prior.embed("")).noise, expected, atol=1e-6)
        # MONAI's networks take [0, 1].
        assert torch.allclose(prior.encode(x * 2 - 1), vae.encode(x)[0] * 0.4, atol=1e-6)
        assert torch.allclose(prior.decode(z * 0.4), vae.decode(z) * 2 - 1, atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"in_channels": 3, "with_conditioning": True, "cross_attention_dim": 4},
        {"in_channels": 7},
    ],
    ids=["attention only", "channels only"],
)
def test_other_ways_of_a_vector(tmp_path: Path, changed: dict[str, Any]) -> None:
    build.monai_bundle(tmp_path / "b", tmp_path / "canary", diffusion_def=build.DENOISER | changed)
    prior = LatentPrior.from_pretrained(tmp_path / "b", condition_names=("a", "b", "c", "d"))
    z = _latent(prior)
    with torch.no_grad():
        one, other = (prior.predict(z, 300, prior.embed([f"a=1,b={b},c=0,d=0", ""])).noise for b in (0, 1))
    assert not torch.allclose(one[0], other[0]) and torch.equal(one[1], other[1])


def test_text_bundle_with_v_prediction_reconstructs(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    denoiser = build.DENOISER | {"with_conditioning": True, "cross_attention_dim": 24}
    scheduler = build.SCHEDULER | {"prediction_type": "v_prediction"}
    _, unet = build.monai_bundle(folder, tmp_path / "canary", {}, diffusion_def=denoiser, scheduler=scheduler)
    with pytest.raises(ConfigError, match=r"names of the 24 numbers.*condition_names=.*text_encoder/"):
        LatentPrior.from_pretrained(folder)
    build.text_parts(folder)
    prior = LatentPrior.from_pretrained(folder)
    assert prior.max_tokens == 77 and prior.prediction_type == "v_prediction"
    z, text = _latent(prior), prior.embed(["axial", "brain"])
    with torch.no_grad():
        v = unet(z, timesteps=torch.tensor([300, 300]), context=text)
        a = prior.alphas_cumprod[300]
        assert torch.allclose(prior.predict(z, 300, text).clean, a.sqrt() * z - (1 - a).sqrt() * v, atol=1e-5)
    assert _reconstruct(prior, "axial brain").residual < 1.1
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    build.text_parts(folder, width=32)
    with pytest.raises(FormatError, match="hidden_size 32 and cross_attention_dim 24"):
        LatentPrior.from_pretrained(folder)


def test_unconditional_bundle_reconstructs(tmp_path: Path) -> None:
    build.monai_bundle(tmp_path / "b", tmp_path / "canary", {})
    result = _reconstruct(LatentPrior.from_pretrained(tmp_path / "b"), "axial brain")
    assert result.residual < 1.1 and "no effect" in result.warnings[0]
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize(
    ("schedule", "betas"), [("linear_beta", True), ("scaled_linear_beta", True), ("cosine", False)]
)
def test_monai_schedule(bundle: Path, name: str, schedule: str, betas: bool) -> None:
    from monai.networks import schedulers

    arguments: dict[str, Any] = {"num_train_timesteps": 300, "schedule": schedule, "prediction_type": "sample"}
    if betas:
        arguments |= {"beta_start": 0.001, "beta_end": 0.03}
    expected = getattr(schedulers, name)(**arguments).alphas_cumprod
    entry = {"_target_": f"monai.networks.schedulers.{name}", **arguments}
    build.edit_json(bundle / "configs" / "inference.json", scheduler=entry)
    prior = LatentPrior.from_pretrained(bundle)
    assert torch.allclose(prior.alphas_cumprod, expected, atol=1e-6) and prior.prediction_type == "sample"


def test_names_and_weights_of_monai_generative(bundle: Path) -> None:
    from safetensors.torch import load_file, save_file

    vae = {**build.AUTOENCODER, "num_channels": [8, 8, 8], "_target_": "generative.networks.nets.AutoencoderKL"}
    del vae["channels"]
    scheduler = {**build.SCHEDULER, "beta_schedule": "scaled_linear"}
    scheduler["_target_"] = "generative.networks.schedulers.DDIMScheduler"
    del scheduler["schedule"]
    expected = LatentPrior.from_pretrained(bundle)
    build.edit_json(bundle / "configs" / "inference.json", autoencoder_def=vae, scheduler=scheduler)
    path = bundle / "models" / "autoencoder.safetensors"
    tensors = load_file(path)
    renamed = {
        key.replace(".attn.out_proj.", ".proj_attn.").replace(".attn.to_", ".to_").replace("postconv", "conv"): value
        for key, value in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, path)
    prior = LatentPrior.from_pretrained(bundle)
    x = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(prior.encode(x), expected.encode(x))
    assert torch.equal(prior.alphas_cumprod, expected.alphas_cumprod)
    del renamed["encoder.blocks.0.conv.weight"]
    save_file(renamed, path)
    with pytest.raises(FormatError, match="encoder.blocks.0.conv.weight"):
        LatentPrior.from_pretrained(bundle)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"autoencoder_def": build.AUTOENCODER | {"spatial_dims": 3}}, ConfigError, "spatial_dims 3.*slices"),
        ({"diffusion_def": build.DENOISER | {"spatial_dims": 3}}, ConfigError, "spatial_dims 3.*slices"),
        ({"autoencoder_def": build.AUTOENCODER | {"spatial_dims": "@nowhere"}}, FormatError, "@nowhere"),
        ({"latent_channels": "@latent_channels"}, FormatError, "circle"),
        ({"latent_channels": "$1 + 2"}, UnsafeFileError, r"\$1 \+ 2.*write its value"),
        ({"latent_channels": "%other.json#x"}, UnsafeFileError, "write its value"),
        ({"latent_channels": {"_target_": "os.getpid"}}, UnsafeFileError, "os.getpid"),
        ({"autoencoder_def": build.AUTOENCODER | {"_target_": "scripts.mine.AutoencoderKL"}}, ConfigError, "got 0"),
        ({"autoencoder_def": {"_target_": f"{MAISI}.AutoencoderKlMaisi"}}, ConfigError, "volumes"),
        ({"scheduler": {"_target_": "monai.networks.schedulers.RFlowScheduler"}}, ConfigError, "rectified flow"),
        ({"scheduler": {"_target_": "os.system"}}, ConfigError, "got 0"),
        ({"scheduler": build.SCHEDULER | {"schedule": "zigzag"}}, FormatError, "DDIMScheduler"),
        ({"other": build.DENOISER}, ConfigError, "got 2"),
        ({"scale_factor": None}, ConfigError, "scaling_factor=.*1.0"),
        ({"scale_factor": "$1 / torch.std(z)"}, ConfigError, "scaling_factor="),
        ({"scale_factor": -1}, FormatError, "scale_factor"),
        ({"latent_channels": 5}, FormatError, "latent_channels 5 .*in_channels 7"),
        ({"diffusion_def": build.DENOISER | build.VECTOR | {"num_class_embeds": 3}}, ConfigError, "class"),
        ({"diffusion_def": build.DENOISER | build.VECTOR | {"depth": 3}}, FormatError, "depth"),
        ({"diffusion_def": build.DENOISER | build.VECTOR | {"channels": [16, 16]}}, FormatError, "DiffusionModelUNet"),
    ],
)
def test_bundle_configurations_that_are_refused(
    bundle: Path, changed: dict[str, Any], error: type[TregMedError], message: str
) -> None:
    build.edit_json(bundle / "configs" / "inference.json", **changed)
    with pytest.raises(error, match=message):
        LatentPrior.from_pretrained(bundle)


def test_what_a_bundle_leaves_open_is_taken_from_the_caller_or_the_card(bundle: Path) -> None:
    build.edit_json(bundle / "configs" / "inference.json", scale_factor=None)
    build.edit_json(bundle / "configs" / "metadata.json", network_data_format=None)
    given = LatentPrior.from_pretrained(bundle, scaling_factor=0.5, condition_names=("sex", "age", "v", "b"))
    card = {"scaling_factor": 0.5, "condition_names": ["sex", "age", "v", "b"], "image": {"range": [-1, 1]}}
    (bundle / "prior.json").write_text(json.dumps(card))
    read = LatentPrior.from_pretrained(bundle)
    assert read.vae.config["scaling_factor"] == given.vae.config["scaling_factor"] == 0.5
    assert torch.equal(read.embed("age=1,sex=0,v=0,b=0"), given.embed("age=1,sex=0,v=0,b=0"))
    x = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(read.encode(x), given.encode(2 * x - 1), atol=1e-6)
    with pytest.raises(ConfigError, match="4 condition_names.*got 2"):
        LatentPrior.from_pretrained(bundle, condition_names=("sex", "age"))
    with pytest.raises(ConfigError, match="condition_names such as"):
        LatentPrior.from_pretrained(bundle, condition_names="sex")


def test_weights_of_a_bundle(bundle: Path) -> None:
    models = bundle / "models"
    shutil.copy(models / "model.safetensors", models / "best.safetensors")
    with pytest.raises(ConfigError, match=r"best.safetensors, model.safetensors; pass subfolders"):
        LatentPrior.from_pretrained(bundle)
    LatentPrior.from_pretrained(bundle, subfolders={"unet": "models/best.safetensors"})
    with pytest.raises(ResourceError, match="models/none"):
        LatentPrior.from_pretrained(bundle, subfolders={"unet": "models/none.safetensors"})
    (models / "best.safetensors").unlink()
    weights = models / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FormatError, match="models/model.safetensors, which is cut"):
        LatentPrior.from_pretrained(bundle)
    weights.rename(models / "model.pt")
    with pytest.raises(UnsafeFileError, match=r"model.pt.*convert it to safetensors"):
        LatentPrior.from_pretrained(bundle)
    (models / "model.pt").unlink()
    with pytest.raises(ResourceError, match="'unet' in models/"):
        LatentPrior.from_pretrained(bundle)


def test_opening_a_bundle_leaves_the_global_random_numbers_alone(vector_folder: Path) -> None:
    before = torch.get_rng_state()
    LatentPrior.from_pretrained(vector_folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_bundle_without_networks(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    with pytest.raises(FormatError, match="configs/inference.json"):
        LatentPrior.from_pretrained(tmp_path)


# A vector as text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("axial brain MRI", "not a name and a number"),
        ("age=63", "no value for sex"),
        ("age=63, sex=1, height=2", "'height' is not one of the names"),
        ("age=63, sex=1, AGE=2", "'AGE' comes twice"),
        ("age=old, sex=1", "not a name and a number"),
        ("age=nan, sex=1", "not a name and a number"),
        ("age=1e999, sex=1", "not a name and a number"),
    ],
)
def test_vector_texts_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"values sex, age: expected a text such as 'sex=0.5, age=0.5'.*{why}"):
        VectorConditioning(("sex", "age")).embed([text], torch.device("cpu"))


def test_vector_names_differ() -> None:
    with pytest.raises(ConfigError, match="differ"):
        VectorConditioning(("Brain volume", "brain_volume"))
