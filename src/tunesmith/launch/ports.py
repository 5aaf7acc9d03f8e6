"""Ports of this machine, taken before anything heavy is loaded."""

from __future__ import annotations

import errno
import socket

from tunesmith.errors import ConfigError

_TAKEN = (errno.EADDRINUSE, errno.EACCES)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 takes a free one.

    Raises:
        ConfigError: the address is no address of this machine, or the port is taken or may not be used.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(
            f"--port {port} is no port",
            where="command line",
            remedy="give one from 1 to 65535, or 0 for any that is free",
        )
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        remedy = "give another --port" if isinstance(error, OSError) and error.errno in _TAKEN else "see --host, --port"
        raise ConfigError(f"cannot listen at {host}:{port} ({said})", where="command line", remedy=remedy) from None
