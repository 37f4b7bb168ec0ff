#!/usr/bin/env bash
# The main job: CoBo on handwritten digits, 8 clients on 4 CPU ranks. Needs Python 3.10 or later.
#   bash launch/quickstart.sh [key.path=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
ensure_venv
RANKS="${RANKS:-4}" bash launch/torchrun.sh run.device=cpu run.dir=runs/quickstart \
  run.overwrite=true "$@"
