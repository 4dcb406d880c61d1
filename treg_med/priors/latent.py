"""A text-conditioned latent diffusion prior assembled from a folder in the Stable Diffusion layout."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treg_med.errors import ConfigError, FormatError, ResourceError, UnsafeFileError
from treg_med.priors.base import Prediction

__all__ = ["DEFAULT_PRIOR", "LatentPrior"]

DEFAULT_PRIOR = Path(__file__).parent / "default"


class LatentPrior:
    """Autoencoder, denoiser, noise schedule and text encoder behind one small interface (see `priors.base.Prior`).

    Nothing is assumed about scale factor, channels, text width, token limit or prediction type: all of it is read
    from the components' configurations.

    Parameters
    ----------
    vae
        ``AutoencoderKL``-like module: ``encode(x).latent_dist`` (or ``.latents``) and ``decode(z).sample``.
    unet
        ``UNet2DConditionModel``-like module.
    scheduler
        Any discrete diffusers scheduler with ``alphas_cumprod``.
    text_encoder, tokenizer
        transformers modules; both None for a prior without text.
    card
        Content of ``prior.json``.
    source
        Where the prior came from.
    """

    def __init__(
        self,
        vae: Any,
        unet: Any,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        card: dict[str, Any] | None = None,
        source: str = "",
    ) -> None:
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ConfigError(
                f"expected a discrete diffusion scheduler with alphas_cumprod, got {type(scheduler).__name__}; "
                "flow-matching priors are not supported"
            )
        self.prediction_type = str(scheduler.config.get("prediction_type", "epsilon"))
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ConfigError(f"expected prediction_type epsilon, v_prediction or sample, got {self.prediction_type!r}")
        self.vae = vae.eval()
        self.unet = unet.eval()
        self.scheduler = scheduler
        self.text_encoder: Any = None if text_encoder is None else text_encoder.eval()
        self.tokenizer = tokenizer
        self.card = card or {}
        self.source = source
        self.alphas_cumprod = scheduler.alphas_cumprod
        levels = len(unet.config.block_out_channels)
        self.image_multiple = self.vae_factor * 2 ** (levels - 1)
        self._embedded: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LatentPrior:
        """Open the embedded default prior, or any folder with ``vae/``, ``unet/``, ``scheduler/`` and text parts.

        Only safetensors are read and nothing is ever downloaded.

        Raises
        ------
        ResourceError
            If the folder or a component is missing.
        UnsafeFileError
            If a component has only pickled weights.
        FormatError
            If a checksum in ``prior.json`` does not match, or a component cannot be read.
        """
        from treg_med.priors.components import load_components

        folder = DEFAULT_PRIOR if path is None else Path(path)
        if not folder.is_dir():
            raise ResourceError(
                f"expected a folder of a latent diffusion prior, got {str(folder)!r}, which is not there; "
                "pass the folder that holds vae/ and unet/"
            )
        card = _read_card(folder)
        parts = load_components(folder, dtype)
        return cls(**parts, card=card, source=str(path) if path is not None else "default").to(device)

    def to(self, device: str | torch.device) -> LatentPrior:
        """Move all components; returns self."""
        for module in (self.vae, self.unet, self.text_encoder):
            if module is not None:
                module.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        self._embedded.clear()
        return self

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        return next(self.unet.parameters()).device

    @property
    def vae_factor(self) -> int:
        """Image pixels per latent pixel along a side."""
        config = self.vae.config
        return int(config["patch_size"] if "patch_size" in config else 2 ** (len(config["block_out_channels"]) - 1))

    @property
    def sha256(self) -> str:
        """Hash over the checksums in the prior's card; empty where there is none."""
        sums = self.card.get("sha256", {})
        return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest() if sums else ""

    def encode(self, image: Tensor) -> Tensor:
        """Return the mode of the latent, in the schedule's scale, of an image ``(n, 1, H, W)`` in [-1, 1]."""
        channels = self.vae.config["in_channels"]
        out = self.vae.encode(image.to(self.vae.dtype).expand(-1, channels, -1, -1))
        raw = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
        shift, scale = self._normalisation(raw)
        return (raw.float() - shift) * scale

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image ``(n, 1, H, W)``, unclamped, of a latent in the schedule's scale."""
        shift, scale = self._normalisation(latent)
        return self.vae.decode((latent / scale + shift).to(self.vae.dtype)).sample.float().mean(1, keepdim=True)

    def embed(self, text: str | Sequence[str]) -> Tensor:
        """Return the text states ``(n, tokens, width)``; texts seen before come from memory."""
        texts = [text] if isinstance(text, str) else list(text)
        if self.text_encoder is None:
            raise ConfigError("this prior has no text encoder; use another prior or no text conditioning")
        for entry in texts:
            if entry not in self._embedded:
                tokens = self.tokenizer(
                    entry,
                    padding="max_length",
                    max_length=self.max_tokens,
                    truncation=True,
                    return_tensors="pt",
                )
                with torch.no_grad():
                    states = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
                self._embedded[entry] = states[0].float()
        return torch.stack([self._embedded[entry] for entry in texts])

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, start and end included."""
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Sentences a user should read before trusting what the prior makes of a text."""
        if self.tokenizer is None or not text:
            return ()
        tokens = self.tokenizer(text).input_ids
        out = []
        if len(tokens) > self.max_tokens:
            out.append(f"the text has {len(tokens)} tokens; the prior reads the first {self.max_tokens} only")
        known = self.card.get("words")
        if known:
            words = {w.strip(".,;:()").lower() for w in text.split()}
            strange = sorted(w for w in words if w and w not in set(known) and not any(c.isdigit() for c in w))
            if strange:
                out.append("the prior was never trained on these words: " + ", ".join(strange))
        return tuple(out)

    def predict(self, latent: Tensor, timestep: int | Tensor, condition: Tensor) -> Prediction:
        """Return noise and clean latent of ``z_t`` at one timestep or one per latent, whatever the network predicts."""
        steps = torch.as_tensor(timestep, device=latent.device).expand(len(latent))
        output = self.unet(
            latent.to(self.unet.dtype), steps, encoder_hidden_states=condition.to(self.unet.dtype)
        ).sample.float()
        alpha = self.alphas_cumprod[steps].view(-1, 1, 1, 1).to(latent)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        if self.prediction_type == "v_prediction":
            return Prediction(spread * latent + signal * output, signal * latent - spread * output)
        if self.prediction_type == "epsilon":
            return Prediction(output, (latent - spread * output) / signal)
        return Prediction((latent - signal * output) / spread, output)

    def _normalisation(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and scale with ``latent = (raw - shift) * scale``."""
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            view = (1, -1, 1, 1)
            return torch.tensor(mean).to(like).view(view), (1 / torch.tensor(std).to(like)).view(view)
        shift = config.get("shift_factor") or 0.0
        scale = config.get("scaling_factor") or 1.0
        return torch.tensor(shift).to(like), torch.tensor(scale).to(like)

    def _facts(self) -> list[tuple[str, str]]:
        parameters = sum(
            p.numel() for m in (self.vae, self.unet, self.text_encoder) if m is not None for p in m.parameters()
        )
        return [
            ("source", self.source),
            (
                "latent",
                f"{self.unet.config.in_channels} channels at 1/{self.vae_factor} resolution, {self.prediction_type}",
            ),
            ("text", "none" if self.text_encoder is None else f"{self.max_tokens} tokens"),
            ("parameters", f"{parameters / 1e6:.1f} million"),
            ("trained on", str(self.card.get("summary", "unknown"))),
        ]

    def __repr__(self) -> str:
        """Show the source and the sizes."""
        return "LatentPrior(\n" + "".join(f"  {k}: {v}\n" for k, v in self._facts()) + ")"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in self._facts())
        return f"<table><caption><b>LatentPrior</b></caption>{rows}</table>"


def _read_card(folder: Path) -> dict[str, Any]:
    """Content of ``prior.json`` after every checksum in it was verified; empty where there is no card."""
    path = folder / "prior.json"
    if not path.is_file():
        return {}
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(
            f"expected JSON in {path.name} of the prior, got an unreadable file ({error}); copy the prior again"
        ) from error
    for name, expected in card.get("sha256", {}).items():
        part = folder / name
        if not part.resolve().is_relative_to(folder.resolve()):
            raise UnsafeFileError(f"expected files inside the prior's folder in prior.json, got {name!r}")
        if not part.is_file():
            raise ResourceError(f"expected {name} in the prior's folder, as prior.json lists it; copy the prior again")
        if hashlib.sha256(part.read_bytes()).hexdigest() != expected:
            raise FormatError(f"expected the checksum of prior.json for {name}, got another one; copy the prior again")
    return card
