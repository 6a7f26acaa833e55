"""Camera files with sensor values (DNG, NEF, CR3, ARW, ...), developed by rawpy where it is installed."""

from __future__ import annotations

from pathlib import Path

from tta_restore.data.io import exif
from tta_restore.data.io.pixels import Image, ImageError, one_line, tensor_from_array, too_large

__all__ = ["develop_raw"]


def develop_raw(path: Path, name: str, *, max_pixels: int) -> Image:
    """Develop the sensor values of a camera file to 16-bit sRGB with the camera's white balance.

    The preview that the file holds as well is never read.

    Raises:
        ImageError: rawpy is not installed, or LibRaw cannot read the file.
    """
    try:
        import rawpy
    except ImportError:
        raise ImageError(
            f"{name}: sensor values that have to be developed: pip install 'tta-restore[raw]', or export it as TIFF"
        ) from None
    notes = ["sensor values developed by LibRaw with the camera's white balance"]
    try:
        with rawpy.imread(str(path)) as file:
            width, height = file.sizes.width, file.sizes.height
            if width * height > max_pixels:
                raise ImageError(too_large(width, height, max_pixels))
            array = file.postprocess(output_bps=16, use_camera_wb=True)
    except rawpy.LibRawError as error:
        raise ImageError(f"{name}: cannot be developed ({one_line(error)})") from None
    with open(path, "rb") as stream:
        block = exif.read_tiff_exif(stream, notes)
    return Image(pixels=tensor_from_array(array), bit_depth=16, exif=block, notes=tuple(notes))
