"""A Chromium for tests of pages; skips without playwright or a browser."""

import os
import shutil
from contextlib import contextmanager

import pytest


@contextmanager
def chromium():
    """Yield a browser of playwright: that of the variable CHROMIUM, of the system, or playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    own = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield found
        found.close()
