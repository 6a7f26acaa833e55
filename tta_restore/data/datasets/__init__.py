"""Layouts of published data sets, aligned and misaligned pairs, clips, augmentation and patch mining."""

from typing import Any

from tta_restore._core.lazy import member

_MODULES = {
    "Augmentation": "augmentation",
    "Clip": "clips",
    "FolderCrops": "pairs",
    "FolderPairs": "misaligned",
    "GeneratedPairs": "misaligned",
    "ImageSequence": "clips",
    "LensPairs": "pairs",
    "MisalignedPair": "misaligned",
    "Misalignment": "misaligned",
    "Pair": "pairs",
    "find_clips": "clip_folders",
    "find_pairs": "layouts",
    "mine_patches": "mining",
    "register_layout": "layouts",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """Import what is exported, or a module of this package, when it is first named."""
    return member(__name__, _MODULES, name)


def __dir__() -> list[str]:
    """List what is exported, for completion."""
    return sorted([*globals(), *__all__])
