"""The page and the Markdown tables of an evaluation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.evaluation.rows import Row, row, table
from treg_med.evaluation.charts import difference_chart
from treg_med.evaluation.metric_names import metric
from treg_med.evaluation.report import markdown_table, render
from treg_med.evaluation.requirements import check
from treg_med.evaluation.summary import summarise
from treg_med.notice import RESEARCH_ONLY

PNG = b"\x89PNG\r\n\x1a\n made up"
VERSIONS = {"treg_med": "0"}


@dataclass(frozen=True)
class Lost:
    dataset: str = "brain"
    scenario: str = "mc-r4"
    scan: str = "sub-09_T2w"
    method: str | None = None
    kind: str = "FormatError"
    message: str = "expected <348> bytes"


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return summarise(table(9) + table(9, scenario="sc-r8"), compare_to="tv", resamples=199)


@pytest.fixture(scope="module")
def page(summary: dict[str, Any]) -> str:
    return render(
        summary,
        title="Brain <MR>",
        figures=[("sub-01: target & tv", PNG)],
        failures=[Lost()],
        configuration="version: 1\nname: <b>\n",
        requirements=check(["treg:psnr>=30", "treg:psnr>=99"], summary),
        notes=["no wrong text for 2 scans"],
        versions=VERSIONS,
    )


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def one_line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    balance = _Balance()
    balance.feed(page)
    assert not balance.open
    assert "<script" not in page
    assert "http" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert page.count(RESEARCH_ONLY) == 2


def test_the_same_summary_gives_the_same_bytes(summary: dict[str, Any]) -> None:
    again = json.loads(json.dumps(summary))
    first, second = (render(each, title="t", versions=VERSIONS) for each in (summary, again))
    assert first == second
    assert "NaN" not in first.replace("NaN by", "")


def test_text_from_outside_is_escaped(page: str) -> None:
    assert "Brain &lt;MR&gt;" in page
    assert "expected &lt;348&gt; bytes" in page
    assert "name: &lt;b&gt;" in page
    rows = [r | {"method": r["method"].replace("treg", "<i>")} for r in table(2)]
    assert "<i>" not in render(summarise(rows, resamples=9), title="t")


def test_what_it_says(page: str) -> None:
    for said in (
        "Does the text help?",
        "treg, PSNR is 0.72 dB higher (better) with the right text than with a wrong text",
        "no wrong text for 2 scans",
        "sub-09_T2w",
        "1 reconstruction without a score",
        "sub-01: target &amp; tv",
        "the mean is 35.2 dB",
    ):
        assert said in page, said
    assert page.count('class="met"') == 2
    assert page.count('class="not-met"') == 2
    assert page.count("<svg") == 2 * (2 + 2 + 2)


def test_a_control_stands_behind_its_method_and_is_never_best(summary: dict[str, Any]) -> None:
    text = markdown_table(summary)
    names = re.findall(r"^\| (\S+) \| (\w*) ?\|", text, re.MULTILINE)
    assert names[1:7] == [
        ("tv", ""),
        ("treg", "right"),
        ("treg", "empty"),
        ("treg", "wrong"),
        ("treg", "shuffled"),
        ("treg-control", ""),
    ]
    assert one_line_of(text, "| treg | right").startswith("| treg | right | 9 | **35.20** (")
    assert "+0.96 (" in one_line_of(text, "| treg | right")
    assert "**" not in one_line_of(text, "| treg-control")


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({"method": "treg-control"}, "PSNR: the best mean is that of treg-control, a control without the prior."),
        ({"method": "treg", "arm": "wrong"}, "PSNR: the best mean is that of treg with a wrong text, so none"),
    ],
)
def test_a_win_that_is_not_the_methods_own_is_said_and_not_marked(changed: Row, note: str) -> None:
    rows = [r | ({"psnr": 90.0} if changed.items() <= r.items() else {}) for r in table(7)]
    text = markdown_table(summarise(rows, metrics=["psnr"], resamples=9))
    assert note in text
    assert "**" not in text


def test_means_over_different_subjects_have_no_best() -> None:
    rows = [r for r in table(7) if (r["subject"], r["method"]) != ("03", "tv")]
    summary = summarise(rows, metrics=["psnr"], resamples=9)
    assert "**" not in markdown_table(summary)
    assert "PSNR: the means are over different subjects or slices" in render(summary, title="t")


def test_nan_is_shown() -> None:
    rows = table(7)
    rows[0] |= {"psnr": float("nan"), "nan_pixels": 4}
    summary = summarise(rows, resamples=9)
    assert "1 NaN" in one_line_of(markdown_table(summary), "| tv")
    assert '<small class="worse">1 NaN</small>' in render(summary, title="t")


def test_small_evaluations_say_that_they_are() -> None:
    page = render(summarise(table(2), resamples=99), title="t")
    assert "n too small (n = 2 subjects; 6 are needed)" in page
    single = render(summarise(table(1), resamples=99), title="t")
    assert "n too small (n = 1 subject; 6 are needed)" in single


def test_one_method_alone() -> None:
    summary = summarise([row("a", psnr=30.0)], resamples=9)
    page = render(summary, title="t")
    assert "This evaluation cannot say" in page
    assert "Nothing: every volume was reconstructed and scored." in page
    assert "over control</th>" not in page
    assert "| tv |  | 1 | 30.00 |" in markdown_table(summary)


def test_a_metric_that_one_method_lacks() -> None:
    rows = [row("a", psnr=30.0, ssim=0.9), row("a", "unet", psnr=31.0)]
    assert "| unet |  | 1 | **31.00** | – |" in markdown_table(summarise(rows, resamples=9))


def test_many_metrics_are_tables_of_four() -> None:
    extra = {name: 1.0 for name in ("ms_ssim", "haarpsi", "made_up")}
    page = render(summarise(table(2, **extra), resamples=9), title="t")
    assert page.count('<th class="span" colspan="2">') == 7
    assert page.count("<th>mean</th>") == 7
    assert page.count('<tr class="over">') == 2


def test_a_chart_puts_differences_where_the_axis_says() -> None:
    compared = {"differences": {"a": -1.0, "b": 1.0}, "interval": [-1.0, 1.0], "mean_difference": 0.0, "verdict": ""}
    chart = difference_chart(metric("psnr"), [("a < b", compared)])
    low, high = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart))
    marks = {text: float(x) for x, text in re.findall(r'<text x="([\d.]+)"[^>]*>([^<]*)</text>', chart)}
    assert low == pytest.approx(marks["−1.0"], abs=0.11)
    assert high == pytest.approx(marks["+1.0"], abs=0.11)
    assert "a &lt; b" in marks
    assert difference_chart(metric("psnr"), [("none", {"differences": {}})]) == ""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("psnr", -0.126, "−0.13"),
        ("psnr", -0.001, "0.00"),
        ("psnr", None, "–"),
        ("ssim", 0.9, "+0.9000"),
        ("unheard_of", 1234.5, "+1.23e+03"),
    ],
)
def test_numbers_have_the_digits_of_their_metric(name: str, value: float | None, expected: str) -> None:
    assert metric(name).format(value, signed=True) == expected
