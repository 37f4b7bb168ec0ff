"""Sources of labeled examples: what `task.source.name` names, and the sources `npz` and `sklearn`.

Shapes: N examples, those of the source's test set last.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.errors import ConfigError
from cobo_dist.registry import class_of, register
from cobo_dist.settings import Section, Text
from cobo_dist.tasks.columns import Coded, Columns
from cobo_dist.tasks.npz import read_arrays
from cobo_dist.tasks.text_format import TextFormat


@dataclass(frozen=True)
class Labeled:
    """Examples as a source has them.

    `x`: images as bytes uint8 [N, H, W, C], numbers float [N, ...], or `Columns` of them, or with `text`
    token ids int64 [N, length]. `y`: labels, whole numbers or text [N], or numbers [N, outputs]. The last
    `test` of them are the source's test set. `client`: name of each example's client [N]; of the training
    examples alone where the test set names none.
    """

    x: NDArray[Any] | Columns
    y: NDArray[Any] | Coded
    source: str  # for messages: key and value
    test: int = 0
    client: NDArray[Any] | Coded | None = None
    notices: tuple[str, ...] = ()
    text: TextFormat | None = None

    @property
    def train(self) -> int:
        """How many examples are not of the test set."""
        return len(self.x) - self.test


class SourceSection(Section):
    """The config of a source. `read` returns its examples."""

    name: str = ""

    @abstractmethod
    def read(self) -> Labeled:
        """Return the examples.

        Raises:
            ConfigError: missing or malformed data.
        """

    def fetch(self) -> Iterator[str]:
        """Download or convert what is missing, for `prepare`; yield what is found or fetched, a line each."""
        yield from ()


register.new_kind(
    "source",
    "a class derived from cobo_dist.SourceSection",
    check=class_of(SourceSection),
    section_of=lambda target: target,
)


@register.source("npz")
class NpzSource(SourceSection):
    """Arrays of a file: x_train, y_train, and if there are, x_test, y_test, client, client_test."""

    file: Text = Field("", description="path of the file")

    def read(self) -> Labeled:
        """Return the arrays; uint8 of two or three dimensions after the first is an image."""
        key = f"task.source.file={self.file}"
        names = ("x_train", "y_train", "x_test", "y_test", "client", "client_test")
        path = Path(self.file).expanduser()
        arrays, found = read_arrays(path, key, "give the path of an npz", names)
        parts = ["train", *(["test"] if {"x_test", "y_test"} & {*arrays} else [])]
        for name in [f"{which}_{part}" for part in parts for which in "xy"]:
            if name not in arrays:
                raise ConfigError(
                    f"{key} lacks the array {name!r}, and holds {', '.join(sorted(found)) or 'nothing'}; "
                    "save x_train and y_train, and x_test and y_test or neither"
                )
        xs = [_inputs(arrays[f"x_{part}"], f"x_{part}", key) for part in parts]
        ys = [
            _targets(arrays[f"y_{part}"], f"y_{part}", len(x), key)
            for part, x in zip(parts, xs, strict=True)
        ]
        if len({(x.shape[1:], x.dtype == np.uint8) for x in xs}) > 1:  # bytes are images
            raise ConfigError(
                f"{key}: x_train is {_kind(xs[0])} and x_test {_kind(xs[1])}; they must be alike; save both "
                "with one shape and one dtype"
            )
        column = _column(arrays, [len(x) for x in xs], key)
        unused = sorted(set(found) - set(names))
        notices = (f"{key}: {', '.join(unused)} is not used",) if unused else ()
        test = len(xs[1]) if len(xs) > 1 else 0
        x = xs[0] if len(xs) == 1 else np.concatenate(xs)
        return Labeled(x, np.concatenate(ys), key, test, column, notices)


def _kind(x: NDArray[Any]) -> str:
    return f"{x.dtype} {list(x.shape)}"


def _inputs(x: NDArray[Any], name: str, key: str) -> NDArray[Any]:
    if x.dtype.kind not in "iufb" or x.ndim < 2 or not x.size:
        raise ConfigError(
            f"{key}: {name} is {_kind(x)}, but must be numbers [N, ...] with at least one example and one "
            "feature; convert it"
        )
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        images = x[..., None] if x.ndim == 3 else x
        if images.shape[3] not in (1, 3):
            raise ConfigError(
                f"{key}: {name} is {_kind(x)}, but images are uint8 [N, H, W] or [N, H, W, 1 or 3]; move "
                "the channels last, or save it as float32"
            )
        return images
    finite = np.isfinite(x.reshape(len(x), -1)).all(axis=1) if x.dtype.kind == "f" else True
    if not np.all(finite):
        first = int(np.argmin(finite))
        raise ConfigError(
            f"{key}: {name}[{first}] holds a NaN or an infinity; drop or fill {np.sum(~finite)} examples"
        )
    if x.dtype in (np.float32, np.float64):
        return x
    exact = np.can_cast(
        x.dtype, np.float32
    )  # float32 has 24 bits: not for int32, int64, longdouble
    return x.astype(np.float32 if exact else np.float64)


def _targets(y: NDArray[Any], name: str, count: int, key: str) -> NDArray[Any]:
    if y.ndim not in (1, 2) or len(y) != count or not y.size:
        raise ConfigError(
            f"{key}: {name} is {_kind(y)}, but must be one label for each of {count} examples, or "
            "numbers [N, outputs]"
        )
    return y


def _column(arrays: dict[str, NDArray[Any]], counts: list[int], key: str) -> NDArray[Any] | None:
    """Return the clients' names of all examples, or of the training examples where that is all there is."""
    given = [name for name in ("client", "client_test") if name in arrays]
    if "client_test" in given and ("client" not in given or len(counts) == 1):
        raise ConfigError(
            f"{key} holds client_test, but no {'x_test' if 'client' in given else 'client'}; add it"
        )
    for name, count in zip(given, counts, strict=False):  # a test set may name no clients
        column = arrays[name]
        if column.shape != (count,) or column.dtype.kind not in "iuU":
            raise ConfigError(
                f"{key}: {name} is {_kind(column)}, but must be a whole number or text for each of {count} "
                "examples; convert it"
            )
    return np.concatenate([arrays[name] for name in given]) if given else None


def handwritten_digits() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what scikit-learn's `load_digits` does: pixels [N, 64] of 0 .. 16, and labels [N].

    Its file is read without its code: to import that takes a second and 120 MB on every rank.
    """
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")
    return rows[:, :-1], rows[:, -1].astype(int)


@register.source("sklearn")
class SklearnSource(SourceSection):
    """A set that scikit-learn brings along; it needs no file and no network."""

    set: Literal["digits", "wine", "breast_cancer", "iris"] = Field(
        "digits", description="which one; digits are images of 8 x 8 pixels"
    )

    def read(self) -> Labeled:
        """Return the set; digits have the shape [1, 8, 8]."""
        if self.set == "digits":
            x, y = handwritten_digits()
            x = x.reshape(-1, 1, 8, 8)
        else:
            from sklearn import datasets

            x, y = getattr(datasets, f"load_{self.set}")(return_X_y=True)
        return Labeled(x, y, f"task.source.set={self.set}")


@register.source("sklearn_regression")
class SklearnRegressionSource(SourceSection):
    """A set for regression that scikit-learn brings along; it needs no file and no network."""

    set: Literal["diabetes", "linnerud"] = Field(
        "diabetes", description="442 patients with one target, or 20 athletes with three"
    )

    def read(self) -> Labeled:
        """Return the set in its own units."""
        from sklearn import datasets

        unscaled = {"scaled": False} if self.set == "diabetes" else {}
        x, y = getattr(datasets, f"load_{self.set}")(return_X_y=True, **unscaled)
        return Labeled(x, y, f"task.source.set={self.set}")
