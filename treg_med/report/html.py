"""The report as one self-contained HTML page."""

from __future__ import annotations

import math

from jinja2 import Environment, PackageLoader, StrictUndefined

from treg_med.assessment.build import PriorReport
from treg_med.assessment.figures import curves
from treg_med.assessment.statistics import Rate
from treg_med.notice import RESEARCH_ONLY

__all__ = ["render"]


def render(report: PriorReport) -> str:
    """Return the page: no scripts, no links to anything outside, pictures inlined."""
    environment = Environment(
        loader=PackageLoader("treg_med.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": _percent, "interval": _interval, "db": _db, "gain": _gain, "png": _png}
    template = environment.get_template("report.html.j2")
    return template.render(r=report, notice=RESEARCH_ONLY, charts=_charts(report))


def _charts(report: PriorReport) -> dict[str, str]:
    charts = {}
    if report.denoising:
        errors = {d.source: {float(t): e for t, e in d.by_timestep.items()} for d in report.denoising}
        charts["denoising"] = curves(errors, "timestep", "rms error, image in [-1, 1]", log_y=True)
    for source in dict.fromkeys(test.source for test in report.words):
        series = {
            f"{t.attribute}" + (f", {t.region}" if t.attribute in ("finding", "side") else ""): {
                float(level): 100 * rate.wins for level, rate in t.levels.items()
            }
            for t in report.words
            if t.source == source
        }
        charts[f"words, {source}"] = curves(
            series, "timestep", "right word wins (%)", level=50, level_name="chance", y_range=(0, 103)
        )
    if report.gain is not None:
        names = list(report.gain.levels[0].psnr_db)
        psnr = {n: {float(x.timestep): x.psnr_db[n] for x in report.gain.levels} for n in names}
        charts["gain"] = curves(psnr, "timestep", "PSNR (dB)")
    return charts


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def _interval(rate: Rate) -> str:
    return f"{100 * rate.low:.0f}–{100 * rate.high:.0f} %"


def _db(value: float) -> str:
    return f"{value:.1f}"


def _gain(value: tuple[float, float]) -> str:
    mean, error = value
    sign = "+" if mean >= 0 else "−"
    return f"{sign}{abs(mean):.1f}" + ("" if math.isnan(error) else f" ± {error:.1f}")


def _png(picture: str) -> str:
    return f"data:image/png;base64,{picture}"
