"""How far a progress has come, on stderr: a bar in terminals and notebooks, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

LINE_SECONDS = 10.0


class State(NamedTuple):
    """What is known. `seconds` since the first task; rows None: nobody tells; expected_rows None: no basis to tell."""

    seconds: float
    tasks: int
    finished: int
    rows: int | None
    tokens: int
    expected_rows: float | None

    @property
    def share(self) -> float:
        """Of the work, from 0 to 1: of its rows where they can be told, else of its tasks."""
        if self.rows is not None and self.expected_rows:
            return min(1.0, self.rows / self.expected_rows)
        return self.finished / self.tasks if self.tasks else 0.0

    @property
    def left(self) -> float | None:
        """Seconds to go at the pace so far; None before a task has finished."""
        if not self.finished or not self.share:
            return None
        return self.seconds * (1 / self.share - 1)

    def __str__(self) -> str:
        said = [f"{self.finished}/{self.tasks} tasks"]
        if self.rows is not None:
            said.insert(0, f"{self.rows:,} rows")
            if self.seconds > 0:
                said.append(f"{self.tokens / self.seconds:,.0f} tokens/s")
        if self.left is not None:
            said.append(f"ETA {time.strftime('%H:%M:%S', time.gmtime(self.left))}")
        return ", ".join(said)


class Bar:
    """Shows states, until it is closed."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self._bar: tqdm | None = None
        self._next_line = time.monotonic() + LINE_SECONDS
        if sys.stderr.isatty() or any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__):
            kind = type("Bar", (tqdm,), {"monitor_interval": 0})  # without a thread that outlives it
            self._bar = kind(total=100, mininterval=0, leave=False, bar_format="{percentage:3.0f}%|{bar}| {desc}")

    def show(self, state: State) -> None:
        if self._bar is not None:
            self._bar.n = round(100 * state.share)
            self._bar.set_description_str(str(state))
        elif state.tasks and time.monotonic() >= self._next_line:
            self._next_line += LINE_SECONDS
            print(f"firesteel: {state}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
