"""The Sphinx directives of the pages: `exhibit` for a figure or table, `source` for lines of the package."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from plotly.offline import get_plotlyjs
from sphinx.application import Sphinx

from .exhibit import EXHIBITS, KINDS, ROOT, TOPICS, WORDS, to_html
from .figures import load_all

# characters and punctuation of Chinese
CHINESE = "\u2014\u2018-\u201d\u2026\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"


def label(name: str, language: str) -> str:
    """`Figure 2`, from the place of the topic in the outline; extra exhibits have none."""
    for kind in KINDS:
        for index, topic in enumerate(TOPICS):
            if name.endswith(f"-{topic}-{kind}"):
                return f"{WORDS[language][kind]} {index + 1}{'.' if language == 'en' else '　'}"
    return ""


class ExhibitDirective(Directive):
    """`{exhibit} NAME`"""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name, env = self.arguments[0], self.state.document.settings.env
        if name not in EXHIBITS:
            raise self.error(f"no exhibit {name!r}: choose out of {', '.join(EXHIBITS)}")
        language = env.app.tags.has("zh") and "zh" or "en"
        return [nodes.raw("", to_html(EXHIBITS[name], language, label(name, language)), format="html")]


def source_of(dotted: str) -> tuple[str, str]:
    """The source of `package.module:Class.function`, and its place."""
    module_name, _, path = dotted.partition(":")
    thing: Any = import_module(module_name)
    for part in path.split("."):
        thing = getattr(thing, part)
    lines, first = inspect.getsourcelines(thing)
    file = Path(inspect.getsourcefile(thing)).resolve().relative_to(ROOT)
    return dedent("".join(lines)).rstrip(), f"{file}, {first}"


class SourceDirective(Directive):
    """`{source} package.module:Class.function`"""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return listing(*source_of(self.arguments[0]))


def listing(text: str, place: str) -> list[nodes.Node]:
    """Python code under its place."""
    block = nodes.literal_block(text, text, language="python")
    caption = nodes.caption("", place)
    return [nodes.container("", caption, block, literal_block=True, classes=["literal-block-wrapper"])]


def file_of_tests(name: str) -> Path:
    """The one file of tests/ with a name, wherever it stands."""
    found = sorted((ROOT / "tests").rglob(name))
    if len(found) != 1:
        raise ValueError(f"{len(found)} files of tests/ are called {name!r}: name just one")
    return found[0]


class FileDirective(Directive):
    """`{file} NAME`: a file of the tests, wherever it stands among them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = file_of_tests(self.arguments[0])
        return listing(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())


def other_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """The address of the page in the other language, for the switch in the header."""
    other = "en" if app.tags.has("zh") else "zh"
    context["other_language_name"] = {"en": "English", "zh": "中文"}[other]
    context["notebook"] = f"{pagename.rpartition('/')[2]}.ipynb"
    context["other_language"] = f"{'../' * (pagename.count('/') + 1)}{other}/{pagename}.html"


def join_chinese_lines(app: Sphinx, docname: str, source: list[str]) -> None:
    """A line break between Chinese characters would be shown as a space."""
    if app.tags.has("zh"):
        source[0] = re.sub(rf"(?<=[{CHINESE}])\n(?=[{CHINESE}])", "", source[0])


def write_plotly(app: Sphinx, exception: Exception | None) -> None:
    if exception is None:
        (Path(app.outdir) / "_static" / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    load_all()
    app.add_directive("exhibit", ExhibitDirective)
    app.add_directive("source", SourceDirective)
    app.add_directive("file", FileDirective)
    app.connect("source-read", join_chinese_lines)
    app.connect("html-page-context", other_page)
    app.connect("build-finished", write_plotly)
    app.add_js_file("plotly.min.js", priority=10)
    app.add_js_file("stemmer.js", priority=10)
    app.add_js_file("plots.js")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
