"""Whether an address can be listened at, found out before anything is loaded.

Gradio would try for minutes to listen at an address that this machine does not have.
"""

from __future__ import annotations

import socket

from ..common.errors import InputError

PORTS = range(7860, 7960)  # those that Gradio takes


def free_port(host: str, port: int | None) -> int:
    """This port, or the first of PORTS that nobody listens at. Raises InputError where there is none."""
    reason = ""
    for one in PORTS if port is None else (port,):
        try:
            family, _, _, _, address = socket.getaddrinfo(host, one, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was listened at just now, too
                tried.bind(address)
            return one
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
    wanted = f"port {port}" if port is not None else f"a port from {PORTS[0]} to {PORTS[-1]}"
    raise InputError(f"{wanted} cannot be had at {host} ({reason}): choose others with --host and --port")
