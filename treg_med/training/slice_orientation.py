"""Which side of its images a slice file shows the patient's left on, by its word and by its lesions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from treg_med.errors import FormatError
from treg_med.words.captions import SliceAttributes

__all__ = ["SIDES", "patient_left_is"]

SIDES = ("left", "right")
#: As many lesions, and as many of them on one side, tell the convention.
_LEAST_LESIONS, _LEAST_SHARE = 10, 0.8
_BACKGROUND = 25


def patient_left_is(
    images: Tensor, masks: Tensor, attributes: Sequence[SliceAttributes], declared: str, name: str
) -> tuple[str, str]:
    """Return the side of axial and coronal images that the patient's left lies on, and a note where it was found out.

    Lesion masks of slices whose words name a side are held against these words. What is neither declared nor seen is
    taken to be "right", the radiological convention.

    Parameters
    ----------
    images, masks : Tensor ``(n, 1, H, W)`` uint8
    attributes : sequence of SliceAttributes
    declared : str
        "left", "right" or, where nothing was said, "".
    name : str
        Of the file, for messages.

    Raises
    ------
    FormatError
        If lesions lie on the other side than was declared.
    """
    rows = [i for i, a in enumerate(attributes) if a.side in SIDES and a.plane in ("axial", "coronal")]
    rows = [i for i in rows if bool(masks[i].any())]
    # Seen from the middle of the head, a lesion of the patient's left on the right of the image counts as one.
    right = [float(_offset(images[i], masks[i]) > 0) == float(attributes[i].side == "left") for i in rows]
    share = sum(right) / len(right) if right else 0.5
    clear = len(right) >= _LEAST_LESIONS and max(share, 1 - share) >= _LEAST_SHARE
    seen = ("right" if share > 0.5 else "left") if clear else ""
    count = f"{sum(right) if seen == 'right' else len(right) - sum(right)} of {len(right)} lesions"
    if declared and seen and seen != declared:
        raise FormatError(
            f"expected the patient's left on the {declared} of the images of {name}, as declared, but {count} lie on "
            f'the other side than their words; set patient_left_is = "{seen}", or mend the words'
        )
    if seen == "left" and not declared:
        return "left", f"{name}: {count} show the patient's left on the left; its slices were mirrored on reading"
    return declared or seen or "right", ""


def _offset(image: Tensor, mask: Tensor) -> float:
    """Column of a lesion's centre from the middle of the head, in pixels."""
    columns = torch.arange(image.shape[-1], dtype=torch.float32)
    seen = (image[0] > _BACKGROUND).any(0)
    if not bool(seen.any()):
        return 0.0
    filled = columns[seen]
    middle = float(filled.min() + filled.max()) / 2
    weight = (mask[0] > 0).sum(0).float()
    return float((columns * weight).sum() / weight.sum()) - middle
