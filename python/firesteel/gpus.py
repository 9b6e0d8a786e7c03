"""Which GPUs an executor owns: CUDA_VISIBLE_DEVICES as its manager must have it, before the driver is touched.

A worker's own value is no guide: a platform may show each task one GPU, by the addresses that Spark gave the task, and
a manager serves all tasks. In this order:

    1. the file that Spark's standalone workers and masters name on the executor's command line (--resourcesFile), which
       lists all of the executor's addresses
    2. the executor JVM's own environment, where its owner or the cluster's says what it may see
    3. outside of Spark, or where neither can be read, this process' environment
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from .lifecycle import Process

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible(executor: Process | None) -> str | None:
    """The value for the manager; None: the variable is not to be set."""
    if executor is None:
        return os.environ.get(VARIABLE)
    addresses = _listed(_resources_file(executor.pid))
    if addresses is not None:
        return ",".join(addresses)
    environment = _strings(f"/proc/{executor.pid}/environ")
    if environment is None:
        return os.environ.get(VARIABLE)
    return next((entry.partition("=")[2] for entry in environment if entry.startswith(f"{VARIABLE}=")), None)


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
