"""Sphinx configuration: `make docs` writes the site to build/docs."""

import sys
from pathlib import Path

import tta_restore

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "tta_restore"
author = copyright = "the tta_restore contributors"
version = release = tta_restore.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "api_pages",
    "command_lines",
]
exclude_patterns = ["pypi.md"]  # the long description of the package
autosummary_generate = False  # api_pages writes the pages
suppress_warnings = [
    "autosummary.import_cycle",  # tables name their entries in full, which is meant
    "ref.python",  # a type hint `Plan` may be one of several classes; any of their pages will do
]
napoleon_custom_sections = ["Shape", "Source"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "write_computation_times": False,  # its page asks other sites for scripts
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("tta_restore",),
    "min_reported_time": 0,
    "abort_on_example_error": True,
}
copybutton_exclude = ".linenos, .gp, .go"  # prompts and outputs of doctests
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = "tta_restore"
autodoc_typehints = "signature"
maximum_signature_line_length = 80
autodoc_member_order = "bysource"
nitpicky = True
# Names of other packages have no page here, and the site is built without a network for intersphinx.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|nn|collections|pathlib|numpy|typing|types|PIL|os|abc|fractions|threading|contextlib)\..*"),
    (r"py:class", r"(dict|tuple|list|set|Callable|Mapping|Sequence)\[?.*"),
    (r"py:class", r"(.*\.)?[A-Z]"),  # type variables
    (r"py:class", r"(Tensor|Path|Fraction|ArgumentParser)"),
]
