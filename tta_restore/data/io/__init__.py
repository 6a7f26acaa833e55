"""Image and video files: reading, writing and finding them."""

from typing import Any

from tta_restore._core.lazy import member

_MODULES = {
    "Image": "pixels",
    "ImageError": "pixels",
    "LargeImage": "large",
    "VideoFile": "video",
    "VideoInfo": "video",
    "atomic_file": "atomic",
    "exclusive_lock": "atomic",
    "open_large": "large",
    "read_image": "image",
    "scan_folder": "files",
    "to_model_space": "color",
    "write_image": "image_writer",
    "write_large": "large",
    "write_video": "video_writer",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """Import what is exported, or a module of this package, when it is first named."""
    return member(__name__, _MODULES, name)


def __dir__() -> list[str]:
    """List what is exported, for completion."""
    return sorted([*globals(), *__all__])
