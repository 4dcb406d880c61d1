"""The page of a reconstructed volume: what it says, what its pictures show, and what it refuses."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from nibabel import orientations
from PIL import Image

from treg_med.data import VolumeWriter, open_scan, simulate_scan
from treg_med.data.phantoms import phantom_volume
from treg_med.errors import ConfigError, FormatError, GeometryError, NumericsError, ResourceError
from treg_med.notice import RESEARCH_ONLY
from treg_med.reconstruction import reconstruct
from treg_med.report.volume_page import write_volume_page

Array = npt.NDArray[np.float32]
Method = Callable[..., Path]

SHAPE = (20, 24, 7)
LPS = np.diag([-1.0, -1.0, 3.0, 1.0])
SIMULATED = "simulated measurement (inverse crime)"
PRIOR = {"name": "default", "sha256": "ab" * 32}


def body() -> Array:
    """An ellipse of 100 with a bright spot in the patient's left front, in LPS order (x, y, z)."""
    x, y = np.meshgrid(np.linspace(-1, 1, SHAPE[0]), np.linspace(-1, 1, SHAPE[1]), indexing="ij")
    plane = np.where(x**2 + y**2 < 0.8, 100.0, 0.0)
    plane[12:15, 6:9] = 200.0
    return np.repeat(plane[..., None], SHAPE[2], axis=-1).astype(np.float32)


@pytest.fixture
def method(tmp_path: Path) -> Method:
    """Write a volume and its sidecar as a finished run leaves them; keywords replace facts, None removes them."""

    def write(label: str, volume: Array, affine: npt.NDArray[np.float64] = LPS, **changes: Any) -> Path:
        data = gzip.compress(nib.Nifti1Image(volume.astype(np.float32), affine).to_bytes(), 1, mtime=0)
        image = tmp_path / f"scan_rec-{label}.nii.gz"
        image.write_bytes(data)
        axis = changes.pop("axis", 2)
        per_slice = {"noise_std": 0.5, "warnings": [], **changes.pop("each", {})}
        slices = [
            {"slice": k, "residual_noise_units": 1.0 + 0.01 * k, "settings": {"steps": 6}} | per_slice
            for k in range(volume.shape[axis])
        ]
        facts: dict[str, Any] = {
            "notice": RESEARCH_ONLY,
            "sidecar_version": 2,
            "outputs": {"magnitude": {"file": image.name, "sha256": hashlib.sha256(data).hexdigest()}},
            "input": {"format": "NIfTI magnitude", "simulated": True, "acceleration": 4.0, "coils": 4},
            "solver": ["treg" if "treg" in label else label],
            "text": "axial FLAIR",
            "seed": 0,
            "prior": {"name": None, "sha256": None},
            "warnings": [SIMULATED],
            "versions": {"treg-med": "0.1.0"},
            "slices": slices,
            "method": {"label": label, "preset": "default", "samples": 1},
        }
        facts = {name: value for name, value in (facts | changes).items() if value is not None}
        sidecar = tmp_path / f"scan_rec-{label}.json"
        sidecar.write_text(json.dumps(facts), encoding="utf-8")
        return sidecar

    return write


@pytest.fixture
def three(method: Method) -> list[Path]:
    """Classical start, control and learned result; the learned one is brighter by 2 in slice 5 only."""
    learned = body()
    learned[..., 5] += 2
    return [
        method("tv", body() - 1),
        method("treg-control", body(), each={"settings": {"steps": 6, "use_prior": False}}),
        method("treg", learned, prior=PRIOR, each={"settings": {"steps": 6, "use_prior": True}}),
    ]


def page_of(sidecars: list[Path], target: Array | None = None, title: str = "scan") -> str:
    path = sidecars[0].parent / "page.html"
    write_volume_page(path, sidecars, target, title=title)
    return path.read_text(encoding="utf-8")


def pictures(page: str) -> Mapping[str, Image.Image]:
    """All pictures by their description."""
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)"', page)
    return {alt: Image.open(io.BytesIO(base64.b64decode(data, validate=True))) for data, alt in found}


def flat(page: str) -> str:
    """The text of the page without pictures and markup."""
    return " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)).split())


# --- a real run


def test_page_of_a_run_is_whole_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    scan_path = simulate_scan(phantom_volume((32, 32), 4), tmp_path / "scan.h5", coils=2, acceleration=2.0, seed=3)
    sidecars = []
    with open_scan(scan_path) as scan:
        for solver in ("zero-filled", "cg-sense"):
            facts = {"method": {"label": solver, "preset": "default", "samples": 1}}
            with VolumeWriter(tmp_path, f"scan_rec-{solver}", text="axial T2", seed=0, extra=facts) as writer:
                for index in range(4):
                    writer.add(reconstruct(scan[index], text="axial T2", solver=solver), index)
            sidecars.append(writer.sidecar_path)
    page = page_of(sidecars, title="phantom scan")
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "What was measured",
        "What was said",
        "The result",
        "What each contributed",
        "How well each fits the data",
        "How to get it again",
    ]
    assert "<script" not in page and "http" not in page and "url(" not in page
    sources = re.findall(r'src="([^"]{0,40})', page)
    assert len(sources) >= 4 + 2 + 1 + 1
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert page.count(RESEARCH_ONLY) >= 2
    facts = json.loads(sidecars[-1].read_text(encoding="utf-8"))
    text = flat(page)
    assert facts["outputs"]["magnitude"]["sha256"] in text
    assert facts["input"]["input_sha256"] in text
    assert all(f"{entry['residual_noise_units']:.3f}" in text for entry in facts["slices"])
    assert all(warning in text for warning in facts["warnings"])
    assert "simulated from an image" in text
    assert "which side is the left" in text
    assert not re.search(r'class="edge', page)


# --- what it says


def test_each_difference_is_named_by_what_it_shows(three: list[Path]) -> None:
    page = page_of(three)
    text = flat(page)
    # Over 7 slices, in per cent of the maximum 202: 2 in one slice; 1 in six and 3 in one.
    assert re.search(r"treg-control what the prior added, its text with it.*? 0\.374 0\.990 \(5\)", text)
    assert re.search(r"tv what the whole method changed of a classical result.*? 0\.725 1\.49 \(5\)", text)
    assert "Slice 3: the middle" in text
    assert "Slice 5: where treg differs most" in text
    assert "What the text alone changed cannot be seen here" in text
    assert "“axial FLAIR”" in text and "default" in text and "abababababab" in text
    shown = pictures(page)
    assert {"tv, slice 5", "treg-control, slice 5", "treg, slice 5", "treg minus tv"} <= set(shown)


def test_a_run_with_other_words_shows_what_the_words_changed(method: Method) -> None:
    other = method("treg-empty", body(), text="", prior=PRIOR, solver=["treg"])
    main = method("treg", body() + 1, prior=PRIOR)
    text = flat(page_of([other, main]))
    assert "what the words added" in text
    assert "cannot be seen here" not in text
    unlike = method("treg-empty", body(), text="", prior=PRIOR, solver=["treg"], each={"settings": {"steps": 9}})
    text = flat(page_of([unlike, main]))
    assert "what the words added" not in text
    assert "cannot be seen here" in text


def test_one_method_alone_has_nothing_to_compare(method: Method) -> None:
    sidecar = method("zero-filled", body(), text=None, run_hash="cd" * 32, compute={"device": "cpu", "threads": 1})
    text = flat(page_of([sidecar]))
    assert "What each contributed" not in text and "Against the reference" not in text
    assert "run of zero-filled " + "cd" * 32 in text and "Computed with device cpu, threads 1." in text
    assert "Against the reference" in flat(page_of([sidecar], body()))
    assert "Nothing: the text is empty." in text
    assert "No prior was used." in text


def test_errors_against_a_target(three: list[Path]) -> None:
    target = body()
    target[..., 5] -= 4
    page = page_of(three, target)
    text = flat(page)
    # Per cent of 202: the control errs by 4 in one of 7 slices, the learned result by 6 in the same one.
    assert re.search(r"treg-control 0\.748 1\.98 \(5\)", text)
    assert re.search(r" treg 1\.12 2\.97 \(5\)", text)
    shown = pictures(page)
    assert {"reference, slice 3", "reference, slice 5", "error of tv", "error of treg-control"} <= set(shown)
    error = np.asarray(shown["error of treg"].convert("RGB")).astype(int)
    assert (error[..., 0] > error[..., 2]).all()


def test_residuals_outside_the_band_are_named(method: Method) -> None:
    sidecar = method("tv", body())
    facts = json.loads(sidecar.read_text())
    for entry, value in zip(facts["slices"], (1.0, 1.3, 1.0, 0.7, None, 1.0, 1.21), strict=True):
        entry["residual_noise_units"] = value
    sidecar.write_text(json.dumps(facts))
    assert re.search(r"tv 1\.035 2: 1, 6 1: 3", flat(page_of([sidecar])))


def test_warnings_that_differ_in_numbers_are_one(method: Method) -> None:
    sidecar = method("tv", body())
    facts = json.loads(sidecar.read_text())
    for entry in facts["slices"]:
        entry["warnings"] = [SIMULATED]
    for k, entry in enumerate(facts["slices"][:3]):
        entry["warnings"].append(f"it stays at 1.{k}2; the noise level may be wrong")
    facts["input"]["warnings"] = ["the mask was estimated"]
    sidecar.write_text(json.dumps(facts))
    page = page_of([sidecar])
    assert page.count(SIMULATED) == 1
    assert page.count("it stays at 1.22") == 1
    notices = re.findall(r'<p class="notice">(.*?)</p>', page)
    assert notices[0] == notices[-1] == RESEARCH_ONLY
    assert notices[1:-1] == [
        SIMULATED,
        "the mask was estimated",
        "tv in 3 of 7 slices: it stays at 1.02; the noise level may be wrong (elsewhere with other numbers)",
    ]


def test_words_are_shown_and_not_run(method: Method) -> None:
    bad = '<script>alert("x")</script>'
    facts = {"method": {"label": "a<b $_{$"}, "warnings": [bad], "input": {"format": bad, "operations": [{"a": bad}]}}
    sidecar = method("tv", body(), text=bad, prior={"name": bad, "sha256": bad}, **facts)
    page = page_of([sidecar], title=bad)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7
    assert "a&lt;b" in page


def test_a_sidecar_of_little_is_enough(method: Method) -> None:
    keys = ("notice", "input", "solver", "text", "seed", "prior", "warnings", "versions", "slices", "method")
    text = flat(page_of([method("tv", body(), **dict.fromkeys(keys))]))
    assert "measured or simulated: not recorded" in text
    assert "Unknown: without a noise level there is no residual." in text
    assert "scan_rec-tv" in text


# --- what its pictures show


def test_equal_outputs_give_equal_bytes(three: list[Path], tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_volume_page(tmp_path / name, three, body(), title="scan")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert not any(picture.info.keys() & {"Software", "date"} for picture in pictures(page_of(three)).values())


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAS", "SPL", "PSR"])
def test_images_are_upright_however_they_are_stored(method: Method, axes: str) -> None:
    turn = orientations.ornt_transform(orientations.axcodes2ornt("LPS"), orientations.axcodes2ornt(axes))
    stored = orientations.apply_orientation(body(), turn)
    affine = LPS @ orientations.inv_ornt_aff(turn, SHAPE)
    assert nib.aff2axcodes(affine) == tuple(axes)
    page = page_of([method("tv", stored, affine, axis=axes.index("S"))])
    image = np.asarray(pictures(page)["tv, slice 2"])
    # Anterior is up and the patient's left on the right: columns run as x in LPS, rows as y.
    assert image.shape == (SHAPE[1], SHAPE[0])
    assert (image[6:9, 12:15] == 255).all()
    assert (image == 255).sum() == 9
    marks = dict(re.findall(r'class="edge (\w+)">(\w)<', page))
    assert marks == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    assert "the patient's left is on the right" in page.replace("&#39;", "'")


def test_a_sagittal_volume_has_anterior_on_the_left(method: Method) -> None:
    volume = np.zeros((5, 16, 18), dtype=np.float32)
    volume[:, :4, 12:] = 100.0
    affine = np.diag([-4.0, -1.0, 1.0, 1.0])
    page = page_of([method("tv", volume, affine, axis=0)])
    image = np.asarray(pictures(page)["tv, slice 2"])
    assert "anterior on the left" in page
    assert (image[:6, :4] == 255).all() and not image[6:].any()


def test_signed_pictures_are_white_at_zero_and_red_where_the_result_is_brighter(three: list[Path]) -> None:
    page = page_of(three)
    shown = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="treg minus treg-control"', page)
    middle, most = (np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in shown)
    assert (middle >= 240).all()
    red, green, blue = (most[..., channel].astype(int) for channel in range(3))
    assert (red > green).all() and (red > blue).all()
    # 1 % of the maximum lies inside the end of the scale, which is that of all differences.
    assert re.findall(r"<span>−([\d.]+)</span>", page) == ["1.5", "1.5"]


def test_hounsfield_units_have_two_windows(method: Method) -> None:
    volume = 1000 * (body() > 0).astype(np.float32) - 1000
    start, main = method("pwls-tv", volume, unit="HU"), method("treg", volume + 10, unit="HU", prior=PRIOR)
    page = page_of([start, main])
    assert "black −160, white 240 HU" in page and "black −1000, white 1000 HU" in page
    assert re.search(r"pwls-tv what the whole method .*? 10\.0 10\.0 \(0\)", flat(page))
    assert np.asarray(pictures(page)["treg, slice 3"]).max() == round(255 * 1010 / 2000)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_and_single_slices_are_drawn(method: Method, value: float) -> None:
    volume = np.full((12, 12, 1), value, dtype=np.float32)
    text = flat(page_of([method("tv", volume), method("treg", volume, prior=PRIOR)], volume))
    assert "Slice 0: the middle" in text
    assert "differs most" not in text
    assert "nan" not in text.lower().split() and "inf" not in text.lower().split()


# --- what it refuses


def test_a_target_has_to_fit(three: list[Path]) -> None:
    with pytest.raises(GeometryError, match=r"axes of the stored volume, \(20, 24, 7\), got float32 \(7, 20, 24\)"):
        page_of(three, np.moveaxis(body(), -1, 0))
    with pytest.raises(GeometryError, match="complex64"):
        page_of(three, body().astype(np.complex64))
    broken = body()
    broken[3, 3, 4] = np.nan
    with pytest.raises(NumericsError, match="slice 4"):
        page_of(three, broken)
    assert not (three[0].parent / "page.html").exists()


def test_methods_have_to_be_of_one_scan(method: Method) -> None:
    main = method("treg", body(), prior=PRIOR)
    for other in (
        method("short", body()[..., :5]),
        method("moved", body(), LPS + np.eye(4)[:, ::-1] * (np.arange(4) == 0)[:, None]),
        method("attenuation", body(), unit="1/mm"),
    ):
        with pytest.raises(GeometryError, match="of one scan"):
            page_of([other, main])
    with pytest.raises(ConfigError, match="different labels"):
        page_of([main, main])


def test_damaged_and_missing_files_are_named(method: Method, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one method"):
        write_volume_page(tmp_path / "page.html", [], title="none")
    with pytest.raises(ResourceError, match="absent"):
        page_of([tmp_path / "absent.json"])
    sidecar = method("tv", body())
    image = tmp_path / "scan_rec-tv.nii.gz"
    image.write_bytes(image.read_bytes()[:-9])
    with pytest.raises(FormatError, match="another checksum"):
        page_of([sidecar])
    image.unlink()
    with pytest.raises(ResourceError, match=r"scan_rec-tv\.nii\.gz"):
        page_of([sidecar])
    for content in ("{", "[]", '{"outputs": {"magnitude": {"file": "../other.nii"}}}', '{"outputs": null}'):
        sidecar.write_text(content)
        with pytest.raises(FormatError, match=r"scan_rec-tv\.json"):
            page_of([sidecar])


def test_a_page_is_replaced_whole_or_not_at_all(three: list[Path], tmp_path: Path) -> None:
    first = page_of(three)
    assert page_of(three, title="another") != first
    with pytest.raises(ResourceError, match="nowhere"):
        write_volume_page(tmp_path / "nowhere" / "page.html", three, title="scan")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
