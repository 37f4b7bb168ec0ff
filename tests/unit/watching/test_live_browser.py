"""The live page in a real browser, with a run that goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browsing
from growing_run import GrowingRun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]

STATE = "(document.querySelector('.explorer .state') || {}).textContent"
RUNS = "document.querySelector('#runs').innerText"


def test_the_page_follows_a_run(tmp_path: Path) -> None:
    """From before the run until its end; a slider that was moved stays, and a table stays sorted."""
    command = [sys.executable, "-m", "cobo_dist.watch", "run", "other", "--serve", "--token"]
    with (
        browsing(tmp_path / "profile") as browser,
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            _, url, *_ = server.stdout.readline().split()
            _follow(browser, url, tmp_path)
        finally:
            server.send_signal(signal.SIGINT)
        browser.wait(
            "document.querySelector('.contact').textContent.includes('does not answer')", 60
        )
    assert server.returncode == 130


def _follow(browser: Browser, url: str, tmp_path: Path) -> None:
    base = url.partition("/?token=")[0]
    browser.open(url)
    assert browser.run("location.href") == f"{base}/", "the token has left the address"
    assert "no such folder yet" in browser.run(RUNS)
    growing = GrowingRun(tmp_path / "run", tmp_path / "pattern", 2)
    browser.wait(f"{STATE} && {STATE}.startsWith('round 2,')")  # the page has loaded itself again
    growing.go_on(6)
    browser.wait(f"{STATE}.startsWith('round 6,')")
    browser.run(
        "(() => { const s = document.querySelector('.snapshot'); s.value = 1; "
        "s.dispatchEvent(new Event('input')); })()"
    )
    browser.run("document.querySelectorAll('#runs th button')[0].click()")
    growing.write({"event": "warning", "round": 6, "kind": "x", "message": "<i id=evil>look</i>"})
    growing.go_on(9)
    browser.wait(f"{RUNS}.includes('<i id=evil>look</i>')")
    browser.wait("document.querySelector('.snapshot').max === '9'")
    assert browser.run(STATE).startswith("round 1,")
    sort = "document.querySelectorAll('#runs thead th')[0].getAttribute('aria-sort')"
    assert browser.run(sort) == "ascending"
    growing.end()
    browser.wait(f"{RUNS}.includes('done')")
    assert browser.errors == []
    asked = {one.partition("?")[0] for one in browser.requests if not one.startswith("data:")}
    assert asked == {f"{base}/", f"{base}/data.json"}
