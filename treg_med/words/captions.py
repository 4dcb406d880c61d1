"""The caption grammar: attributes of a slice as many different sentences, and sentences back to attributes.

"Left" and "right" are the patient's. Images follow the radiological convention: the patient's left is on the right of
an axial or coronal image.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cache

from treg_med.words.vocabulary import ORGANS, PHRASES, UNKNOWN, vocabulary

__all__ = [
    "ATTRIBUTES",
    "SliceAttributes",
    "count_word",
    "counterfactuals",
    "mentioned_attributes",
    "plain_contrast",
    "read_attributes",
    "render_caption",
    "size_word",
    "swap_sides",
    "vocabulary",
    "words_of",
]

#: Every attribute with its classes; the text encoder is pre-trained to read each of them off the sentence.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "modality": (UNKNOWN, *ORGANS),
    **{name: (UNKNOWN, *values) for name, values in PHRASES.items()},
}

#: A lesion's own attributes, which only a sentence with the lesion can say.
_OF_LESION = ("size", "side", "lobe", "territory")
#: Diseases whose phrase is a noun, which a patient is said to have.
_WITH = ("multiple sclerosis", "stroke")
_MANY = 6  # white-matter lesions
#: Largest area in mm2 of a small and of a medium-sized lesion in a slice.
_AREAS = {"small": 150.0, "medium": 800.0}
#: Youngest age in years of each group.
_AGE_GROUPS = {"old": 65, "middle-aged": 40, "young": 18, "child": 1}


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
    modality: str = UNKNOWN
    origin: str = UNKNOWN
    lesion: str = UNKNOWN
    size: str = UNKNOWN
    side: str = UNKNOWN
    lobe: str = UNKNOWN
    region: str = UNKNOWN
    window: str = UNKNOWN
    agent: str = UNKNOWN
    territory: str = UNKNOWN
    age_group: str = UNKNOWN
    resolution: str = UNKNOWN

    def __post_init__(self) -> None:
        """Let a known age tell its group."""
        if self.age:
            group = next(name for name, youngest in _AGE_GROUPS.items() if self.age >= youngest)
            object.__setattr__(self, "age_group", group)

    def classes(self) -> list[int]:
        """Class index of every entry of `ATTRIBUTES`, in its order."""
        return [options.index(getattr(self, name)) for name, options in ATTRIBUTES.items()]

    @property
    def finding(self) -> str:
        """Whether there is a lesion: "present", "absent" or, where nothing is known, `UNKNOWN`."""
        if self.lesion != UNKNOWN or self.lesions not in (UNKNOWN, "none"):
            return "present"
        return UNKNOWN if self.lesions == UNKNOWN else "absent"

    def mirrored(self) -> SliceAttributes:
        """Attributes of the slice with left and right exchanged."""
        return replace(self, side={"left": "right", "right": "left"}.get(self.side, self.side))


# ---- attributes -> sentence


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
    said = _kept(slice_, rng, clause_dropout)
    head = [rng.choice(PHRASES[name][value]) for name, value in _values(said, ("plane", "contrast"))]
    if len(head) == 2 and rng.random() < 0.3:
        head.reverse()
    head = [
        *(rng.choice(PHRASES["origin"][value]) for _, value in _values(said, ("origin",))),
        *head,
        _organ(said, rng),
    ]
    told = _values(said, ("skull", "resolution", "level", "window", "agent"))
    clauses = [rng.choice(PHRASES[name][value]) for name, value in told]
    clauses += [clause] if (clause := _subject(said, rng)) else []
    if rng.random() < 0.3:
        rng.shuffle(clauses)
    sentence = ", ".join([" ".join(head), *clauses])
    finding = _finding(said, rng)
    if finding:
        sentence += rng.choice(("; ", ", ", " with " if said.lesion != UNKNOWN else "; ")) + finding
    if rng.random() < 0.5:
        sentence = sentence[0].upper() + sentence[1:]
    if rng.random() < 0.5:
        sentence += "."
    return sentence, said


def _kept(slice_: SliceAttributes, rng: random.Random, clause_dropout: float) -> SliceAttributes:
    """Attributes that are said. The organ is always said, and with it the modality; a lesion's side needs a lesion."""
    kept = {f.name: getattr(slice_, f.name) for f in fields(slice_)}
    for f in fields(slice_):
        if f.name != "modality" and rng.random() < clause_dropout:
            kept[f.name] = f.default
    if kept["modality"] == UNKNOWN:
        kept["modality"] = "MRI"
    if kept["modality"] == "MRI":
        kept["region"] = UNKNOWN
    kept |= dict.fromkeys(_OF_LESION if kept["lesion"] == UNKNOWN else ("lesions",), UNKNOWN)
    return SliceAttributes(**kept)


def _values(said: SliceAttributes, names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, getattr(said, name)) for name in names if getattr(said, name) != UNKNOWN]


def _organ(said: SliceAttributes, rng: random.Random) -> str:
    organ = rng.choice(ORGANS[said.modality])
    if said.region == UNKNOWN:
        return organ
    region = rng.choice(PHRASES["region"][said.region])
    return rng.choice((f"{organ} of the {region}", f"{region} {organ}", f"{organ}, {region}"))


def _subject(said: SliceAttributes, rng: random.Random) -> str:
    age = f"{said.age}-year-old " if said.age else ""
    if not age and said.age_group != UNKNOWN:
        age = rng.choice(PHRASES["age_group"][said.age_group]) + " "
    person = rng.choice(PHRASES["sex"][said.sex]) if said.sex != UNKNOWN else ("patient" if age else "")
    if said.disease == UNKNOWN:
        return age + person
    disease = rng.choice(PHRASES["disease"][said.disease])
    if said.disease in _WITH and (person or rng.random() < 0.3):
        return f"{age}{person or 'patient'} with {disease}"
    if said.disease == "healthy" and person and rng.random() < 0.5:
        return f"healthy {age}{person}"
    return f"{age}{person} {disease}".strip()


def _finding(said: SliceAttributes, rng: random.Random) -> str:
    """Sentence part about lesions: one with its place, a count of white-matter lesions, or their absence."""
    if said.lesion != UNKNOWN:
        return _placed_lesion(said, rng)
    if said.lesions == UNKNOWN:
        return ""
    phrases = PHRASES["lesions"][said.lesions]
    if said.lesions == "none":
        kinds = [phrase for values in PHRASES["lesion"].values() for phrase in values]
        return rng.choice((*phrases, f"no {rng.choice(kinds)}"))
    count = rng.randint(1, _MANY - 1) if said.lesions == "few" else rng.randint(_MANY, 20)
    return rng.choice((*phrases, f"{count} white-matter lesion{'s' * (count > 1)}"))


def _placed_lesion(said: SliceAttributes, rng: random.Random) -> str:
    def word(name: str) -> str:
        value = getattr(said, name)
        return "" if value == UNKNOWN else rng.choice(PHRASES[name][value])

    size, lesion, lobe, territory = word("size"), word("lesion"), word("lobe"), word("territory")
    side = said.side if said.side != UNKNOWN else ""
    place = f"{lobe} lobe" if lobe else territory or "hemisphere"
    where = f"in the {side} {place}" if side else f"in the {place}" if lobe or territory else ""
    adjective = word("side")
    if side == "both":
        adjective, where = "bilateral", "in both hemispheres" + (f", {place}" if lobe or territory else "")
    forms: list[tuple[str, ...]] = [(size, lesion, where)]
    if lobe and territory:
        where = f"{where}, {territory}"
        forms = [(size, lesion, where)]
    else:
        forms.append((size, adjective, lobe or territory, lesion))
    if size and where:
        forms.append((lesion, f"{where},", size))
    return " ".join(part for part in rng.choice(forms) if part)


# ---- sentence -> attributes


def read_attributes(text: str) -> SliceAttributes:
    """Attributes that a sentence says, by the phrases of the grammar; whatever else it says is passed over.

    "T2-FLAIR" is FLAIR and not T2: longer phrases are read first and taken out of the sentence.
    """
    left = text
    found: dict[str, object] = {}
    if age := re.search(r"\b(\d+)-year-old", left):
        found["age"] = int(age[1])
    if count := re.search(r"\b(\d+) white-matter lesions?\b", left):
        found["lesions"] = count_word(int(count[1]))
        left = left.replace(count[0], " ")
    for negated in _negated_lesion().finditer(left):
        found.setdefault("lesions", "none")
        left = left.replace(negated[0], " ")
    for name, value, pattern in _patterns():
        if name in found and name != "modality":
            continue
        left, hits = pattern.subn(" ", left)
        if hits:
            found[name] = value
    if found.get("modality") == "MRI":
        found.pop("region", None)
    if "lesion" not in found:
        for name in _OF_LESION:
            found.pop(name, None)
    return SliceAttributes(**found)  # type: ignore[arg-type]


def mentioned_attributes(text: str) -> frozenset[str]:
    """Names of the attributes that a sentence says something about; "finding" is a lesion or its absence.

    Side counts even without a lesion that the grammar knows: whoever writes "left" means it.
    """
    said = read_attributes(text)
    names = {f.name for f in fields(said) if getattr(said, f.name) not in (UNKNOWN, 0)}
    if names & {"lesion", "lesions"}:
        names.add("finding")
    if re.search(r"\b(left|right)\b", text, re.IGNORECASE):
        names.add("side")
    return frozenset(names)


def words_of(texts: Iterable[str]) -> set[str]:
    """Words of sentences, lower case, without punctuation; those with digits are left out."""
    seen = {word.strip(".,;:()").lower() for text in texts for word in text.split()}
    return {word for word in seen if word and not any(c.isdigit() for c in word)}


def swap_sides(text: str) -> str:
    """Return a sentence with left and right exchanged, as the caption of the mirrored image."""
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b(left|right|Left|Right)\b", lambda match: other[match[0]], text)


def size_word(area_mm2: float) -> str:
    """Return the size of a lesion by its area in a slice."""
    return next((word for word, largest in _AREAS.items() if area_mm2 <= largest), "large")


def count_word(lesions: int) -> str:
    """Return how many white-matter lesions there are: none, few or many."""
    return "many" if lesions >= _MANY else "few" if lesions else "none"


def plain_contrast(contrast: str) -> str:
    """Return a contrast without its agent: a T1 that shows none may have had one."""
    return contrast.partition("+")[0]


#: Contrasts that a caption may be given instead of its own: T1 with and without contrast agent count as one.
_OTHER_CONTRASTS = {
    "T1w": ("T2w", "FLAIR"),
    "T1w+Gd": ("T2w", "FLAIR"),
    "T2w": ("T1w", "FLAIR"),
    "FLAIR": ("T1w", "T2w"),
    "PDw": ("T1w", "T2w", "FLAIR"),
}


def counterfactuals(caption: str, attribute: str) -> list[str]:
    """Captions that differ in one attribute only and are wrong in it; none where the caption does not say it.

    Parameters
    ----------
    caption : str
        A sentence of the grammar, or a published caption in its words.
    attribute : str
        ``contrast``, ``plane``, ``side``, ``territory`` or ``finding`` (a lesion said to be absent, or an absent one
        to be there).

    Raises
    ------
    ValueError
        For another attribute.
    """
    if attribute == "side":
        swapped = swap_sides(caption)
        # A sagittal slice shows one half of the head, and not which.
        return [swapped] if swapped != caption and read_attributes(caption).plane != "sagittal" else []
    if attribute == "finding":
        return _other_findings(caption)
    if attribute not in ("contrast", "plane", "territory"):
        raise ValueError(f"expected contrast, plane, side, territory or finding, got {attribute!r}")
    said = getattr(read_attributes(caption), attribute)
    if said == UNKNOWN:
        return []
    others = _OTHER_CONTRASTS[said] if attribute == "contrast" else [v for v in PHRASES[attribute] if v != said]
    found = (p.search(caption) for name, value, p in _patterns() if (name, value) == (attribute, said))
    match = next(hit for hit in found if hit)
    words = [_cased_as(match[0], PHRASES[attribute][value][0]) for value in others]
    return [caption[: match.start()] + word + caption[match.end() :] for word in words]


def _other_findings(caption: str) -> list[str]:
    said = read_attributes(caption)
    if said.lesion == UNKNOWN and said.lesions == UNKNOWN:
        return []
    absent = said.lesions == "none"
    stroke = said.disease == "stroke"
    instead = PHRASES["lesions"]["none"][int(stroke)]
    if absent:
        instead = "large infarct" if stroke else "many white-matter lesions"
        if said.origin == "simulated" and not stroke:
            instead = "large tumour"
    # "Pituitary tumour" is a disease and stays; the clause about the lesion goes.
    diseases = [m.span() for name, _, p in _patterns() if name == "disease" for m in p.finditer(caption)]
    for match in (_absent_lesion() if absent else _present_lesion()).finditer(caption):
        apart = (match.end() <= start or end <= match.start() for start, end in diseases)
        holds = (match.start() <= start and end <= match.end() for start, end in diseases)  # "no stroke lesion"
        if all(a or h for a, h in zip(apart, holds, strict=True)):
            return [caption[: match.start()] + instead + caption[match.end() :]]
    return []


def _cased_as(old: str, new: str) -> str:
    return new[0].upper() + new[1:] if old[0].isupper() and old[1:2].islower() else new


def _either(phrases: Iterable[str]) -> str:
    return "(?:" + "|".join(re.escape(p) for p in sorted(phrases, key=len, reverse=True)) + ")"


def _said(*names: str) -> list[str]:
    return [phrase for name in names for phrases in PHRASES[name].values() for phrase in phrases]


@cache
def _patterns() -> tuple[tuple[str, str, re.Pattern[str]], ...]:
    """Every phrase as (attribute, value, pattern), the longest first."""
    modality = {"MRI": (*ORGANS["MRI"], "MRI", "magnetic resonance", "MR"), "CT": ORGANS["CT"]}
    tables = {**PHRASES, "modality": modality}
    entries = [
        (name, value, p) for name, values in tables.items() for value, phrases in values.items() for p in phrases
    ]
    entries.sort(key=lambda entry: -len(entry[2]))
    return tuple((n, v, re.compile(rf"(?<![\w-]){re.escape(p)}s?(?![\w+-])", re.IGNORECASE)) for n, v, p in entries)


@cache
def _negated_lesion() -> re.Pattern[str]:
    words = _either(_said("size", "side", "lobe", "territory"))
    return re.compile(rf"\b(?:no|without)(?: an?)?(?: {words})* {_either(_said('lesion'))}s?\b", re.IGNORECASE)


@cache
def _absent_lesion() -> re.Pattern[str]:
    return re.compile(rf"{_negated_lesion().pattern}|\b{_either(PHRASES['lesions']['none'])}s?\b", re.IGNORECASE)


@cache
def _present_lesion() -> re.Pattern[str]:
    words = _either([*_said("size", "side", "lobe", "territory"), "lobe", "hemisphere"])
    place = rf"(?: in (?:the )?{words}(?:,? {words})*)?"
    size = rf"(?:, {_either(_said('size'))})?(?:, area \d+ mm2)?"
    placed = rf"(?:an? )?(?:{words} )*{_either(_said('lesion'))}s?{place}{size}"
    counted = rf"(?:\d+ white-matter lesions?|{_either([*PHRASES['lesions']['few'], *PHRASES['lesions']['many']])})"
    return re.compile(rf"\b(?:{counted}(?:, total lesion area \d+ mm2)?|{placed})(?![\w-])", re.IGNORECASE)
