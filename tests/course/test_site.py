"""The built site in Chromium: `make course-test`, after `make course`."""

import json
import re
import shutil
from functools import cache
from pathlib import Path
from urllib.parse import urldefrag

import pytest

BeautifulSoup = pytest.importorskip("bs4", reason="needs pip install 'synkhorn[course]'").BeautifulSoup
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "course" / "site"
MOVABLE = {
    "sinkhorn-principle-figure",
    "sinkhorn-extra-temperature",
    "sinkhorn-extra-noise",
    "sinkhorn-extra-length",
    "sinkhorn-extra-block-size",
    "sinkhorn-extra-causal",
    "synthesizer-extra-mixture",
}


def html_pages() -> list[Path]:
    skipped = {"genindex.html", "search.html"}
    found = [p for p in sorted(SITE.rglob("*.html")) if p.name not in skipped and "_static" not in p.parts]
    assert found, f"no pages in {SITE}: run `make course`"
    return found


@cache
def soup_of(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_nothing_is_loaded_from_elsewhere():
    for path in html_pages():
        for tag in soup_of(path).find_all(["script", "img", "link", "iframe", "source", "video", "audio"]):
            for attribute in ("src", "href"):
                assert not re.match(r"(https?:)?//", tag.get(attribute, "")), f"{path.name}: {tag}"


def test_every_link_within_the_site_leads_somewhere():
    for path in html_pages():
        for tag in soup_of(path).find_all("a", href=True):
            target = urldefrag(tag["href"]).url
            if target and not re.match(r"[a-z]+:", target):
                assert (path.parent / target).resolve().exists(), f"{path}: {target}"


def test_every_figure_and_table_has_question_finding_and_command():
    names = set()
    for path in html_pages():
        for figure in soup_of(path).select("figure.exhibit"):
            names.add(figure["id"])
            for part in ("title", "question", "finding", "about"):
                assert len(figure.select_one(f".exhibit-{part}").get_text(strip=True)) > 1, figure["id"]
            assert "commit" in figure.select_one(".exhibit-about").get_text(), figure["id"]
    for kind in ("figure", "table"):
        assert len({name for name in names if name.endswith(f"-{kind}")}) == 26


def test_every_exhibit_is_on_a_page():
    from course.exhibit import EXHIBITS
    from course.figures import load_all

    load_all()
    on_pages = {figure["id"] for path in html_pages() for figure in soup_of(path).select("figure.exhibit")}
    assert on_pages == set(EXHIBITS)


def test_every_page_has_a_notebook_of_its_cells():
    for page in (ROOT / "course" / "en").rglob("*.md"):
        book = SITE / "en" / page.relative_to(ROOT / "course" / "en").with_suffix(".ipynb")
        cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
        code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for name in re.findall(r"```\{exhibit\} (\S+)", page.read_text(encoding="utf-8")):
            assert f'show("{name}", "en")' in code


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path, "install Debian's chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(page, path: Path) -> None:
    """Open a page, and wait until its formulas are set."""
    page.goto(path.as_uri())
    page.wait_for_function("() => !document.querySelector('.math:not(:has(mjx-container))')")


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_pages_open_without_errors_or_requests(browser, language, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
    for path in html_pages():
        if SITE / language not in path.parents:
            continue
        open_page(page, path)
        assert not troubles, f"{path}: {troubles}"
        # no page is wider than the screen
        assert page.evaluate("document.documentElement.scrollWidth") <= width + 1, path
        for figure in page.query_selector_all("figure.exhibit.plot"):
            name = figure.get_attribute("id")
            figure.scroll_into_view_if_needed()
            # something is drawn in it: paths, or the pictures of a heat map
            drawn = figure.query_selector_all(".main-svg path[d], .main-svg image")
            assert len(drawn) > 3, name
            drawn_width = figure.query_selector(".main-svg").bounding_box()["width"]
            assert 0.6 * min(width, 700) < drawn_width <= figure.bounding_box()["width"], name
        for figure in page.query_selector_all("figure.exhibit.rows"):
            assert len(figure.query_selector_all("tbody tr")) > 1
    page.close()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_slider_moves_its_figure(browser, language):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    moved = set()
    for path in html_pages():
        if SITE / language not in path.parents:
            continue
        names = {figure["id"] for figure in soup_of(path).select("figure.exhibit")} & MOVABLE
        if not names:
            continue
        open_page(page, path)
        for name in names:
            plot = page.locator(f"#plot-{name}")
            plot.scroll_into_view_if_needed()
            rail = plot.locator(".slider-rail-touch-rect").bounding_box()
            before = plot.screenshot(), plot.locator(".gtitle").text_content()
            page.mouse.click(rail["x"] + 3, rail["y"] + rail["height"] / 2)
            page.wait_for_timeout(500)
            first = plot.screenshot(), plot.locator(".gtitle").text_content()
            page.mouse.click(rail["x"] + rail["width"] - 3, rail["y"] + rail["height"] / 2)
            page.wait_for_timeout(500)
            last = plot.screenshot(), plot.locator(".gtitle").text_content()
            assert len({before[0], first[0], last[0]}) >= 2 and first[0] != last[0], name
            assert first[1] != last[1], name
            moved.add(name)
    assert moved == MOVABLE
    page.close()


def test_the_switch_goes_to_the_same_page_in_the_other_language(browser):
    page = browser.new_page()
    for path in html_pages():
        if SITE / "en" not in path.parents:
            continue
        page.goto(path.as_uri())
        page.locator(".language-switch").first.click()
        assert page.url == path.as_uri().replace("/en/", "/zh/")
        assert page.get_attribute("html", "lang").startswith("zh")
        page.locator(".language-switch").first.click()
        assert page.url == path.as_uri()
    page.close()
