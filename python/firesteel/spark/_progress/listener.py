"""The driver's socket to which tasks push their counters while firesteel.progress is on.

    a connection:  TOKEN \\n  then lines of JSON (table/counters.py), each taken by itself

Whoever does not say the token at once, or says what is no message, is cut off. Connections, lines and waits are
bounded; beyond PEERS connections others wait in the system's queue, and lose nothing by that. One thread uses it.
"""

from __future__ import annotations

import hmac
import json
import logging
import resource
import secrets
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger("firesteel.progress")

PEERS = 1000
BACKLOG = 1024
LINE_BYTES = 8192
READ_BYTES = 65536
TOKEN_SECONDS = 5.0  # that a connection may take to say it


class _Peer:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.unread = b""
        self.known = False  # it has said the token
        self.since = time.monotonic()


class Listener:
    """Listens at an address of this machine, on a port of the system's choice. Raises OSError where it cannot.

    `take` is given what a line says and raises ValueError where that is no message.
    """

    def __init__(self, address: str, take: Callable[[object], None]) -> None:
        self.token = secrets.token_hex(16)
        self._take = take
        self._peers: set[_Peer] = set()
        self._most = min(PEERS, max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        family, kind, _, _, where = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self._socket = socket.socket(family, kind)
        try:
            self._socket.bind(where)
            self._socket.listen(BACKLOG)
            self._socket.setblocking(False)
            self._selector = selectors.DefaultSelector()
        except OSError:
            self._socket.close()
            raise
        self._listening = False
        self._not_before = 0.0  # out of descriptors: nobody is let in until then

    @property
    def port(self) -> int:
        return self._socket.getsockname()[1]

    def turn(self, seconds: float) -> int:
        """Waits that long for tasks to say something. How many lines were taken."""
        self._let_in_or_not()
        taken = 0
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._accept()
            else:
                taken += self._read(key.data)
        for peer in [peer for peer in self._peers if not peer.known]:
            if time.monotonic() - peer.since > TOKEN_SECONDS:
                self._drop(peer, "it did not say the token")
        return taken

    def close(self) -> None:
        for peer in list(self._peers):
            self._drop(peer)
        self._selector.close()
        self._socket.close()

    def _let_in_or_not(self) -> None:
        wanted = len(self._peers) < self._most and time.monotonic() >= self._not_before
        if wanted and not self._listening:
            self._selector.register(self._socket, selectors.EVENT_READ)
        elif self._listening and not wanted:
            self._selector.unregister(self._socket)
        self._listening = wanted

    def _accept(self) -> None:
        while len(self._peers) < self._most:
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("cannot let a task in: %s", error)
                self._not_before = time.monotonic() + 1.0
                return
            connection.setblocking(False)
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            peer = _Peer(connection)
            self._peers.add(peer)
            self._selector.register(connection, selectors.EVENT_READ, peer)

    def _read(self, peer: _Peer) -> int:
        try:
            more = peer.socket.recv(READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            more = b""
        *lines, peer.unread = (peer.unread + more).split(b"\n")
        taken = 0
        for line in lines:
            if not self._take_line(peer, line):
                return taken
            taken += 1
        if not more:
            self._drop(peer)
        elif len(peer.unread) > LINE_BYTES:
            self._drop(peer, "its line is too long")
        return taken

    def _take_line(self, peer: _Peer, line: bytes) -> bool:
        if not peer.known:
            peer.known = hmac.compare_digest(line, self.token.encode())
            if not peer.known:
                self._drop(peer, "its token is another")
            return peer.known
        try:
            if len(line) > LINE_BYTES:
                raise ValueError("a line is shorter")
            self._take(json.loads(line))
        except (ValueError, RecursionError):
            self._drop(peer, "what it says is no message")
            return False
        return True

    def _drop(self, peer: _Peer, why: str = "") -> None:
        if why:
            log.debug("a connection was cut off: %s", why)
        self._peers.discard(peer)
        self._selector.unregister(peer.socket)
        peer.socket.close()
