#!/usr/bin/env bash
# The whole test suite, with lint and type checks first. Installs SLURM where it can (root with apt-get).
#   bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
ensure_venv dev
bash launch/slurm_for_tests.sh
ruff check .
ruff format --check --quiet .
mypy
lint-imports
python -m pytest -q "$@"
