"""Sphinx extension: lines and words of commands as elements, so that the style sheet can wrap them.

Browsers break a line after every hyphen, that of `--out` as well, and a wrapped line would look like two commands.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# Sphinx calls doctests "default", sphinx-gallery its code "Python".
_BLOCK = re.compile(
    r'(<div class="highlight-(?!(?i:py|default))[^>]*><div class="highlight"><pre>)(.*?)(</pre>)', re.DOTALL
)
_TAG_OR_WORD = re.compile(r"(<[^>]*>)|([^\s<>]*-[^\s<>]*)")


def mark_lines(body: str) -> str:
    """Return a page with elements of the classes ``line`` and ``word`` in its blocks that are not Python."""
    return _BLOCK.sub(lambda block: block[1] + "\n".join(map(_line, block[2].split("\n"))) + block[3], body)


def _line(text: str) -> str:
    marked = _TAG_OR_WORD.sub(lambda match: match[1] or f'<span class="word">{match[2]}</span>', text)
    return marked and f'<span class="line">{marked}</span>'


def _change_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = mark_lines(context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("html-page-context", _change_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
