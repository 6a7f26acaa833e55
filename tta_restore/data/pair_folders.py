"""Where data sets of defocused pairs keep their files."""

from __future__ import annotations

from pathlib import Path

from tta_restore import _checks

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

#: Per data set and split, the folders of blurry and of sharp files below its root; the first pair that is there counts.
LAYOUTS: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "sdd": {
        "train": (("train_patches/blur", "train_patches/gt"),),
        "test": (("test/blur", "test/gt"),),
    },
    "dpdd": {
        "train": (("train_c/source", "train_c/target"), ("train/source", "train/target")),
        "val": (("val_c/source", "val_c/target"), ("val/source", "val/target")),
        "test": (("test_c/source", "test_c/target"), ("test/source", "test/target")),
    },
    "realdof": {"test": (("source", "target"), ("test/source", "test/target"))},
    "ded": {
        "train": (("train/blur", "train/sharp"), ("train/source", "train/target"), ("train/blur", "train/gt")),
        "test": (("test/blur", "test/sharp"), ("test/source", "test/target"), ("test/blur", "test/gt")),
    },
    "folders": {"train": (("blurry", "sharp"),), "test": (("blurry", "sharp"),)},
}


def find_pairs(root: str | Path, layout: str, split: str = "train") -> list[tuple[Path, Path]]:
    """Paths of the blurry and the sharp file of every pair, sorted by name.

    Files belong together by their names without suffix; where no names agree and the counts do, by their order.

    Args:
        root: folder of the data set.
        layout: ``"sdd"``, ``"dpdd"``, ``"realdof"``, ``"ded"``, or ``"folders"`` for ``blurry/`` and ``sharp/``.
        split: ``"train"``, ``"val"`` or ``"test"``, as far as the data set has them.

    Raises:
        ValueError: the layout or split is unknown, a folder is missing, or files have no partner.
    """
    _checks.expect_choice("find_pairs", "layout", layout, tuple(LAYOUTS))
    _checks.expect_choice("find_pairs", f"split of {layout}", split, tuple(LAYOUTS[layout]))
    root = Path(root)
    choices = LAYOUTS[layout][split]
    found = next(((root / b, root / s) for b, s in choices if (root / b).is_dir() and (root / s).is_dir()), None)
    if found is None:
        wanted = " or ".join(f"{b} and {s}" for b, s in choices)
        there = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "no such folder"
        raise ValueError(f"{root}: expected {wanted} in it for {layout} ({split}), found: {there or 'nothing'}")
    blurry, sharp = (sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES) for folder in found)
    if not blurry or not sharp:
        empty = found[0] if not blurry else found[1]
        raise ValueError(f"{empty}: no images there")
    partners = {path.stem: path for path in sharp}
    names = {path.stem for path in blurry}
    if names == set(partners):
        return [(path, partners[path.stem]) for path in blurry]
    if not names & set(partners) and len(blurry) == len(sharp):
        return list(zip(blurry, sharp, strict=True))
    alone = sorted(names ^ set(partners))
    raise ValueError(
        f"{root}: {len(blurry)} blurry and {len(sharp)} sharp files do not pair up; without a partner: "
        f"{', '.join(alone[:5])}"
    )
