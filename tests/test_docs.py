"""The pages: links lead somewhere, public names have a page and words, the site builds."""

import importlib.util
import inspect
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import jaxbackprop

CHROMIUM = shutil.which("chromium")
ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def public():
    """(name, value) of every function and class that the package, or a module it names, gives."""
    for name in jaxbackprop.__all__:
        value = getattr(jaxbackprop, name)
        if not inspect.ismodule(value):
            if callable(value):
                yield name, value
            continue
        for inner in getattr(value, "__all__", None) or vars(value):
            found = getattr(value, inner)
            own = hasattr(value, "__all__") or getattr(found, "__module__", "") == value.__name__
            if own and not inner.startswith("_") and callable(found):
                yield f"{name}.{inner}", found


PUBLIC = dict(public())
REFERENCE = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
ON_PAGES = set(re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE))


def anchors(page):
    """The names that a page's headings can be reached by."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name} links to {target}"
        if heading and not heading.startswith("jaxbackprop."):
            assert heading in anchors(there), f"{page.name} links to {target}"


def test_every_picture_is_on_a_page():
    shown = "".join(page.read_text() for page in PAGES)
    for picture in [*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.svg")]:
        assert f"{picture.name})" in shown, picture.name


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_words_and_a_page(name):
    value = PUBLIC[name]
    assert inspect.getdoc(value), name
    assert value.__module__ in ON_PAGES, f"docs/reference has no page with {value.__module__}"


def test_the_reference_names_only_what_is_there():
    for name in ON_PAGES:
        assert importlib.util.find_spec(name), name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as CI builds it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = ["build", "--quiet", "--strict", "--config-file", ".mkdocs.yml", "--site-dir", folder]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_the_site_asks_nothing_of_the_network(site):
    for page in site.rglob("*.html"):
        sources = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"]+)"', page.read_text())
        assert [s for s in sources if s.startswith("http") and "canonical" not in s] == [], page


def test_no_page_shows_markup_of_another_language(site):
    for page in site.rglob("*.html"):
        assert not re.search(r":(mod|func|class|meth|attr):|\$\$", page.read_text()), page


def test_every_public_name_is_on_its_page_with_its_source(site):
    """What mkdocstrings made of the pages: a name that a page leaves out has no anchor."""
    pages = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    anchors_there = set(re.findall(r'id="(jaxbackprop\.[\w.]+)"', pages))
    names = {f"{value.__module__}.{value.__qualname__}" for value in PUBLIC.values()}
    assert names - anchors_there == set()
    assert pages.count("Source code in") >= len(names)


def test_every_answer_of_the_texts_map_is_a_link(site):
    """What a reader of the text looks for is a heading of its own, and the map leads to each."""
    page = (site / "chapter.html").read_text()
    reached = set(re.findall(r"<td>.*?</td>", page, re.DOTALL))
    reached = set(re.findall(r'href="#([^"]+)"', "".join(reached)))
    own = set(re.findall(r'<h[23] id="([^"]+)"', page))
    maps = {"where-each-heading-stands", "where-each-question-is-answered"}
    grouping = {"misconceptions", "questions-and-derivations", "coding-exercises"}
    assert own - maps - grouping == reached


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_pages_are_searched_from_files(site):
    playwright = pytest.importorskip("playwright.sync_api")
    asked, errors = [], []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((site / "reference" / "dense.html").as_uri())
        page.locator("input[name=query]").click()
        page.keyboard.type("transpose inverse")
        page.locator(".md-search-result__link").first.wait_for()
        assert "chapter.html" in page.locator(".md-search-result__link").first.get_attribute("href")
        browser.close()
    assert all(url.startswith("file:") for url in asked)
    assert errors == []
