"""A user's folder becomes upright, square, captioned slices, split by subject, and every defect one typed message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from treg_med.cli.train_prepare import parse_window, run
from treg_med.data import open_scan
from treg_med.data.phantoms import phantom_volume, write_nifti
from treg_med.errors import ConfigError, FormatError, GeometryError, NumericsError, ResourceError, UnsafeFileError
from treg_med.training.prepare import prepare_slices
from treg_med.training.prepare.scan_entry import guessed_subject
from treg_med.training.prepare.slice_file import SliceRow, split_rows
from treg_med.training.slices import CaptionedSlices

VOLUME = phantom_volume((40, 36), 5)
SQUARE = (1.0, 1.0, 3.0)


class Prepared:
    """The columns of a slice file as attributes, and what was logged while it was made."""

    def __init__(self, path: Path, messages: list[str]) -> None:
        self.path, self.messages = path, messages
        self.warnings = [m.removeprefix("warning: ") for m in messages if m.startswith("warning: ")]
        with h5py.File(path) as file:
            self.attributes = dict(file.attrs)
            for name, dataset in file.items():
                setattr(self, name, dataset.asstr()[...] if dataset.dtype.kind == "O" else dataset[...])


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Prepared]:
    def call(source: Path, name: str = "slices.h5", *, size: int = 48, **options: Any) -> Prepared:
        messages: list[str] = []
        return Prepared(
            prepare_slices(source, tmp_path / name, size=size, log=messages.append, **options), messages
        )

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "scans"
    path.mkdir()
    return path


def _captions(folder: Path, *lines: dict[str, Any] | str) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")


def _line(file: str, caption: str = "T1-weighted brain MRI.", **more: Any) -> dict[str, Any]:
    return {"file": file, "caption": caption, **more}


# ---- pictures


def test_three_storage_orientations_give_the_same_slices(folder: Path, prepare: Callable[..., Prepared]) -> None:
    for axes in ("RAS", "LPS", "PSR"):
        write_nifti(folder / f"{axes}.nii.gz", VOLUME, axes=axes, spacing_mm=SQUARE)
    _captions(folder, *(_line(f"{axes}.nii.gz", subject=axes) for axes in ("RAS", "LPS", "PSR")))
    made = prepare(folder)
    assert made.images.shape == (15, 48, 48)
    ras, lps, psr = (made.images[made.source == f"{axes}.nii.gz"] for axes in ("RAS", "LPS", "PSR"))
    assert np.array_equal(ras, lps)
    assert np.array_equal(ras, psr)
    # The phantom has front up and the patient's left on the right: so has the slice.
    inside = ras[2, 4:44, 6:42] / 255
    level = np.quantile(VOLUME.numpy()[VOLUME.numpy() > 0.1], 0.997)
    assert np.abs(inside - np.clip(VOLUME[2].numpy() / level, 0, 1)).max() < 0.02
    assert np.abs(inside[:, ::-1] - VOLUME[2].numpy() / level).max() > 0.2
    assert ras[:, :4].max() == 0


def test_slices_look_as_the_solver_shows_them_to_the_prior(folder: Path, prepare: Callable[..., Prepared]) -> None:
    write_nifti(folder / "a.nii", VOLUME, axes="AIL", spacing_mm=SQUARE)
    _captions(folder, _line("a.nii"))
    made = prepare(folder)
    with open_scan(folder / "a.nii", acceleration=1.0, noise=0.0) as scan:
        for index in range(5):
            target = scan[index].target
            assert target is not None and scan.geometry is not None
            shown = scan.geometry.to_display(target.abs()).numpy()
            ours = made.images[made.slice_index == index][0, 4:44, 6:42]
            assert np.corrcoef(shown.ravel(), ours.ravel())[0, 1] > 0.999


def test_coronal_and_sagittal_planes(folder: Path, prepare: Callable[..., Prepared]) -> None:
    values = torch.full((32, 32, 32), 0.5)  # slice (bottom to top), row (front to back), column (left to right)
    values[22:30, 2:10, 18:26] = 1.0  # high, in front, on the patient's left
    write_nifti(folder / "a.nii", values, axes="LSP", spacing_mm=(1.0, 1.0, 1.0))
    _captions(folder, _line("a.nii"))
    made = prepare(folder, size=32, planes=("axial", "coronal", "sagittal"))

    def centre(plane: str) -> list[int]:
        bright = np.argwhere(made.images[made.plane == plane].max(0) > 200)
        return bright.mean(0).round().astype(int).tolist()

    assert centre("axial") == [6, 22]
    assert centre("coronal") == [6, 22]  # top up, left on the right
    assert centre("sagittal") == [6, 6]  # top up, front on the left
    assert made.captions.tolist() == ["T1-weighted brain MRI."] * 96


def test_pixels_become_square_and_the_head_is_never_cut(folder: Path, prepare: Callable[..., Prepared]) -> None:
    write_nifti(folder / "a.nii", VOLUME, spacing_mm=(1.0, 2.0, 3.0))
    write_nifti(folder / "b.nii", torch.nn.functional.pad(VOLUME, (60, 4, 4, 60)), spacing_mm=SQUARE)
    _captions(folder, _line("a.nii", subject="a"), _line("b.nii", subject="b"))
    made = prepare(folder, size=64)
    first = made.source == "a.nii"
    assert np.allclose(made.pixel_spacing_mm[first], 2.0 * 38 / 64, atol=0.08)
    rows, columns = (np.flatnonzero(made.images[first][2].max(axis) > 60) for axis in (1, 0))
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(2 * 0.88 * 40 / (0.70 * 36), rel=0.08)
    # Air is cut on the side where there is more of it: the whole head is in the picture.
    assert made.pixel_spacing_mm[~first].tolist() == [1.0] * 5
    head = made.images[~first][2] > 60
    level = np.quantile(VOLUME.numpy()[VOLUME.numpy() > 0.1], 0.997)
    assert head.sum() == pytest.approx(int((VOLUME[2] / level > 60 / 255).sum()), abs=3)


def test_ct_is_windowed(folder: Path, prepare: Callable[..., Prepared]) -> None:
    hounsfield = torch.full((4, 32, 32), -1000.0)
    hounsfield[:, 8:24, 8:24] = 40.0
    hounsfield[:, 10:12, 10:12] = 240.0
    write_nifti(folder / "ct.nii", hounsfield, spacing_mm=SQUARE)
    _captions(folder, _line("ct.nii", "the chest"))
    wide = prepare(folder, "wide.h5", size=32)
    assert set(wide.modality) == {"CT"}
    assert wide.images[0, 20, 20] == round(1040 / 2000 * 255)
    assert wide.images[0, 0, 0] == 0
    soft = prepare(folder, "soft.h5", size=32, window=(-160.0, 240.0))
    assert soft.images[0, 20, 20] == round(200 / 400 * 255)
    assert soft.images[0, 11, 11] == 255
    narrower = prepare(wide.path, "again.h5", size=32, window=(-160.0, 240.0))
    assert abs(int(narrower.images[0, 20, 20]) - 128) <= 3


def test_a_mask_follows_its_image(folder: Path, prepare: Callable[..., Prepared]) -> None:
    lesion = torch.zeros_like(VOLUME)
    lesion[2, 25:31, 24:30] = 1.0
    write_nifti(folder / "a.nii", VOLUME + 3 * lesion, axes="PIL", spacing_mm=(1.0, 1.5, 3.0))
    write_nifti(folder / "a_mask.nii", lesion, axes="PIL", spacing_mm=(1.0, 1.5, 3.0))
    write_nifti(folder / "b.nii", VOLUME, spacing_mm=SQUARE)
    _captions(folder, _line("a.nii", mask="a_mask.nii"), _line("b.nii"))
    made = prepare(folder, size=40)
    assert made.has_lesion_mask.tolist() == [True] * 5 + [False] * 5
    filled = made.lesion_masks.reshape(10, -1).any(1)
    # Stored from top to bottom: slice 2 of five stays the middle one.
    assert filled.tolist() == [False, False, True] + [False] * 7
    bright = made.images[2] > 200
    assert (bright & (made.lesion_masks[2] > 0)).sum() / (bright | (made.lesion_masks[2] > 0)).sum() > 0.7
    write_nifti(folder / "a_mask.nii", lesion, axes="RAS", spacing_mm=(1.0, 1.5, 3.0))
    with pytest.raises(GeometryError, match=r"a.nii: .*mask on the grid"):
        prepare(folder, size=40)


def test_empty_slices_are_left_out_and_every_nth_is_kept(folder: Path, prepare: Callable[..., Prepared]) -> None:
    values = torch.cat([torch.zeros(2, 40, 36), VOLUME, VOLUME])
    write_nifti(folder / "a.nii", values, spacing_mm=SQUARE)
    _captions(folder, _line("a.nii"), _line("a.nii", "the third slice", slice=3), _line("a.nii", "few", slice=[5, 8]))
    made = prepare(folder, every=2)
    assert made.slice_index.tolist() == [2, 3, 4, 6, 8, 10]
    assert made.captions.tolist()[1:5] == ["the third slice", "T1-weighted brain MRI.", "few", "few"]
    assert any("1 slices show next to nothing" in w for w in made.warnings)


# ---- other sources


def test_hdf5_stacks_and_pictures(folder: Path, prepare: Callable[..., Prepared]) -> None:
    stack = VOLUME.numpy()
    for name, dataset, values in (
        ("a.h5", "volume", stack),
        ("b.hdf5", "reconstruction_rss", stack[:, ::-1]),
        ("c.h5", "images", stack[0]),
    ):
        with h5py.File(folder / name, "w") as file:
            file[dataset] = values
            file.attrs["pixel_spacing_mm"] = 0.5
    Image.fromarray((stack[0] / stack.max() * 255).astype(np.uint8)).save(folder / "d.png")
    _captions(folder, *(_line(n, "Coronal T2w brain MRI.", subject=n) for n in ("a.h5", "b.hdf5", "c.h5", "d.png")))
    made = prepare(folder, planes=("axial", "sagittal"))
    assert [int((made.source == n).sum()) for n in ("a.h5", "b.hdf5", "c.h5", "d.png")] == [5, 5, 1, 1]
    a, b, c, d = (made.images[made.source == n] for n in ("a.h5", "b.hdf5", "c.h5", "d.png"))
    assert np.array_equal(a, b)
    assert np.abs(c[0].astype(int) - d[0]).max() <= 2
    assert set(made.plane) == {"coronal"} and set(made.contrast) == {"T2w"}
    assert made.pixel_spacing_mm[0] == 0.5 and np.isnan(made.pixel_spacing_mm[-1])


def test_bids_is_captioned_from_whitelisted_words_only(
    tmp_path: Path, folder: Path, prepare: Callable[..., Prepared]
) -> None:
    for subject in ("01", "02", "03"):
        anat = folder / f"sub-{subject}" / "ses-a" / "anat"
        anat.mkdir(parents=True)
        for suffix in ("T1w", "FLAIR", "T1map"):
            path = anat / f"sub-{subject}_ses-a_{suffix}.nii.gz"
            write_nifti(path, VOLUME, spacing_mm=SQUARE, header={"descrip": "CANARY"})
    personal = {"PatientName": "CANARY^JANE", "BodyPartExamined": "HEAD", "ContrastBolusIngredient": "gadolinium "}
    (folder / "sub-02/ses-a/anat/sub-02_ses-a_T1w.json").write_text(json.dumps(personal))
    (folder / "participants.tsv").write_text("participant_id\tname\nsub-01\tCANARY\n")
    made = prepare(folder)
    assert sorted(set(made.subject)) == ["01", "02", "03"]
    assert set(made.captions[made.subject == "01"]) == {"axial T1-weighted brain MRI", "axial T2-FLAIR brain MRI"}
    second = made.captions[(made.subject == "02") & (made.contrast == "T1w+Gd")]
    assert set(second) == {"axial contrast-enhanced T1-weighted brain MRI"}
    assert any(w.startswith("3 scans of other kinds were left out") for w in made.warnings)
    assert b"CANARY" not in made.path.read_bytes()
    with h5py.File(made.path) as file:
        texts = [str(file[name].asstr()[...]) for name in file if file[name].dtype.kind == "O"]
    assert "CANARY" not in "".join(texts) + str(made.attributes)
    (folder / "sub-02/ses-a/anat/sub-02_ses-a_T1w.json").write_text("[1")
    with pytest.raises(FormatError, match="sidecar"):
        prepare(folder)


def test_file_names_caption_where_there_is_nothing_else(folder: Path, prepare: Callable[..., Prepared]) -> None:
    for name in ("p01_brain_FLAIR.nii.gz", "p02_brain_T2.nii.gz", "p03.nii.gz", "p01_brain_T1_mask.nii.gz"):
        write_nifti(folder / name, VOLUME, spacing_mm=SQUARE)
    made = prepare(folder)
    assert set(made.captions) == {"axial T2-FLAIR brain MRI", "axial T2-weighted brain MRI"}
    assert set(made.subject) == {"p01", "p02"}
    assert any(w.startswith("1 scans have no caption") and "p03" in w for w in made.warnings)
    for name in ("p01_brain_FLAIR.nii.gz", "p02_brain_T2.nii.gz"):
        (folder / name).unlink()
    with pytest.raises(FormatError, match=r"captions.jsonl.*1 scans without a caption"):
        prepare(folder, "other.h5")


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("sub-07/anat/sub-07_T1w.nii.gz", "07"),
        ("p07_T1POST.nii.gz", "p07"),
        ("study/p07-FLAIR_brain.nii", "p07"),
        ("patient3/T1.nii.gz", "patient3"),
        ("T1.nii.gz", "unknown"),
    ],
)
def test_subjects_are_read_off_names(name: str, subject: str) -> None:
    assert guessed_subject(name) == subject


def test_a_slice_file_is_checked_and_copied(tmp_path: Path, prepare: Callable[..., Prepared]) -> None:
    images = (VOLUME / VOLUME.max() * 255).numpy().astype(np.uint8)
    columns: dict[str, list[str]] = {
        "captions": ["axial T1-weighted brain MRI"] * 5,
        "subject": ["a", "a", "b", "b", "b"],
        "split": ["train", "train", "val", "val", "val"],
    }

    def write(**changed: Any) -> Path:
        with h5py.File(tmp_path / "theirs.h5", "w") as file:
            for name, values in ({"images": images, "lesion_masks": images > 200} | columns | changed).items():
                text = isinstance(values, list)
                file.create_dataset(name, data=values, dtype=h5py.string_dtype() if text else None)
        return tmp_path / "theirs.h5"

    made = prepare(write(), size=48)
    assert np.array_equal(made.images[:, 4:44, 6:42], images)
    assert np.array_equal(made.lesion_masks[:, 4:44, 6:42], images > 200)
    assert made.split.tolist() == columns["split"] and made.contrast.tolist() == ["T1w"] * 5
    crossing = prepare(write(split=["train", "val", "val", "val", "val"]))
    assert any("1 subjects of the file are in both" in w for w in crossing.warnings)
    for changed, message in (
        ({"split": ["test"] * 5}, "train or val"),
        ({"subject": ["a"] * 4}, "5 entries of subject"),
        ({"captions": ["x", "", "x", "x", "x"]}, "1 empty ones, the first in row 1"),
        ({"images": images[..., None]}, r"images \(N, H, W\)"),
        ({"captions": np.arange(5)}, "texts"),
    ):
        with pytest.raises(FormatError, match=message):
            prepare(write(**changed), "bad.h5")
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["images"] = h5py.ExternalLink("theirs.h5", "/images")
    with pytest.raises(UnsafeFileError):
        prepare(tmp_path / "linked.h5", "bad.h5")
    assert not (tmp_path / "bad.h5").exists()


# ---- captions.jsonl


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ('{"file": "a.nii", "caption": "x"', FormatError, "line 2 of captions.jsonl to be one JSON object"),
        ("[1, 2]", FormatError, "line 2 .* JSON object, got list"),
        ("\xff", FormatError, "line 2"),
        ({"file": "a.nii"}, FormatError, 'expected "caption" in line 2'),
        ({"caption": "x"}, FormatError, 'expected "file" in line 2'),
        (_line("gone.nii"), FormatError, "line 2 .*'gone.nii' is not there"),
        (_line("a.nii", mask="gone.nii"), FormatError, "the mask of line 2"),
        (_line("../a.nii"), UnsafeFileError, "line 2 .* stay inside the folder"),
        (_line("sub\\..\\..\\a.nii"), UnsafeFileError, "stay inside"),
        (_line("/etc/hostname"), UnsafeFileError, "stay inside"),
        (_line("C:\\a.nii"), UnsafeFileError, "stay inside"),
        (_line("a.nii", mask="../a.nii"), UnsafeFileError, '"mask" in line 2'),
        (_line("a.nii", slice=[3, 1]), FormatError, '"slice" in line 2'),
        (_line("a.nii", slice="3"), FormatError, '"slice" in line 2'),
        (_line("a.nii", slice=True), FormatError, '"slice" in line 2'),
        (_line("a.nii", slice=9), FormatError, r"0\.\.4 of 'a.nii' in line 2 .*got 9"),
        (_line("a.nii", split="test"), FormatError, '"split" in line 2'),
        (_line("a.nii", plane="oblique"), FormatError, '"plane" in line 2'),
        (_line("a.nii", subject=7), FormatError, '"subject" in line 2 .* string'),
        (_line("a.nii", "x" * 3000), FormatError, "line 2 .*at most 2000"),
        (_line("b.nii", subject="s", split="val"), FormatError, "subject 's' in one split, got train in line 1"),
        (_line("a.nii", "other", subject="t"), FormatError, "one subject for 'a.nii'.*line 1.*line 2"),
    ],
)  # fmt: skip
def test_a_defect_in_a_line_is_one_error_with_its_number(
    folder: Path, tmp_path: Path, prepare: Callable[..., Prepared], line: Any, error: type[Exception], message: str
) -> None:
    for name in ("a.nii", "b.nii"):
        write_nifti(folder / name, VOLUME, spacing_mm=SQUARE)
    _captions(folder, _line("a.nii", subject="s", split="train"), line)
    if line == "\xff":
        captions = folder / "captions.jsonl"
        captions.write_bytes(captions.read_bytes().replace("\xff".encode(), b"\xff"))
    with pytest.raises(error, match=message):
        prepare(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_what_can_be_lived_with_is_counted(folder: Path, prepare: Callable[..., Prepared]) -> None:
    for name in ("p1_T1.nii", "p2_T1.nii", "p3_T1.nii", "p4_T1.nii"):
        write_nifti(folder / name, VOLUME, spacing_mm=SQUARE)
    write_nifti(folder / "p1_lesions.nii", VOLUME, spacing_mm=SQUARE)
    _captions(
        folder,
        "",
        _line("p1_T1.nii", "Patient John Smith, born 1970-01-02."),
        _line("p1_T1.nii", "Patient John Smith,  born 1970-01-02.", author="me"),
        _line("p2_T1.nii", " "),
        _line("p3_T1.nii", "Sagittal T1-weighted brain MRI.", finding=None),
    )
    made = prepare(folder)
    assert sorted(set(made.source)) == ["p1_T1.nii", "p2_T1.nii"]
    assert set(made.captions[made.source == "p2_T1.nii"]) == {"axial T1-weighted MRI"}
    for expected in (
        "1 lines say the same",
        "1 lines have an empty caption",
        "1 lines have fields that are not read (author)",
        "2 captions seem to hold a name",
        "1 scans have no line in captions.jsonl and were left out (p4_T1.nii)",
        "3 scans name no subject",
        "1 scans have no caption for axial slices and were left out; their captions say sagittal",
    ):
        assert any(w.startswith(expected) for w in made.warnings), (expected, made.warnings)


def test_an_empty_captions_file_says_what_to_write(folder: Path, prepare: Callable[..., Prepared]) -> None:
    _captions(folder)
    with pytest.raises(FormatError, match="expected lines such as"):
        prepare(folder)


# ---- scans that cannot be used


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (torch.linspace(-3, 3, 5 * 40 * 36).reshape(5, 40, 36), FormatError, "undo the normalisation"),
        (torch.zeros(5, 40, 36), NumericsError, "something in it"),
        (torch.full((5, 40, 36), float("nan")), NumericsError, "NaN"),
    ],
)
def test_unusable_values_name_the_scan(
    folder: Path, prepare: Callable[..., Prepared], values: torch.Tensor, error: type[Exception], message: str
) -> None:
    write_nifti(folder / "a.nii", values, spacing_mm=SQUARE)
    _captions(folder, _line("a.nii"))
    with pytest.raises(error, match=f"a.nii: .*{message}"):
        prepare(folder)


def test_foreign_and_damaged_files_name_the_scan(folder: Path, prepare: Callable[..., Prepared]) -> None:
    write_nifti(folder / "a.nii.gz", VOLUME)
    damaged = (folder / "a.nii.gz").read_bytes()[:2000]
    for name, content in (("a.nii.gz", damaged), ("b.png", b"\x89PNG\r\n\x1a\n123"), ("c.txt", b"hello" * 200)):
        (folder / name).write_bytes(content)
        _captions(folder, _line(name))
        with pytest.raises(FormatError, match=f"{name}: "):
            prepare(folder)
    _captions(folder, _line("a.nii.gz", "CT of the head"))
    write_nifti(folder / "a.nii.gz", 3000 * VOLUME, spacing_mm=SQUARE)
    with pytest.raises(FormatError, match="rescale slope"):
        prepare(folder)


def test_thick_slices_are_not_cut_the_other_way(folder: Path, prepare: Callable[..., Prepared]) -> None:
    write_nifti(folder / "a.nii", phantom_volume((40, 36), 20), spacing_mm=(1.0, 1.0, 6.0))
    write_nifti(folder / "b.nii", VOLUME, spacing_mm=SQUARE, sform_code=0, qform_code=0)
    _captions(folder, _line("a.nii"), _line("b.nii"))
    made = prepare(folder, planes=("axial", "coronal"))
    assert set(made.plane[made.source == "a.nii"]) == {"axial"}
    assert set(made.plane[made.source == "b.nii"]) == {"unspecified"}
    assert any("volumes were not cut into every plane" in w for w in made.warnings)
    assert any(w.startswith("1 volumes do not say how the patient lay") for w in made.warnings)
    _captions(folder, _line("a.nii"))
    with pytest.raises(FormatError, match="got none: .*they are axial"):
        prepare(folder, planes=("sagittal",))


# ---- splits


def _rows(subjects: list[str], split: dict[str, str] | None = None) -> list[SliceRow]:
    return [
        SliceRow("c", "", "", "", s, (split or {}).get(s, ""), "", "MRI", slice_index=i, group="g")
        for s in subjects
        for i in range(10)
    ]


def test_split_is_by_subject_and_deterministic() -> None:
    subjects = [f"s{i}" for i in range(20)]
    rows, warnings = split_rows(_rows(subjects), 0.15, 3)
    val = {row.subject for row in rows if row.split == "val"}
    assert not warnings and len(val) == 3
    assert not val & {row.subject for row in rows if row.split == "train"}
    assert rows == split_rows(_rows(subjects), 0.15, 3)[0]
    others = [{r.subject for r in split_rows(_rows(subjects), 0.15, seed)[0] if r.split == "val"} for seed in range(8)]
    assert len({tuple(sorted(o)) for o in others}) > 4


@pytest.mark.parametrize(("count", "share", "expected"), [(2, 0.9, 1), (3, 0.01, 1), (10, 0.0, 0), (4, 0.5, 2)])
def test_val_gets_at_least_one_subject_and_train_too(count: int, share: float, expected: int) -> None:
    rows, _ = split_rows(_rows([f"s{i}" for i in range(count)]), share, 0)
    assert len({row.subject for row in rows if row.split == "val"}) == expected
    assert any(row.split == "train" for row in rows)


def test_a_given_split_holds() -> None:
    rows, _ = split_rows(_rows(["a", "b", "c", "d"], {"a": "val", "b": "train"}), 0.25, 0)
    assert {row.subject for row in rows if row.split == "val"} == {"a"}
    with pytest.raises(FormatError, match='all 2 are "val"'):
        split_rows(_rows(["a", "b"], {"a": "val", "b": "val"}), 0.5, 0)


def test_the_last_slices_of_one_subject_are_val_with_a_warning() -> None:
    rows, (warning,) = split_rows(_rows(["a"]), 0.25, 0)
    assert [row.split for row in rows] == ["train"] * 7 + ["val"] * 3
    assert "not whether it generalises" in warning


# ---- the file


def test_the_cache_is_used_until_something_changes(folder: Path, prepare: Callable[..., Prepared]) -> None:
    for name in ("a.nii", "b.nii.gz"):
        write_nifti(folder / name, VOLUME, spacing_mm=SQUARE)
    _captions(folder, _line("a.nii"), _line("b.nii.gz"))

    def state() -> tuple[str, int]:
        made = prepare(folder)
        return made.attributes["fingerprint"], made.path.stat().st_ino

    first = state()
    assert state() == first
    assert prepare(folder).messages[-1] == "slices.h5 is up to date"
    write_nifti(folder / "b.nii.gz", VOLUME.flip(2), spacing_mm=SQUARE)
    second = state()
    assert second[0] != first[0] and second[1] != first[1]
    _captions(folder, _line("a.nii", "T2-weighted brain MRI."), _line("b.nii.gz"))
    assert state()[0] != second[0]
    assert prepare(folder, seed=1).attributes["fingerprint"] != prepare(folder).attributes["fingerprint"]
    assert json.loads(prepare(folder).attributes["settings"])["planes"] == ["axial"]


def test_other_files_are_never_overwritten(folder: Path, tmp_path: Path, prepare: Callable[..., Prepared]) -> None:
    write_nifti(folder / "a.nii", VOLUME, spacing_mm=SQUARE)
    _captions(folder, _line("a.nii"))
    (tmp_path / "notes.h5").write_text("mine")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = 1
    for name in ("notes.h5", "data.h5"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ResourceError, match="is kept"):
            prepare(folder, name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(ResourceError, match="not there"):
        prepare(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="expected a folder"):
        prepare(folder / "a.nii")


def test_training_reads_the_file(folder: Path, tmp_path: Path, prepare: Callable[..., Prepared]) -> None:
    for subject in ("a", "b"):
        write_nifti(folder / f"{subject}.nii", VOLUME, spacing_mm=SQUARE)
    _captions(folder, *(_line(f"{s}.nii", "Axial T2-FLAIR brain MRI; no lesion.") for s in ("a", "b")))
    made = prepare(folder)
    train, val = (CaptionedSlices.load(made.path, split) for split in ("train", "val"))
    assert train.images.shape == (5, 1, 48, 48) and len(val) == 5
    assert set(train.subjects) | set(val.subjects) == {"a", "b"}
    assert train.attributes[0].contrast == "FLAIR" and train.attributes[0].lesions == "none"


@pytest.mark.parametrize(
    "options",
    [
        {"size": 4}, {"planes": ()}, {"planes": ("oblique",)}, {"planes": ("axial", "axial")}, {"every": 0},
        {"val_share": 1.0}, {"val_share": -0.1}, {"window": (5.0, 5.0)}, {"window": (0.0, float("inf"))},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(folder: Path, prepare: Callable[..., Prepared], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        prepare(folder, **options)


def test_the_command_reports_on_stdout_and_warns_on_stderr(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nifti(folder / "a.nii", VOLUME, spacing_mm=SQUARE)
    _captions(folder, _line("a.nii", subject="a"))
    run(folder, tmp_path / "new" / "slices.h5", size=48, window="-160,240", as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out)["train"] == 4 and json.loads(out)["val"] == 1
    assert "warning: all slices are of one subject" in err
    with pytest.raises(ConfigError, match="LOW,HIGH"):
        parse_window("5")


def test_real_volumes(shared: Path, folder: Path, prepare: Callable[..., Prepared]) -> None:
    names = ("breast_a_mr", "ct_chest_a_small", "ms_cs_p07_FLAIR", "ms_cs_p07_lesions")
    for name in names:
        (folder / f"{name}.nii.gz").symlink_to(shared / "nifti" / f"{name}.nii.gz")
    _captions(
        folder,
        _line("breast_a_mr.nii.gz", "breast MRI"),
        _line("ct_chest_a_small.nii.gz", "chest"),
        _line("ms_cs_p07_FLAIR.nii.gz", "T2-FLAIR brain MRI", mask="ms_cs_p07_lesions.nii.gz"),
    )
    made = prepare(folder, size=256, every=16)
    assert dict(zip(made.source, made.modality, strict=True)) == {
        "breast_a_mr.nii.gz": "MRI", "ct_chest_a_small.nii.gz": "CT", "ms_cs_p07_FLAIR.nii.gz": "MRI",
    }  # fmt: skip
    with h5py.File(shared / "slices" / "brain_mr_slices_2d.h5") as file:
        subject, contrast = file["subject"].asstr()[...], file["contrast"].asstr()[...]
        wanted = np.flatnonzero((subject == "ms_cs_p07") & (contrast == "FLAIR"))
        published = file["images"][wanted.min() : wanted.max() + 1].astype(np.float32).reshape(-1, 256 * 256)
    ours = made.images[made.source == "ms_cs_p07_FLAIR.nii.gz"][4].astype(np.float32)
    shifts = [np.roll(ours, (r, c), (0, 1)) for r in range(-2, 3) for c in range(-2, 3)]
    alike, mirrored = (
        max(float(np.corrcoef(s.ravel(), p)[0, 1]) for s in images for p in published[::2])
        for images in (shifts, [s[:, ::-1] for s in shifts])
    )
    # The published slices have the patient's right on the right: the mirror image of what this package shows.
    assert mirrored > 0.95
    assert mirrored > alike
