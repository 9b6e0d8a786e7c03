"""The device manager's process: `python -m firesteel.manager`, started by the first worker that finds none.

    lock -> import -> bind, listen -> Service.start(socket) -> watch until there is a reason to end -> Service.close()

It is nobody's child and has a session of its own, so it ends itself: after the executor's JVM; when every fork server
whose workers ever were its clients is gone, and they are; after an idle time without clients. How workers find and
start it is lifecycle.py's affair; what it serves is the Service's.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import logging
import logging.handlers
import os
import select
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, time
from typing import Protocol

from .. import _core
from ..host.locks import try_lock, write_process
from ..host.processes import Process, look_up
from ..host.settings import address_limit, seconds
from ..host.text import ESCAPES, Formatter
from .lifecycle import LISTENING, SECOND, SERVICE, Place, directory, identity

BACKLOG = 128
TICK = 0.5  # seconds between two looks at clients and clocks; the executor's end is seen at once
FIRST_CLIENT = 30.0  # seconds that the worker which started this has to connect
HEARTBEAT = 60.0  # seconds without a client where no JVM can be watched
LOG_BYTES = 1 << 20
KEPT_SECONDS = 24 * 3600.0  # what dead managers left is removed after that
CLOSE_SECONDS, CLOSE_SECONDS_ORPHANED = 20.0, 1.5  # for Service.close(); a device that hangs must not keep us

log = logging.getLogger("firesteel.manager")


class Service(Protocol):
    """What serves. It is made without arguments, in the main thread, and has imported all it needs by then."""

    def start(self, listening: socket.socket) -> None:
        """Serves connections to `listening` (SOCK_SEQPACKET) from threads of its own."""

    def clients(self) -> list[dict[str, int]]:
        """Of each connection pid and uid, and `parent` where the client told its fork server's pid."""

    def idle_seconds(self) -> float:
        """Since the last row was finished or the last client left; 0 while rows are computed."""

    def unload(self) -> None:
        """Gives device memory up; models are loaded again when rows come."""

    def close(self) -> None:
        """Ends all threads and connections."""


def main(arguments: list[str] | None = None) -> int:
    """The manager's life. 0: it ended as it should, or another manager has this identity; 1: the log says why."""
    asked = _parse(arguments)
    place = Place(asked.directory or directory(), asked.key or identity().key)
    kind = asked.kind or identity().kind
    executor = asked.executor if asked.key else identity().executor
    _settle(place)
    if asked.build and asked.build != _core.build:
        log.error("%s is firesteel %s; the worker has %s", _core.__file__, _core.build, asked.build)
        return 1
    ttl, unload = seconds("MANAGER_IDLE_TTL"), seconds("MANAGER_IDLE_UNLOAD")
    if kind == "directories":
        ttl = min(ttl, HEARTBEAT)
    try:
        return run(lambda: _service(asked.service), place, executor, idle_ttl=ttl, idle_unload=unload, told=asked.told)
    except Exception:
        log.exception("cannot start")
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m firesteel.manager",
        description="The device manager. Workers start it themselves; without options it is the one of this process.",
    )
    parser.add_argument("--directory", default="")
    parser.add_argument("--key", default="", help="identity, in hexadecimal digits")
    parser.add_argument("--kind", default="", choices=["", "executor", "directories", "user"])
    parser.add_argument("--executor", type=_process, help="PID:START of the JVM to end with")
    parser.add_argument("--build", default="", help="firesteel's build as the worker has it")
    parser.add_argument("--service", default=SERVICE, help=argparse.SUPPRESS)
    parser.add_argument("--told", type=int, default=-1, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _process(text: str) -> Process:
    found = Process.read(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not PID:START")
    return found


def _service(path: str) -> Service:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)()


def _settle(place: Place) -> None:
    """A process of its own: session, signals, file modes, log. What worker and fork server set is set again."""
    os.umask(0o077)
    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    handler = _Log(place.log)
    handler.setFormatter(Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    logging.getLogger("firesteel").addHandler(handler)
    logging.getLogger("firesteel").setLevel(logging.INFO)
    logging.raiseExceptions = False  # a full disk
    faulthandler.enable()


class _Log(logging.handlers.RotatingFileHandler):
    """The log of bounded size, into which goes also what libraries and a dying Python print."""

    def __init__(self, path: str) -> None:
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", errors=ESCAPES)

    def _open(self):
        stream = super()._open()
        for fd in (1, 2):
            os.dup2(stream.fileno(), fd)
        return stream


def run(
    make: Callable[[], Service],
    place: Place,
    executor: Process | None = None,
    *,
    idle_ttl: float,
    idle_unload: float,
    told: int = -1,
) -> int:
    """Runs the service that `make` imports and makes, in the main thread, until there is a reason to end.

    `executor`: the JVM to end with. `idle_ttl`: seconds without a client, `idle_unload`: without rows. `told`: a pipe
    to whoever waits for this manager. Returns main's code; raises what `make` and Service.start raise.
    """
    starter = _Starter(told)
    lock = try_lock(place.lock)
    if lock is None:
        starter.tell(SECOND)
        return 0
    write_process(lock, os.getpid())
    service = make()
    told_to_end = _sigterm()
    listening = _listen(place)
    service.start(listening)
    starter.tell(LISTENING)
    log.info("serves at %s, build %s%s", place.socket, _core.build, f", executor {executor.pid}" if executor else "")
    if address_limit():
        log.warning("%s", address_limit())
    _sweep(place)
    watch = _Watch(service, place, lock, executor, idle_ttl, idle_unload)
    reason, fine = watch.wait(told_to_end)
    log.log(logging.INFO if fine else logging.ERROR, "ends: %s", reason)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends this process even where C code never lets go of Python
    signal.setitimer(signal.ITIMER_REAL, CLOSE_SECONDS_ORPHANED if watch.orphaned else CLOSE_SECONDS)
    _end(service, listening, place, watch.lock)
    return 0 if fine else 1


class _Starter:
    """Whoever started this: one word, and the pipe's end. A manager that dies says nothing."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        if fd >= 0:
            os.set_inheritable(fd, False)

    def tell(self, word: str) -> None:
        if self.fd < 0:
            return
        with suppress(OSError):  # it has been killed meanwhile
            os.write(self.fd, f"{word} ".encode())
        os.close(self.fd)
        self.fd = -1


def _sigterm() -> int:
    """A pipe that can be read once SIGTERM has come."""
    asleep, awake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGTERM, lambda number, frame: os.write(awake, b"t"))
    return asleep


def _listen(place: Place) -> socket.socket:
    """The lock is held: what lies at the socket's path belongs to nobody."""
    with suppress(FileNotFoundError):
        os.unlink(place.socket)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(place.socket)
    listening.listen(BACKLOG)
    return listening


def _end(service: Service, listening: socket.socket, place: Place, lock: int | None) -> None:
    """The socket first, so that nobody connects any more; the lock last, so that no successor meets us."""
    if lock is not None:  # else the files are a successor's
        with suppress(FileNotFoundError):
            os.unlink(place.socket)
    try:
        service.close()
    except Exception:
        log.exception("the service does not close")
    listening.close()
    if lock is not None:
        _remove(place)
        os.close(lock)


def _remove(place: Place) -> None:
    """All files but the logs; by whoever has the lock."""
    for path in (place.socket, place.start, place.lock):
        with suppress(OSError):
            os.unlink(path)


def _sweep(place: Place) -> None:
    """Removes what managers left here that are dead and whose files nobody has touched for a day."""
    newest: dict[str, float] = {}
    with suppress(OSError):
        for entry in os.scandir(place.directory):
            key = entry.name.partition(".")[0]
            newest[key] = max(newest.get(key, 0.0), entry.stat(follow_symlinks=False).st_mtime)
    for key, touched in newest.items():
        if key == place.key or len(key) != len(place.key) or time() - touched < KEPT_SECONDS:
            continue
        other = Place(place.directory, key)
        with suppress(OSError, _core.ManagerError):
            lock = try_lock(other.lock)
            if lock is not None:
                for path in (other.log, f"{other.log}.1"):
                    with suppress(FileNotFoundError):
                        os.unlink(path)
                _remove(other)
                os.close(lock)


class _Watch:
    """Waits for a reason to end, and has device memory given up meanwhile."""

    def __init__(
        self,
        service: Service,
        place: Place,
        lock: int,
        executor: Process | None,
        idle_ttl: float,
        idle_unload: float,
    ) -> None:
        self.service, self.place, self.executor = service, place, executor
        self.lock: int | None = lock  # None: let go of
        self.idle_ttl, self.idle_unload = idle_ttl, idle_unload
        self.orphaned = self.unloaded = False
        self.path = os.stat(place.socket)
        self.since = monotonic()  # of the last client
        self.served = False
        self.clients: set[int] = set()
        self.servers: set[Process] = set()  # parents of all clients there ever were
        self.unknown = False  # the parent of some client could not be told: they may not all be gone

    def wait(self, told_to_end: int) -> tuple[str, bool]:
        """The reason, and whether all is well."""
        poll = select.poll()
        poll.register(told_to_end, select.POLLIN)
        watched = self._pidfd()
        if watched is not None:
            poll.register(watched, select.POLLIN)
        while True:
            found = [fd for fd, _ in poll.poll(TICK * 1000)]
            if told_to_end in found:
                return "SIGTERM", True
            # With a pidfd the start time is looked at too: another may have had the number before it was opened.
            if self.executor is not None and (watched in found or self.executor.gone()):
                self.orphaned = True
                return f"the executor, process {self.executor.pid}, is gone", True
            try:
                reason = self._look()
            except Exception:
                log.exception("the service does not answer")
                return "its service is broken", False
            if reason:
                return reason, True

    def _pidfd(self) -> int | None:
        if self.executor is None:
            return None
        try:
            return os.pidfd_open(self.executor.pid)
        except (AttributeError, OSError):  # an old kernel, a sandbox, or it is gone: its start time tells
            return None

    def _look(self) -> str:
        """A reason to end, or empty."""
        now, clients = monotonic(), self.service.clients()
        self._note_parents(clients)
        idle = self.service.idle_seconds()
        if idle < self.idle_unload:
            self.unloaded = False
        elif not self.unloaded:
            self.unloaded = True
            log.info("gives device memory up after %.0f s without rows", idle)
            self.service.unload()
        if self.lock is not None and not self._reachable():
            log.warning("%s has been removed: new clients will start another manager", self.place.socket)
            os.close(self.lock)
            self.lock = None
        if clients:
            self.since, self.served = now, True
            return ""
        if self.lock is None:
            return "its socket has been removed, and no client is left"
        if self.servers and not self.unknown and all(server.gone() for server in self.servers):
            return "its clients' fork servers are gone"
        patience = self.idle_ttl if self.served else max(self.idle_ttl, FIRST_CLIENT)
        return f"no client for {patience:g} s" if now - self.since >= patience else ""

    def _note_parents(self, clients: list[dict[str, int]]) -> None:
        for client in clients:
            if client["pid"] in self.clients:
                continue
            found = look_up(client["pid"])
            if found is None and client["pid"] > 0:
                continue  # gone already
            parent = client.get("parent") or (found.parent if found else 0)
            server = look_up(parent) if parent > 0 else None
            if server is None:  # in another pid namespace
                self.unknown = True
            else:
                self.servers.add(server.process)
        self.clients = {client["pid"] for client in clients}

    def _reachable(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.place.socket), self.path)
        except OSError:
            return False
