"""Heads of label maps: words are true, orientation is read, twins differ in their lesion, files are checked."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch

from treg_med.errors import FormatError, GeometryError, ResourceError
from treg_med.training.label_heads import LabelHeads
from treg_med.training.label_heads.maps import load_maps
from treg_med.training.label_heads.planes import draw_cut
from treg_med.training.label_heads.rendering import render
from treg_med.training.label_heads.tissues import CODES, CONTRASTS, TISSUES, draw_signal
from treg_med.words.captions import read_attributes, render_caption
from treg_med.words.vocabulary import PHRASES

# Number in the map -> FreeSurfer number.
_CODES = {0: 0, 1: 2, 2: 41, 3: 3, 4: 42, 5: 4, 6: 43, 7: 24, 8: 515, 9: 507, 10: 511, 11: 506}
_SHAPE = (116, 136, 120)
_MNI_SHAPE, _MNI_CORNER = (157, 189, 136), (-78, -112, -50)
_SIZE = (128, 128)
_PITCH = 2.0  # mm
#: Front, upper and left in MNI: what tells all axes of an image.
_PLACE = (-32, 28, 34)


def _ball(shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    grids = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radii, strict=True)) < 1


def _head(sided: bool = True, whole: bool = True) -> np.ndarray:
    """Labels with axes to the right, anterior and superior: shells about a brain of two halves."""
    centre = tuple((n - 1) / 2 for n in _SHAPE)
    labels = np.zeros(_SHAPE, np.uint8)
    shells = ((10, 1.0), (9, 0.95), (8, 0.88), (7, 0.80)) if whole else ()
    for label, share in shells:
        labels[_ball(_SHAPE, centre, tuple(share * n / 2 for n in _SHAPE))] = label
    right = np.arange(_SHAPE[0])[:, None, None] > centre[0]
    for label, share in ((3, 0.76), (1, 0.66), (5, 0.16)):
        inside = _ball(_SHAPE, centre, tuple(share * n / 2 for n in _SHAPE))
        labels[inside] = label
        if sided:
            labels[inside & right] = label + 1
    if whole:
        labels[_ball(_SHAPE, (40, 122, 45), (6, 6, 6))] = 11
    return labels


def _infarct(radius: float, place: tuple[int, int, int] = _PLACE) -> np.ndarray:
    centre = tuple(p - c for p, c in zip(place, _MNI_CORNER, strict=True))
    return _ball(_MNI_SHAPE, centre, (radius,) * 3)


def _write_maps(folder: Path, labels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.eye(4) if affine is None else affine), folder / "head_01.nii.gz")
    (folder / "labels.json").write_text(json.dumps({"index_to_original": {str(k): v for k, v in _CODES.items()}}))
    return folder


def _write_infarcts(folder: Path, masks: list[np.ndarray], splits: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "strokes.h5", "w") as file:
        file["packed"] = np.packbits(np.stack(masks), axis=-1)
        file["subject"] = [f"s{i}" for i in range(len(masks))]
        file["split"] = splits
        file.attrs["axes"] = "R,A,S; 1 mm; voxel (i,j,k) at MNI (-78+i,-112+j,-50+k) mm"
        file.attrs["shape"] = _MNI_SHAPE


def _write_plaques(folder: Path, name: str, places: list[tuple[int, int, int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((182, 218, 182), np.uint8)
    affine = np.eye(4)
    affine[:3, 3] = (-91, -126, -72)
    for place in places:
        mask[_ball(mask.shape, tuple(p - c for p, c in zip(place, affine[:3, 3], strict=True)), (5, 5, 9))] = 1
    nib.save(nib.Nifti1Image(mask, affine), folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head stored to the left, posterior and superior, infarcts of three sizes and a patient with plaques."""
    path = tmp_path_factory.mktemp("heads")
    # Voxel (0, 0, 0) is the rightmost and foremost: the array is turned and the affine says so.
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    lps[:2, 3] = (_SHAPE[0] - 1, _SHAPE[1] - 1)
    _write_maps(path / "maps", np.ascontiguousarray(_head()[::-1, ::-1]), lps)
    masks = [_infarct(r) for r in (6, 12, 36)] + [_infarct(12, (32, 28, 34))]
    _write_infarcts(path / "strokes", masks, ["train", "train", "train", "val"])
    many = [(x, y, 12) for x in (-28, 28) for y in (-50, -30, 10, 25)]
    _write_plaques(path / "plaques", "ms_p01_lesions_mni.nii.gz", many)
    _write_plaques(path / "plaques", "ms_p19_lesions_mni.nii.gz", many)
    return path


@pytest.fixture(scope="module")
def heads(folder: Path) -> LabelHeads:
    return LabelHeads.load(folder, ["p19"])


@pytest.fixture(scope="module")
def batch(heads: LabelHeads):  # noqa: ANN201
    return heads.draw(60, _SIZE, torch.Generator().manual_seed(0))


def test_what_is_read(heads: LabelHeads) -> None:
    # The infarct of the validation split and the plaques of p19 are left out.
    assert len(heads.maps) == 1 and {k: len(v) for k, v in heads.lesions.items()} == {"infarct": 3, "plaque": 1}
    head = heads.maps[0]
    assert head.whole and head.tissues.dtype == np.uint8
    eye = np.argwhere(head.tissues == TISSUES.index("eye")).mean(0)
    assert np.allclose(eye, (41, 123, 46), atol=0.5)  # as written, with a voxel of air around
    right = head.midplane[:3] @ (100, 68, 60) + head.midplane[3]
    left = head.midplane[:3] @ (20, 68, 60) + head.midplane[3]
    assert right > 0 > left
    assert sum(m.packed.nbytes for masks in heads.lesions.values() for m in masks) < 100_000


def test_shapes_ranges_and_words(batch) -> None:  # noqa: ANN001
    assert batch.images.shape == batch.masks.shape == (60, 1, *_SIZE)
    assert batch.images.dtype == torch.float32 and bool(torch.isfinite(batch.images).all())
    assert 0 <= batch.images.min() and batch.images.max() == 1
    known = batch.attributes
    assert {a.origin for a in known} == {"simulated"} and {a.modality for a in known} == {"MRI"}
    assert {a.contrast for a in known} == set(CONTRASTS) and {a.plane for a in known} == set(PHRASES["plane"])
    assert {a.skull for a in known} == {"whole", "stripped"}
    assert all((a.level != "unspecified") == (a.plane == "axial") for a in known)
    for image, mask, a in zip(batch.images, batch.masks, known, strict=True):
        assert bool(mask.any()) == (a.finding == "present") and image.max() > 0.5
        assert (a.disease != "unspecified") == (a.lesions in ("few", "many"))
        a.classes()


def test_captions_say_what_was_drawn(batch) -> None:  # noqa: ANN001
    rng = random.Random(0)  # noqa: S311
    for a in batch.attributes:
        sentence, said = render_caption(a, rng, clause_dropout=0.0)
        assert read_attributes(sentence) == said


def test_same_state_same_slices_and_no_other_state_is_touched(heads: LabelHeads) -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, two = (heads.draw(5, _SIZE, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.images, two.images) and torch.equal(one.masks, two.masks)
    assert one.attributes == two.attributes
    assert not torch.equal(one.images, heads.draw(5, _SIZE, torch.Generator().manual_seed(4)).images)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])
    # The generator moves on.
    generator = torch.Generator().manual_seed(3)
    assert not torch.equal(*(heads.draw(2, _SIZE, generator).images for _ in range(2)))


def test_the_lesion_lies_where_it_is_said_in_the_radiological_convention(batch) -> None:  # noqa: ANN001
    met = set()
    columns, rows = torch.arange(_SIZE[1]), torch.arange(_SIZE[0])
    for image, mask, a in zip(batch.images, batch.masks, batch.attributes, strict=True):
        if a.lesion != "infarct":
            continue
        head = image[0] > 0.15
        middle = float((head * columns).sum() / head.sum())
        column, row = float((mask[0] * columns).sum() / mask.sum()), float((mask[0].sum(1) * rows).sum() / mask.sum())
        if a.plane == "sagittal":
            assert a.side == "unspecified" and column < middle  # anterior on the left
        else:
            assert a.side == "left" and column > middle
        assert row < float((head.sum(1) * rows).sum() / head.sum())  # anterior or superior up
        met.add(a.plane)
    assert met == {"axial", "coronal", "sagittal"}


def test_size_words_follow_the_area(batch) -> None:  # noqa: ANN001
    met = set()
    for mask, a in zip(batch.masks, batch.attributes, strict=True):
        area = float(mask.sum()) * _PITCH**2
        if a.lesion == "infarct":
            assert a.size == ("small" if area <= 150 else "medium" if area <= 800 else "large"), area
            met.add(a.size)
        elif a.finding == "present":
            assert area >= 10
    assert met == {"small", "medium", "large"}


def test_levels_follow_the_height(heads: LabelHeads) -> None:
    batch = heads.draw(40, (64, 64), torch.Generator().manual_seed(1), lesion_share=0.0)
    assert {a.lesions for a in batch.attributes} == {"none"} and not batch.masks.any()
    # An ellipsoid is widest in the middle.
    widths: dict[str, list[float]] = {"lower": [], "middle": [], "upper": []}
    for image, a in zip(batch.images, batch.attributes, strict=True):
        if a.plane == "axial" and a.skull == "stripped":
            widths[a.level].append(float((image > 0.1).sum()))
    mean = {level: sum(values) / len(values) for level, values in widths.items()}
    assert mean["middle"] > max(mean["lower"], mean["upper"])


def test_twins_differ_in_their_lesion_alone(heads: LabelHeads) -> None:
    count = 24
    batch = heads.draw(count, _SIZE, torch.Generator().manual_seed(2), twins=True)
    assert batch.images.shape == (2 * count, 1, *_SIZE) and len(batch.attributes) == 2 * count
    exchanged = set()
    for one, two in zip(batch.attributes[:count], batch.attributes[count:], strict=True):
        differ = frozenset(name for name, value in vars(one).items() if value != getattr(two, name))
        assert differ in ({"side"}, {"lesions"}) or {"lesions", "lesion", "size"} <= differ <= {
            "lesions", "lesion", "size", "side",
        }  # fmt: skip
        assert differ == {"side"} or "none" in (one.lesions, two.lesions)
        exchanged.add(differ)
    assert {frozenset({"side"}), frozenset({"lesions"})} <= exchanged and len(exchanged) >= 3
    near = torch.nn.functional.max_pool2d(torch.maximum(batch.masks[:count], batch.masks[count:]), 9, 1, 4)
    change = (batch.images[:count] - batch.images[count:]).abs()
    assert float((change * (1 - near)).max()) == 0
    assert bool(((change * near).sum((1, 2, 3)) > 0).all())


def test_a_twin_on_the_other_side_is_on_the_other_side(heads: LabelHeads) -> None:
    batch = heads.draw(16, _SIZE, torch.Generator().manual_seed(5), lesion_share=1.0, twins=True)
    columns = torch.arange(_SIZE[1])
    met = 0
    for number, (one, two) in enumerate(zip(batch.attributes[:16], batch.attributes[16:], strict=True)):
        if two.side == "right":
            assert one == two.mirrored() and one.side == "left"
            places = [float((m[0] * columns).sum() / m.sum()) for m in batch.masks[[number, number + 16]]]
            assert places[0] > places[1] + 10
            met += 1
    assert met >= 2


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_contrast_order(heads: LabelHeads, contrast: str) -> None:
    head = heads.maps[0]
    rng = np.random.default_rng(0)
    for _ in range(3):
        cut = draw_cut(head, "axial", head.brain.mean(0), _SIZE, rng)
        tissues = cut.tissues(head)
        (image,) = render(head, cut, tissues, [(np.zeros(_SIZE, np.float32), "infarct")], contrast, False, rng)
        # Pixels whose four points in all layers are of one tissue: no partial volume.
        mean = {}
        for name in ("ventricle", "grey", "white", "bone"):
            share = cut.averaged((tissues == TISSUES.index(name)).astype(np.float32))
            mean[name] = float(image[share > 0.99].mean())
        fluid, grey, white = mean["ventricle"], mean["grey"], mean["white"]
        if contrast.startswith("T1w"):
            assert white > grey > fluid
        elif contrast == "T2w":
            assert fluid > grey > white
        elif contrast == "FLAIR":
            assert grey > white > fluid
        else:
            assert grey > white
        assert mean["bone"] < 0.5 * white


@pytest.mark.parametrize("lesion", ["infarct", "plaque"])
def test_lesions_are_bright_but_on_t1(lesion: str) -> None:
    rng = np.random.default_rng(0)
    for contrast in CONTRASTS:
        for _ in range(20):
            signal = dict(zip(TISSUES, draw_signal(contrast, rng), strict=True))
            if contrast.startswith("T1w"):
                assert signal[lesion] < signal["white"]
            else:
                assert signal[lesion] > signal["grey"] > signal["white"]
    assert set(CODES.values()) <= set(TISSUES)


def test_a_brain_whose_sides_share_a_code(tmp_path: Path) -> None:
    # Without labels.json next to a folder with one, the numbers are FreeSurfer's.
    _write_maps(tmp_path / "a", _head())
    (tmp_path / "b").mkdir()
    bare = np.array([0, 2, 0, 3, 0, 4], np.uint8)[_head(sided=False, whole=False)]
    nib.save(nib.Nifti1Image(bare, np.eye(4)), tmp_path / "b" / "brain.nii.gz")
    _write_infarcts(tmp_path / "c", [_infarct(12)], ["train"])
    both = LabelHeads.load(tmp_path)
    alone = LabelHeads(both.maps[1:], both.lesions["infarct"])
    assert [m.whole for m in both.maps] == [True, False]
    batch = alone.draw(8, _SIZE, torch.Generator().manual_seed(0), lesion_share=1.0, twins=True)
    assert {a.skull for a in batch.attributes} == {"stripped"}
    assert {a.side for a in batch.attributes[:8] if a.plane != "sagittal"} == {"left"}
    assert "right" in {a.side for a in batch.attributes[8:]}


def test_many_plaques_are_many(heads: LabelHeads) -> None:
    alone = LabelHeads(heads.maps, (), heads.lesions["plaque"])
    batch = alone.draw(12, _SIZE, torch.Generator().manual_seed(0), lesion_share=1.0)
    by_plane = {(a.plane, a.lesions) for a in batch.attributes}
    assert ("axial", "many") in by_plane and {a.disease for a in batch.attributes} == {"multiple sclerosis"}


def test_other_sizes_and_an_empty_batch(heads: LabelHeads) -> None:
    for count, size in ((0, (64, 64)), (2, (48, 80))):
        batch = heads.draw(count, size, torch.Generator().manual_seed(0), lesion_share=0.0)
        assert batch.images.shape == (count, 1, *size)


def _without_maps(folder: Path) -> None:
    (folder / "maps").mkdir()


def _without_codes(folder: Path) -> None:
    _write_maps(folder / "maps", _head())
    (folder / "maps" / "labels.json").unlink()


def _lacking_a_code(folder: Path) -> None:
    _write_maps(folder / "maps", np.where(_head() == 11, 77, _head()).astype(np.uint8))


def _broken_table(folder: Path) -> None:
    _write_maps(folder / "maps", _head())
    (folder / "maps" / "labels.json").write_text("[1, 2]")


def _of_floats(folder: Path) -> None:
    _write_maps(folder / "maps", _head().astype(np.float32))


def _four_d(folder: Path) -> None:
    _write_maps(folder / "maps", np.stack([_head()] * 2, -1))


def _flat_affine(folder: Path) -> None:
    # nibabel will not write such an affine as a qform; the sform is what scanners' tools break.
    path = _write_maps(folder / "maps", _head()) / "head_01.nii.gz"
    image = nib.load(path)
    image.header["srow_x"] = image.header["srow_y"]
    broken = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    broken.header["sform_code"], broken.header["qform_code"] = 1, 0
    nib.save(broken, path)


def _of_two_mm(folder: Path) -> None:
    _write_maps(folder / "maps", _head(), np.diag([2.0, 2.0, 2.0, 1.0]))


def _infarcts_without_split(folder: Path) -> None:
    _write_maps(folder / "maps", _head())
    _write_infarcts(folder / "strokes", [_infarct(6)], ["train"])
    with h5py.File(folder / "strokes" / "strokes.h5", "a") as file:
        del file["split"], file.attrs["axes"]


def _infarcts_in_text(folder: Path) -> None:
    _write_maps(folder / "maps", _head())
    (folder / "maps" / "strokes.h5").write_text("masks")


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (_without_maps, ResourceError, "found none"),
        (_without_codes, ResourceError, "labels.json"),
        (_lacking_a_code, FormatError, r"\[77\]"),
        (_broken_table, FormatError, "index_to_original"),
        (_of_floats, FormatError, "float32"),
        (_four_d, FormatError, "4-D"),
        (_flat_affine, GeometryError, "affine"),
        (_of_two_mm, GeometryError, r"\[2.0, 2.0, 2.0\]"),
        (_infarcts_without_split, FormatError, r"\['split', 'axes'\]"),
        (_infarcts_in_text, FormatError, "HDF5"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], says: str
) -> None:
    damage(tmp_path)
    with pytest.raises(error, match=says):
        LabelHeads.load(tmp_path)


def test_lesions_without_masks_and_masks_outside_the_brain(tmp_path: Path) -> None:
    _write_maps(tmp_path / "maps", _head())
    alone = LabelHeads(load_maps(tmp_path))
    with pytest.raises(ResourceError, match="lesion_share=0"):
        alone.draw(1, _SIZE)
    assert alone.draw(2, (64, 64), lesion_share=0.0).attributes[0].lesions == "none"
    _write_infarcts(tmp_path / "strokes", [_infarct(4, (-70, -104, 70))], ["train"])
    with pytest.raises(GeometryError, match="MNI"):
        LabelHeads.load(tmp_path).draw(1, (64, 64), lesion_share=1.0)
