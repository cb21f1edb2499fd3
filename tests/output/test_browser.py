"""The report in a real browser: what works, what loads, what a reader can do with it.

Skipped with a reason where Chromium is missing, unless MOE_ADVISOR_REQUIRE_BROWSER=1. With AXE_PATH
(axe.min.js of the npm package axe-core) the accessibility rules run too.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moe_advisor.output import html
from tests.output.result_builder import ALL

pytestmark = pytest.mark.browser

REQUIRED = os.environ.get("MOE_ADVISOR_REQUIRE_BROWSER") == "1"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
HEAVY = ("moderate", "serious", "critical")

PATIENCE_MS = 180_000
"""A busy machine starts a browser in half a minute: only what hangs reaches this."""

LOOK_EVERY_MS = 50

SETTLED = """() => new Promise(done => {
  let last, same = 0;
  function look() {
    const box = document.getElementById("tl-box"), data = box ? box.dataset : {};
    const now = [data.from, data.to, scrollX, scrollY].join();
    same = now === last ? same + 1 : 0;
    last = now;
    if (same < 6) requestAnimationFrame(look); else done();
  }
  requestAnimationFrame(look);
})"""
"""Ends when six frames in a row show the same: a glide and a smooth scroll move in each."""


def _missing(reason: str) -> None:
    if REQUIRED:
        pytest.fail(f"{reason}, and MOE_ADVISOR_REQUIRE_BROWSER=1")
    pytest.skip(f"{reason}: install Debian's chromium and the playwright package")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("the playwright package is not installed")
    if not Path(CHROMIUM).exists():
        _missing("chromium is not installed")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE_MS
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reports")
    urls = {}
    for name, build in ALL.items():
        path = folder / f"{name}.html"
        path.write_text(html.render(build()), encoding="utf-8")
        urls[name] = path.as_uri()
    return urls


@dataclass
class Opened:
    """A page with everything that went wrong on it."""

    page: Any
    url: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    scripts: bool = True

    def goto(self, anchor: str = "") -> None:
        """Loads the report and waits until its script has drawn."""
        self.page.goto(self.url + anchor)
        self.settle()

    def js(self, source: str) -> Any:
        """The value of an expression on the page."""
        return self.page.evaluate(source)

    def settle(self) -> None:
        """Waits until nothing moves any more, however slow the machine."""
        if self.scripts:
            self.page.evaluate(SETTLED)

    def until(self, expression: str) -> None:
        """Waits until an expression on the page is true; fails where it never is."""
        # Not wait_for_function: its polling is an eval, which the page's policy forbids.
        for _ in range(PATIENCE_MS // LOOK_EVERY_MS):
            if self.js(expression):
                return
            self.page.wait_for_timeout(LOOK_EVERY_MS)
        pytest.fail(f"never true: {expression}")

    def place(self, selector: str) -> dict[str, float]:
        """Where an element is, scrolled into view."""
        found = self.page.locator(selector)
        found.scroll_into_view_if_needed()
        self.settle()
        return dict(found.bounding_box())


@pytest.fixture
def opened(browser: Any, reports: dict[str, str]) -> Iterator[Any]:
    contexts = []

    def make(name: str, *, width: int = 1280, load: bool = True, **options: Any) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        one = Opened(page, reports[name], scripts=options.get("java_script_enabled", True))
        page.on(
            "console",
            lambda m: one.errors.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: one.errors.append(str(error)))
        page.on("request", lambda request: one.requests.append(request.url))
        if one.scripts:
            page.add_init_script(
                "window.violations = 0;"
                "document.addEventListener('securitypolicyviolation', () => { window.violations++ })"
            )
        if load:
            one.goto()
        return one

    yield make
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ALL)
def test_no_error_no_request_no_violation(opened: Any, name: str) -> None:
    one = opened(name)
    one.page.mouse.wheel(0, 4000)
    one.settle()
    assert one.errors == []
    assert [url for url in one.requests if url != one.url and not url.startswith("data:")] == []
    assert one.js("window.violations") == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [400, 800, 1280, 2560])
def test_page_never_scrolls_sideways(opened: Any, name: str, width: int) -> None:
    one = opened(name, width=width)
    one.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert one.js("document.documentElement.scrollWidth") <= width


def test_no_text_is_smaller_than_12_pixels(opened: Any) -> None:
    one = opened("balanced")
    small = one.js(
        """[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
        [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) &&
        !e.closest('script,style,.sr') && parseFloat(getComputedStyle(e).fontSize) < 11.4)
        .map(e => e.tagName + '.' + e.className)"""
    )
    assert small == []


def _view(one: Opened) -> tuple[float, float]:
    one.settle()
    box = one.page.locator("#tl-box")
    return float(box.get_attribute("data-from")), float(box.get_attribute("data-to"))


def test_timeline_zooms_and_pans_with_keys(opened: Any) -> None:
    one = opened("balanced")
    one.page.focus("#tl-box")
    whole = _view(one)
    one.page.keyboard.press("w")
    near = _view(one)
    assert near[1] - near[0] == pytest.approx((whole[1] - whole[0]) * 0.6, rel=0.01)
    one.page.keyboard.press("d")
    moved = _view(one)
    assert moved[0] > near[0]
    assert moved[1] - moved[0] == pytest.approx(near[1] - near[0], rel=0.01)
    one.page.keyboard.press("a")
    assert _view(one)[0] == pytest.approx(near[0], abs=1)
    one.page.keyboard.press("s")
    assert _view(one)[1] - _view(one)[0] == pytest.approx(whole[1] - whole[0], rel=0.01)
    one.page.keyboard.press("w")
    one.page.keyboard.press("f")
    assert _view(one) == whole


def test_timeline_arrows_select_slices_and_lanes_and_escape_clears(opened: Any) -> None:
    one = opened("balanced")
    panel = one.page.locator("#tl-panel")
    one.page.focus("#tl-box")
    one.page.keyboard.press("ArrowRight")
    assert "grouped_gemm_kernel" in panel.inner_text()
    one.page.keyboard.press("ArrowRight")
    assert "permute_kernel" in panel.inner_text()
    one.page.keyboard.press("ArrowDown")
    assert "ncclDevKernel_SendRecv" in panel.inner_text()
    assert "Hidden under compute" in panel.inner_text()
    one.page.keyboard.press("ArrowDown")
    assert "Idle gap" in panel.inner_text()
    one.page.keyboard.press("Escape")
    assert "Nothing selected" in panel.inner_text()


def test_timeline_wheel_zooms_about_the_pointer_only_with_ctrl(opened: Any) -> None:
    one = opened("balanced")
    place = one.place("#tl-box")
    one.page.mouse.move(place["x"] + 400, place["y"] + 150)
    before = _view(one)
    top = one.js("scrollY")
    one.page.mouse.wheel(0, 120)  # comes to the page some time after this call
    one.until(f"scrollY > {top}")
    assert _view(one) == before
    place = one.place("#tl-box")
    one.page.mouse.move(place["x"] + 400, place["y"] + 150)
    one.page.keyboard.down("Control")
    one.page.mouse.wheel(0, -240)
    one.until(f"document.getElementById('tl-box').dataset.from > {before[0]}")
    one.page.keyboard.up("Control")
    after = _view(one)
    assert after[1] - after[0] < before[1] - before[0]
    assert after[0] > before[0]


def test_timeline_drag_pans_and_click_selects(opened: Any) -> None:
    one = opened("balanced")
    one.page.focus("#tl-box")
    for _ in range(3):
        one.page.keyboard.press("w")
    before = _view(one)
    place = one.place("#tl-box")
    one.page.mouse.move(place["x"] + 600, place["y"] + 150)
    one.page.mouse.down()
    one.page.mouse.move(place["x"] + 500, place["y"] + 150, steps=4)
    one.page.mouse.up()
    assert _view(one)[0] > before[0]
    assert "Nothing selected" in one.page.locator("#tl-panel").inner_text()
    one.page.keyboard.press("f")
    one.settle()
    one.page.mouse.click(place["x"] + 126, place["y"] + 150)
    assert "Duration" in one.page.locator("#tl-panel").inner_text()


def test_timeline_overview_selects_a_window(opened: Any) -> None:
    one = opened("balanced")
    place = one.place("#tl-box")
    before = _view(one)
    one.page.mouse.move(place["x"] + 400, place["y"] + 20)
    one.page.mouse.down()
    one.page.mouse.move(place["x"] + 600, place["y"] + 20, steps=4)
    one.page.mouse.up()
    after = _view(one)
    assert after[1] - after[0] < 0.3 * (before[1] - before[0])


def test_hover_names_the_slice(opened: Any) -> None:
    one = opened("balanced")
    place = one.place("#tl-box")
    one.page.mouse.move(place["x"] + 124, place["y"] + 145)
    one.until("document.getElementById('tl-tip').innerText.includes('grouped_gemm_kernel')")


def test_finding_leads_to_its_place_in_the_timeline(opened: Any) -> None:
    one = opened("balanced")
    before = _view(one)
    one.page.click("#exposed-expert-all-to-all a[data-jump]")
    after = _view(one)
    assert after[1] - after[0] < before[1] - before[0]
    assert "ncclDevKernel_SendRecv" in one.page.locator("#tl-panel").inner_text()


def test_copy_gives_runnable_text_and_says_so(opened: Any) -> None:
    one = opened("balanced", permissions=["clipboard-read", "clipboard-write"])
    place = '[data-copy="diff-exposed-expert-all-to-all-megatron-bridge"]'
    # The button says it for two seconds: on a busy machine nobody may look in time.
    one.js(
        f"""() => {{ window.said = ''; const button = document.querySelector('{place}');
        new MutationObserver(() => {{ said += button.textContent; }})
        .observe(button, {{ childList: true, characterData: true, subtree: true }}) }}"""
    )
    one.page.locator(place).click()
    one.until("said.includes('Copied')")
    assert one.js("navigator.clipboard.readText()") == (
        "cfg.comm_overlap.overlap_moe_expert_parallel_comm = True\n"
    )
    one.until("document.getElementById('announce').innerText === 'Copied'")


def test_heading_link_copies_a_stable_address(opened: Any) -> None:
    one = opened("balanced", permissions=["clipboard-read", "clipboard-write"])
    one.page.locator("#plan-title .anchor").click()
    one.until("document.getElementById('announce').innerText !== ''")
    assert one.js("navigator.clipboard.readText()").endswith("balanced.html#plan")


def test_an_anchor_opens_the_details_it_points_to(opened: Any) -> None:
    one = opened("balanced", load=False, reduced_motion="reduce")
    one.goto("#unfused-token-permutation")
    details = one.page.locator("#unfused-token-permutation")
    assert details.get_attribute("open") is not None
    assert details.bounding_box()["y"] < 200
    shut = one.page.locator("#delayed-weight-gradient")
    assert shut.get_attribute("open") is None
    one.js("location.hash = '#delayed-weight-gradient'")
    one.until("document.getElementById('delayed-weight-gradient').open")


def test_label_leads_to_its_definition(opened: Any) -> None:
    one = opened("balanced")
    one.page.click('.tile a[href="#def-step_ms"]')
    one.until(
        """() => { const top = document.getElementById('def-step_ms').getBoundingClientRect().top;
        return 0 <= top && top < 900; }"""
    )


def test_tables_sort_and_say_how(opened: Any) -> None:
    one = opened("balanced")
    head = one.page.locator("#roles thead th").nth(1)
    first = one.page.locator("#roles tbody tr").first
    before = first.inner_text()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert "ep_dispatch" in first.inner_text()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert "attention" in first.inner_text()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert first.inner_text() == before


@pytest.mark.parametrize("clicks", [1, 2])
def test_unmeasured_rows_sort_last_either_way(opened: Any, clicks: int) -> None:
    one = opened("balanced")
    head = one.page.locator("#roles thead th").nth(2)
    for _ in range(clicks):
        head.locator("button").click()
    values = one.js(
        "[...document.querySelector('#roles table').tBodies[0].rows].map(r => r.cells[2].dataset.v)"
    )
    assert values[:2] == ["91.7", "91.7"]
    assert set(values[2:]) == {""}


def _background(one: Opened) -> str:
    return str(one.js("getComputedStyle(document.body).backgroundColor"))


def test_dark_follows_the_system_and_the_toggle_is_remembered(opened: Any) -> None:
    one = opened("balanced", color_scheme="dark")
    assert _background(one) == "rgb(16, 20, 26)"
    one.page.click("#theme")
    assert _background(one) == "rgb(255, 255, 255)"
    for _ in range(20):  # a busy browser stores the choice some time after the click
        one.page.reload()
        if _background(one) == "rgb(255, 255, 255)":
            break
    assert _background(one) == "rgb(255, 255, 255)"
    assert one.page.locator("#theme").inner_text() == "Theme: light"
    one.page.click("#theme")
    assert _background(one) == "rgb(16, 20, 26)"
    one.page.click("#theme")
    assert one.js("localStorage.getItem('moe-advisor-theme')") is None


def test_everything_is_readable_with_scripts_off(opened: Any) -> None:
    one = opened("balanced", java_script_enabled=False)
    for words in ("183.4 of 332.7 ms", "Overlap EP all-to-all with compute", "Stream 7"):
        assert one.page.get_by_text(words).first.is_visible()
    assert one.page.locator("#tl").is_hidden()
    assert one.page.locator("#tl-still svg").first.is_visible()
    assert one.page.locator("button:visible").count() == 0


def test_skip_link_is_the_first_stop_of_the_keyboard(opened: Any) -> None:
    one = opened("balanced")
    one.page.keyboard.press("Tab")
    assert one.js("document.activeElement.className") == "skip"
    outline = one.js("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "2px"


def test_targets_are_large_enough(opened: Any) -> None:
    one = opened("balanced")
    small = one.js(
        """[...document.querySelectorAll('button, summary')].filter(e => e.checkVisibility())
        .map(e => [e.textContent.slice(0, 30), e.getBoundingClientRect().height])
        .filter(([, height]) => height < 24)"""
    )
    assert small == []


def test_heat_map_of_many_ranks_reads_out_with_keys(opened: Any) -> None:
    one = opened("many")
    one.page.focus(".heatbox")
    one.page.keyboard.press("ArrowRight")
    one.page.keyboard.press("ArrowRight")
    read = one.page.locator(".heat-read").inner_text()
    assert read.startswith("Rank 1, ep_")
    assert read.endswith("ms")


@pytest.mark.parametrize("name", ["balanced", "skewed", "one_rank", "empty", "many"])
def test_print_is_at_most_six_pages(opened: Any, name: str) -> None:
    one = opened(name)
    pdf = one.page.pdf(prefer_css_page_size=True, print_background=True)
    assert 1 <= pdf.count(b"/Type /Page\n") <= 6


def test_motion_stops_where_it_is_not_wanted(opened: Any) -> None:
    one = opened("balanced", reduced_motion="reduce")
    one.page.click('button[data-jump="0"]')
    first = _view(one)
    one.page.wait_for_timeout(200)  # a glide takes 150 ms
    assert _view(one) == first
    assert one.js("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_first_paint_is_under_a_second(opened: Any) -> None:
    one = opened("many")
    quickest_ms = float("inf")
    for _ in range(20):  # what a machine with other work does to one load says nothing of the page
        one.goto()
        one.until("performance.getEntriesByName('first-contentful-paint').length")
        painted_ms = one.js("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        quickest_ms = min(quickest_ms, painted_ms)
        if quickest_ms < 1000:
            break
    assert quickest_ms < 1000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ALL)
def test_axe_finds_nothing_serious(opened: Any, name: str, scheme: str) -> None:
    path = os.environ.get("AXE_PATH")
    if not path or not Path(path).is_file():
        if REQUIRED and path:
            pytest.fail(f"AXE_PATH={path} is no file")
        pytest.skip("AXE_PATH names no axe.min.js: npm install axe-core and set it")
    one = opened(name, color_scheme=scheme, bypass_csp=True)
    one.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
    one.page.add_script_tag(path=path)
    found = one.js("axe.run().then(result => result.violations)")
    heavy = [
        (rule["id"], rule["impact"], [node["html"][:160] for node in rule["nodes"][:4]])
        for rule in found
        if rule["impact"] in HEAVY
    ]
    assert heavy == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_forced_colours_keep_charts_on_the_readers_background(opened: Any, scheme: str) -> None:
    one = opened("balanced", forced_colors="active", color_scheme=scheme)
    page = one.js("getComputedStyle(document.body).backgroundColor")
    ink = one.js("getComputedStyle(document.querySelector('svg.chart .t-muted')).fill")
    assert one.js("getComputedStyle(document.querySelector('svg.chart')).backgroundColor") in (
        page,
        "rgba(0, 0, 0, 0)",
    )
    assert ink != page
    stroke = one.js("getComputedStyle(document.querySelector('svg.chart rect.f-other')).stroke")
    assert stroke != page


def test_columns_of_drawings_are_not_sorted_by(opened: Any) -> None:
    one = opened("balanced")
    heads = one.page.locator("#layers thead th")
    buttons = heads.locator("button").all_inner_texts()
    assert "Layer" in buttons
    assert "All phases" not in buttons
    heads.nth(0).locator("button").click()
    first = one.page.locator("#layers tbody tr th").first.inner_text()
    assert first == "3"
