#!/usr/bin/env bash
# The main job: CoBo on handwritten digits, 8 clients on CPU ranks. Needs Python 3.10 or later.
#   bash launch/quickstart.sh [key.path=value ...]
# RANKS      ranks; default: one for each core, at most 4. More ranks than cores are slower.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
ensure_venv
cores=$(nproc)
RANKS="${RANKS:-$((cores < 4 ? cores : 4))}" bash launch/torchrun.sh run.device=cpu run.dir=runs/quickstart \
  run.overwrite=true "$@"
