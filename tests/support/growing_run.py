"""A fabricated run folder that grows: n = 8 clients, 20 rounds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from report_runs import CLUSTERS, T, blocks, write_run

from cobo_dist.storage.owner_record import machine_id, record_path, start_ticks
from cobo_dist.storage.schema import Owner


class GrowingRun:
    """Writes the rows of a run of CoBo a few at a time, as rank 0 does."""

    def __init__(self, folder: Path, pattern: Path, rounds: int = 0) -> None:
        """Begin the run in `folder` with so many rounds; `pattern` is where the finished run is made."""
        write_run(pattern, "cobo", 1)
        self.folder, self.round = folder, -1
        self._rows = (pattern / "metrics.jsonl").read_text().splitlines(keepends=True)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_bytes((pattern / "config.yaml").read_bytes())
        (folder / "metrics.jsonl").touch()
        self.own(os.getpid())
        self.go_on(rounds)

    def own(self, pid: int, host_id: str = "", heartbeat: float | None = None) -> None:
        """Say that a process of this machine, or of another, has the folder."""
        ticks = start_ticks(pid)
        owner = Owner(
            epoch=1, host="host", pid=pid, since="now", machine=host_id or machine_id(),
            started=ticks[1] if ticks else None, token="t",
        )  # fmt: skip
        path = record_path(self.folder, 1)
        path.parent.mkdir(exist_ok=True)
        path.write_text(owner.to_json())
        if heartbeat is not None:
            os.utime(path, (heartbeat, heartbeat))

    def go_on(self, until: int, half_a_line: bool = False) -> None:
        """Append the rows up to a round, and a snapshot of W; then perhaps the first half of the next row."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.writelines(
                row for row in self._rows if self.round < json.loads(row)["round"] <= until
            )
            if half_a_line:
                file.write(self._next_row(until)[:20])
        self.round = until
        logged = list(range(until + 1))
        weights = np.stack([blocks(number) for number in logged])
        draft = self.folder / "W.npz.1.part"
        with draft.open("wb") as new:
            np.savez(new, rounds=np.array(logged), weights=weights, clusters=CLUSTERS)
        draft.replace(self.folder / "W.npz")

    def end_the_line(self) -> None:
        """Write the other half."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(self._next_row(self.round)[20:])

    def _next_row(self, after: int) -> str:
        return next(row for row in self._rows if json.loads(row)["round"] > after)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row of one's own."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def end(self, exit_code: int = 0, reason: str = "") -> None:
        """Say how the run ended."""
        if exit_code == 0:
            self.go_on(T)
        status = {"exit_code": exit_code, "status": "", "reason": reason}
        (self.folder / "status.json").write_text(json.dumps(status))
