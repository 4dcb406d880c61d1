"""The supervised network: a residual U-Net at half resolution, and its weights file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from treg_med.errors import FormatError, ResourceError

__all__ = ["KINDS", "UNetConfig", "UNet", "load_unet", "save_unet"]

FORMAT = "supervised-unet"
KINDS = ("mri", "mri-tv", "ct")
_INPUTS = 2
_SHUFFLE = 2


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the network.

    Parameters
    ----------
    kind
        What the two channels of the input are. ``"mri"``: the zero-filled image across and along its phase;
        ``"mri-tv"``: that of total variation; ``"ct"``: a sharp and a smooth image in HU / 1000.
    width
        Channels of the finest level; they double with every level.
    depth
        Number of levels.
    """

    kind: str = "mri"
    width: int = 32
    depth: int = 4


class _Block(nn.Sequential):
    """Two 3x3 convolutions, each followed by a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            convolution = nn.Conv2d(channels, outputs, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, a=0.1)
            nn.init.zeros_(convolution.bias)
            layers += [convolution, nn.LeakyReLU(0.1, inplace=True)]
        super().__init__(*layers)


class UNet(nn.Module):
    """Add to the last of two channels what a U-Net predicts to be missing in it.

    The image is taken apart into four of half the size, which doubles the field of view of every layer and makes the
    network four times cheaper. It has no normalisation layers: none are needed for a residual, and an image's result
    depends on its own contrast.

    Ronneberger, Fischer, Brox: MICCAI (2015). Zbontar et al.: fastMRI, arXiv 1811.08839. Jin et al.: IEEE Trans. Image
    Process. 26 (2017) 4509. Lim et al.: CVPR workshops (2017), without normalisation.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width << level for level in range(config.depth)]
        inputs = [_INPUTS * _SHUFFLE**2, *widths]
        self.down = nn.ModuleList(_Block(inputs[level], widths[level]) for level in range(config.depth))
        self.up = nn.ModuleList(
            _Block(widths[level] + widths[level + 1], widths[level]) for level in reversed(range(config.depth - 1))
        )
        self.last = nn.Conv2d(widths[0], _SHUFFLE**2, 1)
        # The untrained network returns the last channel.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return the improved image ``(n, 1, H, W)`` of an input ``(n, 2, H, W)`` of any size."""
        height, width = image.shape[-2:]
        multiple = _SHUFFLE << (self.config.depth - 1)
        margins = (0, -width % multiple, 0, -height % multiple)
        features = functional.pixel_unshuffle(functional.pad(image, margins, mode="replicate"), _SHUFFLE)
        features = features.contiguous(memory_format=torch.channels_last)
        skipped = []
        for level, block in enumerate(self.down):
            features = block(functional.avg_pool2d(features, 2) if level else features)
            skipped.append(features)
        for block, fine in zip(self.up, reversed(skipped[:-1]), strict=True):
            coarse = functional.interpolate(features, scale_factor=2, mode="nearest")
            features = block(torch.cat([fine, coarse], 1))
        residual = functional.pixel_shuffle(self.last(features).float(), _SHUFFLE)
        return image[:, -1:] + residual[..., :height, :width]


def save_unet(unet: UNet, path: Path, facts: dict[str, str] | None = None) -> None:
    """Write the weights in half precision with what is needed to build the network again.

    Parameters
    ----------
    unet
        The network.
    path
        File to write.
    facts
        Words about the training, for the header of the file.
    """
    weights = {name: value.detach().to(torch.float16).contiguous() for name, value in unet.state_dict().items()}
    header = {"format": FORMAT, "config": json.dumps(asdict(unet.config)), **(facts or {})}
    save_file(weights, path, header)


def load_unet(path: Path) -> UNet:
    """Build the network of a weights file, in single precision.

    Raises
    ------
    ResourceError
        If the file is not there.
    FormatError
        If it is not a file of `save_unet`.
    """
    if not path.is_file():
        raise ResourceError(
            f"expected the weights of a supervised network, got {str(path)!r}, which is not there; train them with "
            "python -m benchmarks.quality.train_unet"
        )
    with _weights_errors(path), safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise FormatError(
                f"expected weights of format {FORMAT!r}, got {header.get('format')!r} in {path.name}; choose a file "
                "that benchmarks.quality.train_unet wrote"
            )
        config = UNetConfig(**json.loads(header["config"]))
        if config.kind not in KINDS:
            raise FormatError(f"expected a network for one of {', '.join(KINDS)}, got {config.kind!r} in {path.name}")
        unet = UNet(config)
        unet.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    return unet.eval().requires_grad_(False)


@contextmanager
def _weights_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise FormatError(
            f"expected complete safetensors weights of a supervised network in {path.name}, got {text}; copy the file "
            "again"
        ) from error
