"""The caption grammar: what is said can be read back, and one attribute can be made wrong."""

import random
from dataclasses import fields

import pytest

from treg_med.words.captions import (
    ATTRIBUTES,
    SliceAttributes,
    counterfactuals,
    mentioned_attributes,
    read_attributes,
    render_caption,
    swap_sides,
)


def random_attributes(rng: random.Random) -> SliceAttributes:
    """Any attributes that one sentence can say."""
    drawn = {name: rng.choice(options) for name, options in ATTRIBUTES.items()}
    drawn["modality"] = rng.choice(("MRI", "CT"))
    return SliceAttributes(**drawn, age=rng.choice((0, 53)))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_said_is_read_back(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    for _ in range(500):
        sentence, said = render_caption(random_attributes(rng), rng, 0.3)
        assert read_attributes(sentence) == said, sentence


def test_nothing_is_dropped_without_dropout_and_nothing_is_added() -> None:
    rng = random.Random(0)  # noqa: S311
    known = SliceAttributes("FLAIR", "axial", "stripped", "upper", "multiple sclerosis", "none", 53, "woman", "MRI")
    for _ in range(50):
        assert render_caption(known, rng, 0.0)[1] == known
        said = render_caption(known, rng, 0.5)[1]
        for f in fields(said):
            assert getattr(said, f.name) in (getattr(known, f.name), f.default)
    assert len(known.classes()) == len(ATTRIBUTES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("axial T2-FLAIR brain MRI", {"contrast": "FLAIR", "plane": "axial", "modality": "MRI"}),
        ("T2 TSE, coronal", {"contrast": "T2w", "plane": "coronal"}),
        ("post-contrast T1-weighted head MRI", {"contrast": "T1w+Gd", "modality": "MRI"}),
        ("MRI; 9 white-matter lesions", {"lesions": "many", "modality": "MRI"}),
        ("MRI, no left frontal tumour", {"lesions": "none", "modality": "MRI"}),
        ("head CT with a small left frontal bleed", {
            "modality": "CT", "region": "head",
            "lesion": "haemorrhage", "size": "small", "side": "left", "lobe": "frontal",
        }),
        ("Axial CT slice of the upper abdomen, no intravenous contrast", {
            "modality": "CT", "region": "upper abdomen", "plane": "axial", "agent": "no",
        }),
        ("Axial T2-FLAIR brain MRI, skull-stripped, 87-year-old woman with acute ischaemic stroke; lesion in the left "
         "middle cerebral artery territory, area 3577 mm2.", {
            "modality": "MRI", "plane": "axial", "contrast": "FLAIR", "skull": "stripped", "age": 87, "sex": "woman",
            "disease": "stroke", "lesion": "lesion", "side": "left", "territory": "middle cerebral artery",
        }),
        ("FLAIR brain MRI, adult patient with stroke; no stroke lesion in this slice.", {
            "modality": "MRI", "contrast": "FLAIR", "disease": "stroke", "lesions": "none",
        }),
        ("MRI of an elderly man; lesions in both hemispheres, area 525 mm2", {
            "modality": "MRI", "age_group": "old", "sex": "man", "lesion": "lesion", "side": "both",
        }),
        ("T1w head MRI, whole head, 2 mm resolution, lower third of the brain, healthy 3-year-old boy", {
            "modality": "MRI", "contrast": "T1w", "skull": "whole", "resolution": "coarse", "level": "lower",
            "disease": "healthy", "age": 3, "age_group": "child", "sex": "man",
        }),
        ("", {}),
        ("a photo of a cat", {}),
    ],
)  # fmt: skip
def test_reading(text: str, expected: dict[str, str]) -> None:
    assert read_attributes(text) == SliceAttributes(**expected)  # type: ignore[arg-type]


def test_wrong_contrasts_replace_the_whole_word_and_never_name_the_right_one() -> None:
    assert counterfactuals("Axial contrast-enhanced T1-weighted brain MRI.", "contrast") == [
        "Axial T2-weighted brain MRI.",
        "Axial T2-FLAIR brain MRI.",
    ]
    assert counterfactuals("T2-FLAIR MRI", "contrast") == ["T1-weighted MRI", "T2-weighted MRI"]
    assert counterfactuals("brain MRI", "contrast") == []


@pytest.mark.parametrize("attribute", ["contrast", "plane", "side", "territory", "finding"])
def test_counterfactuals_change_one_attribute_and_no_other(attribute: str) -> None:
    rng = random.Random(1)  # noqa: S311
    changed = {"finding": {"lesions", "lesion", "size", "side", "lobe", "territory"}}.get(attribute, {attribute})
    met = 0
    for _ in range(800):
        caption, said = render_caption(random_attributes(rng), rng, 0.3)
        for other in counterfactuals(caption, attribute):
            read = read_attributes(other)
            different = {f.name for f in fields(read) if getattr(read, f.name) != getattr(said, f.name)}
            assert different and different <= changed, (caption, other)
            met += 1
    assert met > 100
    with pytest.raises(ValueError, match="contrast, plane, side, territory or finding"):
        counterfactuals("brain MRI", "age")


def test_published_lesion_counts_are_taken_away_whole() -> None:
    caption = "Axial T1-weighted brain MRI; 4 white-matter lesions, total lesion area 21 mm2."
    assert counterfactuals(caption, "finding") == ["Axial T1-weighted brain MRI; no segmented lesion in this slice."]


def test_wrong_words_of_a_stroke() -> None:
    caption = "Axial MRI, patient with stroke; lesion in the left middle cerebral artery territory, area 9 mm2."
    assert counterfactuals(caption, "finding") == ["Axial MRI, patient with stroke; no stroke lesion in this slice."]
    assert counterfactuals(caption, "territory")[0] == caption.replace("middle", "posterior")
    absent = "Axial MRI, patient with stroke; no stroke lesion in this slice."
    assert counterfactuals(absent, "finding") == ["Axial MRI, patient with stroke; large infarct in this slice."]
    assert counterfactuals(caption.replace("Axial", "Sagittal"), "side") == []


def test_mirroring_exchanges_the_sides_only() -> None:
    assert swap_sides("Left frontal cyst, right-handed") == "Right frontal cyst, left-handed"
    assert SliceAttributes(side="left", lobe="frontal").mirrored() == SliceAttributes(side="right", lobe="frontal")
    assert SliceAttributes().mirrored() == SliceAttributes()


def test_mentioned_attributes_of_a_prompt() -> None:
    said = mentioned_attributes("axial FLAIR brain MRI with a large tumour in the left frontal lobe")
    assert {"contrast", "plane", "finding", "side", "lobe", "size"} <= said
    assert "side" in mentioned_attributes("left hippocampus") and mentioned_attributes("") == frozenset()
