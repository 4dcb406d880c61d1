"""Real slices with and without a real lesion: twins that differ in what one word says."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from treg_med.training.augmentation import augment
from treg_med.training.phantoms import PhantomBatch
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import SliceAttributes
from treg_med.words.vocabulary import UNKNOWN

__all__ = ["Transplants"]

_SIDES = ("left", "right")
_BACKGROUND = 0.1
#: Smallest lesion in pixels, and standard deviation in pixels of the seam around it.
_LEAST_AREA, _SEAM = 30, 1.5
#: Of twins with a lesion on one side, the share with it on the other; the rest has none.
_OTHER_SIDE_SHARE = 0.5
#: A donor's tissue is brought to the brightness of the other slice within this factor.
_LEAST_GAIN, _MOST_GAIN = 0.5, 2.0


class Transplants:
    r"""Lesions of known side carried into slices of the same contrast and plane that have none.

    .. math:: x' = x + m * G_\sigma\, (g\, T d - x), \qquad g = \mathrm{median}(x) / \mathrm{median}(T d)

    with the donor's slice d, brought by T onto the box around the other head, and its lesion mask m with a soft seam.
    Only slices whose words say "no lesion" take one, so that the words of both twins stay true.

    Parameters
    ----------
    slices : CaptionedSlices
        Donors are axial and coronal slices with a mask and a lesion of one side.
    """

    def __init__(self, slices: CaptionedSlices) -> None:
        self.slices = slices
        self.donors: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.takers: list[int] = []
        area = (slices.masks > 0).flatten(1).sum(1)
        for i, a in enumerate(slices.attributes):
            if a.plane in ("axial", "coronal") and a.contrast != UNKNOWN:
                if a.lesion != UNKNOWN and a.side in _SIDES and area[i] >= _LEAST_AREA:
                    self.donors[a.contrast, a.plane].append(i)
        self.takers = [
            i for i, a in enumerate(slices.attributes) if a.lesions == "none" and self.donors.get((a.contrast, a.plane))
        ]

    def __len__(self) -> int:
        """Return how many slices can take a lesion."""
        return len(self.takers)

    def draw(
        self,
        count: int,
        size: tuple[int, int],
        generator: torch.Generator,
        *,
        device: torch.device | str = "cpu",
        twins: bool = False,
    ) -> PhantomBatch:
        """Draw augmented slices with a transplanted lesion, and with `twins` as many twins of them.

        A twin has the same lesion mirrored to the other side, or none; every other pixel is the same. The size is that
        of the slices.
        """
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311 - pictures, not secrets
        heads, others = [], []
        for _ in range(count):
            taker = rng.choice(self.takers)
            donor = rng.choice(self.donors[self._kind(taker)])
            mirrored = rng.random() < 0.5
            heads.append(self._with_lesion(taker, donor, mirrored))
            if not twins:
                continue
            if rng.random() < _OTHER_SIDE_SHARE:
                others.append(self._with_lesion(taker, donor, not mirrored))
            else:
                image = self.slices.images[taker].float() / 255
                others.append((image, torch.zeros_like(image), self.slices.attributes[taker]))
        state = generator.get_state()
        done = [_augmented(part, generator, state, device) for part in (heads, others) if part]
        images, masks = (torch.cat(parts) for parts in zip(*((i, m) for i, m, _ in done), strict=True))
        return PhantomBatch(images, masks, [a for _, _, attributes in done for a in attributes])

    def _kind(self, row: int) -> tuple[str, str]:
        attributes = self.slices.attributes[row]
        return attributes.contrast, attributes.plane

    def _with_lesion(self, taker: int, donor: int, mirrored: bool) -> tuple[Tensor, Tensor, SliceAttributes]:
        image = self.slices.images[taker].float() / 255
        given = torch.stack([self.slices.images[donor].float() / 255, self.slices.masks[donor].float().clamp(max=1)])
        attributes = self.slices.attributes[donor]
        if mirrored:
            given, attributes = given.flip(-1), attributes.mirrored()
        given = _onto(given, _box(given[0]), _box(image))
        head = image > _BACKGROUND
        mask = (given[1] > 0.5) & head
        gain = image[head].median() / given[0][given[0] > _BACKGROUND].median()
        seam = _blurred(mask.float()) * head
        out = image + seam * (gain.clamp(_LEAST_GAIN, _MOST_GAIN) * given[0] - image)
        own = self.slices.attributes[taker]
        said = replace(
            own, lesions=UNKNOWN, lesion=attributes.lesion, size=attributes.size, side=attributes.side,
            lobe=attributes.lobe, territory=attributes.territory,
        )  # fmt: skip
        return out.clamp(0, 1), mask.float(), said


def _augmented(
    part: list[tuple[Tensor, Tensor, SliceAttributes]],
    generator: torch.Generator,
    state: Tensor,
    device: torch.device | str,
) -> tuple[Tensor, Tensor, list[SliceAttributes]]:
    """Augment as every other part: the same state moves heads and twins alike."""
    generator.set_state(state)
    images, masks, mirrored = augment(
        torch.stack([image for image, _, _ in part]).to(device),
        torch.stack([mask for _, mask, _ in part]).to(device),
        generator,
    )
    flips = zip(part, mirrored.tolist(), strict=True)
    return images, masks, [a.mirrored() if flipped else a for (_, _, a), flipped in flips]


def _box(image: Tensor) -> tuple[float, float, float, float]:
    """Centre and half sides ``(row, column, half height, half width)`` in pixels of what is seen of ``(1, H, W)``."""
    seen = image[0] > _BACKGROUND
    rows, columns = (seen.any(axis).nonzero().flatten().float() for axis in (1, 0))
    if not len(rows):
        height, width = image.shape[-2:]
        return (height - 1) / 2, (width - 1) / 2, height / 2, width / 2
    ends = [(float(x[0]), float(x[-1])) for x in (rows, columns)]
    (top, bottom), (left, right) = ends
    return (top + bottom) / 2, (left + right) / 2, (bottom - top + 1) / 2, (right - left + 1) / 2


def _onto(
    given: Tensor, source: tuple[float, float, float, float], target: tuple[float, float, float, float]
) -> Tensor:
    """Images ``(k, 1, H, W)`` with the box `source` stretched onto `target`."""
    height, width = given.shape[-2:]
    stretch_y, stretch_x = source[2] / target[2], source[3] / target[3]
    y = (torch.arange(height) - target[0]) * stretch_y + source[0]
    x = (torch.arange(width) - target[1]) * stretch_x + source[1]
    grid = torch.stack(
        [
            ((2 * x + 1) / width - 1).expand(height, width),
            ((2 * y + 1) / height - 1)[:, None].expand(height, width),
        ],
        -1,
    )
    return functional.grid_sample(given, grid.expand(len(given), -1, -1, -1), align_corners=False)


def _blurred(mask: Tensor) -> Tensor:
    """Smooth ``(1, H, W)`` by a Gaussian of the seam's width."""
    reach = int(3 * _SEAM)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / _SEAM) ** 2)
    kernel = kernel / kernel.sum()
    blurred = functional.conv2d(mask[None], kernel.view(1, 1, -1, 1), padding=(reach, 0))
    return functional.conv2d(blurred, kernel.view(1, 1, 1, -1), padding=(0, reach))[0]
