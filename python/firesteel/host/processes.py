"""Processes of this host, as /proc tells of them: which one it is, what moves in it, and the JVM above it."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """A process, and no other that gets its number later."""

    pid: int
    start: str  # ticks after boot

    @classmethod
    def read(cls, text: str) -> Process | None:
        """What str() gave; None for any other text."""
        pid, _, start = text.partition(":")
        return cls(int(pid), start) if pid.isdecimal() and start else None

    def __str__(self) -> str:
        return f"{self.pid}:{self.start}"

    def gone(self) -> bool:
        """Whether it has ended, be it that nobody has asked for its exit status yet."""
        now = look_up(self.pid)
        return now is None or now.process != self or now.state in "ZX"


@dataclass(frozen=True)
class Looked:
    process: Process
    name: str
    state: str
    parent: int


def look_up(pid: int) -> Looked | None:
    """What /proc says of a process; None where it says nothing."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            before, _, after = file.read().decode("utf-8", "replace").rpartition(")")
    except OSError:
        return None
    fields = after.split()
    return Looked(Process(pid, fields[19]), before.partition("(")[2], fields[0], int(fields[1]))


def activity(process: Process | None) -> tuple[object, ...]:
    """What changes while a process imports, from a slow disk too, and not while it hangs; empty once it is gone."""
    if process is None or process.gone():
        return ()
    fields = read_text(f"/proc/{process.pid}/stat").rpartition(")")[2].split()
    read = read_text(f"/proc/{process.pid}/io").partition("\n")[0]
    return (process, read, *fields[7:11:2])  # page faults, minor and major


def find_jvm(pid: int) -> Process | None:
    """The nearest JVM above process `pid`: its executable is `java`; where that is not to be seen, its name is."""
    at = look_up(pid)
    while at is not None and at.parent > 0:
        at = look_up(at.parent)
        if at is None:
            break
        try:
            program = os.path.basename(os.readlink(f"/proc/{at.process.pid}/exe")).removesuffix(" (deleted)")
        except OSError:  # another user's
            program = at.name
        if program == "java":
            return at.process
    return None


def read_text(path: str) -> str:
    """The first 4 KiB of a file; empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
