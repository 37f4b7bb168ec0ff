"""Source `images`: a folder with one folder of images for each class."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.host import free_memory
from cobo_dist.registry import register
from cobo_dist.settings import Text
from cobo_dist.tasks.sources import Labeled, SourceSection

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_OPAQUE = 255
_MAX_SHOWN = 4  # places of files that a notice names


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
        parts = [_files(train, key)]
        if train != root and (root / "test").is_dir():
            parts.append(_files(root / "test", key))
        found = [one for part in parts for one in part]
        notices = _unread(root, train != root, [path for _, path in found])
        x, transparent = self._images([path for _, path in found], root, key)
        if transparent:
            notices.append(
                f"{transparent} of {len(x)} images are transparent in part; that is dropped"
            )
        labels, test = np.asarray([label for label, _ in found]), sum(map(len, parts[1:]))
        return Labeled(x, labels, key, test, notices=tuple(f"{key}: {one}" for one in notices))

    def _images(self, paths: Sequence[Path], root: Path, key: str) -> tuple[NDArray[np.uint8], int]:
        """Return the images [N, H, W, C], and how many of them have transparent pixels."""
        first, transparent = self._image(paths[0], key)
        size, free = first.nbytes * len(paths), free_memory()
        if size > free:
            raise ConfigError(
                f"{key}: {len(paths)} images of {_pixels(first)} pixels need {size / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB of memory are free; set a smaller task.source.size"
            )
        x, count = np.empty((len(paths), *first.shape), dtype=np.uint8), int(transparent)
        x[0] = first
        for number, path in enumerate(paths[1:], start=1):
            image, transparent = self._image(path, key)
            count += transparent
            if image.shape != first.shape:
                raise ConfigError(
                    f"{key}: {path.relative_to(root)} has {_pixels(image)} pixels and the first image "
                    f"{_pixels(first)}; set task.source.size to resize all"
                )
            x[number] = image
        return x, count

    def _image(self, path: Path, key: str) -> tuple[NDArray[np.uint8], bool]:
        """Return an image [H, W, C], and whether it has transparent pixels."""
        from PIL import Image

        try:
            with warnings.catch_warnings(), Image.open(path) as file:
                warnings.simplefilter("ignore")  # Pillow's, of what is read all the same
                mode, transparent = file.mode, False
                image: Image.Image = file
                if mode.startswith("I") or mode == "F":  # clipped to 255 by Pillow
                    raise ConfigError(
                        f"{key}: {path} has pixels of more than 8 bits (mode {mode}), and images are read as "
                        "bytes; save it with 8 bits, scaled to 0 to 255, or all as float32 in an npz"
                    )
                if mode in ("LA", "PA", "RGBA") or "transparency" in file.info:
                    image = file.convert("RGBA")
                    transparent = bool(np.asarray(image)[..., -1].min() < _OPAQUE)
                image = image.convert("RGB" if self.color == "rgb" else "L")
            if self.size:
                image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            reason = words_of(error)[:200]
            raise ConfigError(
                f"{key}: {path} is no image that can be read ({reason}); replace or remove it"
            ) from None
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels if pixels.ndim == 3 else pixels[..., None], transparent


def _pixels(image: NDArray[Any]) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"


def _files(folder: Path, key: str) -> list[tuple[str, Path]]:
    """Return label and path of every image below a folder of classes."""
    found = [
        (path.relative_to(folder).parts[0], path)
        for path in _visible(folder)
        if path.suffix.lower() in _SUFFIXES and path.parent != folder
    ]
    if not found:
        raise ConfigError(
            f"{key}: {folder} has no images in folders by class; lay them out as FOLDER/CLASS/NAME.png"
        )
    return found


def _visible(folder: Path) -> list[Path]:
    """Return all files below a folder in the order of their paths, but for hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _unread(root: Path, in_parts: bool, read: Sequence[Path]) -> list[str]:
    """Return a notice of the files below a folder that are not read: other folders, other suffixes."""
    known, counts = set(read), Counter[str]()
    for path in _visible(root):
        if path not in known:
            inside = path.relative_to(root)
            other = in_parts and len(inside.parts) > 1 and inside.parts[0] not in ("train", "test")
            counts[
                f"{inside.parts[0]}/" if other else str(inside.with_name(f"*{path.suffix}"))
            ] += 1
    shown = [f"{count} in {place}" for place, count in counts.most_common(_MAX_SHOWN)]
    more = [f"{len(counts) - _MAX_SHOWN} more kinds"] if len(counts) > _MAX_SHOWN else []
    return [f"files that are not read: {', '.join(shown + more)}"] if counts else []
