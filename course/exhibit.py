"""Figures and tables: what computes them, what shows them in two languages, and where their data come from."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from re import sub
from typing import Any

import plotly.graph_objects as go
import plotly.io

from synkhorn.hub_export import write_whole
from synkhorn.scripts.measuring.report import machine

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "course"
FAMILIES = {"synthesizer": "Synthesizer", "sinkhorn": "Sparse Sinkhorn Attention"}
# in the outlines' order
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
KINDS = ("figure", "table")
LANGUAGES = ("en", "zh")
Text = Callable[[str, str], str]
# where code in a table may break
JOINTS = r"([_+=]|::)"


@dataclass
class Shown:
    """
    An exhibit in one language.

    title: what it is.
    question: what it answers, put before it.
    finding: the answer, put below it.
    figure: a plotly figure, or `None` for a table.
    text: HTML below a figure.
    header, rows: of a table; `code` in backticks and $formulas$ are kept.
    """

    title: str
    question: str
    finding: str
    figure: go.Figure | None = None
    text: str = ""
    header: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)


@dataclass
class Exhibit:
    """
    A figure or table of a topic of a family, or an extra one.

    compute: () -> data that JSON can hold. An `about` in it says where recorded data come from.
    show: (data, text) -> `Shown`, text being (English, Chinese) -> the language asked for.
    """

    name: str
    compute: Callable[[], dict[str, Any]]
    show: Callable[[dict[str, Any], Text], Shown]

    @property
    def path(self) -> Path:
        return BUILD / "data" / f"{self.name}.json"

    @property
    def command(self) -> str:
        return f"python -m course.run {self.name}"

    def run(self) -> dict[str, Any]:
        """Compute the data, and save them with the command, commit, machine and time."""
        start = time.perf_counter()
        data = self.compute()
        about = {"command": self.command} | machine() | {"seed": 0, "seconds": round(time.perf_counter() - start, 1)}
        data["about"] = data.get("about") or about
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(data))
        return json.loads(self.path.read_text(encoding="utf-8"))

    def data(self) -> dict[str, Any]:
        """The saved data, computed where there are none."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else self.run()

    def shown(self, language: str) -> tuple[Shown, dict[str, Any]]:
        """The exhibit in `en` or `zh`, and where its data come from."""
        data = self.data()
        return self.show(data, lambda en, zh: en if language == "en" else zh), data["about"]


EXHIBITS: dict[str, Exhibit] = {}
Show = Callable[[dict[str, Any], Text], Shown]


def exhibit(name: str, compute: Callable[[], dict[str, Any]]) -> Callable[[Show], Show]:
    """Register what shows an exhibit, with what computes it."""

    def register(show: Show) -> Show:
        EXHIBITS[name] = Exhibit(name, compute, show)
        return show

    return register


def number(value: float, digits: int = 3) -> str:
    """A number as it stands in a table: whole ones with commas, others rounded."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def cell(value: Any) -> str:
    """A cell of a table as HTML."""
    text = escape(value if isinstance(value, str) else number(value))
    # two numbers of one cell stay on one line: a line may end behind a dash unless a word joiner follows
    text = sub(r"(?<=\d) ([·–±]) (?=[\d+-])", "\u00a0\\1\u2060\u00a0", text)
    text = sub(r"`([^`]+)`", lambda match: "<code>" + sub(JOINTS, r"\1<wbr>", match[1]) + "</code>", text)
    text = sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r'<a class="external" href="\2">\1</a>', text)
    return sub(r"\$([^$]+)\$", r'<span class="math notranslate nohighlight">\\(\1\\)</span>', text)


WORDS = {
    "en": {"figure": "Figure", "table": "Table", "question": "Question", "finding": "Finding", "made": "Made by"},
    "zh": {"figure": "图", "table": "表", "question": "问题", "finding": "结论", "made": "生成命令"},
}


def to_html(item: Exhibit, language: str, label: str) -> str:
    """The exhibit as HTML: its question, itself, its finding, and where it comes from."""
    shown, about = item.shown(language)
    words = WORDS[language]
    colon = ": " if language == "en" else "："
    if shown.figure is not None:
        body = plotly.io.to_html(
            shown.figure,
            include_plotlyjs=False,
            auto_play=False,
            full_html=False,
            div_id=f"plot-{item.name}",
            config={"responsive": True, "displaylogo": False, "displayModeBar": False},
        )
    else:
        head = "".join(f"<th>{cell(text)}</th>" for text in shown.header)
        rows = "".join("<tr>" + "".join(f"<td>{cell(x)}</td>" for x in row) + "</tr>" for row in shown.rows)
        body = f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    command = escape(about.get("command", ""))
    place = "; ".join(f"{name} {value}" for name, value in about.items() if name != "command")
    return (
        f'<figure class="exhibit {"plot" if shown.figure is not None else "rows"}" id="{item.name}">'
        f'<p class="exhibit-title"><b>{label}</b> {cell(shown.title)}</p>'
        f'<p class="exhibit-question"><b>{words["question"]}{colon}</b>{cell(shown.question)}</p>'
        f'<div class="exhibit-body">{body}{shown.text}</div>'
        f'<figcaption><p class="exhibit-finding"><b>{words["finding"]}{colon}</b>{cell(shown.finding)}</p>'
        f'<p class="exhibit-about">{words["made"]}{colon}<code>{command}</code><br>{escape(place)}</p></figcaption></figure>'
    )


def is_live() -> bool:
    """Whether recorded studies are to be made anew."""
    return os.environ.get("COURSE_LIVE") == "1"
