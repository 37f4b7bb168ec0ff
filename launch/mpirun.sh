#!/usr/bin/env bash
# Train under mpirun (needs mpi4py: pip install 'cobo_dist[mpi]'; `pip install mpich` brings an mpirun).
#   bash launch/mpirun.sh [--config FILE.yaml] [key.path=value ...]
# With comm.backend=mpi among the arguments MPI carries the models too; otherwise it only starts the ranks.
# RANKS      ranks in all; default 4
# MPI_FLAGS  further flags for mpirun, for example "--hostfile hosts"
set -euo pipefail
venv="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin"
if [ -x "$venv/python" ]; then PATH="$(cd "$venv" && pwd):$PATH"; fi  # made by the quickstart
# By default glibc returns large freed blocks to the system, so activations cost page faults in every round; these
# thresholds keep the blocks (docs/PERFORMANCE.md). 32 MiB is the largest value that every glibc accepts.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-33554432}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-17179869184}"
for argument in "$@"; do
  case "$argument" in
  -h | --help | --help=* | --version | --show-run-dir) exec python -m cobo_dist.train "$@" ;; # trains nothing
  esac
done
flags=()
if mpirun --version 2>&1 | grep -q "Open MPI"; then
  flags+=(--oversubscribe)
  if [ "$(id -u)" = 0 ]; then flags+=(--allow-run-as-root); fi
fi
# An invalid config ends here, with one message, before any rank starts.
run="$(python -m cobo_dist.train "$@" --show-run-dir)"
version() { stat -c '%i %s %y' "$run/$1" 2>/dev/null || true; }
exit_code() { sed -n 's/.*"exit_code": *\([0-9]*\).*/\1/p' "$run/status.json" 2>/dev/null || true; }
# The number of starts in the run folder: a start that takes the folder adds one (docs/RELIABILITY.md).
starts() {
  local record
  record="$(find "$run/owner" -name '[0-9]*.json' 2>/dev/null | sort | tail -n1)"
  record="${record##*/}"
  echo "$((10#0${record%.json}))"
}
# Whether this start has written rows; a refusal that all ranks agree on comes before them.
has_rows() { [ -s "$run/metrics.jsonl" ] && [ "$(version metrics.jsonl)" != "$metrics" ]; }
status="$(version status.json)" metrics="$(version metrics.jsonl)" before="$(starts)"

# Not `python -m mpi4py`: it calls MPI_Abort even if all ranks refuse a config and end by themselves. cobo_dist ends
# all ranks itself when one of them fails. In a process group of its own (set -m), so that a signal reaches mpirun
# once: from here.
set -m
# shellcheck disable=SC2086
mpirun -n "${RANKS:-4}" "${flags[@]}" ${MPI_FLAGS:-} python -m cobo_dist.train "$@" </dev/null &
pid=$!
set +m
for signal in INT TERM HUP USR1; do
  # shellcheck disable=SC2064
  trap "kill -$signal $pid 2>/dev/null || true" "$signal"
done
code=0
wait "$pid" || code=$?
while [ "$code" -gt 128 ] && kill -0 "$pid" 2>/dev/null; do # a signal ended the wait, and not mpirun
  code=0
  wait "$pid" || code=$?
done

# mpirun ends all ranks when one is killed or calls MPI_Abort, so none may be left to say why. Its own code may be that
# of any rank, and 0 if a rank left without a word.
if [ "$(version status.json)" != "$status" ] && [ -e "$run/status.json" ]; then
  written="$(exit_code)"
  if [ "${written:-0}" != 0 ]; then code="$written"; fi
elif [ "$(starts)" = "$((before + 1))" ] && { [ "$code" != 2 ] || has_rows; }; then
  why="mpirun ended with code $code before a rank said why: a rank was killed, ran out of memory, called MPI_Abort, or left"
  printf '{"exit_code": 1, "status": "failed", "reason": "%s"}\n' "$why" >"$run/status.json.$((before + 1)).part"
  mv "$run/status.json.$((before + 1)).part" "$run/status.json"
  echo "error: $why; run.resume=auto goes on from the last checkpoint" >&2
  code=1
elif [ "$code" = 0 ] && [ "$(exit_code)" != 0 ]; then # after a run that had been finished before, it is 0
  echo "error: mpirun ended with code 0 before the run began: a rank left without a word; start it again" >&2
  code=1
fi
exit "$code"
