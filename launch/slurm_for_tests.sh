#!/usr/bin/env bash
# Install SLURM and munge for tests/launchers/test_slurm.py, where this can be done: as root, with apt-get (about 10 s).
# Never fails: without SLURM those tests are skipped, and say why. They start daemons of their own, with their
# files in a temporary folder; the ones that the packages bring are not started.
#   bash launch/slurm_for_tests.sh
PATH="$PATH:/usr/sbin:/sbin"
if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "SLURM is not installed, and only root with apt-get could: its tests will be skipped" >&2
  exit 0
fi
install() {
  # Containers' usual way of keeping packages from starting daemons; an existing one is left alone.
  local policy=/usr/sbin/policy-rc.d made=""
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=yes
  fi
  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends \
    slurm-wlm munge >/dev/null 2>&1
  local code=$?
  if [ -n "$made" ]; then rm -f "$policy"; fi
  return "$code"
}
if install || { timeout 120 apt-get update -qq >/dev/null 2>&1 && install; }; then
  echo "installed SLURM and munge for the tests"
else
  echo "SLURM could not be installed: its tests will be skipped" >&2
fi
exit 0
