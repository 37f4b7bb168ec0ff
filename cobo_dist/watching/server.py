"""A web server of one page and its news. It answers from memory: no address of it names a file.

So no path leads out of the runs' folders, and nothing can be written. What a request must have:

    method   GET or HEAD
    Host     an address, `localhost`, or a name that was given: another site's name that leads here (DNS
             rebinding) is refused
    token    where one is asked for: `?token=` once, then the cookie that answers it; or as
             `Authorization: Bearer TOKEN`
"""

from __future__ import annotations

import gzip
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from cobo_dist.errors import ConfigError
from cobo_dist.reports.page.render import policy_header
from cobo_dist.watching.live_page import DATA, LivePage

_MIN_COMPRESSED_BYTES = 1000
_TOKEN_BYTES = 24
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Server(ThreadingHTTPServer):
    """Serves a page at an address; `token` is "" where none is asked for."""

    daemon_threads = True

    def __init__(self, page: LivePage, host: str, port: int, with_token: bool = False) -> None:
        """Listen at `host`, at a free port if `port` is 0. A host that is not local asks for a token.

        Raises:
            ConfigError: the address cannot be listened at.
        """
        self.page, self.host = page, host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"cannot listen at {host}, port {port}: {reason}; give another --host or --port"
            ) from None
        self.is_local = ipaddress.ip_address(str(self.server_address[0])).is_loopback
        asks = with_token or not self.is_local
        self.token = secrets.token_urlsafe(_TOKEN_BYTES) if asks else ""
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}

    def server_bind(self) -> None:
        """Bind without the look-up of a host name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.host, self.server_address[1]

    @property
    def url(self) -> str:
        """Where to point a browser, with the token."""
        host = self.host if self.host not in ("0.0.0.0", "::", "") else socket.gethostname()
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.server_port}/" + (f"?token={self.token}" if self.token else "")

    @property
    def cookie(self) -> str:
        """The cookie's name; cookies do not know of ports."""
        return f"cobo_watch_{self.server_port}"

    def knows(self, host: str | None) -> bool:
        """Return whether a request may have this `Host`, whose port may be that of a tunnel."""
        try:
            name = (urlsplit(f"//{host}").hostname or "") if host else ""
        except ValueError:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        # To an address no other site's name leads.
        return address.is_loopback or not self.is_local

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a browser that leaves is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Server
    protocol_version, default_request_version = "HTTP/1.1", "HTTP/1.0"
    server_version, sys_version = "cobo-watch", ""
    timeout = 30

    def parse_request(self) -> bool:
        """Read the request line; refuse all methods but two, and hosts that are not ours."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self.close_connection = True  # its body is not read
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, [("Allow", "GET, HEAD")])
            return False
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.knows(hosts[0]):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return False
        return True

    def do_GET(self) -> None:
        """Answer with the page or its news."""
        path, _, query = self.path.partition("?")
        asked = parse_qs(query, max_num_fields=8) if len(query) < 1000 else {}
        if self.server.token:
            is_given = self._is_token(asked.get("token", [""])[-1])
            if is_given and path == "/":
                self._enter()
                return
            if not is_given and not self._is_known():
                self._refuse(HTTPStatus.FORBIDDEN)
                return
        if path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page.page().encode())
        elif path == f"/{DATA}":
            since = asked.get("version", ["0"])[-1]
            number = int(since) if since.isascii() and since.isdigit() and len(since) < 18 else 0
            news = self.server.page.news(number)
            if news is None:
                self._send(HTTPStatus.NO_CONTENT, "", b"")
            else:
                self._send(HTTPStatus.OK, "application/json", news.encode())
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def _is_known(self) -> bool:
        """Whether the request has the token in its cookie or header."""
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        if kind == "Bearer" and self._is_token(given.strip()):
            return True
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return False
        return cookie is not None and self._is_token(cookie.value)

    def _is_token(self, given: str) -> bool:
        # The time that it takes does not tell how much of it is right.
        return hmac.compare_digest(given.encode(), self.server.token.encode())

    def _enter(self) -> None:
        """Answer the right token with a cookie, and leave the token out of the browser's address."""
        cookie = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [("Set-Cookie", cookie), ("Location", "/")]
        self._send(HTTPStatus.SEE_OTHER, "text/plain", b"", headers)

    def _refuse(self, status: HTTPStatus, headers: Iterable[tuple[str, str]] = ()) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode(), headers)

    def _send(
        self, status: HTTPStatus, kind: str, body: bytes, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.send_response(status)
        for name, value in (*_HEADERS.items(), *headers):
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", policy_header())
        if kind:
            self.send_header("Content-Type", kind)
        if len(body) > _MIN_COMPRESSED_BYTES and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 5)
            self.send_header("Content-Encoding", "gzip")
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request that cannot be read, without repeating what it said."""
        self.close_connection = True
        if not hasattr(self, "headers"):
            self.headers = self.MessageClass()
        self._refuse(HTTPStatus(code))

    def log_message(self, format: str, *args: object) -> None:  # the base class's name
        """Log nothing: addresses may hold the token."""
