"""How Sphinx builds these pages. Needs the extra `docs`, no network, and no more than a minute:

    python -m sphinx -W --keep-going -b html docs build/docs

What the docstrings say is not repeated on the pages but read from them. A page that names something
that is gone is an error, and so is a reference to a function, method or module that is on no page.
"""

from __future__ import annotations

import os
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

# Nothing is computed while building; an accelerator would only cost time.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import lowrank_jax

project = "lowrank_jax"
author = "the authors of lowrank_jax"
release = lowrank_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # Attributes as one list; their types are in the signature already.
napoleon_attr_annotations = False
default_role = "code"

nitpicky = True
# Types belong to JAX, Optax and NumPy, whose pages would have to be fetched to be linked.
nitpick_ignore_regex = [("py:class", ".*")]

html_theme = "furo"
html_title = "lowrank_jax"
html_copy_source = False
exclude_patterns = ["_build"]


def formulas_as_written(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Indented blocks of a module's docstring are formulas and tables: their lines stay lines.

    In the source they stand in plain text; reStructuredText needs a mark, or takes them for
    quotations and fills them.
    """
    if what != "module":
        return
    shown: list[str] = []
    for line in lines:
        before = [old for old in shown if old][-1:]
        if line.startswith("    ") and not shown[-1] and not before[0].startswith("    "):
            shown += ["::", ""]
        shown.append(line)
    lines[:] = shown


def by_short_name(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.TextElement
) -> nodes.reference | None:
    """Resolves what a docstring calls by the name it has in its own file, and a page by another.

    A function is written in one module and public in another; names are unique all the same.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    short = node["reftarget"].rpartition(".")[2]
    found = domain.find_obj(env, None, None, short, node["reftype"], searchmode=1)
    if len(found) != 1:
        return None
    name, (page, anchor, _, _) = found[0]
    return make_refnode(app.builder, node["refdoc"], page, anchor, content, name)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", formulas_as_written)
    app.connect("missing-reference", by_short_name)
