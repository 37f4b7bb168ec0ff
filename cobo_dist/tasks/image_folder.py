"""Source `images`: a folder with one folder of images for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.registry import register
from cobo_dist.settings import Text
from cobo_dist.tasks.sources import Labeled, SourceSection

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


@register.source("images")
class ImagesSource(SourceSection):
    """Images by class: FOLDER/CLASS/*.png, or FOLDER/train/CLASS/... and FOLDER/test/CLASS/..."""

    folder: Text = Field("", description="path of the folder")
    size: int = Field(
        0,
        ge=0,
        le=4096,
        description="pixels of a side, to which images are resized; 0: as they are",
    )
    color: Literal["rgb", "gray"] = Field("rgb", description="three channels, or one")

    def read(self) -> Labeled:
        """Return the images in the order of their paths; the label is the folder's name."""
        key, root = f"task.source.folder={self.folder}", Path(self.folder).expanduser()
        if not self.folder or not root.is_dir():
            raise ConfigError(f"{key} is no folder; give the path of a folder of images by class")
        train = root / "train" if (root / "train").is_dir() else root
        found = [_files(train, key)]
        if train != root and (root / "test").is_dir():
            found.append(_files(root / "test", key))
        labels = [label for part in found for label, _ in part]
        images: list[NDArray[Any]] = []
        for _, path in (one for part in found for one in part):
            images.append(self._image(path, key))
            if images[-1].shape != images[0].shape:
                raise ConfigError(
                    f"{key}: {path.relative_to(root)} has {_pixels(images[-1])} pixels and the first image "
                    f"{_pixels(images[0])}; set task.source.size to resize all"
                )
        test = len(found[1]) if len(found) > 1 else 0
        return Labeled(np.stack(images), np.asarray(labels), key, test)

    def _image(self, path: Path, key: str) -> NDArray[np.uint8]:
        from PIL import Image

        try:
            with Image.open(path) as file:
                image = file.convert("RGB" if self.color == "rgb" else "L")
            if self.size:
                image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            reason = words_of(error)[:200]
            raise ConfigError(
                f"{key}: {path} is no image that can be read ({reason}); replace or remove it"
            ) from None
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels if pixels.ndim == 3 else pixels[..., None]


def _pixels(image: NDArray[Any]) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"


def _files(folder: Path, key: str) -> list[tuple[str, Path]]:
    """Return label and path of every image below a folder of classes."""
    classes = sorted(one for one in folder.iterdir() if one.is_dir())
    found = [
        (one.name, path)
        for one in classes
        for path in sorted(one.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    if not found:
        raise ConfigError(
            f"{key}: {folder} has no images in folders by class; lay them out as FOLDER/CLASS/NAME.png"
        )
    return found
