"""The clips that a configuration file asks for: of a data set, or made of photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tta_restore._core import checks
from tta_restore.data.datasets.clips import Clip
from tta_restore.data.datasets.layouts import CLIP_LAYOUTS, find_clips
from tta_restore.data.io.files import images_below
from tta_restore.data.io.image import read_image
from tta_restore.data.synthetic import photos
from tta_restore.data.synthetic.camera_shake import ShakenClips
from tta_restore.degradations.motion import CameraShake

#: Motions of generated clips where none are asked for: pans of all directions, hand-held shake, turns and zooms.
SHAKES = (
    CameraShake(pan=5.0),
    CameraShake(pan=10.0),
    CameraShake(pan=3.0, rotation=0.02, tremor=0.7),
    CameraShake(pan=3.0, zoom=0.02, exposure_fraction=1.0),
)


class _Pictures(Sequence[tuple[str, Tensor]]):
    """Names and pictures, read when asked for."""

    def __init__(self, names: Sequence[str], paths: Sequence[Path] | None = None) -> None:
        self.names, self.paths = names, paths

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:  # type: ignore[override]
        name = self.names[index]
        return name, photos.load(name) if self.paths is None else read_image(self.paths[index]).as_rgb()


def bundled_clips(names: Sequence[str], shakes: Sequence[CameraShake] = SHAKES, **options: Any) -> ShakenClips:
    """Clips of bundled photographs, see :class:`tta_restore.data.synthetic.camera_shake.ShakenClips`."""
    return ShakenClips(_Pictures(names), shakes, **options)


def clips_from(section: Mapping[str, Any]) -> Sequence[Clip]:
    """Clips of a data set (``layout``, ``root``, ``split``), or of ``pictures``: a folder, or "bundled".

    Generated ones take ``frames``, ``size``, ``length``, ``seed``, and ``shakes``: a list of tables of
    :class:`tta_restore.data.synthetic.camera_shake.CameraShake`.

    Raises:
        ValueError: there are none; the message says what is missing.
        TypeError: an entry means nothing.
    """
    options = dict(section)
    if "layout" in options:
        layout, root = options.pop("layout"), options.pop("root", None)
        if layout not in CLIP_LAYOUTS or root is None:
            raise ValueError(f"[data] expected root and layout, one of {', '.join(CLIP_LAYOUTS)}, got {dict(section)}")
        checks.expect_keywords("[data]", find_clips, options)
        return find_clips(root, layout, **({"split": "train"} | options))
    pictures = options.pop("pictures", "bundled")
    moved = options.pop("shakes", [])
    for shake in moved:
        checks.expect_keywords("[data] shakes", CameraShake, shake)
    shakes = [CameraShake(**shake) for shake in moved] or list(SHAKES)
    checks.expect_keywords("[data]", ShakenClips, options)
    if pictures == "bundled":
        return bundled_clips(photos.TRAIN, shakes, **options)
    if not Path(pictures).is_dir():
        raise ValueError(f"[data] pictures: there is no folder {pictures}")
    paths = images_below(Path(pictures))
    return ShakenClips(_Pictures([path.stem for path in paths], paths), shakes, **options)
