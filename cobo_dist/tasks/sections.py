"""What every task's and every model's config section has. A section makes what it describes.

The sections of this package import PyTorch only when they do.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from pydantic import Field, create_model

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.registry import class_of, register, takes
from cobo_dist.scenario.drift import DriftEvent, DriftEvents
from cobo_dist.settings import Section

if TYPE_CHECKING:
    from cobo_dist.tasks.base import DataConfig, Task


class ModelSection(Section):
    """The config of a model. `build` is for classifiers; a language model is made by its task."""

    kind: ClassVar[Literal["classifier", "language"]] = "classifier"
    min_pixels: ClassVar[int] = 0  # of a side of an image; 0: inputs may be any numbers
    takes_text: ClassVar[bool] = False  # inputs are tokens of text
    initialized: ClassVar[bool] = False  # whether the network that `build` returns is x^0

    name: str = ""

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network for inputs of `shape` into `classes` classes.

        Where it draws numbers, PyTorch's generator has a seed that follows from run.seed. Linear and
        convolution layers are initialized from run.seed afterwards, unless `initialized` says that they are.

        A network that `takes_text` gets token ids, int64 [B, length]; `shape` is then [length, tokens]. Ids
        are below `tokens`, and the last one fills up short texts.

        Raises:
            ConfigError: keys that do not go together.
        """
        raise TypeError(f"model.name={self.name} has no method build(shape, classes)")

    def dropped_features(self) -> tuple[float, int]:
        """Return the share of features that training drops before the classifier, and their number."""
        return 0.0, 0

    def fetch(self) -> Iterator[str]:
        """Download what the model needs; yield what is found or fetched, a line each."""
        yield from ()


OWNED_DATA_KEYS = ("root", "file", "text_dir")
"""Keys of `data` that only some tasks read; the others refuse them."""


class TaskSection(Section):
    """The config of a task, and what others ask of it before the data are read."""

    title: ClassVar[str] = ""  # in tables; empty: the name
    place: ClassVar[int] = 100  # in tables, ascending
    default_model: ClassVar[str] = "mlp"
    model_kind: ClassVar[Literal["classifier", "language", "none"]] = "classifier"
    splits: ClassVar[tuple[str, ...]] = ("validation", "test")  # that may be evaluated
    data_keys: ClassVar[tuple[str, ...]] = ()  # of `OWNED_DATA_KEYS`, those that the task reads

    name: str = ""

    @abstractmethod
    def build(self, model: ModelSection, data: DataConfig, seed: int, dtype: torch.dtype) -> Task:
        """Read the data and return the task.

        Raises:
            ConfigError: missing or malformed data.
        """

    def rebuild(
        self,
        model: ModelSection,
        facts: Mapping[str, Any],
        client: int,
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> nn.Module:
        """Return a client's model, without the data, from its saved parameters and buffers.

        `facts` are those of model.json (`Task.model_facts`).

        Raises:
            ConfigError: the task cannot, or they are not those of this model.
        """
        raise ConfigError(
            f"task.name={self.name} does not rebuild its models; read their files in models/"
        )

    def read_folder(self, model: ModelSection, folder: Path) -> nn.Module:
        """Return a client's model from the folder that the task saved it as, where that is no single file.

        Raises:
            ConfigError: the task saves no folders, or a part of the model is not on this machine.
        """
        raise ConfigError(f"task.name={self.name} saves no folders as {folder}; remove it")

    def fetch(self, data: DataConfig) -> Iterator[str]:
        """Download the data that are missing; yield what is found or fetched, a line each."""
        yield from ()

    @property
    def drift_events(self) -> tuple[DriftEvent, ...]:
        """Clients that change cluster during a run; none where the task has no key for them."""
        return ()


class DriftingSection(TaskSection):
    """The config of a task whose clients may change cluster during a run."""

    drift: DriftEvents = Field(
        (),
        description="clients that have the data of another cluster from a round on: a list of events, for "
        "example task.drift='[{round: 250, clients: [0, 4], cluster: 1}]'; or so many drawn clients, each in "
        "a round of its own: task.drift='[{round: 200, until: 300, count: 4}]'",
    )

    @property
    def drift_events(self) -> tuple[DriftEvent, ...]:
        """The events."""
        return self.drift


def _check_task(target: Any) -> str:
    return class_of(TaskSection)(target) or (
        f"{target.__name__} has no method build(self, model, data, seed, dtype)"
        if target.build is TaskSection.build
        else takes(target.build, None, None, None, 0, None)
    )


def _check_model(target: Any) -> str:
    is_class = isinstance(target, type)
    if is_class:
        return class_of(ModelSection)(target) or takes(target.build, None, None, 2)
    return takes(target, None, 2) if callable(target) else f"{target!r} cannot be called"


def _model_section(target: Any) -> type[ModelSection]:
    """Return the section of a model: the class, or that of a function whose other arguments are its keys."""
    if isinstance(target, type):
        return target
    hints, given = get_type_hints(target), list(signature(target).parameters.values())[2:]
    keys: dict[str, Any] = {one.name: (hints.get(one.name, Any), one.default) for one in given}

    class FunctionSection(ModelSection):
        def build(self, shape: torch.Size, classes: int) -> nn.Module:
            made: nn.Module = target(shape, classes, **{key: getattr(self, key) for key in keys})
            return made

    return create_model(
        target.__name__,
        __base__=FunctionSection,
        __module__=target.__module__,
        __doc__=target.__doc__,
        **keys,
    )


register.new_kind(
    "task",
    "a class derived from cobo_dist.TaskSection",
    check=_check_task,
    section_of=lambda target: target,
    place=lambda target: int(target.place),
)
register.new_kind(
    "model",
    "a class derived from cobo_dist.ModelSection, or a function (shape, classes) that returns a network",
    check=_check_model,
    section_of=_model_section,
)
