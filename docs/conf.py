"""Sphinx configuration: `make docs` writes the site to build/docs."""

import tta_restore

project = "tta_restore"
author = "the tta_restore contributors"
version = release = tta_restore.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "tta_restore"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
nitpicky = True
# Names of other packages have no page here, and the site is built without a network for intersphinx.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|collections|pathlib|numpy|typing|PIL)\..*"),
    (r"py:class", r"(dict|tuple|list|set|Callable|Mapping|Sequence)\[?.*"),
    (r"py:class", r".*\.[A-Z]"),  # type variables
    # private types and parts of the core in signatures
    (
        r"py:class",
        r"(tta_restore\.(.*\._Class|_core\.processes\.Processes|adapters\.state\.State|adapters\.injection\.Injection|models\.defocus\..*)|Tensor)",
    ),
]
