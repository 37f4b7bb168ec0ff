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
flags=()
if mpirun --version 2>&1 | grep -q "Open MPI"; then
  flags+=(--oversubscribe)
  if [ "$(id -u)" = 0 ]; then flags+=(--allow-run-as-root); fi
fi
# Not `python -m mpi4py`: it calls MPI_Abort even if all ranks refuse a config and end by themselves. cobo_dist ends
# all ranks itself when one of them fails.
# shellcheck disable=SC2086
exec mpirun -n "${RANKS:-4}" "${flags[@]}" ${MPI_FLAGS:-} python -m cobo_dist.train "$@"
