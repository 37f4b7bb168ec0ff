#!/usr/bin/env bash
# Lint, formatting, types, import contracts and the test suite.
#   bash launch/test.sh [pytest arguments]           everything; installs SLURM where it can (root with apt-get)
#   bash launch/test.sh --quick [pytest arguments]   a first answer in about five minutes: the unit tests and docstring
#                                                    examples, without those marked slow, mpi or slurm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
ensure_venv dev
quick=""
if [ "${1:-}" = --quick ]; then
  quick=yes
  shift
fi
ruff check .
ruff format --check --quiet .
mypy
lint-imports
if [ -n "$quick" ]; then
  exec python -m pytest -q -m "not slow and not mpi and not slurm" tests/unit cobo_dist "$@"
fi
bash launch/slurm_for_tests.sh
if [ $# -gt 0 ]; then
  exec python -m pytest -q "$@"
fi
# Files of tests share nothing, so each core runs some, at most four. Those that start MPI or SLURM come one by one.
cores=$(nproc)
python -m pytest -q -n "$((cores < 4 ? cores : 4))" --dist loadfile -m "not mpi and not slurm"
exec python -m pytest -q -m "mpi or slurm"
