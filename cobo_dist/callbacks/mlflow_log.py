"""Writes metrics to MLflow: a tracking server, or files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from cobo_dist.callbacks.callback import Callback, CallbackSection, StopsAfter, need_library
from cobo_dist.registry import register
from cobo_dist.run_config import RunConfig
from cobo_dist.settings import Text

if TYPE_CHECKING:
    from cobo_dist.results.run import Run

MAX_PARAMETER_CHARACTERS = 500
"""MLflow's servers refuse longer values of parameters."""


class MlflowConfig(CallbackSection):
    """Log to MLflow (the library mlflow)."""

    uri: Text = Field(
        "", description="tracking server, or a folder; empty: mlruns in the run folder"
    )
    experiment: Text = Field("cobo_dist", description="experiment of the run")


@register.callback("mlflow")
class MlflowLog(Callback):
    """Logs every round under its number; a resumed run goes on with the same id."""

    name = "mlflow"
    Config = MlflowConfig
    stops_after: ClassVar[StopsAfter] = "none"
    config: MlflowConfig

    _client: Any = None  # the library's object, between `begin` and `end`
    _id: str | None = None

    def check(self, run: RunConfig, metrics: Sequence[str]) -> None:
        """Refuse a run where the library is missing."""
        need_library("mlflow", self.title)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Note the id of the run that goes on."""
        self._id = state.get("id")

    def begin(self, run: Run) -> None:
        """Start or go on with a run of MLflow."""
        # MLflow 3 refuses to write files unless it is asked to; a server or a database is not affected.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(self.config.uri or (run.path / "mlruns").as_uri())
        if self._id is not None:
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self.config.experiment)
        experiment = (
            self._client.create_experiment(self.config.experiment)
            if found is None
            else found.experiment_id
        )
        self._id = self._client.create_run(experiment, run_name=run.path.name).info.run_id
        for key, value in run.config.flat().items():
            self._client.log_param(self._id, key, str(value)[:MAX_PARAMETER_CHARACTERS])

    def after_round(self, r: int, metrics: Mapping[str, float]) -> bool | None:
        """Log a round."""
        for name, value in metrics.items():
            self._client.log_metric(self._id, name, value, step=r)
        return None

    def end(self, run: Run) -> None:
        """Write the summary and end MLflow's run."""
        if self._client is not None:
            for name, value in (run.summary or {}).get("final", {}).items():
                self._client.log_metric(self._id, f"final/{name}", value)
            status = "FINISHED" if run.summary is not None else "FAILED"
            self._client.set_terminated(self._id, status)

    def state(self) -> dict[str, Any]:
        """Return the id."""
        return {"id": self._id}
