"""Train the embedded prior: ``python -m treg_med.training {autoencoder,text,denoiser,export} ...``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

app = typer.Typer(add_completion=False, help="Train a prior step by step; every step resumes from its checkpoint.")
Slices = Annotated[
    Path,
    typer.Option(help="HDF5 of captioned slices (images, captions, contrast, plane, finding, subject, split)."),
]
Work = Annotated[Path, typer.Option(help="Folder of checkpoints and trained parts.")]
Minutes = Annotated[float, typer.Option(help="Wall-clock budget.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]


def _say(line: str) -> None:
    typer.echo(line)


@app.command()
def autoencoder(
    slices: Slices,
    work: Work,
    samples: int = 25_000,
    threads: Threads = 1,
    patch: int = 4,
    channels: int = 12,
) -> None:
    """Fit the patch basis and train the null-space decoder."""
    from treg_med.training.autoencoder import round_trip_psnr, train_autoencoder
    from treg_med.training.slices import CaptionedSlices

    torch.set_num_threads(threads)
    train = CaptionedSlices.load(slices, "train", focus_share=0.6)
    model = train_autoencoder(
        train,
        work / "autoencoder.ckpt",
        samples=samples,
        patch_size=patch,
        latent_channels=channels,
        log=_say,
    )
    model.save_pretrained(work / "vae", safe_serialization=True)
    images = CaptionedSlices.load(slices, "val", subjects_only="ms_").images[::6].float() / 255
    trained, linear = round_trip_psnr(model, images)
    _say(f"round trip {trained.mean():.2f} dB (worst {trained.min():.2f})")
    _say(f"linear decoder {linear.mean():.2f} dB (worst {linear.min():.2f})")


@app.command()
def text(slices: Slices, work: Work, steps: int = 500, threads: Threads = 1) -> None:
    """Train the tokenizer and pre-train the text encoder."""
    from treg_med.training.slices import CaptionedSlices
    from treg_med.training.text_encoder import train_text_encoder

    torch.set_num_threads(threads)
    train = CaptionedSlices.load(slices, "train")
    tokenizer, model, accuracy = train_text_encoder(train.attributes, steps=steps, log=_say)
    tokenizer.save_pretrained(work / "tokenizer")
    model.save_pretrained(work / "text_encoder")
    _say(f"held-out accuracy {accuracy}")


@app.command()
def denoiser(
    slices: Slices,
    work: Work,
    samples: int = 100_000,
    batch: int = 16,
    rate: float = 6e-4,
    minutes: Minutes = 1e9,
    threads: Threads = 1,
    bfloat16: Annotated[
        bool, typer.Option(help="Mixed precision: twice as fast with AVX512-BF16, AMX or a GPU, slower without.")
    ] = False,
    initial: Annotated[
        Path | None, typer.Option(help="Folder of a UNet to start from when there is no checkpoint.")
    ] = None,
) -> None:
    """Train the denoiser on the parts of the two other steps.

    ``torchrun --nproc-per-node N -m treg_med.training denoiser ...`` shares each batch among N processes.
    """
    from diffusers import UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    from treg_med.priors.autoencoder import NullSpaceAutoencoder
    from treg_med.training.denoiser import DenoiserSettings, train_denoiser
    from treg_med.training.slices import CaptionedSlices
    from treg_med.training.workers import join_workers

    torch.set_num_threads(threads)
    join_workers()
    settings = DenoiserSettings(samples=samples, batch=batch, rate=rate, bfloat16=bfloat16)
    numbers = train_denoiser(
        CaptionedSlices.load(slices, "train"),
        CaptionedSlices.load(slices, "val", subjects_only="ms_").every(12),
        NullSpaceAutoencoder.from_pretrained(work / "vae", torch_dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(work / "tokenizer"),
        CLIPTextModel.from_pretrained(work / "text_encoder", dtype=torch.float32).eval(),
        work / "denoiser.ckpt",
        settings,
        minutes=minutes,
        initial=UNet2DConditionModel.from_pretrained(initial, torch_dtype=torch.float32) if initial else None,
        earlier_samples=_samples_seen(initial),
        log=_say,
    )
    _say(f"stopped at {numbers['samples']} samples, {numbers['seconds']:.0f} s")


def _samples_seen(denoiser: Path | None) -> int:
    """Return the samples behind the weights of a prior's ``unet`` folder, as its card tells."""
    card = denoiser.parent / "prior.json" if denoiser else None
    if card is None or not card.is_file():
        return 0
    training = json.loads(card.read_text(encoding="utf-8")).get("training", {})
    return int(training.get("samples", 0)) + int(training.get("earlier_samples", 0))


@app.command()
def export(
    slices: Slices,
    work: Work,
    target: Annotated[Path, typer.Option(help="Prior folder to write.")],
    threads: Threads = 1,
) -> None:
    """Assemble the trained parts into a prior folder with its card."""
    from treg_med.training.export import export_prior
    from treg_med.training.slices import CaptionedSlices

    torch.set_num_threads(threads)
    card = export_prior(
        work,
        target,
        CaptionedSlices.load(slices, "train"),
        CaptionedSlices.load(slices, "val", subjects_only="ms_").every(12),
    )
    _say(json.dumps(card["metrics"], indent=1))


if __name__ == "__main__":
    app()
