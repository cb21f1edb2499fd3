"""The report as text: complete without scripts and styles, strict, safe and repeatable."""

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import msgspec
import pytest

from moe_advisor.output import html, json_output
from moe_advisor.output.markup import embed, prose
from moe_advisor.resources import templates_dir
from tests.output.result_builder import (
    ALL,
    balanced,
    empty,
    grounds,
    hostile,
    layers,
    many,
    one_rank,
    timeline,
)

_VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements, their nesting and their text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.wrong: list[str] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.raw.append((self.open[-1], self.elements[-1][1], data))
        else:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: html.render(build()) for name, build in ALL.items()}


@pytest.mark.parametrize("name", ALL)
def test_the_same_result_gives_the_same_bytes(name: str, pages: dict[str, str]) -> None:
    again = json_output.decode(json_output.encode(ALL[name]()))
    assert html.render(again) == pages[name]


@pytest.mark.parametrize("name", ALL)
def test_every_element_is_closed_in_order(name: str, pages: dict[str, str]) -> None:
    page = Page(pages[name])
    assert page.wrong == []
    assert page.open == []


@pytest.mark.parametrize("name", ALL)
def test_ids_are_unique_and_every_link_inside_has_its_target(
    name: str, pages: dict[str, str]
) -> None:
    page = Page(pages[name])
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert [one for one, times in ids.items() if times > 1] == []
    targets = {str(a.get("href"))[1:] for a in page.all("a") if str(a.get("href")).startswith("#")}
    assert targets <= set(ids)
    for _, attributes in page.elements:
        for key in ("aria-labelledby", "aria-controls", "data-copy"):
            if key in attributes:
                assert attributes[key] in ids


@pytest.mark.parametrize("name", ALL)
def test_policy_allows_exactly_the_scripts_and_styles_of_the_page(
    name: str, pages: dict[str, str]
) -> None:
    page = Page(pages[name])
    policy = next(
        str(a["content"])
        for a in page.all("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    found = set()
    for tag, attributes, text in page.raw:
        if attributes.get("type") == "application/json":
            json.loads(text)
            continue
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        found.add((tag, digest))
    assert {digest for _, digest in found} == set(re.findall(r"sha256-([^']+)'", policy))
    assert len([tag for tag, _ in found if tag == "script"]) == 2


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_loaded_and_nothing_runs_from_an_attribute(
    name: str, pages: dict[str, str]
) -> None:
    page = Page(pages[name])
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "image", "use")
        for key, value in attributes.items():
            assert not key.startswith("on")
            assert key not in ("style", "src", "srcset", "action", "formaction", "xlink:href")
            if key == "href":
                assert value == "data:," or str(value).startswith("#")


@pytest.mark.parametrize("name", ALL)
def test_size_stays_within_the_budget(name: str, pages: dict[str, str]) -> None:
    assert len(pages[name].encode()) <= 500_000


def test_script_makes_no_markup_from_data_and_evaluates_nothing() -> None:
    for name in ("report.js", "theme.js"):
        source = (templates_dir() / name).read_text(encoding="utf-8")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "eval(",
            "new Function",
            "document.write",
            "fetch(",
            "XMLHttp",
            "import(",
            "Date",
            "Math.random",
        ):
            assert word not in source
        assert "</" not in source
    assert "</" not in (templates_dir() / "report.css").read_text(encoding="utf-8")


def test_hostile_strings_stay_text() -> None:
    page = Page(html.render(hostile()))
    assert len(page.all("script")) == len(Page(html.render(balanced())).all("script"))
    text = "".join(page.text)
    assert "<script>alert(1)</script>" in text
    assert "{{7*7}}" in text
    assert not re.search(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]", text
    )


def test_embedded_data_cannot_end_its_element() -> None:
    data = embed({"a": "</script><!--\u2028\u2029&"})
    assert not re.search("[<>&\u2028\u2029]", data)
    assert json.loads(data) == {"a": "</script><!--\u2028\u2029&"}


def test_prose_marks_figures_and_settings_and_escapes_the_rest() -> None:
    assert prose("<b> 26.6 ms (8.0 %), give --set pp=1 for moe_x") == (
        "&lt;b&gt; <b>26.6 ms</b> (<b>8.0 %</b>), give <code>--set</code> pp=1 for "
        "<code>moe_x</code>"
    )


def test_sections_come_in_the_order_of_the_story() -> None:
    page = Page(html.render(balanced()))
    ids = [a["id"] for tag, a in page.elements if tag in ("section", "details") and "id" in a]
    wanted = [
        "verdict",
        "walls",
        "time",
        "plan",
        "exposed-expert-all-to-all",
        "whatif",
        "evidence",
        "timeline",
        "roles",
        "ranks",
        "idle",
        "method",
        "definitions",
    ]
    assert [one for one in ids if one in wanted] == wanted


def test_there_is_one_h1_and_it_is_the_verdict() -> None:
    page = html.render(balanced())
    assert page.count("<h1") == 1
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", page)
    assert heading is not None
    assert re.sub("<[^>]+>", "", heading[1]) == balanced().walls.headline


@pytest.mark.parametrize("name", ALL)
def test_tables_have_captions_and_headers_scopes(name: str, pages: dict[str, str]) -> None:
    for table in re.findall(r"<table.*?</table>", pages[name], re.DOTALL):
        assert "<caption" in table
        assert re.search(r"<th(?![^>]*scope=)[ >]", table) is None


def test_headings_never_skip_a_level(pages: dict[str, str]) -> None:
    for source in pages.values():
        levels = [int(level) for level in re.findall(r"<h([1-6])", source)]
        levels = [level for level in levels if level < 4]
        assert all(b - a <= 1 for a, b in pairwise(levels))


def test_not_measured_tile_is_words_reason_and_hatch_never_zero() -> None:
    page = html.render(balanced())
    tile = re.search(r'<div class="tile absent">.*?</div>\n</div>', page, re.DOTALL)
    assert tile is not None
    words = re.sub("<[^>]+>", "", tile[0])
    assert "Not measured" in words
    assert "no memory events in the trace; give --log or recapture" in words
    assert "0" not in words


def test_empty_result_claims_nothing() -> None:
    page = html.render(empty())
    assert "Not measured" in page
    assert "No GPU activity was found." in page
    assert 'class="badge good"' not in page
    walls = page[page.index('id="walls"') : page.index('class="tiles"')]
    assert "0.0 %" not in re.sub("<svg.*?</svg>", "", walls, flags=re.DOTALL)


def test_partial_capture_opens_the_verdict() -> None:
    assert ">From 1 rank of 16 only: " in html.render(one_rank())


def test_gains_that_could_be_losses_are_marked() -> None:
    page = html.render(balanced())
    assert '<b class="loss">−16.0</b> to 12.0 ms' in page
    assert 'class="f-loss outlined"' in page


def test_whatif_is_left_out_without_estimates() -> None:
    assert 'id="whatif"' not in html.render(one_rank())
    assert 'href="#whatif"' not in html.render(one_rank())


def test_whatif_says_where_the_step_goes_and_why_it_is_less_than_the_sum() -> None:
    words = re.sub("<[^>]+>", "", html.render(balanced()))
    assert (
        "expected to go from 332.7 to 291.8 ms (range 267.7 to 315.7 ms). Less than the sum: "
        "permutation is part of what hides the wire." in words
    )


def test_whatif_bars_share_one_scale_even_where_a_change_could_cost_time() -> None:
    result = balanced()
    worse = msgspec.structs.replace(result.plan[1].combined, low_ms=-332.7)
    plan = [result.plan[0], msgspec.structs.replace(result.plan[1], combined=worse)]
    page = html.render(msgspec.structs.replace(result, plan=plan))
    fall = page[page.index('class="rows fall"') :]
    first = re.search(r'width="([\d.]+)%" height="20"', fall)
    assert first is not None
    assert float(first[1]) == pytest.approx(50.0, abs=0.01)


def test_charts_keep_their_colours_without_styles() -> None:
    page = html.render(balanced())
    bars = re.findall(r'<rect [^>]*class="f-\w+ gap"[^>]*>', page)
    assert len(bars) > 50
    assert all(' fill="' in bar for bar in bars)


def test_down_sampling_is_announced_with_its_number() -> None:
    result = balanced()
    assert result.timeline is not None
    short = msgspec.structs.replace(
        result, timeline=msgspec.structs.replace(result.timeline, omitted=1234)
    )
    assert "Down-sampled: 1,234 of the step" in html.render(short)
    assert "Down-sampled" not in html.render(result)


def test_many_ranks_are_colours_with_data_for_hover_and_keys() -> None:
    page = html.render(many())
    assert 'class="chart heat"' in page
    assert "56 others, mean" in page
    assert "All 64 ranks" in page


def test_every_metric_is_defined_and_linkable() -> None:
    page = html.render(balanced())
    for name in balanced().metrics:
        assert f'id="def-{name}"' in page


def test_grounds_are_shown_with_unit_and_denominator(pages: dict[str, str]) -> None:
    page = pages["balanced"]
    for words in (
        "23.7 GB/s</b> bus bandwidth",
        "5.3 % of 450",
        "more tokens 86.6",
        "the same rank most times",
        "grouped 0.610 ms against 0.560",
        "0.5 + 1.0",
        "receives",
        "rank 2 against 0: not measured, no match",
        'id="bandwidth"',
        'id="memory"',
        'id="layers"',
    ):
        assert words in page, words


def test_older_results_without_grounds_still_render() -> None:
    page = html.render(msgspec.structs.replace(balanced(), why=None, kernels=[], layers=[]))
    assert 'id="bandwidth"' not in page
    assert 'id="layers"' not in page
    assert 'id="memory"' in page


def test_a_crowd_stays_below_five_megabytes_and_says_what_is_left_out() -> None:
    base = balanced()
    many = 1024
    ranks = [msgspec.structs.replace(base.ranks[0], rank=rank) for rank in range(many)]
    drawn = timeline(steps=1500)
    page = html.render(
        msgspec.structs.replace(
            base,
            ranks=ranks,
            why=grounds(many, 500),
            layers=layers(500),
            timeline=msgspec.structs.replace(drawn, omitted=123_456),
            inputs=[
                msgspec.structs.replace(base.inputs[0], name=f"rank{rank}.json", ranks=[rank])
                for rank in range(many)
            ],
        )
    )
    assert len(page.encode()) <= 5_000_000
    assert "Down-sampled: 123,456" in page
    assert "992 others between them are in result.json" in page
    assert "100 further layers are in result.json" in page


def test_prepared_templates_are_all_that_a_report_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = html.render(balanced())
    html._environment.cache_clear()
    html.prepare()
    monkeypatch.setattr("jinja2.Environment.compile", None)
    assert html.render(balanced()) == expected
