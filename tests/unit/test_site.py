"""The site: it builds without a warning, needs no network to be read, and has every config key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cobo_dist.config import all_keys

ROOT = Path(__file__).resolve().parents[2]
for module in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(module, reason="pip install '.[docs]' to build the site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. --strict: a link or an anchor that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(folder),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_a_page_asks_no_other_host(site: Path) -> None:
    """Scripts, styles, fonts and images come from the site; links to read elsewhere may be there."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text())
        assert tags
        outside = [tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)]
        assert outside == [], page.name


@pytest.mark.slow
def test_every_config_key_and_public_name_is_there(site: Path) -> None:
    keys = (site / "KEYS.html").read_text()
    missing = [key for key, _ in all_keys() if f"<code>{key}</code>" not in keys]
    assert set(missing) <= {key for key, _ in all_keys() if key.endswith(".name")}
    api = (site / "API.html").read_text()
    for name in ("fit", "open_run", "Run", "Config", "Algorithm", "Task", "Callback"):
        assert re.search(rf'<h2 id="cobo_dist\.[\w.]*\b{name}"', api), name


@pytest.mark.slow
def test_links_between_pages_are_named_by_their_titles(site: Path) -> None:
    home = (site / "index.html").read_text()
    assert '<a href="METHODS.html">Methods</a>' in home
    assert "docs/" not in re.sub(r"<pre.*?</pre>|<code>.*?</code>", "", home, flags=re.DOTALL)
