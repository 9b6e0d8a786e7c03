"""A block whose progress is shown: what happens when it is entered and left, and the thread that watches meanwhile."""

from __future__ import annotations

import threading
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

from pyspark.sql.utils import is_remote

from ..._core import ConfigError
from ...table import counters
from .._everywhere import ask_managers
from .bar import Bar, State
from .listener import Listener
from .report import Report, make_report
from .tasks_seen import ConnectTasks, StagesTasks
from .totals import Totals

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TICK_SECONDS = 0.25
LOOK_SECONDS = 0.5  # how often Spark is asked for its tasks
QUIET_SECONDS, DRAIN_SECONDS = 0.1, 2.0  # on leaving: what tasks have sent is read until none comes any more
STOP_SECONDS = 5.0

_here = threading.local()


class Run:
    """A block whose progress is shown. `report` is None until it is left."""

    def __init__(self, spark: SparkSession) -> None:
        self.report: Report | None = None
        self._spark = spark
        self._totals: Totals | None = None
        self._listener: Listener | None = None
        self._since: float | None = None  # when the first task was seen

    def __enter__(self) -> Run:
        if getattr(_here, "on", False):
            raise ConfigError("progress is on in this thread already; leave that block first")
        self._before = ask_managers(self._spark)
        if is_remote():
            self._tasks = ConnectTasks(self._spark)
        else:
            self._listen()
            self._tasks = StagesTasks(self._spark.sparkContext, self._totals)
        _here.on = True
        self._began = time.monotonic()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="firesteel progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._began
        after = None
        try:
            self._stop()
            after = ask_managers(self._spark)
        finally:  # a second Ctrl-C
            self.report = make_report(seconds, self._tasks.finished, self._totals, self._before, after)
            print(self.report, flush=True)

    def _listen(self) -> None:
        """Opens the port and tells jobs of it, or says why not."""
        context = self._spark.sparkContext
        host = context.getConf().get("spark.driver.host", "localhost").strip("[]")
        address = context.getConf().get("spark.driver.bindAddress", host).strip("[]")
        totals = Totals()
        try:
            # Event logs have the properties of jobs; of those whose key is in the context's conf, whatever its value
            # there, they hide what is called a token.
            context._jsc.sc().conf().set(counters.PROPERTY, "")
            self._listener = Listener(address, totals.take)
        except Exception as error:
            sentence = f"no port of {address} can be opened ({error}), so only finished tasks are counted"
            warnings.warn(sentence, RuntimeWarning, stacklevel=3)
            return
        self._totals = totals
        context.setLocalProperty(counters.PROPERTY, f"{host}:{self._listener.port}:{self._listener.token}")

    def _stop(self) -> None:
        _here.on = False
        if self._listener is not None:
            with suppress(Exception):  # the context may have been stopped
                self._spark.sparkContext.setLocalProperty(counters.PROPERTY, None)
        self._leaving.set()
        self._thread.join(STOP_SECONDS)
        self._tasks.close()

    # --- the thread

    def _watch(self) -> None:
        bar = Bar()
        looked = 0.0
        try:
            while not self._leaving.is_set():
                self._turn(TICK_SECONDS)
                if time.monotonic() - looked >= LOOK_SECONDS:
                    self._tasks.look()
                    bar.show(self._state())
                    looked = time.monotonic()
            until = time.monotonic() + DRAIN_SECONDS
            while self._turn(QUIET_SECONDS) and time.monotonic() < until:
                pass
            self._tasks.look()
        finally:
            bar.close()
            if self._listener is not None:
                self._listener.close()

    def _turn(self, seconds: float) -> int:
        if self._listener is not None:
            return self._listener.turn(seconds)
        self._leaving.wait(seconds)
        return 0

    def _state(self) -> State:
        seen, totals = self._tasks, self._totals
        told = (None, 0, None)
        if totals is not None:
            counts = totals.best.counts
            told = (counts["done"], counts["tokens"], totals.expected_rows(seen.totals))
        if self._since is None and seen.totals:
            self._since = time.monotonic()
        return State(
            time.monotonic() - (self._since or time.monotonic()), sum(seen.totals.values()), seen.finished, *told
        )
