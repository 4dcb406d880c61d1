"""Slice files: what is read, how it is drawn, and augmentation."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from treg_med.errors import ConfigError, FormatError, GeometryError, ResourceError
from treg_med.training.augmentation import augment, random_crops
from treg_med.training.slices import CaptionedSlices
from treg_med.words.captions import SliceAttributes


def write(path: Path, count: int = 4, size: int = 16, **columns: object) -> Path:
    """A slice file of constant images with the least that is needed."""
    with h5py.File(path, "w") as file:
        file["images"] = columns.pop("images", np.full((count, size, size), 9, dtype=np.uint8))
        text = {"captions": ["axial T2 brain MRI"] * count, "split": ["train"] * count, **columns}
        for name, values in text.items():
            texts = isinstance(values, list)
            file.create_dataset(name, data=values, dtype=h5py.string_dtype() if texts else None)
    return path


def write_strokes(path: Path, count: int, *, left_on: str, **columns: object) -> Path:
    """Heads with a lesion of the patient's left or right, in turn, which lies where `left_on` tells."""
    images, masks = np.zeros((2, count, 40, 40), dtype=np.uint8)
    images[:, 5:35, 5:35] = 101
    sides = ["left" if i % 2 else "right" for i in range(count)]
    for i, side in enumerate(sides):
        on_right = (side == "left") == (left_on == "right")
        masks[i, 10:25, slice(24, 34) if on_right else slice(6, 16)] = 1
    images[masks > 0] = 200
    text = {
        "captions": [f"Axial T2-FLAIR brain MRI; infarct in the {side} hemisphere" for side in sides],
        "plane": ["axial"] * count,
        "subject": [f"p{i}" for i in range(count)],
        "finding": ["stroke_lesion"] * count,
        "lesion_side": sides,
        "lesion_territory": ["middle cerebral artery", ""] * (count // 2),
        "lesion_area_mm2": np.linspace(20, 2000, count),
    }
    return write(path, count, 40, images=images, lesion_masks=masks, **text | columns)


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


def test_columns_of_strokes_become_words(tmp_path: Path) -> None:
    path = write_strokes(tmp_path / "a.h5", 12, left_on="right", sex=["M", "F"] * 6, age_years=np.full(12, 70.0))
    first, second = CaptionedSlices.load(path, "train").attributes[:2]
    assert (first.lesion, first.side, first.territory, first.size) == (
        "infarct", "right", "middle cerebral artery", "small",
    )  # fmt: skip
    assert (first.disease, first.sex, first.age, first.age_group) == ("stroke", "man", 70, "old")
    assert (second.side, second.territory, second.size, second.sex) == ("left", "unspecified", "medium", "woman")
    healthy = write(tmp_path / "b.h5", finding=["stroke_no_lesion_in_slice"] * 2 + ["healthy_volunteer"] * 2)
    found = CaptionedSlices.load(healthy, "train").attributes
    assert (found[0].disease, found[0].lesions, found[2].disease) == ("stroke", "none", "healthy")


def test_lesions_tell_the_convention_and_contradict_a_wrong_word(tmp_path: Path) -> None:
    right = CaptionedSlices.load(write_strokes(tmp_path / "r.h5", 12, left_on="right"), "train")
    path = write_strokes(tmp_path / "l.h5", 12, left_on="left")
    mirrored = CaptionedSlices.load(path, "train")
    assert not right.notes and "12 of 12 lesions" in mirrored.notes[0] and "mirrored" in mirrored.notes[0]
    assert torch.equal(mirrored.masks, right.masks)
    assert not CaptionedSlices.load(path, "train", patient_left="left").notes
    with pytest.raises(FormatError, match=r"12 of 12 lesions.*patient_left_is = \"left\""):
        CaptionedSlices.load(path, "train", patient_left="right")
    with h5py.File(path, "a") as file:
        file.attrs["patient_left_is"] = "above"
    with pytest.raises(FormatError, match="'above'"):
        CaptionedSlices.load(path, "train")
    # Few lesions tell nothing, and then the word counts.
    few = write_strokes(tmp_path / "f.h5", 4, left_on="left")
    kept, flipped = CaptionedSlices.load(few, "train"), CaptionedSlices.load(few, "train", patient_left="left")
    assert torch.equal(kept.images.flip(-1), flipped.images) and not kept.notes


def test_sagittal_slices_have_no_side(tmp_path: Path) -> None:
    path = write_strokes(tmp_path / "a.h5", 12, left_on="right", plane=["sagittal"] * 12)
    assert {a.side for a in CaptionedSlices.load(path, "train").attributes} == {"unspecified"}


def test_the_lost_last_bit_of_lesions_comes_back(tmp_path: Path) -> None:
    path = write_strokes(tmp_path / "a.h5", 12, left_on="right")
    slices = CaptionedSlices.load(path, "train")
    inside = slices.images[slices.masks > 0]
    assert set(inside.unique().tolist()) == {200, 201} and 0.4 < (inside % 2).float().mean() < 0.6
    assert set(slices.images[slices.masks == 0].unique().tolist()) == {0, 101}
    assert torch.equal(slices.images, CaptionedSlices.load(path, "train").images)
    with h5py.File(path, "a") as file:
        file["images"][0, 12, 8] = 151  # one odd value: nothing was lost
    assert 201 not in CaptionedSlices.load(path, "train").images


def test_draws_are_shared_by_subject_then_by_view(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.h5",
        6,
        subject=["a"] * 5 + ["b"],
        plane=["axial", "axial", "axial", "coronal", "coronal", "axial"],
    )
    assert CaptionedSlices.load(path, "train").weights.tolist() == pytest.approx([1 / 12] * 3 + [1 / 8] * 2 + [1 / 2])


def test_subjects_left_out_and_unknown_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", subject=["a1", "a2", "b1", "c"])
    assert CaptionedSlices.load(path, "train", subjects_except=["a", "c"]).subjects == ["b1"]
    for asked in ({"subjects_only": "d"}, {"subjects_except": ["d"]}, {"shares": {"d": 0.5}}):
        with pytest.raises(ConfigError, match="'d'"):
            CaptionedSlices.load(path, "train", **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"split": ["train", "test", "val", "val"]}, "train or val.*'test'"),
        ({"captions": ["MRI of John Smith"] * 4}, "personal data.*a name"),
        ({"captions": ["MRI of 2019-02-03"] * 4}, "a date"),
        ({"native_spacing_mm": np.array([1, 1, 0, 1.0])}, r"native_spacing_mm above zero.*row 2"),
        ({"native_spacing_mm": np.ones(3)}, "4 entries of native_spacing_mm"),
        ({"native_spacing_mm": ["two"] * 4}, "numbers"),
        ({"lesion_masks": np.zeros((4, 8, 8), dtype=np.uint8)}, "lesion_masks like the images"),
    ],
)
def test_columns_that_cannot_be_right(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        CaptionedSlices.load(write(tmp_path / "a.h5", **columns), "train")


def test_rows_keep_everything_of_their_slices(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", subject=["a", "b", "c", "d"], native_spacing_mm=np.array([1, 2, np.nan, 4.0]))
    slices = CaptionedSlices.load(path, "train")
    some = slices.take([3, 1])
    assert some.subjects == ["d", "b"] and some.native_pixels.isnan().all()  # how large a pixel is was not said
    path = write(tmp_path / "b.h5", native_spacing_mm=np.array([1, 2, np.nan, 4.0]), pixel_spacing_mm=np.full(4, 2.0))
    both = CaptionedSlices.mixed([(slices, 1.0), (CaptionedSlices.load(path, "train"), 1.0)])
    assert both.native_pixels[4:].nan_to_num(-1).tolist() == [0.5, 1, -1, 2]
    assert both.attributes[5].resolution == "coarse" and both.attributes[4].resolution == "unspecified"
