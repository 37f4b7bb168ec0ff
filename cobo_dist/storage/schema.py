"""Every file that a run leaves, field by field: training writes these classes, and all readers read them.

Arrays are in `storage/array_schema.py`; docs/FILES.md is generated from both. `storage/reading.py` reads
files into these classes, and upgrades those of earlier versions. None of these modules needs torch, so
reports and sweeps can use them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from cobo_dist.plugins import COPIES_DIR, RUN_MARK
from cobo_dist.storage.model_schema import ModelMetadata as ModelMetadata
from cobo_dist.storage.model_schema import ModelRecord as ModelRecord
from cobo_dist.storage.record import Number
from cobo_dist.storage.record import Record as Record
from cobo_dist.storage.summary_schema import BytesPerClient as BytesPerClient
from cobo_dist.storage.summary_schema import ClientResult as ClientResult
from cobo_dist.storage.summary_schema import PlacementSummary as PlacementSummary
from cobo_dist.storage.summary_schema import Summary as Summary

FORMAT = 2
"""Version of run folders and checkpoints; `storage/reading.py` says how 1 differed."""

CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE = "config.yaml", "env.json", RUN_MARK
MODEL_FILE, PARTITION_FILE = "model.json", "partition.npz"
WEIGHTS_FILE, SUMMARY_FILE, STATUS_FILE = "W.npz", "summary.json", "status.json"
MODELS_DIR, CHECKPOINTS_DIR, FIGURES_DIR, ERRORS_DIR = "models", "checkpoints", "figures", "errors"
TENSORBOARD_DIR, TRACES_DIR = "tensorboard", "profile"
OWNER_DIR = "owner"
PLUGINS_DIR = COPIES_DIR
RUN_FOLDERS = (
    MODELS_DIR, FIGURES_DIR, TENSORBOARD_DIR, ERRORS_DIR, CHECKPOINTS_DIR, TRACES_DIR,
    PLUGINS_DIR,
)  # fmt: skip
RUN_FILES = (
    CONFIG_FILE, ENVIRONMENT_FILE, MODEL_FILE, METRICS_FILE, PARTITION_FILE, WEIGHTS_FILE, SUMMARY_FILE,
    STATUS_FILE, *RUN_FOLDERS,
)  # fmt: skip
"""What run.overwrite removes: all that a run may leave in its folder, but for the record of its owner."""

MANIFEST_FILE, SHARED_FILE = "manifest.json", "shared.safetensors"
LOGGER_FILE, LOGGER_ARRAYS_FILE = "logger.json", "logger.safetensors"

METRICS = ("accuracy", "perplexity", "rmse", "mae", "loss")
"""Metrics that a task may be judged by; the first that a task has decides."""


def higher_is_better(metric: str) -> bool:
    """Return whether more of a metric is better; of one that a plug-in adds it is."""
    return metric not in ("loss", "perplexity", "bits_per_byte", "rmse", "mae")


def client_name(client: int) -> str:
    """Return the name, without suffix, of the files of one client."""
    return f"client_{client:05d}"


# -- metrics.jsonl -----------------------------------------------------------------------------------


class _Row(Record):
    def model_post_init(self, _: Any) -> None:
        self.__pydantic_fields_set__.add("event")  # its default is written, too


class StartRow(_Row):
    """The first row, and the first after a run of an earlier format was resumed."""

    event: Literal["start"] = "start"
    format: int = Field(description="version of the rows that follow")


class EvalRow(_Row):
    """One evaluation of one client in the run, or the mean over these clients."""

    event: Literal["eval"] = "eval"
    round: int = Field(ge=0, description="rounds done before it; 0 is the initial model")
    client: int | None = Field(None, description="client; null: mean over all clients")
    split: str = Field("test", description="data that it was evaluated on: `test` or `validation`")
    model: str = Field(
        "personal",
        description="whose model: `personal`, the client's own in training; `kept`, the one that is saved "
        "(`run.keep`)",
    )
    whole: bool = Field(True, description="false: on a part of the split (`data.eval_examples`)")
    loss: Number = Field(None, description="mean loss an example")
    accuracy: Number = Field(None, description="share of correct answers, 0 to 1 (classification)")
    perplexity: Number = Field(None, description="exp of the mean loss a token (language)")
    bits_per_byte: Number = Field(None, description="loss in bits a byte of text (language)")
    rmse: Number = Field(
        None, description="root of the mean squared error, in the data's units (regression)"
    )
    mae: Number = Field(None, description="mean absolute error, in the data's units (regression)")
    examples: int | None = Field(None, description="examples evaluated; in the mean's row, of all")


class RoundRow(_Row):
    """One round, all ranks together. A task and a method may add their own quantities."""

    __pydantic_extra__: dict[str, Number] = Field(init=False)

    event: Literal["round"] = "round"
    round: int = Field(ge=0, description="the round, from 1")
    seconds: Number = Field(None, description="duration of the round on rank 0")
    pairs: Number = Field(None, description="pairs of clients drawn")
    messages: Number = Field(None, description="messages sent between ranks for training")
    bytes_sent: Number = Field(None, description="bytes sent between ranks for training")
    bytes_pairs: Number = Field(None, description="of these: models of partners")
    bytes_gradients: Number = Field(None, description="of these: gradients at midpoints")
    bytes_mixing: Number = Field(None, description="of these: models and sums for mixing with W")
    virtual_seconds: Number = Field(
        None, description="virtual time at the end of the round (`clock.name=virtual`)"
    )
    staleness_mean: Number = Field(
        None,
        description="rounds since the models were made that others read in this round, mean over members "
        "(`clock.name=virtual`, `comm.mode=asynchronous`)",
    )
    staleness_max: Number = Field(None, description="the most such rounds")
    clients: Number = Field(
        None, description="clients whose rank took the round (`comm.mode=asynchronous`)"
    )
    skipped: Number = Field(None, description="clients left out by `run.on_nan=skip_client`")
    loss: Number = Field(None, description="mean training loss of the models before the round")
    consensus_distance: Number = Field(
        None, description="mean ||x_i - x_j||^2 over pairs within clusters (quadratic)"
    )
    gradient_norm: Number = Field(None, description="mean ||grad f_i(x_i)||^2 (quadratic)")
    alignment: Number = Field(None, description="mean alignment of the drawn pairs; null: none")
    weights_at_0: Number = Field(None, description="share of the weights of W at 0")
    weights_at_1: Number = Field(None, description="share of the weights of W at 1")
    components: Number = Field(None, description="connected components of the graph of links")
    epsilon: Number = Field(
        None, description="what comparisons have revealed so far (`algorithm.privacy`)"
    )
    link_accuracy: Number = Field(
        None, description="share of pairs that W links rightly in this round (with `task.drift`)"
    )
    link_f1: Number = Field(
        None, description="harmonic mean of precision and recall of the links (with `task.drift`)"
    )
    adjusted_rand: Number = Field(
        None, description="adjusted Rand index of components and clusters (with `task.drift`)"
    )


class WarningRow(_Row):
    """What looks wrong, or what a user should know."""

    event: Literal["warning"] = "warning"
    round: int = Field(ge=0, description="the round after which it was noticed; 0: before training")
    kind: str = Field(description="such as `diverging`, `saturated`, `checkpoint`, `notice`")
    message: str = Field(description="one line: what it is and which key to change")


class ProfileRow(_Row):
    """Where the time of one round went (`log.profile=true`)."""

    event: Literal["profile"] = "profile"
    round: int = Field(ge=0, description="the round")
    seconds: dict[str, list[float]] = Field(
        description="by kind of work, the seconds on each rank, rank 0 first"
    )


class TimelineRow(_Row):
    """What clients do in one round of virtual time; of the first rounds and clients only."""

    event: Literal["timeline"] = "timeline"
    round: int = Field(ge=0, description="the round, from 1")
    virtual_seconds: float = Field(description="virtual time at its end")
    begins: list[int] = Field(description="clients whose work begins at its start")
    acts: list[int] = Field(description="clients whose work ends in it")
    work: list[float] = Field(description="virtual seconds of this work, for each of them")
    waits: list[int] = Field(
        description="clients that compute nothing, since they are too far ahead"
    )
    met: list[list[int]] = Field([], description="pairs of clients that met in it")


class PlacementRow(_Row):
    """Clients that moved to other ranks after a round (`comm.placement=adaptive`)."""

    event: Literal["placement"] = "placement"
    round: int = Field(ge=0, description="the round after which they moved")
    clients: int = Field(description="clients that moved")
    bytes: int = Field(description="bytes sent to move them")
    seconds: float = Field(description="duration of the search and of the move")
    models_before: int = Field(description="models that mixing sends a round without the move")
    models_after: int = Field(description="models that mixing sends a round after it")
    mixing_before: int = Field(description="the same in bytes, without the move")
    mixing_after: int = Field(description="the same in bytes, after it")


class JoinedRow(_Row):
    """A client that joined (`membership`)."""

    event: Literal["joined"] = "joined"
    round: int = Field(ge=1, description="the round before which it joined")
    client: int = Field(ge=0, description="the client")
    start: str = Field(
        description="its model: `common`, `mean`, `best_component` or `nearest`, as `membership.start` has "
        "it; `group`: that of its group or its best center in the method; `own`: the one it had"
    )
    models: int = Field(
        0, description="number of clients of whose models it is the mean; 0: of none"
    )
    first_model: int | None = Field(None, description="the first of these clients; null: none")


class LeftRow(_Row):
    """A client that left (`membership`)."""

    event: Literal["left"] = "left"
    round: int = Field(ge=1, description="the round before which it left")
    client: int = Field(ge=0, description="the client")


class GpuRow(_Row):
    """The GPUs of all ranks after a round, whenever rows are written; one number a rank, rank 0 first."""

    event: Literal["gpu"] = "gpu"
    round: int = Field(ge=0, description="the round")
    allocated: list[Number] = Field(description="bytes that tensors use")
    reserved: list[Number] = Field(description="bytes that PyTorch took from the device")
    utilisation: list[Number] = Field(
        description="share of the time in which kernels ran, 0 to 1; null without nvidia-ml-py"
    )
    power: list[Number] = Field(description="watts; null without nvidia-ml-py")


class TrafficRow(_Row):
    """The last row of a finished run: totals over all rounds and ranks."""

    event: Literal["traffic"] = "traffic"
    bytes_pairs: int = Field(description="bytes of models of partners")
    bytes_gradients: int = Field(description="bytes of gradients at midpoints")
    bytes_mixing: int = Field(description="bytes of models and sums for mixing with W")
    bytes_moving: int = Field(description="bytes of clients that moved, and of W to decide on it")
    bytes_logging: int = Field(description="bytes of metrics and W for rank 0")
    peak_bytes: list[int] = Field(description="the most memory that each rank held")


Row = (
    StartRow | EvalRow | RoundRow | WarningRow | ProfileRow | TimelineRow | PlacementRow | JoinedRow
    | LeftRow | GpuRow | TrafficRow
)  # fmt: skip


# -- status.json, env.json ----------------------------------------------------------------------------


class Status(Record):
    """How the run ended. Launch scripts write it too, so it has no version and these keys only."""

    exit_code: int = Field(
        description="0 done, 1 failed, 75 stopped with a checkpoint, 128 + a signal: stopped before round 1"
    )
    status: str = Field("", description="`done`, `failed` or `stopped`")
    reason: str = Field("", description="one line: why it failed or stopped")


class Owner(Record):
    """The process that may write into the run folder: one file for each start, the highest number counts.

    The modification time of the file is the owner's heartbeat.
    """

    epoch: int = Field(ge=1, description="number of the start; the number in the file's name")
    host: str = Field(description="host of rank 0")
    pid: int = Field(description="process id of rank 0")
    job: str = Field("", description="the batch system's or launcher's name for the job")
    since: str = Field(description="when it took the folder, in local time")
    ended: str | None = Field(
        None, description="when it gave the folder back; null: it did not yet"
    )
    machine: str = Field(description="boot id and process namespace, in which the pid counts")
    started: int | None = Field(description="start time of the process in clock ticks after boot")
    token: str = Field(description="random; tells apart two folders of one name")


class Resumed(Record):
    """One resumption of the run."""

    round: int = Field(description="round of the checkpoint")
    checkpoint: str = Field(alias="from", description="folder of the checkpoint")
    ranks_before: int = Field(description="number of ranks that wrote it")
    warnings: list[str] = Field(description="checkpoints that were not used, and why")


class Method(Record):
    """How reports show the algorithm, and what they must know of it."""

    title: str = Field("", description="its name in figures and tables")
    color: str = Field("", description="#rrggbb; empty: a neutral one")
    marker: str = Field("", description="marker of matplotlib; empty: a circle")
    place: int = Field(100, description="place in tables and legends, ascending")
    role: Literal["", "alone", "upper_bound", "emphasized"] = Field(
        "", description="alone: the one to beat; upper_bound; emphasized: drawn in front"
    )
    learns_weights: bool = Field(False, description="whether W is worth a figure")
    equal_share: float = Field(
        0.0, description="one client's equal share where rows of W sum to 1, else 0"
    )


class InitFrom(Record):
    """The models that the run started from (`run.init_from`)."""

    path: str = Field(description="folder that had them when the run began")
    sha256: str = Field(description="digest of all models, by rank")


class Environment(Record):
    """What ran, where and how it was started. Environment variables are left out: they hold secrets."""

    format: int = Field(1, description="version of the run folder")
    versions: dict[str, str] = Field({}, description="versions of Python and libraries")
    platform: str = Field("", description="operating system of rank 0")
    command: list[str] = Field([], description="command line of rank 0")
    git_revision: str | None = Field(None, description="revision of the code, if known")
    launcher: str = Field("", description="what started the ranks: python, torchrun, srun, mpirun")
    job: str = Field("", description="the launcher's name for this job")
    backend: str = Field("", description="what carried messages: gloo, nccl, mpi")
    ranks: list[str] = Field([], description="host and device of each rank")
    threads_per_rank: int = Field(1, description="CPU threads")
    engine: str = Field("", description="how gradients were computed (`run.engine`)")
    engine_choice: str = Field("", description="why this engine")
    method: Method | None = Field(None, description="the algorithm as reports show it")
    init_from: InitFrom | None = Field(None, description="only with `run.init_from`")
    resumed: list[Resumed] = Field([], description="each resumption, the first one first")


# -- the files of a checkpoint -----------------------------------------------------------------------


class FileDigest(Record):
    """One file of a checkpoint."""

    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(description="SHA-256 in hexadecimal")


class Manifest(Record):
    """Names every other file of the checkpoint. It is written last."""

    format: int = Field(FORMAT, description="version of the checkpoint")
    round: int = Field(description="the round after which it was taken")
    clients: int = Field(description="number of clients")
    ranks: int = Field(description="number of ranks that wrote it")
    data: str = Field(description="fingerprint of the task's data")
    plugins: dict[str, str] = Field({}, description="SHA-256 of each plug-in's file")
    versions: dict[str, str] = Field(description="versions of Python and libraries")
    files: dict[str, FileDigest] = Field({}, description="size and digest of each file")
    sha256: str = Field("", description="SHA-256 of the keys above, as JSON without indentation")


class _State(Record):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    def to_json(self, indent: int | None = None) -> str:
        """Return all fields, NaN and infinities as Python writes them."""
        return self.model_dump_json(indent=indent)


class ProgressState(_State):
    """What the progress line shows."""

    round: int = Field(0, description="the last round")
    loss: float = Field(float("nan"), description="mean training loss")
    metric: str = Field("", description="such as `test accuracy 0.893`")
    pairs: float = Field(0.0, description="pairs a round")
    bytes: float = Field(0.0, description="bytes a round, all ranks")


class HealthState(_State):
    """What the health checks have seen."""

    warnings: list[WarningRow] = Field([], description="all warnings so far")
    jumps: list[float] = Field([], description="|gamma * alignment| of recently drawn pairs")
    drawn: int = Field(0, description="pairs drawn so far")
    first_loss: float = Field(float("nan"), description="mean training loss of round 1")
    losses: list[float] = Field([], description="mean training losses of the last rounds")
    skipped: list[int] = Field([], description="clients whose gradient was left out")


class LoggerState(_State):
    """What rank 0 needs to continue the logs."""

    metrics: FileDigest = Field(description="the part of `metrics.jsonl` that belongs to it")
    bytes: dict[str, int] = Field(description="bytes sent so far, by purpose")
    client_bytes: dict[str, int] | None = Field(
        None, description="bytes up and down so far, all clients, each as a machine of its own"
    )
    seconds: float = Field(description="duration of training so far")
    last_evaluation: list[dict[str, float]] = Field(description="test metrics of each client")
    progress: ProgressState = Field(description="what the progress line shows")
    health: HealthState = Field(description="what the health checks have seen")
    callbacks: dict[str, dict[str, Any]] = Field({}, description="state of each callback, by name")
    stopped: str = Field("", description="why a callback stopped the run here; empty: none did")
    graph_known: bool = Field(
        True,
        description="false: W was replaced since the last snapshot, so rank 0 does not know it",
    )
