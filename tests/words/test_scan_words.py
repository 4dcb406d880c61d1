"""Words from headers, and warnings about words of users."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from treg_med.data import ScanWords, check_text, suggest_text
from treg_med.errors import ConfigError
from treg_med.words.scan_words import words_from_label


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (ScanWords("MRI", "brain", "T1w", "axial"), "axial T1-weighted brain MRI"),
        (ScanWords("MRI", "brain", "FLAIR"), "T2-FLAIR brain MRI"),
        (
            ScanWords(plane="coronal", contrast="PDw+FS", anatomy="knee"),
            "coronal fat-suppressed proton-density-weighted knee MRI",
        ),
        (ScanWords("CT", "chest", None, "axial"), "Axial CT slice of the chest"),
        (
            ScanWords("CT", "upper abdomen", "no intravenous contrast", "coronal"),
            "Coronal CT slice of the upper abdomen, no intravenous contrast",
        ),
        (ScanWords("CT", "abdomen and pelvis"), "CT slice of the abdomen and pelvis"),
        (ScanWords("CT", None, None, "sagittal"), "Sagittal CT slice"),
        (ScanWords("CT"), None),
        (ScanWords("MRI"), None),
        (ScanWords(), None),
    ],
)
def test_suggested_text(words: ScanWords, text: str | None) -> None:
    assert suggest_text(words) == text


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("sub-07_acq-ax_FLAIR", ("FLAIR", "axial", None)),
        ("brain_T1POST", ("T1w+Gd", None, "brain")),
        ("Jane_Doe_1970", (None, None, None)),
        ("SAGT2", ("T2w", "sagittal", None)),
        ("taxi", (None, None, None)),
        ("", (None, None, None)),
    ],
)
def test_words_of_a_label(label: str, expected: tuple[str | None, ...]) -> None:
    words = words_from_label(label)
    assert (words.contrast, words.plane, words.anatomy) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("ct_chest_a_small", ("chest", None)),
        ("AX-upper_abdomen", ("upper abdomen", "axial")),
        ("chest_abdomen_and_pelvis", ("chest, abdomen and pelvis", None)),
        ("cor_thorax", ("chest", "coronal")),
        ("Jane_Doe", (None, None)),
    ],
)
def test_words_of_a_ct_label(label: str, expected: tuple[str | None, str | None]) -> None:
    words = words_from_label(label, modality="CT")
    assert (words.anatomy, words.plane) == expected
    assert words.modality == "CT"


def test_the_form_is_that_of_the_training_captions(shared: Path) -> None:
    with h5py.File(shared / "slices" / "ct_slices_2d.h5") as file:
        captions, regions = file["captions"].asstr()[...], file["region"].asstr()[...]
        planes = file["plane"].asstr()[...]
    for caption, region, plane in zip(captions, regions, planes, strict=True):
        # "shoulders" stands for "shoulders and thoracic inlet" in the captions.
        text = suggest_text(ScanWords("CT", str(region), None, str(plane)))
        assert text is not None
        assert caption.startswith(text)


def test_only_whitelisted_words_exist() -> None:
    with pytest.raises(ConfigError, match="anatomy"):
        ScanWords(anatomy="Jane Doe")
    words = ScanWords.from_header(
        anatomy="Jane Doe", contrast=b"T2W", plane=" Axial ", modality=3, patient="x"
    )
    assert words == ScanWords(contrast="T2w", plane="axial")


@pytest.mark.parametrize("length", [2001, 10_000])
def test_a_long_text_is_refused_with_both_lengths(length: int) -> None:
    with pytest.raises(ConfigError, match=rf"2000.*{length}"):
        check_text("x" * length)
    assert check_text("x" * 2000) == ()


@pytest.mark.parametrize("text", [b"bytes", 3, ["a"]])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="string"):
        check_text(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("brain MRI of 12.03.1985", "date"),
        ("brain 1985-03-12", "date"),
        ("scan of 3 March 2020", "date"),
        ("20200312 brain", "date"),
        ("on Mar 3, 2020", "date"),
        ("MRN 1234567", "record number"),
        ("patient id: 99182", "record number"),
        ("accession A1234567", "record"),
        ("patient John Smith", "name"),
        ("DOE^JANE brain", "name"),
        ("Mrs Miller", "name"),
        ("John Smith, axial brain", "name"),
    ],
)
def test_personal_data_is_noticed(text: str, what: str) -> None:
    assert any(what in warning for warning in check_text(text))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "axial T1-weighted brain MRI",
        "Axial T2-FLAIR brain MRI, 53-year-old woman with multiple sclerosis",
        "coronal proton density knee, 3 T, 0.5 mm, TE 90 ms",
        "Magnetic Resonance Imaging of the brain",
        "Multiple Sclerosis",
        "Axial T2-weighted brain MRI, skull-stripped; 3 white-matter lesions, total lesion area 55 mm2.",
        "Dandy-Walker malformation",
        "contrast-enhanced T1, tumour 4.5 x 3.2 cm",
    ],
)
def test_clinical_descriptions_raise_no_alarm(text: str | None) -> None:
    assert check_text(text) == ()
