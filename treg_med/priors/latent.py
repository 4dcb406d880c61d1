"""A latent diffusion prior assembled from a folder in the Stable Diffusion layout or a MONAI bundle."""

from __future__ import annotations

import hashlib
import html
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from treg_med.codec import ImageCodec
from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.priors.base import Prediction
from treg_med.priors.card import FolderOptions, read_card
from treg_med.priors.checks import check_fit, text_width
from treg_med.priors.conditioning import Conditioning, NoConditioning, TextConditioning
from treg_med.priors.image_text_scorer import agreement
from treg_med.priors.weights import is_pickled, pickled_error
from treg_med.priors.word_map import WordMap, placed
from treg_med.priors.words import word_warnings

if TYPE_CHECKING:
    from treg_med.guidance import JointScorer

__all__ = ["DEFAULT_PRIOR", "LatentPrior"]

DEFAULT_PRIOR = Path(__file__).parent / "default"
_ROUND_TRIP_BATCH = 8


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
    conditioning
        What makes conditions of texts; default the text encoder, or nothing where there is none.
    scorer
        Says how well images and texts agree, for `agreement` and adaptive negation; `priors.clip_scorer` opens another.

    Raises
    ------
    FormatError
        If the components do not fit together.
    ConfigError
        If one is of a kind that is not supported.
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
        conditioning: Conditioning | None = None,
        scorer: JointScorer | None = None,
    ) -> None:
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ConfigError(
                f"expected a discrete diffusion scheduler with alphas_cumprod, got {type(scheduler).__name__}; "
                "flow-matching priors are not supported"
            )
        self.prediction_type = str(scheduler.config.get("prediction_type", "epsilon"))
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ConfigError(f"expected prediction_type epsilon, v_prediction or sample, got {self.prediction_type!r}")
        check_fit(vae, unet, text_encoder)
        self.vae = vae.eval()
        self.unet = unet.eval()
        self.scheduler = scheduler
        self.text_encoder: Any = None if text_encoder is None else text_encoder.eval()
        self.tokenizer = tokenizer
        self.card = card or {}
        self.source = source
        self.scorer = scorer
        self.alphas_cumprod = scheduler.alphas_cumprod
        levels = len(unet.config.block_out_channels)
        self.image_multiple = self.vae_factor * 2 ** (levels - 1)
        self.conditioning = conditioning or _conditioning(unet, self.text_encoder, tokenizer)
        # A denoiser of diffusers without any attention on a condition does not even take the argument.
        taken = inspect.signature(unet.forward).parameters
        self._takes_condition, self._takes_window = "encoder_hidden_states" in taken, "window" in taken

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        subfolders: Mapping[str, str] | None = None,
        scaling_factor: float | None = None,
        shift_factor: float | None = None,
        condition_names: Sequence[str] | None = None,
        adapter: str | Path | Sequence[str | Path] = (),
    ) -> LatentPrior:
        """Open the embedded default prior, a folder in the Stable Diffusion 1.x / 2.x layout, or a MONAI bundle.

        Only safetensors are read, nothing is ever downloaded, and no expression of a configuration is evaluated. What
        the folder leaves open comes from the keywords, or from entries of the same names in a ``prior.json`` in it.

        Parameters
        ----------
        path
            Folder with ``vae/``, ``unet/``, ``scheduler/`` and, for a prior with text, ``text_encoder/`` and
            ``tokenizer/``; or a MONAI bundle, ``configs/`` and ``models/``. None is the embedded prior.
        device, dtype
            Where the components go, and their precision.
        subfolders
            Name of the folder (in a bundle: of the weight file) of a component, by ``vae``, ``unet``, ``scheduler``,
            ``text_encoder`` or ``tokenizer``; default the usual name, else found by its ``config.json``.
        scaling_factor, shift_factor
            ``latent = (raw - shift) * scale``, in place of the autoencoder's own.
        condition_names
            Names of the entries of a condition vector, in order.
        adapter
            Adapter folder to put on top, or several in order (see `treg_med.priors.adapters.apply_adapter`).

        Raises
        ------
        ResourceError
            If the folder, a component or a shard is missing.
        UnsafeFileError
            If a component has only pickled weights, or a needed value is an expression.
        FormatError
            If a checksum in ``prior.json`` does not match, a component cannot be read, or two do not fit together.
        ConfigError
            If something has to be said by a keyword, or is of a kind that is not supported.
        """
        from treg_med.priors.adapters import apply_adapters
        from treg_med.priors.components import load_components
        from treg_med.priors.monai.config import is_bundle

        folder = DEFAULT_PRIOR if path is None else Path(path)
        _check_folder(folder)
        card = read_card(folder)
        options = FolderOptions.merged(card, subfolders, scaling_factor, shift_factor, condition_names)
        if is_bundle(folder):
            from treg_med.priors.monai.bundle import load_bundle

            parts = load_bundle(folder, dtype, options)
        else:
            parts = load_components(folder, dtype, options)
        prior = cls(**parts, card=card, source=str(path) if path is not None else "default").to(device)
        return apply_adapters(prior, adapter)

    def to(self, device: str | torch.device) -> LatentPrior:
        """Move all components; returns self."""
        for module in (self.vae, self.unet, self.text_encoder, self.scorer):
            if isinstance(module, torch.nn.Module):
                module.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        self.conditioning.to(device)
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
    def word_map(self) -> WordMap | None:
        """What the denoiser is told that words alone say; None where it has no such part."""
        return getattr(self.unet, "word_map", None)

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
        """Return the conditions ``(n, tokens, width)`` of texts; the empty text is the unconditional one.

        Raises
        ------
        ConfigError
            If the prior is conditioned on named numbers and a text does not give them.
        """
        texts = [text] if isinstance(text, str) else list(text)
        return self.conditioning.embed(texts, self.device)

    @torch.no_grad()
    def words_alone(self, text: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return what texts say without any measurement: expected images and probabilities of a lesion.

        An expected image is the mean of the images that a text allows, so it is blurred.

        Parameters
        ----------
        text : str or sequence of str

        Returns
        -------
        tuple of Tensor ``(n, H, W)``
            Both in [0, 1], of the size that the prior was trained on.

        Raises
        ------
        ConfigError
            If the denoiser has no word map.
        """
        if self.word_map is None:
            raise ConfigError(
                f"expected a prior whose denoiser has a word map, got {type(self.unet).__name__}; "
                "the embedded prior has one, and 'treg-med train words' trains one"
            )
        side = int(self.unet.config.sample_size)
        maps = self.word_map(self.embed(text).to(self.unet.dtype)).float()
        image = self.decode(placed(maps[:, :-1], (side, side)))[:, 0]
        lesion = placed(maps[:, -1:], (image.shape[-2], image.shape[-1]))[:, 0]
        return ((image + 1) / 2).clamp(0, 1), lesion

    @torch.no_grad()
    def agreement(self, image: Tensor, text: str | Sequence[str]) -> Tensor:
        """Return how well texts describe an image, cosines in [-1, 1]: compare texts by it, not images.

        Parameters
        ----------
        image : Tensor ``(*batch, H, W)``
            Values in [0, 1], background 0, head up.
        text : str or sequence of str

        Returns
        -------
        Tensor ``(*batch, texts)``

        Raises
        ------
        ConfigError
            If the prior has no scorer.
        """
        if self.scorer is None:
            raise ConfigError("expected a prior with a scorer of images and texts, got none; set prior.scorer")
        texts = [text] if isinstance(text, str) else list(text)
        codec = ImageCodec((int(image.shape[-2]), int(image.shape[-1])))
        shown = codec.encode(image.to(self.device, torch.float32))
        return agreement(self.scorer, shown, self.embed(texts), texts).reshape(*image.shape[:-2], len(texts))

    def round_trip(self, image: Tensor) -> Tensor:
        """Return D(E(image)), unclamped: the best image that any method in this latent space can reach.

        Parameters
        ----------
        image : Tensor ``(*batch, H, W)``
            Values in [0, 1], background 0, of any size: it is padded to the autoencoder's multiple and cropped again.

        Returns
        -------
        Tensor ``(*batch, H, W)``
            Float32 on the image's device; no gradient is recorded unless the image asks for one.
        """
        codec = ImageCodec((int(image.shape[-2]), int(image.shape[-1])), self.vae_factor)
        # The graph of a whole decoder is large, and a floor needs none.
        with torch.set_grad_enabled(torch.is_grad_enabled() and image.requires_grad):
            encoded = codec.encode(image.to(self.device, torch.float32))
            parts = [self.decode(self.encode(part)) for part in encoded.split(_ROUND_TRIP_BATCH)]
            return codec.decode(torch.cat(parts), tuple(image.shape[:-2])).to(image.device)

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, start and end included; 0 where the prior reads no text."""
        return self.conditioning.max_tokens if isinstance(self.conditioning, TextConditioning) else 0

    def text_warnings(self, text: str) -> tuple[str, ...]:
        """Sentences a user should read before trusting what the prior makes of a text."""
        own = self.conditioning.text_warnings(text)
        return own if self.tokenizer is None or not text else (*own, *word_warnings(self.card, text))

    def predict(
        self, latent: Tensor, timestep: int | Tensor, condition: Tensor, *, window: Tensor | None = None
    ) -> Prediction:
        """Return noise and clean latent of ``z_t`` at one timestep or one per latent, whatever the network predicts.

        Parameters
        ----------
        latent : Tensor ``(n, c, h, w)``
        timestep : int or Tensor ``(n,)``
        condition : Tensor ``(n, tokens, width)``
            From `embed`.
        window : Tensor ``(n, 4)``, optional
            Where a crop lies in the field of view (see `priors.word_map.placed`); only a denoiser with a word map asks.
        """
        steps = torch.as_tensor(timestep, device=latent.device).expand(len(latent))
        told: dict[str, Tensor | None] = {}
        if self._takes_condition:
            told["encoder_hidden_states"] = condition.to(self.unet.dtype)
        if self._takes_window:
            told["window"] = window
        output = self.unet(latent.to(self.unet.dtype), steps, **told).sample.float()
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
        scale = torch.tensor(config.get("scaling_factor") or 1.0).to(like)
        if mean is not None and std is not None:
            view = (1, -1, 1, 1)
            return torch.tensor(mean).to(like).view(view), scale / torch.tensor(std).to(like).view(view)
        return torch.tensor(config.get("shift_factor") or 0.0).to(like), scale

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
            ("text", self.conditioning.describe()),
            ("parameters", f"{parameters / 1e6:.1f} million"),
            ("trained on", str(self.card.get("summary", "unknown"))),
        ]

    def __repr__(self) -> str:
        """Show the source and the sizes."""
        return "LatentPrior(\n" + "".join(f"  {k}: {v}\n" for k, v in self._facts()) + ")"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in self._facts())
        return f"<table><caption><b>LatentPrior</b></caption>{rows}</table>"


def _conditioning(unet: Any, text_encoder: Any, tokenizer: Any) -> Conditioning:
    if text_encoder is None:
        return NoConditioning(text_width(unet) or 1)
    if tokenizer is None:
        raise ConfigError("expected a tokenizer with the text encoder, got none; pass the one it was trained with")
    return TextConditioning(text_encoder, tokenizer)


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if not folder.exists():
        raise ResourceError(
            f"expected a folder of a latent diffusion prior, got {str(folder)!r}, which is not there; "
            "pass the folder that holds vae/ and unet/, or configs/ and models/"
        )
    if is_pickled(folder):
        raise pickled_error(folder)
    raise FormatError(
        f"expected a folder of a latent diffusion prior, got the file {folder.name!r}; a single-file checkpoint has to "
        "be saved as a folder first (StableDiffusionPipeline.from_single_file(...).save_pretrained(...) of diffusers)"
    )
