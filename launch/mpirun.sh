#!/usr/bin/env bash
# Train under mpirun (needs mpi4py: pip install 'cobo_dist[mpi]'; `pip install mpich` brings an mpirun).
#   bash launch/mpirun.sh [--config FILE.yaml] [key.path=value ...]
# comm.backend=mpi among the arguments lets MPI carry the models too; otherwise it only starts the ranks.
# RANKS      ranks in all; default 4
# MPI_FLAGS  further flags for mpirun, for example "--hostfile hosts"
set -euo pipefail
venv="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin"
if [ -x "$venv/python" ]; then PATH="$(cd "$venv" && pwd):$PATH"; fi  # as the quickstart made it
# glibc hands large freed blocks back to the system and gets them again page by page; kept, activations cost no
# page faults (docs/PERFORMANCE.md). 32 MiB is the most that every glibc takes.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-33554432}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-17179869184}"
flags=()
if mpirun --version 2>&1 | grep -q "Open MPI"; then
  flags+=(--oversubscribe)
  if [ "$(id -u)" = 0 ]; then flags+=(--allow-run-as-root); fi
fi
# Not `python -m mpi4py`: that would Abort where all ranks refuse in order. cobo_dist itself ends all ranks
# when one of them fails.
# shellcheck disable=SC2086
exec mpirun -n "${RANKS:-4}" "${flags[@]}" ${MPI_FLAGS:-} python -m cobo_dist.train "$@"
