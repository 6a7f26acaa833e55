"""Sphinx configuration: `make docs` writes the site to build/docs."""

import tta_restore

project = "tta_restore"
author = "the tta_restore contributors"
version = release = tta_restore.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = "tta_restore"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
nitpicky = False
