"""`funprop train FOLDER`: a folder of images for each class, as a task."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from funprop.combinators import serial
from funprop.layer import Layer, named
from funprop.layers import dense, flatten, relu
from funprop.losses import softmax_cross_entropy
from funprop.models import cnn
from funprop.train.runs.inputs import write_inputs
from funprop.train.tables import splits
from funprop.train.task import Task
from funprop.values import short_line, whole_number

if TYPE_CHECKING:
    from funprop.typing import Float

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SIZE = 32  # pixels, where nothing is asked for
SMALLEST = 8  # what is left of a picture after the network has halved it twice is 2 x 2
LOOKED_AT = 100  # pictures that are asked whether there is colour


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The images of each folder in a folder, which is a class; those that have none are none."""
    found = {
        inner.name: images_in(inner)
        for inner in sorted(folder.iterdir())
        if inner.is_dir() and not inner.name.startswith(".")
    }
    return {name: files for name, files in found.items() if files}


def _left_out(folder: Path, by_class: Collection[str]) -> list[str]:
    """Lines that say what in the folder is no image of a class."""
    loose = sum(map(is_image, folder.iterdir()))
    empty = [f.name for f in sorted(folder.iterdir()) if f.is_dir() and f.name not in by_class]
    empty = [name for name in empty if not name.startswith(".")]
    lines = [f"{name!r} left out: it has no images" for name in empty]
    return lines + ([f"{loose:,} images left out: they are in no class's folder"] if loose else [])


def images_in(folder: Path) -> list[Path]:
    """The images in a folder and those below it."""
    return sorted(file for file in folder.rglob("*") if is_image(file))


def is_image(file: Path) -> bool:
    """Whether a file's name is that of an image."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def task(folder: Path, options: dict[str, Any]) -> Task:
    """Images by class, to be learnt from.

    Args:
      folder: has a folder for each class.
      options: `image_size`, `held_out` and `class_weights`, if given.

    Raises:
      ValueError: there is one class alone, an image that is none, or a size that cannot be.
    """
    size = whole_number(options.get("image_size", SIZE), "image_size", SMALLEST)
    share = options.get("held_out", splits.HELD_OUT)
    if not 0 < share < 1:
        raise ValueError(f"held_out must be above 0 and below 1, got {share}")
    by_class = class_folders(folder)
    if len(by_class) < 2:
        raise ValueError(
            f"{folder} must have folders of images for two classes, has {len(by_class)}"
        )
    files = [file for some in by_class.values() for file in some]
    labels = np.repeat(np.arange(len(by_class)), [*map(len, by_class.values())]).astype(np.int32)
    channels = 3 if any(map(_coloured, _some(files))) else 1
    pictures = read(files, size, channels)
    train, test = splits.at_random(labels, len(labels), share)
    test = np.random.default_rng(splits.SPLIT_SEED).permutation(test)  # the first ones are drawn
    weights = ()
    if options.get("class_weights"):
        counts = np.bincount(labels[train])
        weights = ((len(train) / (len(counts) * counts))[labels[train]].astype(np.float32),)
    classes = tuple(by_class)
    told = {"kind": "images", "size": size, "channels": channels, "classes": classes}
    counted = ", ".join(f"{name} {len(some)}" for name, some in [*by_class.items()][:8])
    colour = "colour" if channels == 3 else "grey"
    return Task(
        train=(pictures[train], labels[train], *weights),
        test=(pictures[test], labels[test]),
        models=models(len(classes)),
        loss=softmax_cross_entropy(),
        classes=classes,
        image_shape=(size, size, channels),
        title=f"{folder.name or folder.resolve().name}, images",
        notes=(
            f"{len(classes)} classes: {counted}{', ...' if len(classes) > 8 else ''}",
            f"all resized to {size} x {size} pixels, in {colour}; --image-size asks for another",
            *_left_out(folder, by_class),
        ),
        epochs=min(max(round(1500 * 32 / len(train)), 5), 60),
        batch_size=min(32, len(train)),
        write=lambda place: write_inputs(place, told),
    )


def models(classes: int) -> dict[str, Any]:
    """What is trained on images, by name."""

    def perceptron() -> Layer:
        return named("mlp", serial(flatten(), dense(128), relu(), dense(classes)))

    return {"cnn": lambda: cnn(classes), "mlp": perceptron}


def read(files: Sequence[Path], size: int, channels: int) -> Float[np.ndarray, "n h w c"]:
    """Images, resized, from 0 to 1; what is transparent is white.

    Raises:
      ValueError: a file is no image; names it.
      ModuleNotFoundError: Pillow is missing.
    """
    pictures = np.empty((len(files), size, size, channels), np.float32)
    for picture, file in zip(pictures, files, strict=True):
        image = _opened(file)
        image = image.convert("RGB" if channels == 3 else "L").resize((size, size))
        picture[:] = np.asarray(image, np.float32).reshape(picture.shape) / 255
    return pictures


def _opened(file: Path) -> Any:
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        raise ModuleNotFoundError("images need Pillow: pip install 'funprop[tables]'") from None
    try:
        with Image.open(file) as image:
            turned = ImageOps.exif_transpose(image)
            if turned.mode[0] in "IF":  # more than 8 bits
                return Image.fromarray(_eight_bits(np.asarray(turned, np.float64), turned.mode))
            if "transparency" in turned.info or "A" in turned.getbands():
                whole = turned.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
            return turned.convert("L" if turned.mode in ("1", "L") else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is no image that can be read: {short_line(error)}") from None


def _eight_bits(pixels: Any, mode: str) -> Any:
    """Pixels of more than 8 bits from 0 to 255: of 16 bits as they are, else by the largest."""
    largest = pixels.max(initial=0)
    spans = {"I": (65535, 2**31 - 1), "F": (1, 255, 65535)}.get(mode, (65535,))
    span = next((span for span in spans if largest <= span), largest)
    return (pixels * (255 / span)).clip(0, 255).astype(np.uint8)


def _some(files: Sequence[Path]) -> Sequence[Path]:
    return files[:: max(1, len(files) // LOOKED_AT)]


def _coloured(file: Path) -> bool:
    """Whether an image is more than shades of grey."""
    pixels = np.asarray(_opened(file).convert("RGB"), np.int16)
    return bool((np.ptp(pixels, axis=-1) > 8).mean() > 0.001)
