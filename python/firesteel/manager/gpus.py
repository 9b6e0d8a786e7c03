"""Which GPUs an executor owns: CUDA_VISIBLE_DEVICES as its manager must have it, before the driver is touched.

A worker's own value is no guide: a platform may show each task one GPU, by the addresses that Spark gave the task, and
a manager serves all tasks. In this order:

    1. the file that Spark's standalone workers and masters name on the executor's command line (--resourcesFile), which
       lists all of the executor's addresses
    2. the executor JVM's own environment, where its owner or the cluster's says what it may see
    3. the addresses of this worker's task, where they are as many as executors have GPUs: the driver's conf says how
       many, and travels with SQL jobs. Fewer say nothing: Spark packs fractions on one GPU and leaves others idle
    4. nothing at all: an executor that nobody restricts has all GPUs of its host
    5. outside of Spark, or where the JVM is hidden, this process' environment

Addresses (1 and 3) are nvidia-smi's numbers, which go by PCI bus; the driver's own order begins with the fastest.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from ..host import task
from ..host.processes import Process

VARIABLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_SAID = (f"{VARIABLE}=", f"{ORDER}=")


def visible(executor: Process | None) -> dict[str, str]:
    """What the manager's environment is to say of GPUs; without VARIABLE: that is not to be set."""
    own = {name: os.environ[name] for name in (VARIABLE, ORDER) if name in os.environ}
    if executor is None:
        return own
    addresses = _listed(_resources_file(executor.pid))
    if addresses is None:
        environment = _strings(f"/proc/{executor.pid}/environ")
        shown = own if environment is None else dict(e.split("=", 1) for e in environment if e.startswith(_SAID))
        addresses = None if VARIABLE in shown else task.all_gpus()
        if addresses is None:
            return shown
    return {VARIABLE: ",".join(addresses), ORDER: "PCI_BUS_ID"}


def _resources_file(pid: int) -> str | None:
    words = _strings(f"/proc/{pid}/cmdline") or []
    for word, following in zip(words, words[1:], strict=False):
        if word == "--resourcesFile":
            return following if os.path.isabs(following) else f"/proc/{pid}/cwd/{following}"
    return None


def _strings(path: str) -> list[str] | None:
    """What lies there, each ended by a zero; None: it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return None


def _listed(path: str | None) -> list[str] | None:
    """The gpu addresses of [{"id": {"resourceName": "gpu", ...}, "addresses": ["0", "1"]}]; None: there is no list."""
    if path is None:
        return None
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        with open(path, "rb") as file:
            given = json.loads(file.read(1 << 20))
        for resource in given:
            if resource["id"]["resourceName"] == "gpu":
                return [str(address) for address in resource["addresses"]]
    return None
