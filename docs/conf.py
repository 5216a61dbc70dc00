"""Sphinx: the pages in docs/ and an API reference from the docstrings. `make docs` builds them; no step needs a network."""

from __future__ import annotations

from typing import Any

import tvm_orient

project = "tvm_orient"
author = "the tvm_orient authors"
version = release = tvm_orient.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links such as performance.md#tuning-time, as code hosts make them
highlight_language = "text"  # indented blocks are formulas and terminals; Python is marked as such

# `name` in a docstring links to what it names, where that is documented
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
smartquotes_action = "D"  # dashes only: "zeros" is code
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_title = f"tvm_orient {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _no_type, priority=400)  # before Napoleon, which is at 500


def _no_type(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in an attribute's first line for its type. Here it is a sentence, so an empty comment comes first."""
    if what in ("attribute", "property", "data"):
        lines[:0] = ["..", ""]
