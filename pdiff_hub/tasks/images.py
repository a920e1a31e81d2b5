"""Turns pictures of any mode and size into one uint8 array; each picture is decoded once.

Shape suffixes: N images, C channels (1 grey, 3 colour), S pixels per side.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pdiff_hub.errors import PdiffError, one_line
from pdiff_hub.progress import progress_bar

if TYPE_CHECKING:
    from datasets import Image as Feature
    from PIL.Image import Image

# Pillow's modes with at most 8 bits per channel. The others (16 and 32 bits) would be clipped without notice.
_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def opened(feature: Feature, value: Any, name: str) -> Image | None:
    """The picture in a cell of a column: None, or a mapping with the "bytes" or the "path" of a file.

    name: of the picture, for the error that says that it is damaged.
    """
    if value is None or (value["bytes"] is None and value["path"] is None):
        return None
    try:
        image: Image = feature.decode_example(value)
        return image
    except Exception as error:  # a damaged file can make Pillow's readers raise anything
        reason = one_line(error) or type(error).__name__
        raise PdiffError(
            f"{name} cannot be read as a picture: {reason}; put a whole one there, or remove it."
        ) from error


def decode_images(
    images: Iterable[tuple[str, Image | None]], total: int, image_size: int | None, what: str
) -> np.ndarray:
    """uint8 [N, C, S, S]; in colour if any of the images is.

    Args:
        images: `total` pictures, each with its name for errors; transparency is dropped.
        image_size: the side to centre-crop and resize to; None leaves the pictures as they are: squares of one size.
        what: the name in errors and of the progress that is shown.

    Raises:
        ValueError: an empty split, a missing picture, one of more than 8 bits, different sizes without `image_size`.
    """
    out_NCSS = np.empty((0, 0, 0, 0), np.uint8)
    bar = progress_bar(total, what, "image")
    for number, (name, image) in enumerate(images):
        if image is None:
            raise PdiffError(f"{name} is missing; remove its row")
        pixels_CSS = _pixels(image, image_size, name)
        channels, side = pixels_CSS.shape[:2]
        if number == 0:
            out_NCSS = np.empty((total, channels, side, side), np.uint8)
        if side != out_NCSS.shape[2]:
            raise PdiffError(f"{name} is {side} pixels wide, those before it {out_NCSS.shape[2]}; set image_size")
        if channels > out_NCSS.shape[1]:  # the first colour picture after grey ones
            out_NCSS = np.repeat(out_NCSS, channels, axis=1)
        out_NCSS[number] = pixels_CSS
        bar.update()
    bar.close()
    if not len(out_NCSS):
        raise PdiffError(f"{what} is empty")
    return out_NCSS


def resize_grey(images_NHW: np.ndarray, image_size: int | None, what: str) -> np.ndarray:
    """uint8 [N, 1, S, S] from uint8 [N, H, W], resized in the same way as pictures from files."""
    if image_size is None or images_NHW.shape[1:] == (image_size, image_size):
        height, width = images_NHW.shape[1:]
        if height != width:
            raise PdiffError(f"{what}: the images are {width} x {height} pixels, not square; set image_size")
        return images_NHW[:, None]
    from PIL import Image

    pictures = ((f"{what}: image {number}", Image.fromarray(image_HW)) for number, image_HW in enumerate(images_NHW))
    return decode_images(pictures, len(images_NHW), image_size, what)


def same_channels(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays [N, C, S, S], all with as many channels as the array that has most."""
    most = max(array.shape[1] for array in images.values())
    return {name: array if array.shape[1] == most else np.repeat(array, most, 1) for name, array in images.items()}


def _pixels(image: Image, image_size: int | None, what: str) -> np.ndarray:
    from PIL import Image as pillow
    from PIL import ImageOps

    if image.mode not in _GREY | _COLOUR:
        raise PdiffError(f"{what} has the mode {image.mode!r}; convert it to 8 bits a channel (L or RGB)")
    mode = "L" if image.mode in _GREY else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image_size is None:
        if image.width != image.height:
            raise PdiffError(f"{what} is {image.width} x {image.height} pixels, not square; set image_size")
    elif image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), method=pillow.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
