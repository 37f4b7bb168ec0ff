"""Sends metrics to Weights & Biases, or keeps them in the run folder for `wandb sync`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from cobo_dist.callbacks.callback import Callback, CallbackSection, StopsAfter, need_library
from cobo_dist.registry import register
from cobo_dist.run_config import RunConfig
from cobo_dist.settings import Text

if TYPE_CHECKING:
    from cobo_dist.results.run import Run


class WandbConfig(CallbackSection):
    """Log to Weights & Biases (the library wandb)."""

    project: Text = Field("cobo_dist", description="project of the run")
    entity: Text = Field("", description="user or team; empty: wandb's default")
    group: Text = Field("", description="group of the run; empty: none")
    mode: Literal["offline", "online"] = Field(
        "offline",
        description="offline: keep all in the run folder until `wandb sync`; online: send it, which "
        "needs a network and a login",
    )


@register.callback("wandb")
class WandbLog(Callback):
    """Logs every round under its number; a resumed run goes on with the same id."""

    name = "wandb"
    Config = WandbConfig
    stops_after: ClassVar[StopsAfter] = "none"
    config: WandbConfig

    _run: Any = None  # the library's object, between `begin` and `end`
    _id: str | None = None

    def check(self, run: RunConfig, metrics: Sequence[str]) -> None:
        """Refuse a run where the library is missing."""
        need_library("wandb", self.title)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Note the id of the run that goes on."""
        self._id = state.get("id")

    def begin(self, run: Run) -> None:
        """Start or go on with a run of wandb."""
        import wandb

        self._run = wandb.init(
            project=self.config.project,
            entity=self.config.entity or None,
            group=self.config.group or None,
            mode=self.config.mode,
            dir=str(run.path),
            name=run.path.name,
            id=self._id,
            resume="allow" if self._id else None,
            config=run.config.model_dump(mode="json"),
            settings=wandb.Settings(console="off"),  # it would take standard output over
        )
        self._id = str(self._run.id)

    def after_round(self, r: int, metrics: Mapping[str, float]) -> bool | None:
        """Log a round."""
        self._run.log(dict(metrics), step=r)
        return None

    def end(self, run: Run) -> None:
        """Write the summary and end wandb's run."""
        if self._run is not None:
            final = (run.summary or {}).get("final", {})
            self._run.summary.update({f"final/{name}": value for name, value in final.items()})
            self._run.finish(exit_code=0 if run.summary is not None else 1)

    def state(self) -> dict[str, Any]:
        """Return the id."""
        return {"id": self._id}
