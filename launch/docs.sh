#!/usr/bin/env bash
# Build the site into site/, and check it: links and anchors (mkdocs --strict), and that figures and tables are those of
# their commands (docs/make.py). site/index.html opens from disk; its search needs a server, such as
# python -m http.server --bind 127.0.0.1 --directory site
#   bash launch/docs.sh [mkdocs build arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
ensure_venv docs
python docs/make.py --check
# Material's notice about its own future releases is no warning about these pages.
NO_MKDOCS_2_WARNING=1 exec mkdocs build --strict --quiet "$@"
