"""The denoiser trains, resumes exactly and leaves a prior folder behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModel

from treg_med.priors import LatentPrior
from treg_med.priors.autoencoder import NullSpaceAutoencoder
from treg_med.priors.domain_guard import DomainGuard
from treg_med.priors.word_map import WordMap
from treg_med.training.autoencoder import build_autoencoder
from treg_med.training.batches import Batch, CaptionedBatches, TextStates, slice_caption
from treg_med.training.config import AutoencoderSettings, DenoiserSettings, PriorFacts
from treg_med.training.denoiser import averaged_denoiser, build_denoiser, build_scheduler
from treg_med.training.denoiser_training import _errors, train_denoiser
from treg_med.training.export import export_prior
from treg_med.training.journal import Journal
from treg_med.training.noise_draw import draw_crop_timesteps, draw_timesteps
from treg_med.training.precision import faster_precision
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import read_attributes

TINY = {"batch": 4, "crop": 32, "channels": [16, 32], "warmup": 2, "precision": "float32"}


@pytest.fixture(scope="module")
def autoencoder(slice_file: Path) -> NullSpaceAutoencoder:
    """An untrained autoencoder of the slices."""
    settings = AutoencoderSettings(patch_size=8, latent_channels=16, width=16, blocks=1)
    return build_autoencoder(
        CaptionedSlices.load(slice_file, "train"), torch.Generator().manual_seed(0), settings
    ).eval()


@pytest.fixture(scope="module")
def texts(tiny_prior_folder: Path) -> TextStates:
    """Text states of the tiny prior."""
    encoder = CLIPTextModel.from_pretrained(tiny_prior_folder / "text_encoder").eval()
    return TextStates(AutoTokenizer.from_pretrained(tiny_prior_folder / "tokenizer"), encoder)


@pytest.fixture(scope="module")
def word_map() -> WordMap:
    """An untrained word map of their sizes."""
    torch.manual_seed(0)
    return WordMap(16, 256).eval()


def test_schedules() -> None:
    settings = DenoiserSettings(samples=1000, batch=10, warmup=10)
    assert settings.schedule(50) == pytest.approx(0.5)
    assert settings.schedule(500) == 1.0
    assert settings.schedule(850) == pytest.approx(0.5)
    t = draw_timesteps(1000, 0.55, 0.15, torch.Generator().manual_seed(0))
    assert t.min() >= 0 and t.max() <= 999
    assert 0.60 < (t < 250).float().mean() < 0.65
    assert 0.17 < (t >= 850).float().mean() < 0.22
    t = draw_crop_timesteps(1000, 350, torch.Generator().manual_seed(0))
    assert t.min() == 0 and 300 < t.max() < 350 and 0.4 < (t < 18).float().mean() < 0.6
    shows = DenoiserSettings(crop_share=0.75).shows_crops
    assert [shows(step) for step in range(8)] == [False, True, True, True] * 2


def test_batches_repeat_with_the_generator_and_tell_the_side_of_phantoms(slice_file: Path, texts: TextStates) -> None:
    slices = CaptionedSlices.load(slice_file, "train")
    asked: list[str] = []

    class Recorder(TextStates):
        def __call__(self, captions):  # noqa: ANN001, ANN204
            asked.extend(captions)
            return super().__call__(captions)

    recorder = Recorder(texts.tokenizer, texts.encoder)
    settings = DenoiserSettings(phantom_share=0.5, caption_dropout=0.25, **TINY)
    batches = CaptionedBatches(slices, recorder, settings, torch.device("cpu"))
    one, two = (batches.draw(16, False, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True)) and one.pairs == two.pairs > 0
    assert asked[:16] == asked[16:] and 1 <= asked[:16].count("") <= 9
    assert any(read_attributes(text).origin == "simulated" for text in asked)
    assert one.images.shape == (16, 1, 64, 64) and one.text.shape[0] == 16 and one.masks.max() == 1
    crops = batches.draw(16, True, torch.Generator().manual_seed(3))
    assert crops.images.shape == (16, 1, 32, 32) and crops.timesteps.max() < settings.crop_timesteps


def test_side_words_follow_the_mirror(slice_file: Path) -> None:
    slices = CaptionedSlices.load(slice_file, "train")
    from dataclasses import replace
    from random import Random

    slices.captions[0] = "brain MRI with a left frontal tumour"
    slices.attributes[0] = replace(slices.attributes[0], lesion="tumour", side="left", lobe="frontal")
    for mirrored, wrong in ((False, "right"), (True, "left")):
        said = {read_attributes(slice_caption(slices, 0, mirrored, Random(seed))).side for seed in range(40)}  # noqa: S311
        assert wrong not in said and len(said) == 2


def test_twins_are_compared_where_only_noise_is_seen(autoencoder: NullSpaceAutoencoder) -> None:
    settings = DenoiserSettings(lesion_weight=0.0, twin_weight=3.0, **TINY)
    alphas = build_scheduler().alphas_cumprod
    one = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    images = torch.cat([one, one, one])  # a slice, a phantom and a twin that looks the same
    seen: list[torch.Tensor] = []

    class Offset(torch.nn.Module):
        """Predicts the true v at zero signal, the twin's with an error of 0.5."""

        def forward(self, noisy, timesteps, text, window):  # noqa: ANN001, ANN202
            seen.append(noisy)
            z = autoencoder.coefficients(images * 2 - 1) * autoencoder.config.scaling_factor
            return SimpleNamespace(sample=text.view(-1, 1, 1, 1) - z)

    for timestep, weight in ((999, 1 + 3.0), (998, 1.0)):
        batch = Batch(
            images, torch.zeros_like(images), torch.full((3,), timestep), torch.tensor([0.0, 0.0, 0.5]), pairs=1
        )
        plain, weighted = _errors(Offset(), batch, autoencoder, alphas, settings, torch.Generator().manual_seed(1))
        assert torch.allclose(plain, torch.tensor([0.0, 0.0, 0.25]), atol=5e-3)
        assert torch.allclose(weighted, torch.tensor([0.0, 0.0, 0.25 * weight]), atol=5e-3)
        assert torch.equal(seen[-1][1], seen[-1][2]) and not torch.equal(seen[-1][0], seen[-1][1])


def test_trains_resumes_and_exports(
    slice_file: Path, tmp_path: Path, autoencoder: NullSpaceAutoencoder, texts: TextStates, word_map: WordMap
) -> None:
    train = CaptionedSlices.load(slice_file, "train")
    lines: list[str] = []

    def run(samples: int) -> dict[str, float]:
        journal = Journal(tmp_path / "denoiser.jsonl", lines.append, every=4)
        settings = DenoiserSettings(samples=samples, **TINY)
        return train_denoiser(
            train, train, autoencoder, texts, word_map, tmp_path / "denoiser.ckpt", settings, journal=journal
        )

    assert run(8)["samples"] == 8
    assert run(16)["samples"] == 16
    assert any("resumed at 8" in line for line in lines)
    entries = [json.loads(line) for line in (tmp_path / "denoiser.jsonl").read_text().splitlines()]
    assert [entry["samples"] for entry in entries] == [4, 8, 12, 16]
    assert entries[0]["samples_per_second"] > 0 and entries[0]["gradient_norm"] > 0 and entries[0]["loss"]
    autoencoder.save_pretrained(tmp_path / "vae")
    texts.tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts.encoder.save_pretrained(tmp_path / "text_encoder")
    parts = {name: tmp_path / name for name in ("vae", "tokenizer", "text_encoder")}
    facts = PriorFacts(summary="blobs", limits="Blobs only.")
    validation = train.take([*range(10)] * 3)
    card = export_prior(parts, tmp_path / "denoiser.ckpt", tmp_path / "prior", facts, train, validation)
    opened = LatentPrior.from_pretrained(tmp_path / "prior")
    assert opened.card["sha256"] == card["sha256"] and opened.sha256
    assert card["summary"] == "blobs" and card["limits"].endswith("Blobs only.")
    assert card["metrics"]["denoising_error_std"]["282"] > 0 and "infarct" in card["words"]
    guard = DomainGuard.of(opened)
    assert guard is not None and card["domain"]["slices"] == 30
    assert float(guard.distance(opened, train.images[:4] / 127.5 - 1).max()) < 1
    assert json.loads((tmp_path / "prior" / "prior.json").read_text())["training"]["samples"] == 16


def test_interrupted_run_equals_an_uninterrupted_one(
    slice_file: Path,
    tmp_path: Path,
    autoencoder: NullSpaceAutoencoder,
    texts: TextStates,
    word_map: WordMap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("treg_med.training.denoiser_training._SECONDS_BETWEEN_SAVES", -1.0)
    train = CaptionedSlices.load(slice_file, "train")

    def run(name: str, stop_at: int) -> None:
        def progress(done: int, _total: int, _text: str) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        journal = Journal(None, lambda _: None, progress)
        settings = DenoiserSettings(samples=24, crop_share=0.5, phantom_share=0.5, **TINY)
        train_denoiser(train, train, autoencoder, texts, word_map, tmp_path / name, settings, journal=journal)

    run("whole", -1)
    with pytest.raises(KeyboardInterrupt):
        run("broken", 12)
    run("broken", -1)
    whole, broken = (averaged_denoiser(tmp_path / name)[0].state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_time_limit_ends_a_call_and_keeps_what_was_learned(
    slice_file: Path, tmp_path: Path, autoencoder: NullSpaceAutoencoder, texts: TextStates, word_map: WordMap
) -> None:
    train = CaptionedSlices.load(slice_file, "train")
    settings = DenoiserSettings(samples=10_000, **TINY)
    journal = Journal(None, lambda _: None)
    numbers = train_denoiser(
        train, train, autoencoder, texts, word_map, tmp_path / "d.ckpt", settings, seconds=0.5, journal=journal
    )
    assert 0 < numbers["samples"] < 10_000
    assert averaged_denoiser(tmp_path / "d.ckpt")[1]["samples"] == numbers["samples"]


def test_report_scores_the_averaged_weights_and_draws_samples(
    slice_file: Path,
    tmp_path: Path,
    autoencoder: NullSpaceAutoencoder,
    texts: TextStates,
    word_map: WordMap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("treg_med.training.denoiser_training._SECONDS_BETWEEN_REPORTS", 0.0)
    from treg_med.training.samples import sample_grid

    monkeypatch.setattr(sample_grid, "__kwdefaults__", {
        "prompts": ("axial T1", "axial T2"), "steps": 2, "size": 64,
    })  # fmt: skip
    train = CaptionedSlices.load(slice_file, "train")
    journal = Journal(tmp_path / "j.jsonl", lambda _: None, every=10**9)
    settings = DenoiserSettings(samples=4, **{**TINY, "precision": "bfloat16"})
    train_denoiser(
        train, train.every(5), autoencoder, texts, word_map, tmp_path / "d.ckpt", settings,
        initial=build_denoiser(16, (16, 32)), journal=journal,
    )  # fmt: skip
    entry = json.loads((tmp_path / "j.jsonl").read_text().splitlines()[-1])
    assert entry["samples"] == 4 and entry["validation"]["multiple sclerosis"]["t487"] > 0
    assert (tmp_path / "samples" / "0000004.png").stat().st_size > 100


def test_precision_is_measured() -> None:
    assert faster_precision(torch.device("cpu"), repeats=1) in ("bfloat16", "float32")


CONFIG = """
[[data]]
path = "slices.h5"
[autoencoder]
patch_size = 8
latent_channels = 16
width = 16
blocks = 1
samples = 32
crop = 32
[text]
steps = 2
batch = 4
[word_map]
steps = 2
batch = 4
slices = 6
phantoms = 2
[scorer]
steps = 2
batch = 4
slices = 6
phantoms = 2
[denoiser]
samples = 16
batch = 4
crop = 32
channels = [16, 32]
precision = "float32"
"""


def treg_med(*arguments: str | Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "treg_med", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_command_trains_everything_and_two_processes_share_the_denoiser(slice_file: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    data = ("--config", tmp_path / "c.toml", "--data", slice_file.parent, "--work", tmp_path / "w")
    begun = treg_med("train", "all", *data, "--out", tmp_path / "prior", "--time-limit", "0.01")
    assert begun.returncode == 0 and "unfinished" in begun.stdout and not (tmp_path / "prior").exists(), begun.stderr
    done = treg_med("train", "all", *data, "--out", tmp_path / "prior", "--resume")
    assert done.returncode == 0, done.stderr
    prior = LatentPrior.from_pretrained(tmp_path / "prior")
    assert prior.card["training"]["samples"] == 16
    assert prior.scorer is not None and set(prior.card["metrics"]["scorer_right_wins"]["phantoms"]) >= {"plane", "side"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    kept = treg_med("train", "export", *data, "--out", tmp_path / "mine")
    assert kept.returncode == 5 and (tmp_path / "mine" / "thesis.txt").exists(), kept.stderr
    refused = treg_med("train", "unet", *data)
    assert refused.returncode == 2 and "--resume" in refused.stderr and "Traceback" not in refused.stderr
    shared = treg_med("train", "unet", *data, "--fresh", "--initial", tmp_path / "prior", processes=2)
    assert shared.returncode == 0, shared.stderr
    numbers = averaged_denoiser(tmp_path / "w" / "denoiser.ckpt")[1]
    assert numbers["samples"] == 16 and numbers["earlier_samples"] == 16


def test_the_same_run_writes_the_same_losses_again(
    slice_file: Path, tmp_path: Path, autoencoder: NullSpaceAutoencoder, texts: TextStates, word_map: WordMap
) -> None:
    train = CaptionedSlices.load(slice_file, "train")

    def losses(name: str, seed: int) -> list[object]:
        journal = Journal(tmp_path / f"{name}.jsonl", lambda _: None, every=4)
        settings = DenoiserSettings(samples=12, seed=seed, **TINY)
        train_denoiser(train, train, autoencoder, texts, word_map, tmp_path / name, settings, journal=journal)
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        return [(entry["samples"], entry["loss"], entry["gradient_norm"]) for entry in map(json.loads, lines)]

    assert len(losses("a", 0)) == 3 and losses("b", 0) == losses("c", 0) != losses("d", 1)
