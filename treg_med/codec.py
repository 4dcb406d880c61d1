"""Between an image in its own units and what a prior eats, and back without loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.errors import ConfigError, GeometryError, NumericsError

__all__ = ["ImageCodec", "SoftClip", "even_margins"]

# exp of more overflows in single precision once it is multiplied; no attenuation is so high.
_LARGEST_EXPONENT = 40.0


def even_margins(rows: int, columns: int, multiple: int) -> tuple[int, int, int, int]:
    """Pixels to add at (left, right, top, bottom), as evenly as possible, for sides that are multiples."""
    more_rows, more_columns = -rows % multiple, -columns % multiple
    return more_columns // 2, more_columns - more_columns // 2, more_rows // 2, more_rows - more_rows // 2


def _unturned(image: Tensor) -> Tensor:
    return image


@dataclass(frozen=True)
class SoftClip:
    r"""A soft, invertible upper end of the range that a network was trained on.

    .. math::
        c(v) = \begin{cases} v & v \le k \\ k + s \log(1 + (v - k) / s) & v > k \end{cases}

    with the knee k and the softness s; value and slope are continuous. Nothing is clipped: what lies beyond the window
    comes back as it was. Below there is none, as values under background are noise, which is to stay what it is.

    The default leaves bone alone and tames metal. Measured with the embedded prior, whose encoder is linear, on body CT
    of up to 3071 HU with a piece of metal of 20000 HU, root mean square error of an encoded and decoded image in HU:

    =============  ================  =================  ====================
    (k, s)         bone < 900 HU     bone > 900 HU      tissue beside metal
    =============  ================  =================  ====================
    none           25                51                 25
    (2, 2)         25                57                 12
    (0.9, 1)       25                88                 10
    (0.9, 0.2)     25                776                9
    =============  ================  =================  ====================

    What the network errs is stretched by the inverse, all the more the harder the clip.

    Parameters
    ----------
    knee
        k, in the units of the prior, [-1, 1].
    softness
        s > 0.

    Raises
    ------
    ConfigError
        If the softness is not positive.
    """

    knee: float = 2.0
    softness: float = 2.0

    def __post_init__(self) -> None:
        if not self.softness > 0:
            raise ConfigError(f"expected a softness above 0, got {self.softness}")

    def compress(self, image: Tensor) -> Tensor:
        """Return c(v)."""
        above = (image - self.knee).clamp_min(0) / self.softness
        return torch.where(image > self.knee, self.knee + self.softness * above.log1p(), image)

    def expand(self, image: Tensor) -> Tensor:
        """Return the v of a c(v)."""
        above = ((image - self.knee) / self.softness).clamp(0, _LARGEST_EXPONENT)
        return torch.where(image > self.knee, self.knee + self.softness * above.expm1(), image)


@dataclass(frozen=True)
class ImageCodec:
    """Magnitude images ``(*batch, H, W)`` as prior images ``(n, 1, H', W')`` in [-1, 1], and exactly back.

    ``encoded = 2 scale magnitude - 1``, padded with background to multiples of ``multiple`` in image space. Values
    outside [0, 1 / scale] are carried unclamped, so ``decode(encode(m)) = m``. Both are affine. With a `soft_clip` the
    networks of the prior see ``compress`` of an image, and what they give is to be passed through ``expand``.

    Parameters
    ----------
    shape : tuple of int
        (H, W) of the image.
    multiple : int
        Side lengths the prior accepts are multiples of this.
    scale : Tensor ``(*batch,)`` or float
        Brings the upper percentile of the magnitude to about one.
    to_upright, from_upright : callable
        Turn an image ``(*batch, H, W)`` the way the prior saw its training images, head up, and back.
    soft_clip : SoftClip, optional
        Between images in [-1, 1], carried unclamped, and what the networks see; None changes nothing.

    Raises
    ------
    GeometryError
        If an image of another shape comes.
    NumericsError
        If the scale is not positive and finite.
    """

    shape: tuple[int, int]
    multiple: int = 1
    scale: Tensor | float = 1.0
    to_upright: Callable[[Tensor], Tensor] = _unturned
    from_upright: Callable[[Tensor], Tensor] = _unturned
    soft_clip: SoftClip | None = None

    def __post_init__(self) -> None:
        scale = torch.as_tensor(self.scale)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise NumericsError(f"expected a positive finite scale, got {scale.tolist()}")

    def encode(self, magnitude: Tensor) -> Tensor:
        """Return ``(n, 1, H', W')``, upright; leading dimensions are flattened into n."""
        if tuple(magnitude.shape[-2:]) != tuple(self.shape):
            raise GeometryError(
                f"expected an image of shape {tuple(self.shape)}, got {tuple(magnitude.shape)}"
            )
        return self.pad(magnitude * self._scale(magnitude) * 2 - 1, fill=-1.0)

    def decode(self, image: Tensor, batch: tuple[int, ...] = ()) -> Tensor:
        """Return the magnitude ``(*batch, H, W)`` of a prior image ``(n, 1, H', W')``."""
        magnitude = self.unpad(image, batch)
        return (magnitude + 1) / 2 / self._scale(magnitude)

    def compress(self, image: Tensor) -> Tensor:
        """Return an encoded image as the networks of the prior see it."""
        return image if self.soft_clip is None else self.soft_clip.compress(image)

    def expand(self, image: Tensor) -> Tensor:
        """Undo `compress`."""
        return image if self.soft_clip is None else self.soft_clip.expand(image)

    def pad(self, image: Tensor, fill: float = 0.0) -> Tensor:
        """Turn an image ``(*batch, H, W)`` upright and pad it to ``(n, 1, H', W')``, values as they are."""
        upright = self.to_upright(image)
        rows, columns = upright.shape[-2:]
        margins = even_margins(rows, columns, self.multiple)
        return functional.pad(upright.reshape(-1, 1, rows, columns), margins, value=fill)

    def unpad(self, image: Tensor, batch: tuple[int, ...] = ()) -> Tensor:
        """Undo `pad`, ``(*batch, H, W)``; with a fill of zero the two are transposes of each other."""
        rows, columns = self.to_upright(torch.empty(self.shape)).shape
        left, _, top, _ = even_margins(rows, columns, self.multiple)
        return self.from_upright(image[..., top : top + rows, left : left + columns].reshape(*batch, rows, columns))

    def _scale(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.scale, dtype=like.dtype, device=like.device)[..., None, None]


def __getattr__(name: str) -> Any:
    if name == "Shoulder":
        warnings.warn("treg_med.codec.Shoulder is now called SoftClip", DeprecationWarning, stacklevel=2)
        return SoftClip
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
