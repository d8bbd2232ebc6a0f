"""Videos and pictures behind URLs, of the hosts that are allowed and of no other machine.

Notable design decisions:
- a name is resolved here, every address of it is looked at, and the connection goes to the address that was looked at:
  what the name means a moment later does not matter;
- an answer other than 200 is an error, a redirect included: where it leads has not been allowed;
- the size is counted while bytes arrive, whatever the headers say, and the time is that of the whole download.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from ... import __version__
from ...common.compute.cancelling import Cancellation
from ..config import ServeConfig
from ..errors import ApiError, bad_request

PORTS = {"http": 80, "https": 443}
CONNECT_SECONDS, FETCH_SECONDS = 10.0, 120.0
PIECE = 1 << 18
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # holds an address of version 4


@dataclass(frozen=True)
class Fetcher:
    """domains: `host` or `host:port`, as they stand in URLs. most: bytes of a download."""

    domains: frozenset[str]
    private: bool
    most: int
    seconds: float = FETCH_SECONDS

    @classmethod
    def of(cls, config: ServeConfig) -> Fetcher:
        domains = frozenset(domain.lower().rstrip(".") for domain in config.allow_domain)
        return cls(domains, config.allow_private, config.max_download << 20)

    def fetch(self, url: str, where: str, call: Cancellation) -> bytes:
        """Raises ApiError; a message names the part of the request, and never what lies at an address."""
        parts, host, port = self._checked(url, where)
        deadline = time.monotonic() + self.seconds
        connection = self._connected(parts.scheme, host, port, where)
        call.when_cancelled(functools.partial(hang_up, connection.sock))
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"Accept-Encoding": "identity", "User-Agent": f"autogaze-mllm/{__version__}"}
            connection.request("GET", target, headers=headers)
            return self._read(connection.getresponse(), where, deadline, call)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # ValueError, AttributeError: http.client, of a connection that was closed meanwhile
            call.check()
            raise bad_request(f"{where}: the download failed") from error
        finally:
            connection.close()

    def _checked(self, url: str, where: str) -> tuple[SplitResult, str, int]:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
            host.encode("ascii")
            url.encode("ascii")
        except ValueError as error:
            raise bad_request(f"{where}: not a URL that can be read") from error
        if any(not sign.isprintable() or sign == " " for sign in url):
            raise bad_request(f"{where}: not a URL that can be read")
        if parts.scheme not in PORTS or not host or "@" in parts.netloc:
            raise not_allowed("URL", where)
        usual = PORTS[parts.scheme]
        named = host if port in (None, usual) else f"{host}:{port}"
        if named not in self.domains:
            raise not_allowed("URL", where)
        return parts, host, usual if port is None else port

    def _connected(self, scheme: str, host: str, port: int, where: str) -> http.client.HTTPConnection:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise bad_request(f"{where}: the host of this URL is not known") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self.private and not all(map(is_public, addresses)):
            raise not_allowed("URL", where)
        sock = _connect(addresses, port, where)
        if scheme == "https":
            try:
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
            except OSError as error:  # a certificate that does not fit, too
                sock.close()
                raise bad_request(f"{where}: no safe connection to the host of this URL") from error
        connection = http.client.HTTPConnection(host, port)
        connection.sock = sock
        return connection

    def _read(self, answer: http.client.HTTPResponse, where: str, deadline: float, call: Cancellation) -> bytes:
        if answer.status != 200:
            redirect = "; redirects are not followed" if 300 <= answer.status < 400 else ""
            raise bad_request(f"{where}: its host answered {answer.status}{redirect}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise bad_request(f"{where}: its host sent it packed")
        found = bytearray()
        while piece := answer.read1(PIECE):
            call.check()
            found += piece
            if len(found) > self.most:
                raise ApiError(413, f"{where}: more than the {self.most >> 20} MiB that are allowed here")
            if time.monotonic() > deadline:
                raise bad_request(f"{where}: the download took more than {self.seconds:g} seconds")
        length = answer.headers.get("Content-Length")
        if length is not None and length != str(len(found)):
            raise bad_request(f"{where}: the download broke off")
        return bytes(found)


def not_allowed(what: str, where: str) -> ApiError:
    """The same for whatever is behind it."""
    return bad_request(f"{where}: this {what} is not allowed here", code="url_not_allowed")


def is_public(address: str) -> bool:
    """Whether an address belongs to the internet: not to this machine, its networks, or nobody."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in NAT64:
            inside = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inside and not is_public(str(inside)):
            return False
        if found.is_site_local:
            return False
    return found.is_global and not found.is_multicast


def hang_up(sock: socket.socket) -> None:
    """Ends a connection, also one that another thread waits for."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _connect(addresses: Sequence[str], port: int, where: str) -> socket.socket:
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=CONNECT_SECONDS)
        except OSError:
            continue
    raise bad_request(f"{where}: the host of this URL cannot be reached")
