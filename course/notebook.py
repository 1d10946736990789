"""What the notebooks call: `show` for a figure or table, `source` for lines of the package."""

from IPython.display import HTML, Code, Markdown, display

from .exhibit import EXHIBITS, WORDS, to_html
from .extension import file_of_tests, source_of
from .figures import load_all


def show(name: str, language: str = "en") -> None:
    """Compute an exhibit where its data are missing, and show it with its question and its finding."""
    load_all()
    item = EXHIBITS[name]
    shown, _ = item.shown(language)
    if shown.figure is None:
        display(HTML(to_html(item, language, "")))
        return
    words = WORDS[language]
    display(Markdown(f"**{shown.title}**\n\n*{words['question']}: {shown.question}*"))
    shown.figure.show()
    display(HTML(shown.text), Markdown(f"**{words['finding']}**: {shown.finding}"))


def source(dotted: str) -> None:
    """The source of `package.module:Class.function`."""
    text, place = source_of(dotted)
    display(Markdown(f"`{place}`"), Code(text, language="python"))


def file(name: str) -> None:
    """A file of the tests."""
    path = file_of_tests(name)
    display(Markdown(f"`{path.name}`"), Code(path.read_text(encoding="utf-8"), language="python"))
