"""Run the page on this computer until it is interrupted, and remove its temporary files."""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from tta_restore import adapters
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.methods import expect_one_frame
from tta_restore.engine.run.models import expect_restorer
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.serve.page import PageSettings, build_page
from tta_restore.engine.serve.photos import PhotoLimits

__all__ = ["HOST", "serve"]

HOST = "127.0.0.1"
_PORTS = (1, 65535)


def serve(
    *,
    model: str | Named | None = None,
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    port: int | None = None,
    open_browser: bool = False,
    budget: str | None = None,
    max_pixels: int = 50_000_000,
    max_mb: int = 500,
    max_files: int = 50,
    device: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Show a page in the browser on which photos are restored with and without adaptation.

    Photos are dropped on the page, a shipped model or a model file is chosen, and the results, a report in words and
    the adapted checkpoint are downloaded. The page can be reached from this computer only. Uploads and results are
    removed when the command ends, by Ctrl-C.

    Args:
        model: a model that the page offers first, next to the shipped ones (default: the shipped ones)
        checkpoint: weights of that model.
        config: keywords of that model's builder.
        port: of the page (default: the first free one from 7860 on)
        open_browser: open the page in the browser.
        budget: time that adaptation to one photo may take, such as 20s (default: no limit)
        max_pixels: largest number of pixels of a photo.
        max_mb: largest size of a photo or model file, in megabytes.
        max_files: largest number of photos at a time.
        device: where to run, such as cpu or cuda; None for a CUDA device where there is one.
        seed: of the method.
        say: receives the text for the user.

    Raises:
        UsageError: gradio is not installed, the model cannot be loaded, the port is taken, or a limit is below 1.
    """
    if port is not None and not _PORTS[0] <= port <= _PORTS[1]:
        raise UsageError(f"--port: expected {_PORTS[0]} to {_PORTS[1]}, got {port}")
    limits = PhotoLimits(max_pixels, max_mb * 1_000_000, max_files)
    try:
        adapters.DegradationPairs(nn.Conv2d(3, 3, 1), budget=budget)
    except ValueError as error:
        raise UsageError(f"--budget: {str(error).partition(': ')[2]}") from error
    chosen = resolve_device(device)
    if model is None and (checkpoint is not None or config):
        raise UsageError("--checkpoint: goes with --model")
    if model is not None:
        expect_one_frame(expect_restorer(model, device=chosen, checkpoint=checkpoint, config=config))
    # Nothing of the photos stays, also when interrupted: uploads and results lie in a folder that ends with the block.
    with tempfile.TemporaryDirectory(prefix="tta-restore-", ignore_cleanup_errors=True) as folder:
        results = Path(folder, "results")
        results.mkdir()
        options = {} if budget is None else {"budget": budget}
        settings = PageSettings(results, model, checkpoint, config, options, limits, chosen, seed)
        with _environment(GRADIO_TEMP_DIR=str(Path(folder, "uploads")), GRADIO_ANALYTICS_ENABLED="False"):
            _launch(settings, port, open_browser=open_browser, say=say)
    say("ended; photos and results on the page were removed")


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _launch(settings: PageSettings, port: int | None, *, open_browser: bool, say: Callable[[str], None]) -> None:
    """Run the page until Ctrl-C."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gradio's dependencies about one another
        page, options = build_page(settings)
        try:
            _, url, _ = page.launch(
                server_name=HOST, server_port=port, inbrowser=open_browser, prevent_thread_lock=True, **options
            )
        except OSError as error:
            raise UsageError(f"--port {port or 'free'}: {next(iter(str(error).splitlines()), 'taken')}") from error
    try:
        say(f"{url}   Ctrl-C ends")
        threading.Event().wait()
    except KeyboardInterrupt:
        # A thread that computes while the interpreter ends would abort the process.
        settings.turns.close(lambda: say("finishing the photo that is being restored; Ctrl-C again ends at once"))
    finally:
        page.close(verbose=False)
