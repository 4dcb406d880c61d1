"""The caption grammar: exact attributes of a slice rendered as many different sentences."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

__all__ = ["ATTRIBUTES", "SliceAttributes", "parse_caption", "render_caption", "with_other_contrasts"]

UNKNOWN = "unspecified"

#: Every attribute with its classes; the text encoder is pre-trained to read each of them off the sentence.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "contrast": (UNKNOWN, "T1w", "T1w+Gd", "T2w", "FLAIR"),
    "plane": (UNKNOWN, "axial", "coronal", "sagittal"),
    "skull": (UNKNOWN, "stripped"),
    "level": (UNKNOWN, "lower", "middle", "upper"),
    "disease": (UNKNOWN, "multiple sclerosis", "glioma", "meningioma", "pituitary tumour", "healthy"),
    "lesions": (UNKNOWN, "none", "few", "many"),
}

_CONTRAST = {
    "T1w": ("T1-weighted", "T1w", "T1", "native T1-weighted"),
    "T1w+Gd": (
        "contrast-enhanced T1-weighted",
        "post-contrast T1-weighted",
        "T1w+Gd",
        "gadolinium-enhanced T1",
        "T1 post-gadolinium",
        "T1 with contrast agent",
    ),
    "T2w": ("T2-weighted", "T2w", "T2", "T2 TSE"),
    "FLAIR": ("T2-FLAIR", "FLAIR", "fluid-attenuated inversion recovery", "T2w FLAIR"),
}
_PLANE = {
    "axial": ("axial", "transverse", "transaxial"),
    "coronal": ("coronal",),
    "sagittal": ("sagittal",),
}
_ORGAN = (
    "brain MRI",
    "MRI of the brain",
    "brain MR image",
    "head MRI",
    "cranial MRI",
    "brain MRI slice",
    "MR scan of the head",
)
_DISEASE = {
    "multiple sclerosis": (
        "multiple sclerosis",
        "MS",
        "relapsing-remitting multiple sclerosis",
        "demyelinating disease",
    ),
    "glioma": ("showing a glioma", "with a glioma", "glioma", "with a glial tumour"),
    "meningioma": ("showing a meningioma", "with a meningioma", "meningioma"),
    "pituitary tumour": (
        "showing a pituitary tumour",
        "with a pituitary adenoma",
        "pituitary tumor",
        "with a pituitary tumour",
    ),
    "healthy": ("healthy volunteer", "normal brain", "no abnormality", "healthy subject"),
}
_NO_LESION = ("no segmented lesion in this slice", "no lesion", "without lesions", "no white-matter lesion")


@dataclass(frozen=True)
class SliceAttributes:
    """What is known about a slice; `UNKNOWN` where nothing is."""

    contrast: str = UNKNOWN
    plane: str = UNKNOWN
    skull: str = UNKNOWN
    level: str = UNKNOWN
    disease: str = UNKNOWN
    lesions: str = UNKNOWN
    age: int = 0
    sex: str = UNKNOWN

    def classes(self) -> list[int]:
        """Class index of every entry of `ATTRIBUTES`, in its order."""
        return [options.index(getattr(self, name)) for name, options in ATTRIBUTES.items()]


def parse_caption(caption: str, contrast: str, plane: str, finding: str) -> SliceAttributes:
    """Attributes of a slice from its metadata and its published caption."""
    lesions = UNKNOWN
    if found := re.search(r"(\d+) white-matter lesion", caption):
        lesions = "few" if int(found[1]) < 6 else "many"
    elif finding == "ms_no_lesion_in_slice":
        lesions = "none"
    level = re.search(r"(lower|middle|upper) third", caption)
    age = re.search(r"(\d+)-year-old", caption)
    sex = re.search(r"\b(woman|man)\b", caption)
    disease = {"glioma": "glioma", "meningioma": "meningioma", "pituitary": "pituitary tumour"}.get(
        finding, "multiple sclerosis"
    )
    return SliceAttributes(
        contrast=contrast,
        plane=plane,
        skull="stripped" if "skull-stripped" in caption else UNKNOWN,
        level=level[1] if level else UNKNOWN,
        disease=disease,
        lesions=lesions,
        age=int(age[1]) if age else 0,
        sex=sex[1] if sex else UNKNOWN,
    )


#: Contrast words of the published captions and the contrasts they may be exchanged for; the longest word comes first.
_PUBLISHED_CONTRAST = {
    "contrast-enhanced T1-weighted": ("T2-weighted", "T2-FLAIR"),
    "T1-weighted": ("T2-weighted", "T2-FLAIR"),
    "T2-FLAIR": ("T1-weighted", "T2-weighted"),
    "T2-weighted": ("T1-weighted", "T2-FLAIR"),
}


def with_other_contrasts(caption: str) -> list[str]:
    """Return a published caption with its contrast word replaced by each wrong one; T1 with contrast agent is T1."""
    for said, others in _PUBLISHED_CONTRAST.items():
        if said in caption:
            return [caption.replace(said, word, 1) for word in others]
    raise ValueError(f"no contrast in {caption!r}")


def render_caption(
    slice_: SliceAttributes, rng: random.Random, clause_dropout: float = 0.15
) -> tuple[str, SliceAttributes]:
    """One random sentence for the attributes, and the attributes that survived the dropped clauses.

    Parameters
    ----------
    slice_ : SliceAttributes
        What is known.
    rng : random.Random
        Source of the choices.
    clause_dropout : float
        Probability with which each known attribute is left out.
    """
    kept = {f.name: getattr(slice_, f.name) for f in fields(slice_)}
    for name in kept:
        if rng.random() < clause_dropout:
            kept[name] = SliceAttributes.__dataclass_fields__[name].default
    said = SliceAttributes(**kept)

    head = [
        rng.choice(table[value])
        for table, value in ((_PLANE, said.plane), (_CONTRAST, said.contrast))
        if value in table
    ]
    if len(head) == 2 and rng.random() < 0.3:
        head.reverse()
    clauses = [_skull(said, rng), _level(said, rng), _subject(said, rng)]
    clauses = [clause for clause in clauses if clause]
    if rng.random() < 0.3:
        rng.shuffle(clauses)
    sentence = ", ".join([" ".join([*head, rng.choice(_ORGAN)]), *clauses])
    tail = _lesions(said, rng)
    if tail:
        sentence += rng.choice(("; ", ", ")) + tail
    return _typography(sentence, rng), said


def _skull(said: SliceAttributes, rng: random.Random) -> str:
    return rng.choice(("skull-stripped", "brain-extracted", "skull stripped")) if said.skull == "stripped" else ""


def _level(said: SliceAttributes, rng: random.Random) -> str:
    return (
        rng.choice(("{} third of the stack", "{} third", "{} part of the head")).format(said.level)
        if said.level != UNKNOWN
        else ""
    )


def _subject(said: SliceAttributes, rng: random.Random) -> str:
    age = f"{said.age}-year-old " if said.age else ""
    person = said.sex if said.sex != UNKNOWN else ("patient" if age else "")
    if said.disease == UNKNOWN:
        return age + person
    disease = rng.choice(_DISEASE[said.disease])
    if said.disease == "multiple sclerosis" and (person or rng.random() < 0.3):
        return f"{age}{person or 'patient'} with {disease}"
    return f"{age}{person} {disease}".strip()


def _lesions(said: SliceAttributes, rng: random.Random) -> str:
    if said.lesions == "none":
        return rng.choice(_NO_LESION)
    if said.lesions == "few":
        count = rng.randint(1, 5)
        return rng.choice(
            (
                f"{count} white-matter lesion{'s' * (count > 1)}",
                "few white-matter lesions",
                "a small white-matter lesion",
            )
        )
    if said.lesions == "many":
        return rng.choice(
            (
                f"{rng.randint(6, 20)} white-matter lesions",
                "many white-matter lesions",
                "multiple hyperintense lesions",
            )
        )
    return ""


def _typography(sentence: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        sentence = sentence[0].upper() + sentence[1:]
    if rng.random() < 0.5:
        sentence += "."
    return sentence


def vocabulary() -> Sequence[str]:
    """Words beyond the grammar that a user may write; the tokenizer learns them whole."""
    return (
        "magnetic resonance imaging scan slice image of with without and the in on a an contrast weighted "
        "proton density PD SWI DWI ADC MPRAGE TSE GRE EPI 3D 2D tesla 1.5T 3T left right frontal parietal "
        "temporal occipital cerebellum brainstem ventricles cortex white grey gray matter hemisphere lobe "
        "anterior posterior superior inferior tumour tumor oedema edema stroke infarct haemorrhage hemorrhage "
        "bleed cyst atrophy aneurysm metastasis hydrocephalus lesion lesions hyperintense hypointense small "
        "large medium multiple single no normal abnormal healthy male female child adult elderly patient knee "
        "chest abdomen pelvis spine CT computed tomography "
    ).split()
