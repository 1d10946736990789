"""Sphinx: one configuration for both languages. `sphinx-build -c course -t zh course/zh ...` builds the Chinese pages."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

is_chinese = tags.has("zh")  # type: ignore[name-defined]  # noqa: F821
language = "zh_CN" if is_chinese else "en"
project = "Synkhorn：注意力机制的两条新路" if is_chinese else "Synkhorn: two other ways to attend"
author = "Synkhorn"
extensions = ["myst_nb", "sphinx_design", "course.extension"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "course" / "cells")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = [str(HERE / "static"), str(HERE.parent / "build" / "course" / "mathjax")]
html_css_files = ["course.css"]
templates_path = [str(HERE / "templates")]
mathjax_path = "tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}}
html_context = {"default_mode": "light"}
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "article_header_end": ["language.html", "article-header-buttons.html"],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_navbar_depth": 1,
}
