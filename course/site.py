"""
Build the site from computed data: the pages of both languages, MathJax, and a notebook for each page.

    python -m course.site
"""

import re
import shutil
import subprocess
import sys
import tarfile

import jupytext

from .exhibit import BUILD, LANGUAGES, ROOT

MATHJAX = "mathjax@3.2.2"
SITE, PAGES = BUILD / "site", ROOT / "course"
HEADER = "---\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n\n"
# the first cell of each notebook
START = """```{code-cell} python
# start Jupyter in the repository, or set its folder here
import sys
sys.path.insert(0, ".")
from course.notebook import file, show, source
```

"""
HOME = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Synkhorn: the course</title>
<body style="font: 18px/1.6 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem">
<h1>Synkhorn</h1>
<p><a href="en/index.html">English: two other ways to attend</a></p>
<p><a href="zh/index.html" lang="zh">中文：注意力机制的两条新路</a></p>
</html>
"""


def fetch_mathjax() -> None:
    """Take the one file of MathJax that a page needs from its npm package."""
    folder = BUILD / "mathjax"
    if (folder / "tex-svg.js").is_file():
        return
    if shutil.which("npm") is None:
        raise SystemExit(f"npm is missing: it fetches {MATHJAX}")
    folder.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(["npm", "pack", "--silent", MATHJAX], cwd=BUILD, check=True, capture_output=True, text=True)
    archive = BUILD / packed.stdout.split()[-1]
    with tarfile.open(archive) as package:
        (folder / "tex-svg.js").write_bytes(package.extractfile("package/es5/tex-svg.js").read())
    archive.unlink()


def notebook(text: str, language: str) -> str:
    """A page as a notebook: what its directives show becomes cells that show it."""
    calls = {"exhibit": f'show("{{}}", "{language}")', "source": 'source("{}")', "file": 'file("{}")'}

    def cell(match: re.Match) -> str:
        return f"```{{code-cell}} python\n{calls[match[1]].format(match[2])}\n```"

    text = re.sub(r"```\{(exhibit|source|file)\} (\S+)\n```", cell, text)
    # a solution stays hidden until its cell is run
    text = re.sub(r"^:::(\{dropdown\} (.*))?$", lambda m: f"**{m[2]}**\n" if m[2] else "", text, flags=re.MULTILINE)
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    book = jupytext.reads(HEADER + START + text, fmt="md:myst")
    return jupytext.writes(book, fmt="ipynb")


def build(language: str) -> None:
    """The pages of one language, and their notebooks."""
    tag = ["-t", "zh"] if language == "zh" else []
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", str(PAGES), *tag]
    # everything is written anew: a page shows data that Sphinx does not watch
    subprocess.run([*command, "-E", "-a", str(PAGES / language), str(SITE / language)], check=True)
    for page in sorted((PAGES / language).rglob("*.md")):
        target = SITE / language / page.relative_to(PAGES / language).with_suffix(".ipynb")
        target.write_text(notebook(page.read_text(encoding="utf-8"), language), encoding="utf-8")


def main() -> None:
    fetch_mathjax()
    SITE.mkdir(parents=True, exist_ok=True)
    (SITE / "index.html").write_text(HOME, encoding="utf-8")
    for language in LANGUAGES:
        build(language)
        print(SITE.relative_to(ROOT) / language / "index.html", flush=True)


if __name__ == "__main__":
    main()
