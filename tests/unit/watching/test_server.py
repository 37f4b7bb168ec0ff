"""The server of the live page: what it refuses, and what it answers."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from growing_run import GrowingRun
from page_data import explorers

from cobo_dist.errors import ConfigError
from cobo_dist.watching.live_page import MIN_SECONDS, LivePage
from cobo_dist.watching.server import Server
from cobo_dist.watching.watch_list import WatchList

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def growing(tmp_path: Path) -> GrowingRun:
    """A run that has begun."""
    return GrowingRun(tmp_path / "run", tmp_path / "pattern", 5)


def always_new(folder: Path) -> LivePage:
    """The page of a run that reads it whenever it is asked: each look at its clock is an hour later."""
    return LivePage(WatchList([folder]), itertools.count(step=3600.0).__next__)


@contextmanager
def serving(folder: Path, host: str = "127.0.0.1", with_token: bool = False) -> Iterator[Server]:
    """Serve the page of a run."""
    with Server(LivePage(WatchList([folder])), host, 0, with_token) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: Server, path: str = "/", method: str = "GET", host: str | None = None, **headers: str
) -> Answer:
    """Send one request; the path goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": host or f"localhost:{server.server_port}", **headers}.items():
            if value:
                connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_the_page_and_its_news(growing: GrowingRun) -> None:
    """The page begins with what is known; the news are only what has changed."""
    with serving(growing.folder) as server:
        status, headers, body = ask(server)
        assert status == 200
        page = body.decode()
        (found,) = explorers(page)
        assert found["runs"][0]["weights"]["rounds"] == list(range(6))
        assert "data-live='data.json'" in page
        policy = re.search(r'Content-Security-Policy\' content="(.*?)"', page)
        assert policy is not None
        assert headers["Content-Security-Policy"].startswith(policy[1].replace("&#39;", "'"))
        status, headers, body = ask(server, "/data.json?version=0")
        first = json.loads(body)
        assert set(first["fragments"]) == {"runs", "tables-1"}
        assert set(first["explorers"]) == {"explorer-1"}
        version = first["version"]
        assert ask(server, f"/data.json?version={version}")[::2] == (204, b"")
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_news_of_a_run_that_goes_on(growing: GrowingRun) -> None:
    page = always_new(growing.folder)
    first = json.loads(page.news(0) or "")
    assert page.news(first["version"]) is None
    growing.write({"event": "warning", "round": 5, "kind": "notice", "message": "<b>look</b>"})
    second = json.loads(page.news(first["version"]) or "")
    assert set(second["fragments"]) == {"runs"}
    assert "run, round 5: &lt;b&gt;look&lt;/b&gt;" in second["fragments"]["runs"]
    assert second["explorers"] == {}
    assert second["layout"] == first["layout"]
    growing.go_on(9)
    third = json.loads(page.news(second["version"]) or "")
    assert third["explorers"]["explorer-1"]["runs"][0]["weights"]["rounds"] == list(range(10))
    # A browser that has missed the second gets both; one of an earlier server gets all.
    assert set(json.loads(page.news(first["version"]) or "")["fragments"]) >= {"runs"}
    assert json.loads(page.news(10**16) or "")["explorers"]


def test_what_was_read_is_good_for_a_while(growing: GrowingRun) -> None:
    """Longer where reading took long: a page that is always asked for leaves the processor to the runs."""
    now = [0.0]
    page = LivePage(WatchList([growing.folder]), lambda: now[0])
    first = json.loads(page.news(0) or "")["version"]
    growing.go_on(9)
    now[0] = MIN_SECONDS / 2
    assert page.news(first) is None
    now[0] = 3600.0
    assert page.news(first) is not None


def test_a_run_that_does_not_exist_yet(tmp_path: Path) -> None:
    """The page says so; once there is a run its layout is another, so the page loads itself again."""
    page = always_new(tmp_path / "run")
    assert "no such folder yet" in page.page()
    empty = json.loads(page.news(0) or "")
    GrowingRun(tmp_path / "run", tmp_path / "pattern", 3)
    begun = json.loads(page.news(empty["version"]) or "")
    assert begun["layout"] != empty["layout"]
    assert "explorer-1" in page.page()


@pytest.mark.parametrize(
    "path",
    [
        "/metrics.jsonl", "/run/metrics.jsonl", "/../metrics.jsonl", "/%2e%2e/metrics.jsonl", "//etc/passwd",
        "/..%2f..%2f..%2fetc/passwd", "/data.json/../../secret", "/static/..\\\\secret", "/data.json%00",
        "/link", "http://localhost/etc/passwd", "/data.json/",
    ],
)  # fmt: skip
def test_no_path_names_a_file(growing: GrowingRun, path: str) -> None:
    """Neither of the run's folder nor outside it, encoded or not, nor by a link in the folder."""
    (growing.folder.parent / "secret").write_text("secret")
    (growing.folder / "link").symlink_to(growing.folder.parent / "secret")
    with serving(growing.folder) as server:
        status, _, body = ask(server, path)
    assert (status, body) == (404, b"Not Found\n")


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "XYZ"]
)
def test_only_reading_methods(growing: GrowingRun, method: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in growing.folder.rglob("*")}
    with serving(growing.folder) as server:
        status, headers, _ = ask(server, "/data.json", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
        assert ask(server)[0] == 200
    assert {path: path.stat().st_mtime_ns for path in growing.folder.rglob("*")} == before


def test_head_is_get_without_its_body(growing: GrowingRun) -> None:
    with serving(growing.folder) as server:
        status, headers, body = ask(server, "/data.json", "HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("LOCALHOST", 200),
        ("evil.example", 421), ("localhost.evil.example", 421), ("192.0.2.1", 421), ("a@evil.example", 421),
        ("[", 421), ("", 421),
    ],
)  # fmt: skip
def test_other_hosts_are_refused(growing: GrowingRun, host: str, status: int) -> None:
    """A site whose name leads here by DNS gets nothing; a tunnel's port may be another."""
    with serving(growing.folder) as server:
        assert ask(server, host=host or " ")[0] == status


def test_answers_are_compressed_where_that_is_asked_for(growing: GrowingRun) -> None:
    with serving(growing.folder) as server:
        plain = ask(server, "/data.json")[2]
        _, headers, body = ask(server, "/data.json", **{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == plain


def test_a_token_where_others_may_listen(growing: GrowingRun) -> None:
    """It opens the page once, as part of its address, which then leaves it to a cookie."""
    with serving(growing.folder, "0.0.0.0") as server:
        assert not server.is_local
        assert len(server.token) >= 32
        assert server.url.endswith(f":{server.server_port}/?token={server.token}")
        for path in (
            "/",
            "/data.json",
            "/?token=",
            "/?token=wrong",
            f"/?token={server.token[:-1]}",
        ):
            status, _, body = ask(server, path)
            assert (status, body) == (403, b"Forbidden\n")
        status, headers, body = ask(server, f"/?token={server.token}")
        assert (status, headers["Location"], body) == (303, "/", b"")
        cookie = headers["Set-Cookie"]
        assert "HttpOnly; SameSite=Strict" in cookie
        status, _, body = ask(server, Cookie=cookie.partition(";")[0])
        assert status == 200
        assert server.token not in body.decode()
        assert ask(server, "/data.json", Cookie=f"{server.cookie}=wrong")[0] == 403
        assert ask(server, "/data.json", Authorization=f"Bearer {server.token}")[0] == 200
        assert ask(server, "/data.json", Authorization="Bearer \xe9")[0] == 403
        assert ask(server, host="192.0.2.1", Cookie=cookie)[0] == 200
        assert ask(server, host="evil.example", Cookie=cookie)[0] == 421
    with serving(growing.folder, with_token=True) as server:
        assert server.is_local
        assert ask(server)[0] == 403
    with serving(growing.folder) as server:
        assert server.token == ""


def test_what_is_no_request_is_refused_without_repeating_it(growing: GrowingRun) -> None:
    with serving(growing.folder) as server:
        for sent in (
            b"<script>\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET " + b"a" * 70_000 + b"\r\n\r\n",
        ):
            with socket.create_connection(
                ("127.0.0.1", server.server_port), timeout=30
            ) as connection:
                connection.sendall(sent)
                answer = connection.makefile("rb").read()
            assert re.match(rb"HTTP/1.1 (400|414|505) ", answer), answer[:80]
            assert b"<script" not in answer
        assert ask(server)[0] == 200, "it goes on"


def test_a_port_that_is_taken(growing: GrowingRun) -> None:
    with (
        serving(growing.folder) as server,
        pytest.raises(ConfigError, match=r"cannot listen at 127.0.0.1"),
    ):
        Server(server.page, "127.0.0.1", server.server_port)
