"""The training steps learn, resume exactly and leave a prior folder behind."""

import json
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from treg_med.priors import LatentPrior
from treg_med.training.autoencoder import build_autoencoder, round_trip_psnr, train_autoencoder
from treg_med.training.captions import (
    ATTRIBUTES,
    SliceAttributes,
    parse_caption,
    render_caption,
    with_other_contrasts,
)
from treg_med.training.checkpoint import Ema, load_state, save_state
from treg_med.training.denoiser import (
    DenoiserSettings,
    averaged_denoiser,
    build_denoiser,
    draw_crop_timesteps,
    draw_timesteps,
    train_denoiser,
)
from treg_med.training.muon import MuonAdamW, orthogonalised
from treg_med.training.slices import CaptionedSlices, augment, random_crops
from treg_med.training.text_encoder import build_tokenizer
from treg_med.training.workers import agreed, average_gradients, worker


@pytest.fixture(scope="module")
def slice_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve slices of blobs in the layout of the training file."""
    path = tmp_path_factory.mktemp("slices") / "slices.h5"
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    images = np.stack(
        [200 * np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 200) for r, c in rng.uniform(20, 44, (12, 2))]
    )
    with h5py.File(path, "w") as file:
        file["images"] = images.astype(np.uint8)
        file["lesion_masks"] = (images > 190).astype(np.uint8)
        text = {
            "captions": ["Axial T1-weighted brain MRI; 2 white-matter lesions."] * 12,
            "contrast": ["T1w", "FLAIR"] * 6,
            "plane": ["axial"] * 12,
            "finding": ["ms_lesion"] * 12,
            "subject": ["ms_a"] * 8 + ["other"] * 4,
            "split": ["train"] * 10 + ["val"] * 2,
        }
        for name, values in text.items():
            file.create_dataset(name, data=values, dtype=h5py.string_dtype())
    return path


def test_slices_of_a_split_and_their_weights(slice_file: Path) -> None:
    train = CaptionedSlices.load(slice_file, "train", focus_share=0.5)
    assert len(train) == 10 and train.images.shape == (10, 1, 64, 64)
    assert float(train.weights[:8].sum()) == pytest.approx(0.5)
    assert train.attributes[0] == SliceAttributes(
        contrast="T1w", plane="axial", disease="multiple sclerosis", lesions="few"
    )
    assert len(CaptionedSlices.load(slice_file, "val", subjects_only="ms_")) == 0


def test_augmentation_moves_image_and_mask_together() -> None:
    image = torch.zeros(8, 1, 64, 64)
    image[:, :, 20:30, 35:45] = 1
    moved, mask = augment(image, image.clone(), torch.Generator().manual_seed(0))
    assert moved.min() >= 0 and moved.max() <= 1.1
    overlap = ((moved > 0.4) & (mask > 0.5)).sum((1, 2, 3)) / (mask > 0.5).sum((1, 2, 3)).clamp_min(1)
    assert overlap.min() > 0.8
    assert not torch.equal(moved, image)


def test_captions_say_what_survives_and_nothing_else() -> None:
    rng = random.Random(0)  # noqa: S311
    known = SliceAttributes("FLAIR", "axial", "stripped", "upper", "multiple sclerosis", "none", 53, "woman")
    for _ in range(50):
        sentence, said = render_caption(known, rng, 0.4)
        assert ("FLAIR" in sentence or "fluid-attenuated" in sentence) == (said.contrast == "FLAIR")
        assert ("axial" in sentence.lower() or "transverse" in sentence.lower()) == (said.plane == "axial")
        assert ("53" in sentence) == (said.age == 53)
    full, said = render_caption(known, rng, 0.0)
    assert said == known and len(said.classes()) == len(ATTRIBUTES)
    assert (
        parse_caption(
            "x, lower third of the stack, 20-year-old man; 9 white-matter lesions",
            "T2w",
            "axial",
            "ms_lesion",
        ).lesions
        == "many"
    )


def test_wrong_contrasts_replace_the_whole_word_and_never_name_the_right_one() -> None:
    assert with_other_contrasts("Axial contrast-enhanced T1-weighted brain MRI.") == [
        "Axial T2-weighted brain MRI.",
        "Axial T2-FLAIR brain MRI.",
    ]
    assert with_other_contrasts("T2-FLAIR MRI") == ["T1-weighted MRI", "T2-weighted MRI"]
    with pytest.raises(ValueError, match="no contrast"):
        with_other_contrasts("brain MRI")


def test_tokenizer_covers_the_grammar_without_unknowns() -> None:
    known = [
        SliceAttributes(contrast=c, plane="axial", disease="glioma", lesions="many")
        for c in ATTRIBUTES["contrast"]
    ]
    tokenizer = build_tokenizer(known, vocabulary_size=600)
    rng = random.Random(1)  # noqa: S311
    for _ in range(50):
        tokens = tokenizer(render_caption(rng.choice(known), rng)[0]).input_ids
        assert tokenizer.unk_token_id not in tokens and len(tokens) <= 48
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_autoencoder_training_beats_the_linear_decoder(slice_file: Path, tmp_path: Path) -> None:
    slices = CaptionedSlices.load(slice_file, "train")
    model = train_autoencoder(
        slices,
        tmp_path / "a.ckpt",
        samples=800,
        patch_size=4,
        latent_channels=2,
        width=16,
        blocks=1,
        batch=8,
        crop=32,
        log=lambda _: None,
    )
    trained, linear = round_trip_psnr(model, slices.images.float() / 255)
    assert trained.mean() > linear.mean() + 0.2


@pytest.mark.parametrize("rule", ["AdamW", "Muon"])
def test_state_round_trip_continues_bit_for_bit(rule: str, tmp_path: Path) -> None:
    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> None:
        optimizer.zero_grad()
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        ema.update(module)

    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer, Ema]:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        optimizer = (
            torch.optim.AdamW(module.parameters(), 0.1)
            if rule == "AdamW"
            else MuonAdamW(module.named_parameters(), 0.1, 0.1)
        )
        return module, optimizer, Ema(module)

    module, optimizer, ema = fresh()
    step(module, optimizer, ema)
    save_state(tmp_path / "s", module, ema, optimizer, {"samples": 7})
    step(module, optimizer, ema)
    other, other_optimizer, other_ema = fresh()
    assert load_state(tmp_path / "s", other, other_ema, other_optimizer)["samples"] == 7
    step(other, other_optimizer, other_ema)
    assert torch.equal(module.weight, other.weight) and torch.equal(module.bias, other.bias)
    assert torch.equal(ema.shadow["weight"], other_ema.shadow["weight"])


def test_schedules() -> None:
    settings = DenoiserSettings(samples=1000, batch=10, warmup=10)
    assert settings.schedule(50) == pytest.approx(0.5)
    assert settings.schedule(500) == 1.0
    assert settings.schedule(850) == pytest.approx(0.5)
    t = draw_timesteps(1000, 0.55, 0.15, torch.Generator().manual_seed(0))
    assert t.min() >= 0 and t.max() <= 999
    assert 0.60 < (t < 250).float().mean() < 0.65
    assert 0.17 < (t >= 850).float().mean() < 0.22


def test_denoiser_trains_resumes_and_exports(
    slice_file: Path, tmp_path: Path, tiny_prior_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer, CLIPTextModel

    from treg_med.training import export

    train = CaptionedSlices.load(slice_file, "train")
    autoencoder = build_autoencoder(train, torch.Generator().manual_seed(0), 8, 16)
    tokenizer = AutoTokenizer.from_pretrained(tiny_prior_folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(tiny_prior_folder / "text_encoder").eval()
    lines: list[str] = []

    def run(samples: int) -> dict[str, float]:
        settings = DenoiserSettings(samples=samples, batch=4, crop=32)
        return train_denoiser(
            train,
            train,
            autoencoder,
            tokenizer,
            encoder,
            tmp_path / "denoiser.ckpt",
            settings,
            initial=build_denoiser(16, (16, 32)),
            log=lines.append,
        )

    assert run(8)["samples"] == 8
    assert run(16)["samples"] == 16
    assert any("resumed at 8" in line for line in lines)
    autoencoder.save_pretrained(tmp_path / "vae")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    encoder.save_pretrained(tmp_path / "text_encoder")
    card = export.export_prior(tmp_path, tmp_path / "prior", train, train.every(4))
    opened = LatentPrior.from_pretrained(tmp_path / "prior")
    assert opened.card["sha256"] == card["sha256"] and opened.sha256
    assert card["metrics"]["denoising_error_std"]["282"] > 0
    assert json.loads((tmp_path / "prior" / "prior.json").read_text())["training"]["samples"] == 16


def test_interrupted_run_equals_an_uninterrupted_one(
    slice_file: Path, tmp_path: Path, tiny_prior_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer, CLIPTextModel

    monkeypatch.setattr("treg_med.training.denoiser._SECONDS_BETWEEN_SAVES", -1.0)
    train = CaptionedSlices.load(slice_file, "train")
    parts = (
        build_autoencoder(train, torch.Generator().manual_seed(0), 8, 16),
        AutoTokenizer.from_pretrained(tiny_prior_folder / "tokenizer"),
        CLIPTextModel.from_pretrained(tiny_prior_folder / "text_encoder").eval(),
    )

    def run(name: str, stop_at: str) -> None:
        def log(line: str) -> None:
            if line.startswith(stop_at):
                raise KeyboardInterrupt

        torch.manual_seed(0)
        settings = DenoiserSettings(samples=24, batch=4, crop=32, crop_share=0.5, warmup=2)
        train_denoiser(
            train, train, *parts, tmp_path / name, settings, initial=build_denoiser(16, (16, 32)), log=log
        )

    run("whole", "never")
    with pytest.raises(KeyboardInterrupt):
        run("broken", "12 samples")
    run("broken", "never")
    whole, broken = (averaged_denoiser(tmp_path / name)[0].state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_crops_take_their_share_of_the_steps() -> None:
    settings = DenoiserSettings(crop_share=0.75)
    assert [settings.shows_crops(step) for step in range(8)] == [False, True, True, True] * 2


def _average_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    layer = torch.nn.Linear(2, 1)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, float(rank))
    average_gradients(layer.parameters())
    assert worker() == (rank, 2) and agreed(rank == 0) and not agreed(rank == 1)
    assert all(bool((p.grad == 0.5).all()) for p in layer.parameters())
    torch.distributed.destroy_process_group()


def test_workers_average_their_gradients_and_follow_the_first(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_average_of_two, (str(tmp_path),), nprocs=2)


def test_one_process_alone_needs_no_group() -> None:
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.ones_like(layer.weight)
    average_gradients(layer.parameters())
    assert worker() == (0, 1) and agreed(True) and not agreed(False)
    assert bool((layer.weight.grad == 1).all())


def test_command_restarts_from_half_precision_parts_in_mixed_precision(
    slice_file: Path,
    tmp_path: Path,
    tiny_prior_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A shipped prior stores its text encoder in half precision; training goes on from it in float32."""
    from transformers import AutoTokenizer, CLIPTextModel

    from treg_med.training.__main__ import denoiser

    slice_file = Path(shutil.copy(slice_file, tmp_path))
    with h5py.File(slice_file, "a") as file:
        file["subject"][...] = ["ms_a"] * 12
    train = CaptionedSlices.load(slice_file, "train")
    build_autoencoder(train, torch.Generator().manual_seed(0), 8, 16).save_pretrained(tmp_path / "vae")
    AutoTokenizer.from_pretrained(tiny_prior_folder / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    CLIPTextModel.from_pretrained(tiny_prior_folder / "text_encoder").half().save_pretrained(
        tmp_path / "text_encoder"
    )
    build_denoiser(16, (16, 32)).half().save_pretrained(tmp_path / "unet")
    monkeypatch.setattr("treg_med.training.denoiser._SECONDS_BETWEEN_REPORTS", 0.0)
    denoiser(slice_file, tmp_path, samples=8, batch=4, bfloat16=True, initial=tmp_path / "unet")
    _, numbers = averaged_denoiser(tmp_path / "denoiser.ckpt")
    assert "8 samples: t4 0." in capsys.readouterr().out
    assert numbers["samples"] == 8 and numbers["settings"]["bfloat16"]


def test_crops_cut_image_and_mask_alike() -> None:
    images = torch.arange(2 * 8 * 6.0).reshape(2, 1, 8, 6)
    cut, masks = random_crops(images, -images, 7, torch.Generator().manual_seed(0))
    assert cut.shape == (2, 1, 7, 6) and torch.equal(cut, -masks)
    assert float(cut[0, 0, 0, 0]) in (0.0, 6.0)
    t = draw_crop_timesteps(1000, 350, torch.Generator().manual_seed(0))
    assert t.min() == 0 and 300 < t.max() < 350 and 0.4 < (t < 18).float().mean() < 0.6


def test_orthogonalised_direction_has_singular_values_near_one() -> None:
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0)) * 1e-3
    for given in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalised(given))
        assert values.min() > 0.6 and values.max() < 1.3
        assert float((orthogonalised(given) * given).sum()) > 0.7 * float(torch.linalg.svdvals(given).sum())


def test_both_rules_of_the_optimizer_reduce_a_loss() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    optimizer = MuonAdamW(module.named_parameters(), rate=1e-2, muon_rate=0.02)
    assert len(optimizer.hidden) == 2
    x = torch.randn(64, 8)
    losses = []
    for _ in range(60):
        loss = (module(x) - x[:, :4]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    before = [p.clone() for p in module.parameters()]
    optimizer.schedule = 0.0
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_half_written_checkpoint_never_replaces_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = torch.nn.Linear(2, 2)
    optimizer, ema = torch.optim.AdamW(module.parameters()), Ema(module)
    save_state(tmp_path / "s", module, ema, optimizer, {"samples": 1})

    def torn(tensors: object, path: Path, **_: object) -> None:
        save_file({"x": torch.zeros(1)}, path)
        raise OSError("disk full")

    monkeypatch.setattr("treg_med.training.checkpoint.save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path / "s", module, ema, optimizer, {"samples": 2})
    assert load_state(tmp_path / "s", module, ema, optimizer)["samples"] == 1
