"""The page: controls, comparison with a slider, report and downloads, drawn by gradio."""

from __future__ import annotations

import importlib
import inspect
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.serve.photos import PhotoLimits, PhotoRecord, PhotoRestorer
from tta_restore.engine.serve.words import (
    MODELS,
    TASKS,
    describe_checkpoint,
    describe_photo,
    escape_text,
    label_photo,
    summarize_photos,
)

__all__ = ["PageSettings", "RunProgress", "Turns", "build_page", "restore_photos"]

_OWN_FILE = "a model file of yours"
_KEPT = (600, 3600)  # seconds between two removals of uploads, and their age from which they are removed
_STYLE = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.gradio-container h1 { letter-spacing: -.015em; }
#details li, #summary, #checkpoint-note { overflow-wrap: anywhere; }
#checkpoint-note pre, #checkpoint-note code { white-space: pre-wrap; }
footer { display: none !important; }
@media (max-width: 600px) { .gradio-container { padding: 8px !important; } }
"""
_INTRODUCTION = """# Restore photos

The model is adapted to your photos while it restores them. On the left of the slider is the model as it was trained
(averaged over four turned copies), on the right the adapted one. Nothing leaves this computer.
"""


class Turns:
    """Lets one photo be restored at a time, and none any more after ``close``."""

    def __init__(self) -> None:
        self._lock, self._is_closed = threading.Lock(), False

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a turn and hold it while the block runs.

        Raises:
            UsageError: there are no turns any more.
        """
        with self._lock:
            if self._is_closed:
                raise UsageError("the page has ended")
            yield

    def close(self, waiting: Callable[[], None]) -> None:
        """Give no more turns, and return when the last one is over.

        Args:
            waiting: called if it is not over yet.
        """
        self._is_closed = True
        if self._lock.locked():
            waiting()
        with self._lock:
            pass


@dataclass(frozen=True)
class PageSettings:
    """Settings of the page that its visitors do not choose.

    Attributes:
        folder: where results lie; removed by the caller at the end.
        model: a model that is offered first, next to the shipped ones; None for the shipped ones.
        checkpoint: weights of that model.
        config: keywords of that model's builder.
        options: settings of the method, such as ``budget``.
        limits: largest photos that are accepted.
        device: where to run; None for a CUDA device where there is one.
        seed: of the method.
        turns: one photo at a time, whatever the number of visitors.
    """

    folder: Path
    model: str | Named | None = None
    checkpoint: str | Path | None = None
    config: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: PhotoLimits = field(default_factory=PhotoLimits)
    device: str | None = None
    seed: int = 0
    turns: Turns = field(default_factory=Turns)

    def choices(self) -> list[str]:
        """Return the labels of the models to choose from, the first one being the default."""
        own = [] if self.model is None else [str(self.model)]
        return [*own, *(f"{name}: {removes}" for name, removes in MODELS.items()), _OWN_FILE]

    def restorer(self, choice: str, file: str | None, task: str | None, folder: Path) -> PhotoRestorer:
        """Return the restorer of a choice.

        Args:
            choice: one of :meth:`choices`.
            file: the model file that was dropped, if any.
            task: what the model removes; None to measure it.
            folder: where its results are written.

        Raises:
            UsageError: no model file was dropped, it cannot be loaded, or there is no such choice.
        """
        if choice not in self.choices():
            raise UsageError(f"there is no model {choice!r}")
        own = self.model is not None and choice == str(self.model)
        model: str | Named = choice.split(":")[0]
        if own and self.model is not None:
            model = self.model
        elif choice == _OWN_FILE:
            if file is None:
                raise UsageError("drop a model file, or choose a shipped model")
            model = file
        return PhotoRestorer(
            model,
            folder,
            checkpoint=self.checkpoint if own else None,
            config=self.config if own else None,
            task=task,
            device=self.device,
            seed=self.seed,
            limits=self.limits,
            **self.options,
        )


@dataclass(frozen=True)
class RunProgress:
    """State of a run that the page shows after each photo.

    Attributes:
        line: one line on how far the run is, or why it ended.
        records: photos so far.
        folder: folder of the results; None before there is one.
        results: restored files, and at the end of several photos a ZIP file of them in front.
        checkpoint: adapted weights, at the end; None where there are none.
        note: what the checkpoint holds.
    """

    line: str
    records: tuple[PhotoRecord, ...] = ()
    folder: Path | None = None
    results: tuple[Path, ...] = ()
    checkpoint: Path | None = None
    note: str = ""


def restore_photos(
    settings: PageSettings,
    photos: Sequence[str] | None,
    choice: str,
    model_file: str | None = None,
    task: str | None = None,
) -> Iterator[RunProgress]:
    """Restore photos one after another, and yield what to show before the first and after each one.

    Args:
        settings: of the page.
        photos: image files.
        choice: one of :meth:`PageSettings.choices`.
        model_file: the model file that was dropped, if any.
        task: what the model removes; None to measure it.

    Raises:
        UsageError: there is no photo, there are too many, the model cannot be loaded, or the page has ended.
    """
    paths = [Path(photo) for photo in photos or ()]
    if not paths:
        raise UsageError("drop one or more photos first")
    if len(paths) > settings.limits.max_files:
        raise UsageError(f"{len(paths)} photos, the limit is {settings.limits.max_files} at a time")
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=settings.folder))
    yield RunProgress("Loading the model", folder=folder)
    try:
        with settings.turns.take():
            restorer = settings.restorer(choice, model_file, task, folder)
    except UsageError as error:
        raise UsageError(_without_folder(str(error), model_file)) from error
    records: list[PhotoRecord] = []
    for number, path in enumerate(paths, 1):
        line = f"Restoring {number} of {len(paths)}: {escape_text(path.name)}"
        if times := [record.seconds for record in records if record.error is None]:
            line += f"; {sum(times) / len(times):.1f} s per photo so far"
        yield RunProgress(line, tuple(records), folder, _results(records))
        with settings.turns.take():
            records.append(restorer.restore(path))
    checkpoint, note = None, ""
    if restorer.learns and any(record.error is None for record in records):
        checkpoint = folder / "adapted.safetensors"
        with settings.turns.take():
            changed = restorer.save_checkpoint(checkpoint)
        note = describe_checkpoint(restorer.model, changed, own_file=choice == _OWN_FILE)
    results = _results(records)
    if len(results) > 1:
        results = (_zipped(results, folder / "restored.zip"), *results)
    yield RunProgress(summarize_photos(records), tuple(records), folder, results, checkpoint, note)


def build_page(settings: PageSettings) -> tuple[Any, dict[str, Any]]:
    """Return the page, a ``gradio.Blocks``, and the keywords for its ``launch``.

    Args:
        settings: of the page.

    Raises:
        UsageError: gradio is not installed.
    """
    try:
        gradio: Any = importlib.import_module("gradio")
    except ImportError:
        raise UsageError("the page needs gradio: pip install 'tta-restore[serve]'") from None

    # Fonts of the system: gradio 5 would load its own from the network.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    look = {"theme": gradio.themes.Default(primary_hue="blue", neutral_hue="slate", **fonts), "css": _STYLE}
    page = gradio.Blocks(
        title="tta_restore", analytics_enabled=False, delete_cache=_KEPT, **_accepted(gradio.Blocks, look)
    )
    with page:
        records = gradio.State([])
        folder = gradio.State(None, delete_callback=_remove)
        gradio.Markdown(_INTRODUCTION)
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                photos = gradio.File(label="Photos", file_count="multiple", height=170, elem_id="photos")
                choice = gradio.Dropdown(settings.choices(), label="Model", elem_id="model")
                model_file = gradio.File(label="Model file", visible=False, height=130, elem_id="model-file")
                task = gradio.Dropdown(list(TASKS), label="The model removes", elem_id="task")
                start = gradio.Button("Restore", variant="primary", elem_id="start")
                stop = gradio.Button("Stop after this photo", visible=False, elem_id="stop")
                gradio.Markdown(_limits_in_words(settings.limits))
            with gradio.Column(scale=3, min_width=300):
                summary = gradio.Markdown("Drop photos, then press Restore.", elem_id="summary")
                shown = gradio.Dropdown([], label="Photo", visible=False, elem_id="shown")
                slider = gradio.ImageSlider(
                    label="left: without adaptation, right: with it", type="filepath", visible=False, elem_id="slider"
                )
                details = gradio.Markdown(visible=False, elem_id="details")
                results = gradio.File(
                    label="Restored photos", file_count="multiple", visible=False, interactive=False, elem_id="results"
                )
                checkpoint = gradio.DownloadButton("Adapted checkpoint", visible=False, elem_id="checkpoint")
                note = gradio.Markdown(visible=False, elem_id="checkpoint-note")
        outputs = [summary, records, folder, shown, slider, details, results, checkpoint, note, start, stop]

        def run(files: Any, chosen: str, model: str | None, removes: str, old: str | None) -> Iterator[dict[Any, Any]]:
            _remove(old)
            yield {
                start: gradio.update(interactive=False),
                stop: gradio.update(visible=True, interactive=True),
                **{each: gradio.update(visible=False) for each in (shown, slider, details, results, checkpoint, note)},
            }
            try:
                for progress in restore_photos(settings, files, chosen, model, TASKS[removes]):
                    yield _shown_progress(gradio, progress, outputs)
            except UsageError as error:
                yield {summary: f"**{escape_text(str(error))}**"}
            except Exception as error:  # one line instead of a traceback, and the page goes on
                first = next(iter(str(error).splitlines()), "")[:200]
                yield {summary: f"**{type(error).__name__}: {escape_text(first)}**"}
            yield {start: gradio.update(interactive=True), stop: gradio.update(visible=False)}

        def select(name: str | None, found: list[PhotoRecord]) -> tuple[Any, Any]:
            record = next((each for each in found if _key(found, each) == name), None)
            return _slider(gradio, record), gradio.update(
                value="" if record is None else describe_photo(record), visible=record is not None
            )

        running = start.click(
            run, [photos, choice, model_file, task, folder], outputs, show_progress="hidden", concurrency_limit=1
        )
        stop.click(
            lambda: (gradio.update(interactive=True), gradio.update(visible=False), "Stopped."),
            None,
            [start, stop, summary],
            cancels=[running],
            queue=False,
        )
        shown.input(select, [shown, records], [slider, details], show_progress="hidden", queue=False)
        choice.change(lambda value: gradio.update(visible=value == _OWN_FILE), choice, model_file, queue=False)
    options = {
        "max_file_size": settings.limits.max_bytes,
        "allowed_paths": [str(settings.folder)],
        "ssr_mode": False,
        "share": False,
        "quiet": True,
        "show_error": True,
        "run_history": False,
        "footer_links": [],
        "show_api": False,
    }
    return page, _accepted(page.launch, look | options)


def _shown_progress(gradio: Any, progress: RunProgress, outputs: Sequence[Any]) -> dict[Any, Any]:
    """Return the updates of the page's parts for the state of a run."""
    summary, records, folder, shown, slider, details, results, checkpoint, note, *_ = outputs
    found = list(progress.records)
    updates = {summary: progress.line, records: found, folder: progress.folder and str(progress.folder)}
    if found:
        best = max(found, key=lambda record: (record.error is None, (record.trust or 0) * (record.gain or 0)))
        names = [_key(found, record) for record in found]
        updates |= {
            shown: gradio.update(choices=names, value=_key(found, best), visible=len(found) > 1),
            slider: _slider(gradio, best),
            details: gradio.update(value=describe_photo(best), visible=True),
            results: gradio.update(value=[str(path) for path in progress.results], visible=bool(progress.results)),
        }
    if progress.checkpoint is not None:
        updates |= {
            checkpoint: gradio.update(value=str(progress.checkpoint), visible=True),
            note: gradio.update(value=progress.note, visible=True),
        }
    return updates


def _key(found: Sequence[PhotoRecord], record: PhotoRecord) -> str:
    """Return a label that is unique among the photos of a run."""
    number = next(i for i, other in enumerate(found, 1) if other is record)
    return f"{number}. {label_photo(record)}"


def _slider(gradio: Any, record: PhotoRecord | None) -> Any:
    if record is None or record.before is None:
        return gradio.update(value=None, visible=False)
    return gradio.update(value=(str(record.before), str(record.after)), visible=True)


def _results(records: Sequence[PhotoRecord]) -> tuple[Path, ...]:
    return tuple(record.result for record in records if record.result is not None)


def _zipped(paths: Sequence[Path], target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # images are compressed already
        for path in paths:
            archive.write(path, path.name)
    return target


def _remove(folder: str | None) -> None:
    """Remove the results of an earlier run."""
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def _without_folder(message: str, path: str | None) -> str:
    """Return a message about a dropped file without the temporary folder that it lies in."""
    return message if path is None else message.replace(path, Path(path).name)


def _limits_in_words(limits: PhotoLimits) -> str:
    return (
        f"Up to {limits.max_files} photos at a time, {limits.max_pixels / 1e6:.3g} megapixels and "
        f"{limits.max_bytes / 1e6:.3g} MB each."
    )


def _accepted(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that a function of the installed gradio takes; versions 5 and 6 differ."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in names}
