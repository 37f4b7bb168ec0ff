"""summary.json, field by field. `storage/schema.py` offers these classes beside those of the other files."""

from __future__ import annotations

from pydantic import Field

from cobo_dist.storage.record import Number, Record


class ClientResult(Record):
    """The last evaluation of one client on its test data."""

    __pydantic_extra__: dict[str, Number] = Field(init=False)

    client: int = Field(description="client")
    cluster: int | None = Field(None, description="its connected component in the graph of links")
    round: int | None = Field(None, description="the round after which its saved model was")
    loss: Number = Field(None, description="as in `metrics.jsonl`; other metrics likewise")


class PlacementSummary(Record):
    """What moving clients between ranks cost and saved."""

    bytes_moving: int = Field(description="bytes sent to move clients and to decide on it")
    models_static: int = Field(description="models that mixing would send a round without moves")
    models: int = Field(description="models that mixing sends a round")
    owners: list[int] = Field(description="rank of each client at the end")


class BytesPerClient(Record):
    """What a client would send and receive in the whole run as a machine of its own, mean over clients."""

    up: float = Field(description="bytes sent")
    down: float = Field(description="bytes received")


class Summary(Record):
    """Final results, written when the run is complete."""

    format: int = Field(1, description="version of the run folder")
    task: str = Field("", description="`task.name`")
    algorithm: str = Field("", description="`algorithm.name`")
    seed: int = Field(0, description="`run.seed`")
    rounds: int = Field(ge=0, description="rounds done")
    clients: int = Field(0, description="number of clients n")
    ranks: int = Field(1, description="number of ranks")
    seconds: float = Field(description="duration of training, over all restarts")
    virtual_seconds: float | None = Field(
        None, description="virtual time at the end; only with `clock.name=virtual`"
    )
    bytes_sent: int | float = Field(description="bytes sent for training and moves, all ranks")
    bytes_per_client: BytesPerClient | None = Field(
        None,
        description="as if each client were a machine: the same on any number of ranks; null: unknown, the "
        "run began with an earlier version",
    )
    keep: str = Field("last", description="which models are saved and evaluated (`run.keep`)")
    final: dict[str, Number] = Field(description="mean over clients of each metric on test data")
    numbers: dict[str, Number] = Field(
        {}, description="the method's own after the last round, such as `epsilon`"
    )
    per_client: list[ClientResult] = Field([], description="the same of each client")
    cluster_match: float | None = Field(
        None, description="`link_accuracy` by the name that earlier versions gave it"
    )
    link_accuracy: float | None = Field(
        None, description="share of pairs that W links rightly; null: true clusters unknown"
    )
    link_f1: float | None = Field(
        None,
        description="harmonic mean of precision and recall of the links; null: true clusters unknown",
    )
    adjusted_rand: float | None = Field(
        None,
        description="adjusted Rand index of the connected components and the true clusters; null: unknown",
    )
    graph_correlation: float | None = Field(
        None,
        description="correlation of the weights of W with the right ones, over pairs of clients; null: they "
        "are unknown, clusters say them, or W has one weight only",
    )
    clusters_found: int | None = Field(
        None, description="connected components of the graph of links"
    )
    link_threshold: float | None = Field(None, description="the least weight of a link")
    placement: PlacementSummary | None = Field(
        None, description="only with `comm.placement=adaptive`"
    )
