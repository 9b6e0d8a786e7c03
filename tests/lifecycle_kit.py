"""What test_lifecycle.py has managers serve, and clients that are processes of their own. Imports no test package.

Services: every connection is told the manager's pid, then gets its messages back. Clients: `python lifecycle_kit.py
SERVICE [IDLE_TTL]` reaches the manager, prints its pid and stays connected until its standard input ends. For all who
start managers: managers_in, those that live.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path


def managers_in(directory: Path) -> list[int]:
    """Processes that a manager's lock in the directory names and that are alive."""
    from firesteel.host.processes import look_up

    found = []
    for lock in directory.glob("*.lock"):
        with suppress(OSError, ValueError):  # it went meanwhile, or is being written
            looked = look_up(int(lock.read_text().partition(":")[0] or 0))
            if looked is not None and looked.state not in "ZX":
                found.append(looked.process.pid)
    return found


class Echo:
    """The plain one. Says in the directory's file `unloads` that it was asked to unload."""

    def __init__(self) -> None:
        self.connections: dict[int, dict[str, int]] = {}
        self.last = time.monotonic()

    def start(self, listening: socket.socket) -> None:
        self.directory = Path(listening.getsockname()).parent
        threading.Thread(target=self.accept, args=(listening,), daemon=True).start()

    def accept(self, listening: socket.socket) -> None:
        while True:
            connection, _ = listening.accept()
            pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            self.connections[connection.fileno()] = {"pid": pid, "uid": uid}
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        number = connection.fileno()
        message = str(os.getpid()).encode()
        while message:
            try:
                connection.send(message)
                message = connection.recv(1000)
            except OSError:
                break
            self.last = time.monotonic()
        del self.connections[number]
        connection.close()

    def clients(self) -> list[dict[str, int]]:
        return list(self.connections.values())

    def idle_seconds(self) -> float:
        return time.monotonic() - self.last

    def unload(self) -> None:
        with open(self.directory / "unloads", "a") as file:
            file.write("unload\n")

    def close(self) -> None:
        pass


class Polled(Echo):
    """In a Python, or on a kernel, without pidfd_open."""

    def __init__(self) -> None:
        super().__init__()
        del os.pidfd_open


class Stubborn(Echo):
    """A device that does not come back."""

    def close(self) -> None:
        time.sleep(600)


class Dying(Echo):
    def __init__(self) -> None:
        os.write(2, b"a library says: no device\n")
        raise RuntimeError("this service cannot be made")


class Killed(Echo):
    def start(self, listening: socket.socket) -> None:
        print("about to be killed", flush=True)
        os.kill(os.getpid(), 9)


class Hanging(Echo):
    def __init__(self) -> None:
        time.sleep(600)


class Slow(Echo):
    """Takes 3 seconds to start, in which it does something all the time."""

    def __init__(self) -> None:
        super().__init__()
        for _ in range(30):
            time.sleep(0.1)
            Path(__file__).read_bytes()


def main() -> None:
    from firesteel.manager import lifecycle

    ttl = float(sys.argv[2]) if sys.argv[2:] else None
    connection = lifecycle.reach(20, service=f"lifecycle_kit:{sys.argv[1]}", idle_ttl=ttl)
    print(connection.recv(100).decode(), lifecycle.identity().kind, lifecycle.identity().key, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
