"""The words of the caption grammar: for every value of an attribute the phrases that say it, the usual one first."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ORGANS", "PHRASES", "UNKNOWN", "vocabulary"]

UNKNOWN = "unspecified"

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
    "PDw": ("proton-density-weighted", "PD-weighted", "PDw", "proton density"),
}

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
    "stroke": ("acute ischaemic stroke", "acute ischemic stroke", "ischaemic stroke", "ischemic stroke", "stroke"),
    "healthy": ("healthy volunteer", "normal brain", "no abnormality", "healthy subject", "healthy"),
}

_ARTERIES = {
    "middle cerebral artery": "MCA",
    "posterior cerebral artery": "PCA",
    "anterior cerebral artery": "ACA",
    "basilar artery": "basilar",
    "cerebellar artery": "cerebellar arteries",
}

#: Attribute -> value -> phrases. `UNKNOWN` is never said.
PHRASES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "contrast": _CONTRAST,
    "plane": {
        "axial": ("axial", "transverse", "transaxial"),
        "coronal": ("coronal",),
        "sagittal": ("sagittal",),
    },
    "origin": {"simulated": ("simulated", "synthetic", "digital phantom")},
    "skull": {
        "stripped": ("skull-stripped", "brain-extracted", "skull stripped"),
        "whole": ("whole head", "whole-head", "with skull"),
    },
    "level": {
        value: tuple(
            form.format(value)
            for form in ("{} third of the stack", "{} third", "{} part of the head", "{} third of the brain")
        )
        for value in ("lower", "middle", "upper")
    },
    # Fine detail is missing and must not be drawn as if it belonged to the contrast.
    "resolution": {"coarse": ("2 mm resolution", "2 mm voxels", "low resolution")},
    "disease": _DISEASE,
    "age_group": {
        "child": ("child",),
        "young": ("young adult",),
        "middle-aged": ("middle-aged adult", "middle-aged"),
        "old": ("elderly", "older adult"),
    },
    "sex": {"woman": ("woman", "female", "girl"), "man": ("man", "male", "boy")},
    "lesions": {
        "none": (
            "no segmented lesion in this slice",
            "no stroke lesion in this slice",
            "no lesion",
            "without lesions",
            "no white-matter lesion",
            "no focal lesion",
        ),
        "few": ("few white-matter lesions", "a small white-matter lesion"),
        "many": ("many white-matter lesions", "multiple hyperintense lesions"),
    },
    "lesion": {
        "oedema": ("oedema", "edema", "vasogenic oedema"),
        "tumour": ("tumour", "tumor", "mass", "neoplasm"),
        "haemorrhage": ("haemorrhage", "hemorrhage", "bleed", "haematoma"),
        "infarct": ("infarct", "infarction", "stroke lesion", "ischaemic lesion"),
        "cyst": ("cyst", "cystic lesion"),
        "lesion": ("lesion",),
    },
    "size": {
        "small": ("small", "tiny"),
        "medium": ("medium-sized", "moderate"),
        "large": ("large", "big", "extensive"),
    },
    "side": {
        "left": ("left", "left-sided"),
        "right": ("right", "right-sided"),
        "both": ("bilateral", "both hemispheres"),
    },
    "lobe": {value: (value,) for value in ("frontal", "parietal", "temporal", "occipital")},
    "territory": {value: (f"{value} territory", f"{short} territory") for value, short in _ARTERIES.items()},
    "region": {
        "head": ("head",),
        "neck": ("neck",),
        "shoulders": ("shoulders",),
        "chest": ("chest", "thorax"),
        "lower chest": ("lower chest",),
        "upper abdomen": ("upper abdomen",),
        "abdomen": ("abdomen",),
        "lower abdomen": ("lower abdomen",),
        "abdomen and pelvis": ("abdomen and pelvis",),
        "chest, abdomen and pelvis": ("chest, abdomen and pelvis", "trunk"),
        "pelvis": ("pelvis",),
    },
    "window": {
        "wide": ("wide window", "full window"),
        "soft tissue": ("soft-tissue window", "soft tissue window", "mediastinal window"),
        "brain": ("brain window",),
    },
    "agent": {
        "yes": ("intravenous contrast", "iv contrast"),
        "no": ("no intravenous contrast", "without iv contrast", "non-enhanced"),
    },
}

#: What the picture is, by modality.
ORGANS: Mapping[str, tuple[str, ...]] = {
    "MRI": (
        "brain MRI",
        "MRI of the brain",
        "brain MR image",
        "head MRI",
        "cranial MRI",
        "brain MRI slice",
        "MR scan of the head",
    ),
    "CT": ("CT", "CT slice", "CT scan", "computed tomography"),
}


def vocabulary() -> tuple[str, ...]:
    """Words beyond the grammar that a user may write; the tokenizer learns them whole."""
    return tuple(
        "magnetic resonance imaging scan slice image of with without and the in on a an contrast weighted "
        "proton density PD SWI DWI ADC MPRAGE TSE GRE EPI 3D 2D tesla 1.5T 3T left right frontal parietal "
        "temporal occipital cerebellum brainstem ventricles cortex white grey gray matter hemisphere lobe "
        "anterior posterior superior inferior tumour tumor oedema edema stroke infarct haemorrhage hemorrhage "
        "bleed cyst atrophy aneurysm metastasis hydrocephalus lesion lesions hyperintense hypointense small "
        "large medium multiple single no normal abnormal healthy male female child adult elderly patient knee "
        "chest abdomen pelvis spine liver lung kidney heart prostate breast CT computed tomography PET examination "
        "lung window bone window thickness reformatted cancer adenocarcinoma carcinoma nodule cohort".split()
    )
