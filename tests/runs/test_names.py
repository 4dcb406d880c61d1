"""Names of outputs: parts of BIDS names are kept, no two inputs meet in one name, and all of them are safe."""

from __future__ import annotations

from pathlib import Path

import pytest

from treg_med.data.atomic import safe_name
from treg_med.errors import ConfigError
from treg_med.runs.names import VARIANTS, output_name, unique_labels
from treg_med.words.scan_words import ScanWords

MRI, CT = ScanWords(modality="MRI"), ScanWords(modality="CT")


def stem_of(name: str, label: str = "treg", words: ScanWords = MRI) -> str:
    return output_name(name, words).stem(label)


@pytest.mark.parametrize(
    ("name", "words", "folder", "stem"),
    [
        ("scan.h5", MRI, "sub-scan/anat", "sub-scan_rec-treg_image"),
        ("my scan-01 (b).NII.GZ", MRI, "sub-myscan01b/anat", "sub-myscan01b_rec-treg_image"),
        ("scan", ScanWords(), "sub-scan/anat", "sub-scan_rec-treg_image"),
        ("brain_T2w.nii.gz", ScanWords(contrast="T2w"), "sub-brainT2w/anat", "sub-brainT2w_rec-treg_T2w"),
        ("a.hdf5", ScanWords(contrast="FLAIR"), "sub-a/anat", "sub-a_rec-treg_FLAIR"),
        ("a.hdr", ScanWords(contrast="PDw+FS"), "sub-a/anat", "sub-a_rec-treg_PDw"),
        ("a.nii", ScanWords(contrast="T1w+Gd"), "sub-a/anat", "sub-a_ce-gadolinium_rec-treg_T1w"),
        ("chest.nii", CT, "sub-chest/ct", "sub-chest_rec-treg_ct"),
        ("...", MRI, "sub-scan/anat", "sub-scan_rec-treg_image"),
        ("Müller.nii", MRI, "sub-Mller/anat", "sub-Mller_rec-treg_image"),
        ("sub-01_T2w.nii.gz", MRI, "sub-01/anat", "sub-01_rec-treg_T2w"),
        ("sub-01_ses-2_T1w.nii", MRI, "sub-01/ses-2/anat", "sub-01_ses-2_rec-treg_T1w"),
        ("sub-01_ses-2_T1w", ScanWords(contrast="T1w+Gd"), "sub-01/ses-2/anat", "sub-01_ses-2_rec-treg_T1w"),
        ("sub-01_run-3_acq-x_bold.h5", MRI, "sub-01/anat", "sub-01_acq-x_rec-treg_run-3_bold"),
        ("sub-01_rec-norm_desc-old_T1w.nii", MRI, "sub-01/anat", "sub-01_rec-treg_T1w"),
        ("sub-01.h5", ScanWords(contrast="T2w"), "sub-01/anat", "sub-01_rec-treg_T2w"),
        ("sub-01_foo-x_T1w.nii", MRI, "sub-01/anat", "sub-01_rec-treg_foo-x_T1w"),
        ("sub-01_ses-_T1w.nii", MRI, "sub-sub01sesT1w/anat", "sub-sub01sesT1w_rec-treg_image"),
    ],
)  # fmt: skip
def test_parts_of_a_name(name: str, words: ScanWords, folder: str, stem: str) -> None:
    found = output_name(name, words)
    assert found.folder == Path(folder)
    assert found.stem("treg") == stem
    assert "rec-" not in found.base
    assert found.base.startswith(folder.split("/")[0])


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("treg", "rec-treg"),
        ("zero-filled", "rec-zerofilled"),
        ("pwls-tv", "rec-pwlstv"),
        ("treg-control", "rec-treg_desc-control"),
        ("zero-filled-control", "rec-zerofilled_desc-control"),
        *((f"treg-{variant}", f"rec-treg_desc-{variant}") for variant in VARIANTS),
        ("control", "rec-control"),
        ("treg-ct", "rec-tregct"),
        ("a.b_c", "rec-abc"),
    ],
)
def test_methods_and_their_variants(label: str, parts: str) -> None:
    name = stem_of("scan.h5", label)
    variant = parts.partition("_desc-")[2]
    assert name == f"sub-scan_{parts.partition('_desc-')[0]}{f'_desc-{variant}' if variant else ''}_image"


def test_the_description_comes_last() -> None:
    name = stem_of("sub-1_space-mni_part-mag_zzz-9_T1w.nii", "treg-control")
    assert name == "sub-1_rec-treg_part-mag_space-mni_zzz-9_desc-control_T1w"


def test_a_label_without_letters_is_refused() -> None:
    with pytest.raises(ConfigError, match="letter or digit"):
        stem_of("scan.h5", "._-")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b.h5", "con.nii", "x" * 300 + ".h5", "\x1b[2J.h5", "名前.nii"])
def test_every_name_is_safe(name: str) -> None:
    found = output_name(name, MRI)
    assert safe_name(found.stem("treg")) == found.stem("treg")
    assert len(found.folder.parts) == 2
    assert ".." not in found.folder.parts


def test_long_names_stay_apart() -> None:
    first, second = (stem_of("x" * 100 + end) for end in ("a.h5", "b.h5"))
    assert first != second
    assert len(first) < 80
    entities = [f"sub-01_acq-{'x' * 60}{end}_T1w.nii" for end in "ab"]
    assert stem_of(entities[0]) != stem_of(entities[1])


def test_a_name_that_no_file_can_have_is_refused_at_once() -> None:
    parts = "_".join(f"{key}-{'x' * 40}" for key in ("ses", "acq", "run", "echo"))
    with pytest.raises(ConfigError, match="120"):
        stem_of(f"sub-01_{parts}_T1w.nii")


# --- several inputs


def labels(*paths: str) -> list[str]:
    return unique_labels([Path(path) for path in paths])


def test_different_names_are_kept() -> None:
    assert labels("/a/x.h5", "/b/y.h5", "/a/sub-01_T1w.nii", "/a/sub-01_T2w.nii") == [
        "x.h5", "y.h5", "sub-01_T1w.nii", "sub-01_T2w.nii"
    ]  # fmt: skip
    assert labels() == []


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("/a/scan.h5", "/b/scan.h5"), ["ascan", "bscan"]),
        (("/a/scan.h5", "/b/SCAN.nii"), ["ascan", "bSCAN"]),
        (("/one/raw/scan.h5", "/two/raw/scan.h5", "/two/other.h5"), ["onerawscan", "tworawscan", "other.h5"]),
        (("/a/sub-01_T1w.nii", "/b/sub-01_T1w.nii"), ["asub01T1w", "bsub01T1w"]),
    ],
)
def test_folders_tell_scans_of_one_name_apart(paths: tuple[str, ...], expected: list[str]) -> None:
    assert labels(*paths) == expected


@pytest.mark.parametrize(
    "paths",
    [
        ("/a/scan.h5", "/a/scan.nii", "/a/scan.nii.gz"),
        ("/a/my scan.h5", "/a/my-scan.h5", "/a/myscan.h5"),
        ("/a/sub-01_rec-norm_T1w.nii", "/a/sub-01_rec-orig_T1w.nii"),
        ("/a/sub-01_desc-a_T1w.nii", "/a/sub-01_T1w.nii"),
        ("/a/01.h5", "/a/sub-01.h5"),
        ("/a/sub-01_acq-x_run-1_T1w.nii", "/a/sub-01_run-1_acq-x_T1w.nii"),
        ("/a/b/c.h5", "/ab/c.h5", "/a/bc.h5"),
        ("/a/+.h5", "/a/-.h5"),
        ("/scan.h5", "/a/scan.h5"),
        ("/x/scan.h5", "/x/SCAN.h5"),
    ],
)
def test_no_two_inputs_meet_in_one_output(paths: tuple[str, ...]) -> None:
    stems = [stem_of(label).lower() for label in labels(*paths)]
    assert len(set(stems)) == len(paths)


def test_names_do_not_depend_on_the_order() -> None:
    paths = ["/a/scan.h5", "/b/scan.h5", "/a/b/scan.nii", "/c/other.h5"]
    assert dict(zip(paths, labels(*paths), strict=True)) == dict(zip(paths[::-1], labels(*paths[::-1]), strict=True))


def test_an_input_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'x\.h5' twice"):
        unique_labels([Path("x.h5"), tmp_path / "x.h5"])
