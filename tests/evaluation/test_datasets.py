"""Which scans a dataset holds, whose they are, and which target and prediction belong to each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from treg_med.errors import ConfigError, FormatError, ResourceError
from treg_med.evaluation.config import (
    ConfigFile,
    DatasetConfig,
    EvaluationConfig,
    MethodConfig,
    PredictionConfig,
)
from treg_med.evaluation.datasets import ScanFile, find_predictions, find_scans
from treg_med.evaluation.regions import Box


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def config_of(root: Path, dataset: DatasetConfig) -> ConfigFile:
    settings = EvaluationConfig(version=1, datasets=[dataset], methods=[MethodConfig(label="tv", solver="tv")])
    return ConfigFile(root / "evaluation.yaml", "", settings)


def scans_of(root: Path, files: str | list[str], **others: str) -> list[ScanFile]:
    dataset = DatasetConfig.model_validate({"name": "brain", "files": files, **others})
    return find_scans(dataset, config_of(root, dataset))


def test_globs_are_relative_to_the_configuration_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "scans/b.nii.gz", "scans/a.nii.gz", "scans/deep/c.nii.gz", "scans/d.txt")
    assert [s.name for s in scans_of(tmp_path, "scans/*.nii.gz")] == ["a", "b"]
    assert [s.name for s in scans_of(tmp_path, "scans/**/*.nii.gz")] == ["a", "b", "c"]
    assert len(scans_of(tmp_path, ["scans/a.*", "scans/*.nii.gz"])) == 2
    assert [s.name for s in scans_of(tmp_path, str(tmp_path / "scans" / "a*"))] == ["a"]


def test_an_empty_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'brain': files: expected scans that match 'scans/"):
        scans_of(tmp_path, "scans/*.nii.gz")
    (tmp_path / "scans").mkdir()
    with pytest.raises(ConfigError, match="got none"):
        scans_of(tmp_path, "scans")


def test_subjects_by_bids_by_name_and_by_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    found = scans_of(tmp_path, "sub-*/**/*.nii.gz")
    assert [(s.subject, s.session) for s in found] == [("01", "b"), ("02", "")]
    touch(tmp_path, "flat/p07_T1.nii.gz", "flat/p07_FLAIR.nii.gz", "flat/p08_T1.nii.gz")
    assert [s.subject for s in scans_of(tmp_path, "flat/*")] == ["p07", "p07", "p08"]
    assert [s.subject for s in scans_of(tmp_path, "flat/*", subject="p([0-9]+)")] == ["07", "07", "08"]
    with pytest.raises(ConfigError, match=r"expected a subject in every path, got none in 'flat/p07_FLAIR.nii.gz'"):
        scans_of(tmp_path, "flat/*", subject="q([0-9]+)")


def test_a_bids_folder_gives_anatomical_scans_without_masks(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "bids/sub-01/anat/sub-01_T1w.nii.gz",
        "bids/sub-01/anat/sub-01_T1w.json",
        "bids/sub-01/anat/sub-01_mask.nii.gz",
        "bids/sub-01/func/sub-01_bold.nii.gz",
        "bids/derivatives/x/sub-01/anat/sub-01_T1w.nii.gz",
    )
    assert [s.name for s in scans_of(tmp_path, "bids")] == ["sub-01_T1w"]


def test_names_differ_where_files_are_called_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "p1/T2.nii.gz", "p2/T2.nii.gz", "p2/T1.nii.gz", "x/scan.h5", "x/scan.nii")
    names = [s.name for s in scans_of(tmp_path, ["p*/*.nii.gz", "x/*"])]
    assert names == ["sub-p1_T2", "T1", "sub-p2_T2", "sub-scan_run-1_scan", "sub-scan_run-2_scan"]
    # Outputs keep letters and digits only.
    touch(tmp_path, "y/a_b.nii", "y/ab.nii", "z/sub-01_T1w.nii", "z/ses-2/sub-01_T1w.nii")
    names = [s.name for s in scans_of(tmp_path, ["y/*", "z/**/*.nii"])]
    assert names == ["sub-ab_run-1_ab", "sub-ab_run-2_ab", "sub-01_ses-2_T1w", "sub-01_T1w"]


def test_captions_lie_beside_the_files_or_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "scans/a.nii.gz", "scans/b.nii.gz")
    lines = [
        {"file": "a.nii.gz", "caption": "axial T1 brain MRI, a lesion here", "slice": 3},
        {"file": "a.nii.gz", "caption": "axial T1 brain MRI", "subject": "one"},
    ]
    (tmp_path / "scans" / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    for others in ({}, {"captions": "scans"}, {"captions": "scans/captions.jsonl"}):
        first, second = scans_of(tmp_path, "scans/*.nii.gz", **others)
        assert (first.caption, first.subject) == ("axial T1 brain MRI", "one")
        assert (second.caption, second.subject) == (None, "b")
    with pytest.raises(ResourceError, match="captions"):
        scans_of(tmp_path, "scans/*.nii.gz", captions="scans/others.jsonl")


def test_targets_by_name_and_by_subject(tmp_path: Path) -> None:
    touch(tmp_path, "scans/p1.h5", "scans/p2.h5", "full/p1.nii.gz", "full/p2_T2.nii.gz", "full/p3.nii.gz")
    targets = [s.target for s in scans_of(tmp_path, "scans/*", target="full/*")]
    assert targets == [tmp_path / "full" / "p1.nii.gz", tmp_path / "full" / "p2_T2.nii.gz"]
    touch(tmp_path, "scans/p4.h5")
    with pytest.raises(ConfigError, match="got none for p4.h5"):
        scans_of(tmp_path, "scans/*", target="full/*")
    touch(tmp_path, "full/p4.h5")
    with pytest.raises(FormatError, match="NIfTI"):
        scans_of(tmp_path, "scans/*", target="full/*")


def predictions(root: Path, files: str, scenario: str = "r4") -> dict[str, str]:
    dataset = DatasetConfig(name="brain", files=["scans/**/*.h5"])
    config = config_of(root, dataset)
    entry = PredictionConfig(label="vendor", files=[files])
    found = find_predictions(entry, scenario, find_scans(dataset, config), dataset, config)
    return {scan.path.relative_to(root).as_posix(): path.relative_to(root).as_posix() for scan, path in found.items()}


def test_predictions_are_matched_by_name_without_the_programs_own_entities(tmp_path: Path) -> None:
    touch(tmp_path, "scans/sub-01_T2w.h5", "scans/sub-01_T1w.h5", "scans/sub-02_T1w.h5")
    touch(tmp_path, "vendor/r4/sub-01_rec-fast_T2w.nii.gz", "vendor/r4/sub-01_rec-fast_T1w.nii.gz")
    found = predictions(tmp_path, "vendor/{scenario}/*.nii.gz")
    assert found == {
        "scans/sub-01_T1w.h5": "vendor/r4/sub-01_rec-fast_T1w.nii.gz",
        "scans/sub-01_T2w.h5": "vendor/r4/sub-01_rec-fast_T2w.nii.gz",
    }
    with pytest.raises(ConfigError, match="got none"):
        predictions(tmp_path, "vendor/{scenario}/*.nii.gz", "r8")


def test_predictions_called_alike_are_told_apart_by_subject(tmp_path: Path) -> None:
    touch(tmp_path, "scans/sub-01/T2.h5", "scans/sub-02/T2.h5", "out/sub-01/T2.nii.gz", "out/sub-02/T2.nii.gz")
    found = predictions(tmp_path, "out/**/*.nii.gz")
    assert found["scans/sub-02/T2.h5"] == "out/sub-02/T2.nii.gz"
    touch(tmp_path, "out/again/sub-02/T2.nii.gz")
    with pytest.raises(ConfigError, match="expected one file for 'T2.h5', got 2"):
        predictions(tmp_path, "out/**/*.nii.gz")


def test_predictions_of_nobody_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "scans/p1.h5", "out/q1.nii.gz")
    with pytest.raises(ConfigError, match="named like the scans"):
        predictions(tmp_path, "out/*.nii.gz")


def masks_of(root: Path, files: str, masks: str) -> dict[str, str | None]:
    scans = scans_of(root, files, masks=masks)
    return {scan.path.name: scan.mask and scan.mask.relative_to(root).as_posix() for scan in scans}


def test_masks_by_name_and_by_subject_without_the_words_of_masks(tmp_path: Path) -> None:
    touch(tmp_path, "scans/p1_T2.nii.gz", "scans/p1_FLAIR.nii.gz", "scans/p2_FLAIR.nii.gz", "scans/p3_T1.nii.gz")
    touch(tmp_path, "seg/p1_FLAIR_lesions.nii.gz", "seg/p2-mask.nii.gz", "seg/p9_seg.nii.gz")
    expected = {
        "p1_FLAIR.nii.gz": "seg/p1_FLAIR_lesions.nii.gz",
        "p1_T2.nii.gz": None,
        "p2_FLAIR.nii.gz": "seg/p2-mask.nii.gz",
        "p3_T1.nii.gz": None,
    }
    assert masks_of(tmp_path, "scans/*", "seg/*") == expected
    assert masks_of(tmp_path, "scans/*", "seg") == expected
    assert not any(scan.has_regions for scan in scans_of(tmp_path, "scans/*"))
    touch(tmp_path, "bids/sub-1_T2w.nii.gz", "bids/out/sub-1_label-WM_mask.nii.gz")
    assert masks_of(tmp_path, "bids/*.nii.gz", "bids") == {"sub-1_T2w.nii.gz": "bids/out/sub-1_label-WM_mask.nii.gz"}


def test_a_folder_of_masks_need_not_say_so_in_every_name(tmp_path: Path) -> None:
    touch(tmp_path, "scans/p1.nii.gz", "lesion/p1.nii.gz")
    assert masks_of(tmp_path, "scans/*", "lesion") == {"p1.nii.gz": "lesion/p1.nii.gz"}


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "scans/p1.nii.gz", "seg/p1_mask.nii.gz", "seg/p1_roi.nii.gz", "h5/p1.h5")
    with pytest.raises(ConfigError, match="'brain': masks: expected one file for 'p1.nii.gz', got 2"):
        scans_of(tmp_path, "scans/*", masks="seg/*")
    with pytest.raises(ConfigError, match="masks: expected masks that match"):
        scans_of(tmp_path, "scans/*", masks="segs/*")
    with pytest.raises(FormatError, match="NIfTI volume as mask"):
        scans_of(tmp_path, "scans/*", masks="h5/*")


def test_boxes_by_the_name_of_the_file(tmp_path: Path) -> None:
    touch(tmp_path, "scans/file_a.h5", "scans/file_b.h5")
    header = "file,slice,study_level,x,y,width,height,label\n"
    (tmp_path / "brain.csv").write_text(header + "file_a,1,No,3,5,4,10,Mass\nfile_c,1,No,3,5,4,10,Mass\n")
    first, second = scans_of(tmp_path, "scans/*", boxes="brain.csv")
    assert first.boxes == (Box("file_a", 1, 3, 5, 4, 10, "Mass"),) and first.has_regions
    assert second.boxes == () and not second.has_regions
    (tmp_path / "other.csv").write_text(header + "file_c,1,No,3,5,4,10,Mass\n")
    with pytest.raises(ConfigError, match=r"boxes: .*such as 'file_a', got those of file_c"):
        scans_of(tmp_path, "scans/*", boxes="other.csv")
    (tmp_path / "normal.csv").write_text(header + "file_b,0,Yes,,,,,Normal for age\n")
    assert [scan.boxes for scan in scans_of(tmp_path, "scans/*", boxes="normal.csv")] == [(), ()]
    with pytest.raises(ResourceError, match="readable table"):
        scans_of(tmp_path, "scans/*", boxes="none.csv")
