"""Config sections of the run as a whole: rounds, checkpoints, evaluation; progress and logs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cobo_dist.settings import Section, Text


class RunConfig(Section):
    """The run as a whole: folder, seed, rounds, checkpoints, evaluation, device."""

    dir: Text = Field("", description="run folder; default runs/<task>-<algorithm>-s<seed>")
    overwrite: bool = Field(False, description="replace what an earlier run left in the run folder")
    seed: int = Field(0, ge=0, description="seed of everything random")
    rounds: int = Field(1000, ge=0, description="rounds T")
    resume: Text = Field(
        "never",
        description="never; auto: go on from the newest good checkpoint in the run folder, or start "
        "where there is none; or the path of a checkpoint or of a run folder to go on from. A launcher's "
        "restart counts as auto",
    )
    keep: Literal["last", "best", "uniform"] = Field(
        "last",
        description="which models the run leaves. last: those after the last round; best: each client's "
        "with the lowest validation loss of all evaluations; uniform: those after a round that is drawn "
        "uniformly (the output of the paper's Algorithm 1)",
    )
    init_from: Text = Field(
        "",
        description="start from the client models of another run, of any algorithm: a run folder or a "
        "checkpoint in it, with as many clients and the same kind of model; empty: x^0",
    )
    checkpoint_every: int = Field(
        1000,
        ge=0,
        description="rounds between checkpoints; 0: only when a signal stops the run and at the end",
    )
    keep_checkpoints: int = Field(2, ge=2, description="how many checkpoints stay, the newest")
    on_nan: Literal["stop", "skip_client"] = Field(
        "stop",
        description="what a loss or gradient that is NaN or infinite means: the run ends, its last "
        "checkpoint intact; or that client's gradient counts as 0 in that round",
    )
    checkpoint_writing: Literal["auto", "foreground"] = Field(
        "auto",
        description="auto: while training goes on, where memory has room for a copy of what is written",
    )
    on_failed_checkpoint: Literal["continue", "stop"] = Field(
        "continue", description="what a full disk means to the run: go on with a warning, or end"
    )
    eval_every: int = Field(
        50, ge=0, description="rounds between evaluations; 0: only before and after training"
    )
    eval_splits: tuple[Literal["validation", "test"], ...] = Field(
        ("test",),
        strict=False,
        description="data that clients are evaluated on; test, and validation if wanted",
    )
    log_weights_every: int = Field(
        50, ge=0, description="rounds between snapshots of W; 0: only the first and the last"
    )
    device: Text = Field("auto", description="auto, cpu, cuda (a GPU for each local rank), cuda:N")
    dtype: Literal["float32", "float64"] = Field("float32", description="type of all models")
    autocast: Literal["none", "bfloat16"] = Field(
        "none",
        description="type for convolutions and matrix products; models and sums stay in run.dtype",
    )
    start: Literal["common", "own"] = Field(
        "common", description="every client's first model: one x^0 for all (paper) or a random one"
    )
    tf32: Literal["off", "on"] = Field(
        "off",
        description="GPU: compute float32 convolutions and matrix products with 10 bits of mantissa, which "
        "is faster; sums of models stay exact",
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        "auto",
        description="GPU, run.engine=one_by_one: auto records a pass once and replays it for every client, "
        "which saves the time of launches; not with comm.deterministic",
    )
    threads: int = Field(
        0, ge=0, le=4096, description="CPU threads of a rank; 0: its share of the cores"
    )
    engine: Literal["auto", "one_by_one", "vectorised"] = Field(
        "auto",
        description="how a rank computes its clients' gradients; auto times both, so another machine may "
        "choose the other one: config.yaml of the run has the choice",
    )


class LogConfig(Section):
    """Progress, metrics and profiles."""

    progress: Literal["auto", "bar", "plain", "none"] = Field(
        "auto", description="auto: a bar on a terminal, plain lines in a file"
    )
    interval: float = Field(10.0, gt=0, description="seconds between plain progress lines")
    flush_every: int = Field(
        50,
        ge=1,
        description="rounds between writing metrics and looking for diverged models; fewer where so "
        "many take more than a second",
    )
    profile: bool = Field(
        False,
        description="write into metrics.jsonl where each round's time goes on every rank: gradients, "
        "midpoints, packing, sending, waiting, alignment, mixing, other, logging",
    )
    trace: int = Field(
        0,
        ge=0,
        le=1000,
        description="rounds to trace after the first 10, into profile/rank_00000.json ..., which opens in "
        "Perfetto (ui.perfetto.dev) or chrome://tracing; 0: none",
    )
    tensorboard: bool = Field(False, description="write TensorBoard files into the run folder")
    figures: bool = Field(True, description="draw figures into the run folder at the end")
