"""All sections of a report, measured one after the other."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treg_med import __version__
from treg_med.assessment.agreement import EXCHANGED
from treg_med.assessment.bars import ROUND_TRIP_BARS, Verdict, judged
from treg_med.assessment.card import understanding
from treg_med.assessment.drawn_slices import drawn_slices
from treg_med.assessment.gain import DenoisingGain, denoising_gain
from treg_med.assessment.memorisation import MemorisationAudit, memorisation_audit
from treg_med.assessment.one_step import TIMESTEPS, denoising_error, usable_levels
from treg_med.assessment.oracle import OracleStart, oracle_start
from treg_med.assessment.paired import PairedSamples, paired_samples
from treg_med.assessment.round_trip import RoundTrip, measure_round_trip
from treg_med.assessment.sample_quality import NEIGHBOURS, SampleQuality, sample_quality
from treg_med.assessment.sample_scan import SampleScan, show_sample_scan
from treg_med.assessment.slice_sets import phantom_slices, real_slices
from treg_med.assessment.unseen_words import UnseenWords, unseen_words
from treg_med.assessment.words import AROUND_LESION, OF_LESION, WordTest, word_tests
from treg_med.assessment.words_alone import WordsAlone, words_alone
from treg_med.errors import ConfigError
from treg_med.notice import RESEARCH_ONLY
from treg_med.priors.latent import LatentPrior
from treg_med.settings import check_settings, setting
from treg_med.solvers.problem import Progress
from treg_med.training.slices import CaptionedSlices

if TYPE_CHECKING:
    from treg_med.solvers.problem import Callback

__all__ = ["DenoisingError", "PriorReport", "ReportSettings", "build_report"]

PHANTOMS = "phantoms"
# With a lesion; the rest says that there is none.
_LESION_SHARE = 0.6
_TRAINING = "train"


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """How much is measured."""

    round_trip_slices: int = setting(480, minimum=1, help="slices of the round trip")
    error_slices: int = setting(16, minimum=1, help="slices of the denoising error")
    error_levels: tuple[int, ...] = TIMESTEPS
    word_slices: int = setting(40, minimum=2, help="real slices of the text test")
    word_phantoms: int = setting(120, minimum=2, help="phantoms of the text test")
    word_levels: tuple[int, ...] = (69, 145, 487, 700, 850, 950, 999)
    pair_noises: int = setting(4, minimum=0, help="starting noises of the paired samples; 0 leaves them out")
    pair_steps: int = setting(20, minimum=2, help="steps of the sampler")
    gain_slices: int = setting(12, minimum=1, help="slices of the denoising gain")
    tuning_slices: int = setting(6, minimum=1, help="other slices, on which the classical methods are tuned")
    gain_levels: tuple[int, ...] = (100, 200, 300, 500, 700)
    oracle_slices: int = setting(4, minimum=0, help="slices of the oracle start; 0 leaves it out")
    oracle_steps: int | None = setting(None, minimum=1, help="diffusion steps there; None is the solver's default")
    audit_samples: int = setting(200, minimum=0, help="samples beside their nearest training slices; 0 leaves them out")
    audit_steps: int = setting(20, minimum=2, help="steps of the sampler there")
    phantom_size: int | None = setting(None, minimum=16, help="side in pixels; None is the prior's")

    def __post_init__(self) -> None:
        """Check every setting."""
        check_settings(self)

    @classmethod
    def quick(cls) -> ReportSettings:
        """Enough to see that all works; its intervals are wide."""
        return cls(
            round_trip_slices=24,
            error_slices=4,
            error_levels=(69, 282, 838),
            word_slices=10,
            word_phantoms=10,
            word_levels=(487, 850, 999),
            pair_noises=0,
            gain_slices=2,
            tuning_slices=2,
            gain_levels=(300, 500),
            oracle_slices=1,
            audit_samples=0,
        )


@dataclass(frozen=True)
class DenoisingError:
    """(b) Rms error per pixel, in [-1, 1] units, of the decoded one-step clean estimate, by timestep."""

    source: str
    slices: int
    by_timestep: dict[int, float]


@dataclass(frozen=True)
class PriorReport:
    """Everything measured; sections that a prior cannot take part in are None or empty, and `notes` says why."""

    prior: dict[str, Any]
    settings: dict[str, Any]
    slices: dict[str, str]
    round_trips: tuple[RoundTrip, ...]
    denoising: tuple[DenoisingError, ...]
    words: tuple[WordTest, ...]
    words_alone: WordsAlone | None
    pairs: PairedSamples | None
    unseen: UnseenWords
    gain: DenoisingGain | None
    oracle: OracleStart | None
    memorisation: MemorisationAudit | None
    quality: SampleQuality | None
    sample_scan: SampleScan | None
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def understanding(self) -> dict[str, dict[str, Any]]:
        """What the prior's card says of it."""
        return understanding(self.words)

    def numbers(self) -> dict[str, Any]:
        """Every number as plain data, without the pictures."""
        found = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return found | {"understanding": _plain(self.understanding), "notice": RESEARCH_ONLY}


def build_report(
    prior: LatentPrior,
    slices_file: Path | None = None,
    split: str = "val",
    *,
    settings: ReportSettings | None = None,
    seed: int = 0,
    watch: Callable[[str], Callback] = lambda label: lambda step: None,
) -> PriorReport:
    """Measure a prior on phantoms and, where given, on a split of a slice file.

    Parameters
    ----------
    prior : LatentPrior
        As `LatentPrior.from_pretrained` opens it.
    slices_file : Path, optional
        As `CaptionedSlices.load` reads it.
    split : str
        Which slices; best those of subjects that the prior was not trained on.
    settings : ReportSettings, optional
        How much is measured.
    seed : int
        Of all random numbers.
    watch : callable
        Told the section, gives the callback of its progress.
    """
    started = time.perf_counter()
    chosen = settings or ReportSettings()
    size = chosen.phantom_size or int(prior.card.get("image", {}).get("size", 256))
    generator = torch.Generator().manual_seed(seed)
    # Loading and drawing come first, so that a wrong file fails before any work.
    real = None if slices_file is None else real_slices(slices_file, split, prior.image_multiple)
    phantoms = phantom_slices(chosen.word_phantoms, size, prior.image_multiple, generator, _LESION_SHARE)
    sets = {PHANTOMS: phantoms} if real is None else {f"{split} slices": real, PHANTOMS: phantoms}
    main, source = (phantoms, PHANTOMS) if real is None else (real, f"{split} slices")
    reads, notes = _reading(prior, main.captions[0])
    notes += main.notes
    if reads == "the empty text":
        sets = {name: _uncaptioned(each) for name, each in sets.items()}
        main = _uncaptioned(main)
    watch("autoencoder round trip")
    round_trips = tuple(
        measure_round_trip(prior, each.evenly(chosen.round_trip_slices), name) for name, each in sets.items()
    )
    denoising: tuple[DenoisingError, ...] = ()
    words: list[WordTest] = []
    pairs, gain, oracle, memorisation, quality = None, None, None, None, None
    if reads != "nothing":
        watch("denoising error by noise level")
        few = {name: each.evenly(chosen.error_slices) for name, each in sets.items()}
        denoising = tuple(_denoising(prior, each, name, chosen.error_levels, seed) for name, each in few.items())
        for name, each in sets.items() if reads == "captions" else ():
            tell = _advance(watch(f"text test on {name}"), "slice")
            tested = each if name == PHANTOMS else each.evenly(chosen.word_slices)
            words += word_tests(prior, tested, EXCHANGED, name, levels=chosen.word_levels, seed=seed, advance=tell)
        if chosen.pair_noises and reads == "captions":
            tell = _advance(watch("paired samples"), "noise")
            pairs = paired_samples(
                prior, size, noises=chosen.pair_noises, steps=chosen.pair_steps, seed=seed, advance=tell
            )
        scored, tuning = _scored_and_tuning(main, chosen)
        tell = _advance(watch("denoising gain"), "level")
        levels = tuple(t for t in chosen.gain_levels if t < len(prior.alphas_cumprod))
        gain = denoising_gain(prior, scored, tuning, source, levels=levels, seed=seed, advance=tell)
        if chosen.oracle_slices:
            tell = _advance(watch("oracle start"), "slice")
            oracle = oracle_start(
                prior, scored.evenly(chosen.oracle_slices), source, seed=seed, steps=chosen.oracle_steps, advance=tell
            )
    if real is not None and reads == "captions" and chosen.audit_samples:
        assert slices_file is not None  # noqa: S101 - the real slices are of it
        tell = _advance(watch("samples beside training slices"), "sample")
        memorisation, quality, told = _audit(prior, slices_file, split, real, chosen, seed, tell)
        notes += told
    sample = None
    if real is None:
        watch("sample scan")
        sample = show_sample_scan(prior)
        notes.append(
            "No slices were given: all numbers are those of phantoms, which are simpler than anatomy, and the packaged "
            "scan is shown without numbers."
        )
    return PriorReport(
        _facts(prior),
        {**dataclasses.asdict(chosen), "seed": seed, "split": split, "slices_file": slices_file and slices_file.name},
        {name: _describe(each) for name, each in sets.items()},
        round_trips,
        denoising,
        tuple(words),
        words_alone(prior) if reads == "captions" else None,
        pairs,
        unseen_words(prior),
        gain,
        oracle,
        memorisation,
        quality,
        sample,
        _verdicts(round_trips[0], words, gain, oracle, memorisation),
        tuple(notes),
        time.perf_counter() - started,
    )


def _reading(prior: LatentPrior, caption: str) -> tuple[str, list[str]]:
    """Whether a prior reads captions, only the empty text, or nothing, and what a reader should know of it."""
    try:
        prior.embed([""])
    except ConfigError as error:
        return "nothing", [f"The prior takes no text, so only its autoencoder was measured: {error}."]
    try:
        prior.embed([caption])
    except ConfigError as error:
        return "the empty text", [f"The prior takes no captions, so no word was tested: {error}."]
    return "captions", []


def _uncaptioned(slices: CaptionedSlices) -> CaptionedSlices:
    return dataclasses.replace(slices, captions=[""] * len(slices))


def _denoising(
    prior: LatentPrior, slices: CaptionedSlices, source: str, levels: tuple[int, ...], seed: int
) -> DenoisingError:
    with torch.no_grad():
        like = prior.encode(slices.images[:1].float() / 127.5 - 1)
    finite = usable_levels(prior, levels, like)
    return DenoisingError(source, len(slices), denoising_error(prior, slices, finite, seed))


def _scored_and_tuning(slices: CaptionedSlices, chosen: ReportSettings) -> tuple[CaptionedSlices, CaptionedSlices]:
    """Disjoint MR slices to score and to tune on, both evenly spaced."""
    rows = [i for i, a in enumerate(slices.attributes) if a.modality != "CT"] or list(range(len(slices)))
    scored = rows[:: max(1, len(rows) // (2 * chosen.gain_slices))][::2][: chosen.gain_slices]
    others = [i for i in rows if i not in set(scored)] or rows
    return slices.take(scored), slices.take(others).evenly(chosen.tuning_slices)


def _audit(
    prior: LatentPrior,
    slices_file: Path,
    split: str,
    validation: CaptionedSlices,
    chosen: ReportSettings,
    seed: int,
    advance: Callable[[int, int], None],
) -> tuple[MemorisationAudit | None, SampleQuality | None, list[str]]:
    """Draw samples once and compare them with training and validation slices, and say what could not be compared."""
    # Slices of unknown subjects were trained on too.
    train = CaptionedSlices.load(slices_file, _TRAINING).padded(prior.image_multiple)
    if split == _TRAINING or not len(train):
        return None, None, [f"No samples were compared: {slices_file.name} has no training slices beside {split!r}."]
    samples = drawn_slices(prior, train, chosen.audit_samples, steps=chosen.audit_steps, seed=seed, advance=advance)
    memorisation = memorisation_audit(prior, train, validation, chosen.audit_samples, samples=samples)
    if prior.scorer is None:
        return memorisation, None, ["The prior has no scorer of images and texts, so its samples were not scored."]
    if min(len(samples), len(validation)) <= NEIGHBOURS:
        return memorisation, None, ["There are too few slices for precision and recall, so no sample was scored."]
    return memorisation, sample_quality(prior, samples, validation, train, seed=seed), []


def _advance(callback: Callback, stage: str) -> Callable[[int, int], None]:
    def advance(done: int, total: int) -> None:
        callback(Progress(stage, done, total, {}))

    return advance


def _describe(slices: CaptionedSlices) -> str:
    height, width = slices.images.shape[-2:]
    subjects = len(set(slices.subjects))
    whose = f" of {subjects} subject{'s' * (subjects != 1)}" if subjects < len(slices) else ""
    return f"{len(slices)} of {height} x {width} pixels{whose}"


def _facts(prior: LatentPrior) -> dict[str, Any]:
    facts = dict(prior._facts())
    return facts | {"sha256": prior.sha256, "limits": str(prior.card.get("limits", "")), "treg_med": __version__}


def _verdicts(
    round_trip: RoundTrip,
    words: list[WordTest],
    gain: DenoisingGain | None,
    oracle: OracleStart | None,
    memorisation: MemorisationAudit | None,
) -> tuple[Verdict, ...]:
    out = [
        judged(f"round trip, {name}, {round_trip.source}", getattr(round_trip.overall, name), least, " dB", 1)
        for name, least in ROUND_TRIP_BARS.items()
    ]
    for test in words:
        if test.attribute in OF_LESION and test.region != AROUND_LESION:
            continue
        name = f"right {test.attribute} beats wrong, {test.source}"
        name += f", {test.region}" if test.region == AROUND_LESION else ""
        out.append(judged(name, 100 * test.overall.wins, 100 * test.bar, " %", 1))
    for level in gain.levels if gain is not None else ():
        if level.bar_db is not None:
            name = f"denoising gain over total variation at t = {level.timestep}"
            out.append(judged(name, level.gain_db["total variation"][0], level.bar_db, " dB", 1))
    if oracle is not None:
        name = f"oracle start at t = {oracle.timestep} over two-stage total variation"
        out.append(judged(name, oracle.gain_db["TReg, oracle start"][0], oracle.bar_db, " dB", 1))
    if memorisation is not None:
        name = f"samples nearer to a training slice than any validation slice, of {memorisation.samples}"
        out.append(Verdict(name, "0", str(len(memorisation.copies)), memorisation.met))
    return tuple(out)


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, pictures left out; numbers that JSON does not know become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if not f.name.endswith("picture")}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
