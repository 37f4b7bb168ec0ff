"""The config section `comm`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cobo_dist.maths.compression import Compression
from cobo_dist.settings import Section


class CommConfig(Section):
    """How ranks communicate."""

    backend: Literal["auto", "nccl", "gloo", "mpi"] = Field(
        "auto",
        description="nccl for CUDA devices, gloo for CPUs; auto takes the one that fits the device. "
        "mpi: the MPI of the mpirun that starts the ranks (extra mpi). gloo, and an MPI that is not "
        "CUDA-aware, carry models of CUDA devices through memory of the CPU. Ranks may share a GPU with both",
    )
    mode: Literal["synchronous", "asynchronous"] = Field(
        "synchronous",
        description="synchronous: all ranks take every round together; asynchronous: each goes at its own "
        "pace with the models that have arrived, and what it computes is not repeatable; all come together "
        "at checkpoints and at the end (docs/OPEN_WORLD.md)",
    )
    max_lag: int = Field(
        100,
        ge=0,
        le=1_000_000,
        description="comm.mode=asynchronous: rounds that a rank may be behind the fastest one; if it is "
        "further behind, its clients miss the rounds between",
    )
    dtype: Literal["model", "bfloat16"] = Field(
        "model",
        description="type in which models and gradients travel: model is run.dtype; bfloat16 halves the "
        "bytes of float32 and rounds what crosses ranks to 8 bits (docs/PERFORMANCE.md)",
    )
    compression: Literal["none", "int8", "topk"] = Field(
        "none",
        description="what clients send of the difference between their model and what others know of it, as "
        "machines of their own. int8: a byte for each number, and a scale for each 1,024; topk: the "
        "greatest numbers and their places. What is left out is sent later; ranks send whole models",
    )
    compression_share: float = Field(
        0.01, gt=0, le=1, description="comm.compression=topk: share of the numbers that travel"
    )
    timeout: float = Field(
        600.0,
        gt=0,
        le=1e7,
        description="seconds after which a silent rank counts as lost; a host that does not even acknowledge "
        "packets is lost after a quarter of it (gloo on Linux)",
    )
    connect_timeout: float = Field(
        0.0,
        ge=0,
        le=1e7,
        description="seconds that ranks wait for one another at the start; 0: comm.timeout",
    )
    check: bool = Field(
        False,
        description="compare what all ranks do before they do it, and end the run with the line of the "
        "algorithm where they differ: calls, arguments, weights that are not symmetric, and messages that "
        "break NCCL's rules, whatever the backend; each batch then waits for all ranks",
    )
    placement: Literal["static", "adaptive"] = Field(
        "static",
        description="which rank has which clients. static: consecutive client numbers; adaptive: as "
        "clusters emerge in W, collaborators move to one rank where that saves more bytes than it costs. "
        "The results are the same",
    )
    placement_every: int = Field(
        50,
        ge=1,
        description="comm.placement=adaptive: rounds between two searches for a better placement",
    )
    deterministic: bool = Field(
        False,
        description="bitwise the same numbers on any number of ranks; slower: one thread, clients "
        "one by one, models added in client order",
    )

    @property
    def compresses(self) -> Compression | None:
        """How models are compressed; None: they are not."""
        if self.compression == "none":
            return None
        return Compression(self.compression, self.compression_share)

    def contradiction(self) -> str:
        """Say which key has no effect, or does not go with ranks that go at their own pace."""
        share = type(self).model_fields["compression_share"].default
        if self.compression != "topk" and self.compression_share != share:
            return (
                f"comm.compression_share={self.compression_share:g} has no effect with comm.compression="
                f"{self.compression}; set comm.compression=topk"
            )
        if self.mode == "synchronous":
            if self.max_lag == type(self).model_fields["max_lag"].default:
                return ""
            return (
                f"comm.max_lag={self.max_lag} has no effect with comm.mode=synchronous; set "
                "comm.mode=asynchronous"
            )
        for key, off, why in (
            ("deterministic", False, "promises the same bits in every run"),
            ("check", False, "compares what all ranks do in a round"),
            ("placement", "static", "moves clients between rounds that all ranks take"),
            ("compression", "none", "sends differences, all of which must arrive"),
        ):
            if (value := getattr(self, key)) != off:
                shown = str(value).lower() if isinstance(value, bool) else value
                return (
                    f"comm.{key}={shown} {why}, and comm.mode=asynchronous lets each rank go at its own "
                    f"pace; drop one of them"
                )
        return ""
