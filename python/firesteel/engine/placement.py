"""Which layers go where: what an engine has done, and what `plan` says it would do, as one table.

    print(firesteel.plan("models/all-MiniLM-L6-v2", devices=["cpu:0", "cpu:1"]))
    print(engine.placement)

Both come from the same C code; no Spark, no device and no weights are needed for the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .. import _core
from ..host.text import one_line
from ..model.chain import Chain
from ..model.checkpoint import outline
from ..model.locate import seen
from .options import byte_count, engine_options

MARGIN = 300 << 20  # bytes of a Python worker beside the model: interpreter, Arrow batches, tokenizer

_SAVED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Stage:
    """Layers [first_layer, last_layer) of one replica, shared by all of `devices`."""

    first_layer: int
    last_layer: int
    devices: tuple[str, ...]
    share: float | None = None  # of the replica's work; None: not counted
    window: int = 0  # layers there is memory for; the others are streamed through the last of it. 0: all


@dataclass(frozen=True)
class Device:
    """A device and the bytes taken on it; limit 0: none. Of CPU devices the first that loads a weight is charged."""

    name: str
    limit: int
    weights: int
    workspace: int
    staging: int

    @property
    def bytes(self) -> int:
        return self.weights + self.workspace + self.staging

    @property
    def missing(self) -> int:
        """Bytes that it lacks."""
        return max(0, self.bytes - self.limit) if self.limit else 0


@dataclass(frozen=True)
class Placement:
    """Replicas, their stages and the devices these lie on. `str` makes a table of it.

    parallel  as the option of firesteel.Engine would say it; "" where the stages were written by hand
    why       one sentence: why so, or what is missing and what would fit
    fits      False: an engine would raise OutOfMemory with `why`
    advice    lines worth reading: settings of Spark, other ways
    """

    title: str
    parallel: str
    why: str
    fits: bool
    devices: tuple[Device, ...]
    replicas: tuple[tuple[Stage, ...], ...]
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = ["device", "holds", "weights", "workspace", "staging", "all", "of"]
        shares = any(stage.share is not None for stages in self.replicas for stage in stages)
        table = [[*head, "share of the work"] if shares else head]
        for device in self.devices:
            sizes = [device.weights, device.workspace, device.staging, device.bytes, device.limit]
            line = [device.name, ", ".join(self._held(device.name)), *map(_size, sizes)]
            if device.limit == 0:
                line[-1] = "no limit"
            table.append([*line, self._work(device.name)] if shares else line)
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        rows = [
            "  ".join(
                cell.rjust(width) if i > 1 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        ]
        placed = self.parallel if self.fits else "it does NOT fit"
        said = [self.title, ": ".join(text for text in (placed, self.why) if text) or "placed by hand"]
        return "\n".join([*said, "", *(row.rstrip() for row in rows), *("" for _ in self.advice[:1]), *self.advice])

    def _stages(self, name: str) -> Iterator[tuple[int, Stage]]:
        for number, stages in enumerate(self.replicas):
            yield from ((number, stage) for stage in stages if name in stage.devices)

    def _held(self, name: str) -> Iterator[str]:
        for number, stage in self._stages(name):
            replica = f"replica {number} " if len(self.replicas) > 1 else ""
            last = stage.last_layer - 1
            layers = f"layers {stage.first_layer}-{last}" if last > stage.first_layer else f"layer {last}"
            ranks = len(stage.devices)
            streamed = stage.window and stage.window < stage.last_layer - stage.first_layer
            room = f", room for {stage.window} at a time" if streamed else ""
            yield replica + layers + (f", 1/{ranks} of each" if ranks > 1 else room)

    def _work(self, name: str) -> str:
        share = sum((stage.share or 0.0) / len(stage.devices) for _, stage in self._stages(name))
        return f"{100 * share / len(self.replicas):.0f} %"


def placement_of(title: str, said: Mapping[str, object], advice: Sequence[str] = ()) -> Placement:
    """From what the C side says: _core.Engine.placement or _core.plan."""
    names = [device["name"] for device in said["devices"]]
    costs = iter(said.get("stage_costs", ()))
    replicas = []
    for stages in said["replicas"]:
        shares = [next(costs, None) for _ in stages]
        whole = sum(share or 0.0 for share in shares)
        replicas.append(
            tuple(
                Stage(
                    stage["first_layer"],
                    stage["last_layer"],
                    tuple(names[i] for i in stage["devices"]),
                    share / whole if share else None,
                    stage["window"],
                )
                for stage, share in zip(stages, shares, strict=True)
            )
        )
    fields = ("name", "limit", "weights", "workspace", "staging")
    devices = tuple(Device(*(device[field] for field in fields)) for device in said["devices"])
    return Placement(
        title, said["parallel"], said["why"], said.get("fits", True), devices, tuple(replicas), tuple(advice)
    )


def plan(
    model: str | os.PathLike[str] | Mapping[str, object],
    devices: str | Sequence[str] = "auto",
    memory: int | str | Sequence[int | str] | None = None,
    parallel: str = "auto",
    dtype: str = "auto",
    cpu_path: str | None = None,
) -> Placement:
    """Where firesteel.Engine would put a model, and what it would take there. Print it: it is a table.

    model     folder with config.json (weights are not read, and need not be there), or what else firesteel.Engine takes
              as a model, or a config as a dict
    devices   as in firesteel.Engine; none is opened, so they need not be of this machine
    memory    bytes of each device, also as "24GB", or a list, one for each; None: what this process may use of its
              host, as its container says. The memory of a GPU has to be said.
    parallel, dtype, cpu_path    as in firesteel.Engine; of a GPU all types are taken to be computed

    The same code plans in an engine, and allocates by these figures. Raises CheckpointError and ConfigError; a model
    that does not fit is no error here: `fits` is False, and `why` says what is missing and what would fit.

    Example:

    >>> there = firesteel.plan(model, devices=["cuda:0", "cuda:1"], memory="8GB")
    >>> there.parallel, there.fits, [device.name for device in there.devices]
    ('replicate', True, ['cuda:0', 'cuda:1'])
    """
    options = engine_options(devices=devices, parallel=parallel, dtype=dtype, cpu_path=cpu_path)
    sizes = memory if isinstance(memory, (list, tuple)) else [memory]
    if isinstance(model, Mapping):
        folder, config, tensors, chain = "config", dict(model), [], Chain()
    else:
        folder, config, tensors, chain = outline(seen(model))
    if not tensors:  # one entry, larger than any module's, that says what the weights would be saved in
        saved = _SAVED.get(str(config.get("torch_dtype") or config.get("dtype")), "F32")
        tensors = [("weights", saved, (1 << 60,), 0, 0, 1 << 62)]
    said = _core.plan(
        config=config,
        tensors=[*tensors, *chain.tensors],
        chain=chain.steps,
        devices=options["devices"],
        memory=[byte_count(size, "memory") for size in sizes],
        dtype=options["dtype"],
        parallel=options["parallel"],
        cpu_path=options["cpu_path"],
        name=one_line(folder),
    )
    title = f"{config['model_type']}, {said['layers']} layers, {said['dtype']}, {_size(said['weights'])} of weights"
    return placement_of(title, said, _advice(said))


def _advice(said: Mapping[str, object]) -> Iterator[str]:
    names = [device["name"] for device in said["devices"]]
    count, on_host = len(names), names[0].startswith("cpu")
    if not on_host and "split" in said["parallel"] and "tensor" not in said["parallel"]:
        sizes = count, said["heads"], said["inner_width"]
        degrees = [degree for degree in (2, 4, 8) if all(size % degree == 0 for size in sizes)]
        if degrees:
            yield f'For few long rows over NVLink parallel="tensor={degrees[-1]}" may pay; it gives rows other bits.'
    charged = ("weights", "workspace", "staging") if on_host else ("staging",)
    host = sum(device[name] for device in said["devices"] for name in charged) + MARGIN
    settings = {
        "spark.executor.memoryOverhead": (f">= {-(-host >> 20)}m", "host memory of the manager; workers come on top")
    }
    if not on_host:
        settings["spark.executor.resource.gpu.amount"] = (f"= {count}", "an executor has all of these GPUs")
        settings["spark.task.resource.gpu.amount"] = (
            f"= {count} / spark.executor.cores",
            "and all of its tasks feed them",
        )
    yield "Spark, where the tasks of an executor share its manager's engine:"
    for name, (value, meaning) in settings.items():
        yield f"  {name + ' ' + value:45}  {meaning}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"
