"""Slice files: what is read, how it is drawn, and augmentation."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from treg_med.errors import FormatError, GeometryError, ResourceError
from treg_med.training.captions import SliceAttributes
from treg_med.training.slices import CaptionedSlices, augment, random_crops


def write(path: Path, count: int = 4, size: int = 16, **columns: object) -> Path:
    """A slice file of constant images with the least that is needed."""
    with h5py.File(path, "w") as file:
        file["images"] = np.full((count, size, size), 9, dtype=np.uint8)
        text = {"captions": ["axial T2 brain MRI"] * count, "split": ["train"] * count, **columns}
        for name, values in text.items():
            file.create_dataset(name, data=values, dtype=h5py.string_dtype())
    return path


def test_slices_of_a_split_and_their_weights(slice_file: Path) -> None:
    train = CaptionedSlices.load(slice_file, "train", shares={"ms_": 0.5})
    assert len(train) == 10 and train.images.shape == (10, 1, 64, 64)
    assert float(train.weights[:8].sum()) == pytest.approx(0.5)
    even = CaptionedSlices.load(slice_file, "train")
    assert float(even.weights[:8].sum()) == pytest.approx(0.5)  # two subjects share the draws
    assert train.attributes[0] == SliceAttributes(
        contrast="T1w", plane="axial", disease="multiple sclerosis", lesions="few", modality="MRI"
    )
    assert len(CaptionedSlices.load(slice_file, "val", subjects_only="ms_")) == 0


def test_captions_alone_are_enough(tmp_path: Path) -> None:
    slices = CaptionedSlices.load(write(tmp_path / "a.h5"), "train")
    assert slices.attributes[0] == SliceAttributes(contrast="T2w", plane="axial", modality="MRI")
    assert slices.masks.sum() == 0 and slices.masks.shape == slices.images.shape
    assert slices.weights.sum() == pytest.approx(1)


def test_columns_come_before_the_caption_but_only_with_words_of_the_grammar(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", contrast=["FLAIR", "unspecified", "SWI", "T1w"])
    read = [a.contrast for a in CaptionedSlices.load(path, "train").attributes]
    assert read == ["FLAIR", "T2w", "T2w", "T1w"]


def test_mixed_files_are_drawn_by_their_shares(tmp_path: Path) -> None:
    one, two = (CaptionedSlices.load(write(tmp_path / f"{n}.h5", n), "train") for n in (4, 6))
    mixed = CaptionedSlices.mixed([(one, 3.0), (two, 1.0)])
    assert len(mixed) == 10 and float(mixed.weights[:4].sum()) == pytest.approx(0.75)
    drawn = mixed.draw(4000, torch.Generator().manual_seed(0))
    assert 0.72 < (drawn < 4).float().mean() < 0.78
    small = CaptionedSlices.load(write(tmp_path / "s.h5", size=8), "train")
    with pytest.raises(GeometryError, match=r"one size.*\(8, 8\).*\(16, 16\)"):
        CaptionedSlices.mixed([(one, 1.0), (small, 1.0)])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="not there"):
        CaptionedSlices.load(tmp_path / "absent.h5", "train")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(FormatError, match=r"HDF5 slice file"):
        CaptionedSlices.load(tmp_path / "text.h5", "train")
    with pytest.raises(FormatError, match="images_soft"):
        CaptionedSlices.load(write(tmp_path / "a.h5"), "train", images="images_soft")
    with pytest.raises(FormatError, match="4 entries of contrast"):
        CaptionedSlices.load(write(tmp_path / "b.h5", contrast=["T1w"] * 3), "train")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["images"]
        file["images"] = np.zeros((4, 8, 8), dtype=np.float32)
    with pytest.raises(FormatError, match="uint8"):
        CaptionedSlices.load(tmp_path / "a.h5", "train")


def test_augmentation_moves_image_and_mask_together_and_tells_who_was_mirrored() -> None:
    image = torch.zeros(8, 1, 64, 64)
    image[:, :, 20:30, 40:50] = 1
    moved, mask, mirrored = augment(image, image.clone(), torch.Generator().manual_seed(0))
    assert moved.min() >= 0 and moved.max() <= 1.1
    overlap = ((moved > 0.4) & (mask > 0.5)).sum((1, 2, 3)) / (mask > 0.5).sum((1, 2, 3)).clamp_min(1)
    assert overlap.min() > 0.8
    centre = (moved.sum((1, 2)) * torch.arange(64)).sum(1) / moved.sum((1, 2, 3))
    assert torch.equal(centre < 32, mirrored) and 0 < mirrored.sum() < 8


def test_crops_cut_image_and_mask_alike() -> None:
    images = torch.arange(2 * 8 * 6.0).reshape(2, 1, 8, 6)
    cut, masks, windows = random_crops(images, -images, 7, torch.Generator().manual_seed(0))
    assert cut.shape == (2, 1, 7, 6) and torch.equal(cut, -masks)
    assert float(cut[0, 0, 0, 0]) in (0.0, 6.0)
    # All columns of a field of 8 x 8 pixels, and the upper or lower 7 of its rows.
    assert windows.shape == (2, 4) and windows[0].tolist() == [
        0.0,
        -0.125 if cut[0, 0, 0, 0] == 0 else 0.125,
        0.75,
        0.875,
    ]
