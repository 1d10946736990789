"""The pages of the course: all figures and tables of the two outlines, in both languages alike."""

import re
from pathlib import Path

import pytest

COURSE = Path(__file__).parents[2] / "course"
# the outlines number 13 figures and 13 tables each
TOPICS = (
    "concept",
    "principle",
    "architecture",
    "innovation-1",
    "innovation-2",
    "training",
    "optimisation",
    "applications",
    "strengths",
    "improvements",
    "future",
    "classification",
    "generation",
)
FAMILIES = ("synthesizer", "sinkhorn")
DIRECTIVE = re.compile(r"```\{(exhibit|source|file)\} (\S+)\n```")


def directives(page: str, language: str) -> list[tuple[str, str]]:
    return DIRECTIVE.findall((COURSE / language / page).read_text(encoding="utf-8"))


def pages(language: str) -> set[str]:
    return {path.relative_to(COURSE / language).as_posix() for path in (COURSE / language).rglob("*.md")}


def test_every_page_is_in_both_languages_with_the_same_figures_and_code():
    assert pages("en") == pages("zh")
    for page in pages("en"):
        assert directives(page, "en") == directives(page, "zh"), page


@pytest.mark.parametrize("family", FAMILIES)
def test_every_topic_of_the_outline_has_its_figure_and_table(family):
    for topic in TOPICS:
        shown = [name for kind, name in directives(f"{family}/{topic}.md", "en") if kind == "exhibit"]
        assert [shown.count(f"{family}-{topic}-{kind}") for kind in ("figure", "table")] == [1, 1], topic


def test_the_outlines_have_as_many_figures_and_tables():
    shown = [name for page in pages("en") for kind, name in directives(page, "en") if kind == "exhibit"]
    for kind in ("figure", "table"):
        assert len({name for name in shown if name.endswith(f"-{kind}")}) == 26


@pytest.mark.parametrize("family", FAMILIES)
def test_every_page_of_a_topic_shows_code_that_exists(family):
    for topic in TOPICS:
        for kind, dotted in directives(f"{family}/{topic}.md", "en"):
            if kind == "source":
                module, _, name = dotted.partition(":")
                path = module.removeprefix("synkhorn.").replace(".", "/") + ".py"
                text = (COURSE.parent / path).read_text(encoding="utf-8")
                for part in name.split("."):
                    assert re.search(rf"\b(class|def) {part}\b", text), dotted


def test_every_page_is_in_the_table_of_contents():
    for language in ("en", "zh"):
        index = (COURSE / language / "index.md").read_text(encoding="utf-8")
        for page in pages(language) - {"index.md"}:
            assert f"\n{page.removesuffix('.md')}\n" in index, page


def test_chinese_pages_are_chinese_and_english_ones_english():
    for page in pages("en"):
        texts = {x: (COURSE / x / page).read_text(encoding="utf-8") for x in ("en", "zh")}
        chinese = {x: len(re.findall(r"[\u4e00-\u9fff]", text)) for x, text in texts.items()}
        assert chinese["en"] == 0, page
        assert chinese["zh"] > 40, page
