"""Labeled images from files: CIFAR-100 as `cifar100.npz` or as torchvision stores it, or another npz.

Shapes: N training and M test images, H x W pixels, C = 1 or 3 channels.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.lazy import Tensor, torch
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.examples import Examples
from cobo_dist.tasks.labeled import ClassificationConfig
from cobo_dist.tasks.npz import read_arrays

NPZ, TORCHVISION = "cifar100.npz", "cifar-100-python"
_LABELS = {"fine": "y", "coarse": "coarse"}


@dataclass(frozen=True)
class ImageSet:
    """Images with labels 0 .. classes-1."""

    x_train: NDArray[np.uint8]  # [N, H, W, C]
    y_train: NDArray[np.int64]  # [N]
    x_test: NDArray[np.uint8]  # [M, H, W, C]
    y_test: NDArray[np.int64]  # [M]
    classes: int
    source: str  # for messages: the file, as the user named it
    notices: tuple[str, ...] = ()  # what a user should know of them

    def examples(self, labels_of: Tensor, data: DataConfig, dtype: torch.dtype) -> Examples:
        """Return the N training images with the M test images after them; `labels_of` as in `Examples`."""
        return Examples(
            torch.from_numpy(np.concatenate([self.x_train, self.x_test])),
            torch.from_numpy(np.concatenate([self.y_train, self.y_test])),
            labels_of,
            dtype,
            data.channels_last,
        )


class ImagesConfig(ClassificationConfig):
    """CIFAR-100, or other images in its place."""

    default_model: ClassVar[str] = "resnet9"
    data_keys: ClassVar[tuple[str, ...]] = ("root", "file")

    def fetch(self, data: DataConfig) -> Iterator[str]:
        """Fetch CIFAR-100 where it is missing and no file takes its place."""
        if data.file:
            return
        if has_cifar100(data.root):
            yield f"found       CIFAR-100 in {data.root}"
        else:
            yield f"fetching    CIFAR-100 into {data.root}"
            fetch_cifar100(data.root)


def load_images(file: str, root: str, labels: str) -> ImageSet:
    """Return the images of `data.file`, or CIFAR-100 from `data.root`, with fine or coarse labels.

    Raises:
        ConfigError: no such file, or malformed content.
    """
    if file:
        return _read_npz(Path(file).expanduser(), f"data.file={file}", labels)
    folder = Path(root).expanduser()
    if (folder / NPZ).is_file():
        return _read_npz(folder / NPZ, f"data.root={root}: {NPZ}", labels)
    if (folder / TORCHVISION).is_dir():
        return _read_torchvision(folder, f"data.root={root}: {TORCHVISION}", labels)
    raise ConfigError(
        f"data.root={root} has neither {NPZ} nor {TORCHVISION}; set data.root to the folder that has one, "
        "set data.file, or fetch CIFAR-100 with python -m cobo_dist.prepare and the same settings"
    )


def has_cifar100(root: str) -> bool:
    """Return whether `data.root` has CIFAR-100 in one of its forms."""
    folder = Path(root).expanduser()
    return (folder / NPZ).is_file() or (folder / TORCHVISION).is_dir()


def fetch_cifar100(root: str) -> None:
    """Download CIFAR-100 into `data.root` through torchvision, which verifies checksums.

    Raises:
        ConfigError: the download or writing it failed.
    """
    from torchvision.datasets import CIFAR100

    try:
        CIFAR100(str(Path(root).expanduser()), download=True)
    except (OSError, RuntimeError) as error:
        reason = words_of(error)
        raise ConfigError(
            f"CIFAR-100 cannot be fetched into data.root={root} ({reason}); where there is no network, "
            f"copy {NPZ} or the folder {TORCHVISION} there from another machine"
        ) from None


# -- npz ---------------------------------------------------------------------------------------------


def _read_npz(path: Path, source: str, labels: str) -> ImageSet:
    kind = _LABELS[labels]
    names = ("x_train", f"{kind}_train", "x_test", f"{kind}_test")
    arrays, found = read_arrays(path, source, "give the path of an npz", names)
    if missing := [name for name in names if name not in found]:
        hint = "; set task.labels=fine" if labels == "coarse" and "y_train" in found else ""
        raise ConfigError(
            f"{source} lacks the array {missing[0]!r}; it must hold {', '.join(names)}, and holds "
            f"{', '.join(sorted(found)) or 'nothing'}{hint}"
        )
    return _checked(arrays, source)


def _checked(arrays: dict[str, NDArray[np.generic]], source: str) -> ImageSet:
    """Return the arrays as an image set.

    Raises:
        ConfigError: a wrong shape, type or label, with the array's name.
    """
    (x_train_name, x_train), (y_train_name, y_train), *rest = arrays.items()
    (x_test_name, x_test), (y_test_name, y_test) = rest
    for name, x in ((x_train_name, x_train), (x_test_name, x_test)):
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or not x.size:
            raise ConfigError(
                f"{source}: {name} is {x.dtype} {list(x.shape)}, but must be uint8 [N, H, W, C] with "
                "1 or 3 channels and at least one image; convert it"
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ConfigError(
            f"{source}: training images are {list(x_train.shape[1:])} and test images "
            f"{list(x_test.shape[1:])}; they must be alike"
        )
    for name, y, x in ((y_train_name, y_train, x_train), (y_test_name, y_test, x_test)):
        if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
            raise ConfigError(
                f"{source}: {name} is {y.dtype} {list(y.shape)}, but must be whole numbers "
                f"[{len(x)}], one label for each image"
            )
    classes = int(y_train.max()) + 1
    for name, y in ((y_train_name, y_train), (y_test_name, y_test)):
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= classes:
            raise ConfigError(
                f"{source}: {name} holds labels {low} to {high}, but labels must lie in 0 to "
                f"{classes - 1}, the greatest in training"
            )
    own, labels = np.unique(np.concatenate([y_train, y_test]), return_inverse=True)
    notices: tuple[str, ...] = ()
    if len(own) < classes:  # or else a classifier has outputs for labels that no image has
        notices = (
            f"{source}: {len(own)} labels from {own[0]} to {own[-1]} are numbered 0 to {len(own) - 1}, in "
            "their order",
        )
        y_train, y_test = np.split(labels.reshape(-1), [len(y_train)])
    return ImageSet(
        x_train.astype(np.uint8, copy=False),
        y_train.astype(np.int64),
        x_test.astype(np.uint8, copy=False),
        y_test.astype(np.int64),
        len(own),
        source,
        notices,
    )


# -- as torchvision stores it ------------------------------------------------------------------------


def _read_torchvision(root: Path, source: str, labels: str) -> ImageSet:
    # Imported here because it takes a second. It compares the files' checksums before it unpickles them.
    from torchvision.datasets import CIFAR100

    parts = []
    for train in (True, False):
        try:
            part = CIFAR100(str(root), train=train, download=False)
            targets = part.targets if labels == "fine" else _coarse(part)
        except (RuntimeError, OSError, pickle.UnpicklingError, KeyError) as error:
            reason = words_of(error)
            raise ConfigError(
                f"{source} is incomplete or damaged ({reason}); remove it and fetch it again with "
                "python -m cobo_dist.prepare"
            ) from None
        parts += [part.data, np.asarray(targets)]
    names = ("x_train", "y_train", "x_test", "y_test")
    return _checked(dict(zip(names, parts, strict=True)), source)


def _coarse(part: object) -> list[int]:
    """Return the superclasses, which torchvision does not load but leaves in its (verified) file."""
    folder = Path(part.root) / part.base_folder  # type: ignore[attr-defined]
    name = "train" if part.train else "test"  # type: ignore[attr-defined]
    with (folder / name).open("rb") as file:
        found: list[int] = pickle.load(file, encoding="latin1")["coarse_labels"]
    return found
