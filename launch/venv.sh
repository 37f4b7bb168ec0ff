# Sourced by the other scripts. `ensure_venv EXTRAS` makes .venv in the project, installs cobo_dist with
# the extras (for example `dev`, or nothing) unless that is done already, and puts it first on PATH.
ensure_venv() {
  local extras="${1:-}" python="${PYTHON:-python3}" stamp
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $python is older than Python 3.10; set PYTHON to a newer one" >&2
    exit 2
  fi
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  stamp=".venv/installed-${extras:-plain}"
  if [ ! -e "$stamp" ] || [ setup.cfg -nt "$stamp" ]; then
    echo "installing cobo_dist${extras:+[$extras]} into .venv (torch is large: this takes minutes)"
    # -qq: errors are shown, and not pip's warnings
    .venv/bin/python -m pip install -qq --disable-pip-version-check -e ".${extras:+[$extras]}"
    touch "$stamp"
  fi
  export PATH="$PWD/.venv/bin:$PATH"
}
