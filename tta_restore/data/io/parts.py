"""Keep the encoded parts of a video that is being written, so that a killed process continues where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.pixels import ImageError, one_line
from tta_restore.data.io.tensors import save_tensors

__all__ = ["PART_FRAMES", "EncodedPacket", "PartStore"]

#: Frames of a part, the most that a stopped run restores again; each part starts with a key frame.
PART_FRAMES = 60


@dataclass(frozen=True)
class EncodedPacket:
    """A packet of an encoder; times in 1/90000 s."""

    data: bytes
    pts: int
    dts: int
    duration: int
    is_key: bool


class PartStore:
    """The parts of one video in a folder, each with the state of the method after its last frame.

    A state is written before its part: a part without the next state never exists. Parts of another input or of other
    settings are removed when the store is opened.

    Args:
        folder: made with the first part.
        key: what the parts depend on.
        save_state: writes the method's state to a path; None for methods without one.
        part_frames: frames of a part.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        *,
        save_state: Callable[[Path], None] | None = None,
        part_frames: int = PART_FRAMES,
    ) -> None:
        self.folder, self.part_frames = folder, part_frames
        self._key, self._save_state = json.dumps(key, sort_keys=True), save_state
        self.count = self.frames = 0
        self.size: tuple[int, ...] | None = None
        while (described := self._describe(self.count)) is not None:
            self.count += 1
            self.frames += described["frames"]
            self.size = tuple(described["size"])
        if self.count == 0:
            self.remove()

    @property
    def state(self) -> Path | None:
        """File of the state after the last part, None at the beginning and for methods without a state."""
        return self._state_of(self.count - 1) if self.count and self._save_state is not None else None

    def packets(self) -> Iterator[EncodedPacket]:
        """Yield the packets of all parts."""
        for number in range(self.count):
            with safe_open(self._part(number), framework="numpy") as file:
                data, index = file.get_tensor("data").tobytes(), file.get_tensor("index")
            at = 0
            for length, pts, dts, duration, is_key in index.tolist():
                yield EncodedPacket(data[at : at + length], pts, dts, duration, bool(is_key))
                at += length

    def add(self, packets: Sequence[EncodedPacket], frames: int, size: tuple[int, ...]) -> None:
        """Write a part and the state after it.

        Raises:
            ImageError: the disk refuses.
        """
        try:
            self._write(packets, frames, size)
        except (OSError, SafetensorError) as error:
            if self.count == 0:
                self.remove()
            raise ImageError(f"{self.folder}: cannot be written ({one_line(error)})") from None
        if self.count:
            self._state_of(self.count - 1).unlink(missing_ok=True)
        self.count, self.frames, self.size = self.count + 1, self.frames + frames, size

    def _write(self, packets: Sequence[EncodedPacket], frames: int, size: tuple[int, ...]) -> None:
        if self._save_state is not None:
            with atomic_file(self._state_of(self.count)) as partial:
                self._save_state(partial)
        index = [(len(p.data), p.pts, p.dts, p.duration, int(p.is_key)) for p in packets]
        content = {
            "data": np.frombuffer(b"".join(p.data for p in packets), np.uint8),
            "index": np.array(index, np.int64).reshape(-1, 5),
        }
        metadata = {"key": self._key, "frames": json.dumps({"frames": frames, "size": list(size)})}
        with atomic_file(self._part(self.count)) as partial:
            save_tensors(partial, content, metadata)

    def remove(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.count = self.frames = 0
        self.size = None

    def _describe(self, number: int) -> dict[str, Any] | None:
        try:
            with safe_open(self._part(number), framework="numpy") as file:
                metadata = file.metadata()
            return json.loads(metadata["frames"]) if metadata["key"] == self._key else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:05d}.part"

    def _state_of(self, number: int) -> Path:
        return self.folder / f"{number:05d}.state"
