#!/usr/bin/env bash
# The main job: CoBo on handwritten digits, 8 clients on CPU ranks, and Local (each client on its own) to compare with.
# Needs Python 3.10 or later.
#   bash launch/quickstart.sh [key.path=value ...]
# RANKS      ranks; default: one for each core, at most 4. More ranks than cores are slower.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
ensure_venv
cores=$(nproc)
run=runs/quickstart
shared=() # the arguments that Local takes too
for argument in "$@"; do
  case "$argument" in
  -*) exec bash launch/torchrun.sh "$@" ;; # help, or a config of one's own: one run, as torchrun.sh does it
  run.dir=*) run="${argument#run.dir=}" ;;
  algorithm=* | algorithm.* | preset=*) ;;
  *) shared+=("$argument") ;;
  esac
done
RANKS="${RANKS:-$((cores < 4 ? cores : 4))}" bash launch/torchrun.sh run.device=cpu run.overwrite=true \
  log.figures=false "$@" run.dir="$run"
echo "training Local, each client on its own, to compare with"
python -m cobo_dist.train run.device=cpu run.threads=1 run.overwrite=true log.progress=none "${shared[@]}" \
  log.figures=false algorithm.name=local run.dir="$run-local" >/dev/null
# Of the report's output, the last lines: what was learned. Its tables are in the page.
python -m cobo_dist.report "$run" "$run-local" --out "$run/figures" | sed -n '/^\(What was learned\|open \)/,$p'
