"""Check the links of the built site: pages and anchors in it, and on request addresses outside.

    python docs/check_links.py build/docs [--external]

Needs no network without `--external`. Links to other sites are then reported as unchecked, as are those whose host
cannot be reached. Exit code 1 if a link is broken.
"""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_ATTRIBUTES = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src"}


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Collect what an element points to and what points to it."""
        found = dict(attributes)
        self.anchors |= {found.get("id") or "", (found.get("name") or "") if tag == "a" else ""}
        link = found.get(_ATTRIBUTES.get(tag, ""))
        if link:
            self.links.add(link)


def check_site(folder: Path, reach: Callable[[str], bool | None]) -> tuple[list[str], dict[str, bool | None], int]:
    """Check every page of a folder.

    Args:
        folder: root of the site.
        reach: returns whether an address outside exists, None where that is not known.

    Returns:
        broken links as "page: link", addresses outside with what `reach` returned, and the number of links within the
        site.
    """
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.resolve().rglob("*.html"))}
    broken: list[str] = []
    outside: dict[str, bool | None] = {}
    count = 0
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme in ("http", "https") or parts.netloc:
                address = link.partition("#")[0]
                if address not in outside:
                    outside[address] = reach(address)
                if outside[address] is False:
                    broken.append(f"{path.relative_to(folder.resolve())}: {link}")
            elif not parts.scheme:
                count += 1
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                target = target / "index.html" if target.is_dir() else target
                known = pages[target].anchors if target in pages else {""} if target.is_file() else set()
                if unquote(parts.fragment) not in known:
                    broken.append(f"{path.relative_to(folder.resolve())}: {link}")
    return broken, outside, count


def exists(address: str) -> bool | None:
    """Return whether an address answers; None if its host cannot be reached or does not answer such requests."""
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "check_links"})
    try:
        with urllib.request.urlopen(request, timeout=10):
            return True
    except urllib.error.HTTPError as error:
        return False if error.code in (404, 410) else None
    except (urllib.error.URLError, OSError):
        return None


def main() -> int:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="root of the built site")
    parser.add_argument("--external", action="store_true", help="ask other sites, too")
    options = parser.parse_args()
    broken, outside, count = check_site(options.folder, exists if options.external else lambda _: None)
    for line in broken:
        print(f"broken: {line}")
    for address, found in sorted(outside.items()):
        if found is None:
            print(f"unchecked: {address}")
    unchecked = sum(found is None for found in outside.values())
    print(f"{count} links within the site, {len(outside)} to others: {len(broken)} broken, {unchecked} unchecked")
    return 1 if broken or not count else 0


if __name__ == "__main__":
    sys.exit(main())
