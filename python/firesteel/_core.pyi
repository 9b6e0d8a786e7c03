"""The C engine. `firesteel.Engine` is the friendly face; everything here is a thin, checked door into csrc/.

Importing this module opens no device, thread, file or socket.
"""

from collections.abc import Sequence

import numpy as np

build: str  # version and commit this extension was built from

# Of all of them: strings among the arguments become plain_text.
class Error(Exception): ...
class CheckpointError(Error): ...
class ConfigError(Error): ...
class DeviceError(Error): ...
class OutOfMemory(Error): ...
class ManagerError(Error): ...
class RequestError(Error): ...

# name, dtype as safetensors spells it ("F32", "F16", ...), shape, index into files, byte offset in that file, bytes
Tensor = tuple[str, str, tuple[int, ...], int, int, int]
# first layer, one past the last layer, indices into devices (more than one: a tensor group); when all layers are there
# the next stage begins another replica
Stage = tuple[int, int, tuple[int, ...]]

class Engine:
    def __init__(
        self,
        *,
        config: dict[str, object],
        tensors: Sequence[Tensor],
        files: Sequence[str],
        name: str = "",
        devices: Sequence[str] = ("cpu",),
        dtype: str = "auto",
        threads: int = 0,
        max_memory: int = 0,
        cpu_path: str | None = None,
        plan: Sequence[Stage] | None = None,
        parallel: str | None = None,
        # ("dense", activation), ("norm", eps), ("unit",): the steps behind pooling, in their order; the tensors of the
        # third are modules.2.weight and modules.2.bias
        chain: Sequence[tuple[object, ...]] = (),
    ) -> None: ...
    @property
    def settings(self) -> dict[str, object]: ...
    @property
    def placement(self) -> dict[str, object]: ...
    @property
    def numerics(self) -> str: ...
    def submit(
        self,
        rows: np.ndarray,  # one after the other: int32 [T], or float32 [T, width] where settings["rows"] == "features"
        offsets: np.ndarray,  # int64 [rows + 1], offsets[0] == 0, offsets[rows] == T
        out: np.ndarray,  # float32, written in place: [rows, dim] for "embed", [T, D] for "hidden_states"
        *,
        task: str,  # "embed" | "hidden_states"
        # of a model with a decoder, one for each row, ids or features as settings["targets"] says; T is then theirs
        targets: np.ndarray | None = None,
        target_offsets: np.ndarray | None = None,  # int64 [rows + 1]
        # "cls" "mean" "max" "mean_sqrt_len" "weightedmean" "lasttoken"; several: put side by side
        pooling: Sequence[str] = (),
        normalize: bool = False,
        dimensions: int = 0,  # keep the first n of the pooled vector, before normalising; 0: all
    ) -> Job: ...
    def fileno(self) -> int: ...  # an eventfd: readable when a job has finished
    def stats(self) -> dict[str, object]: ...
    def close(self) -> None: ...

# The two ends of a manager's connection. An ask and its answer are bytes of JSON, see service.py.
class Server:
    # a unix socket of packets that listens; workers of another build are refused; bytes of results that are kept
    def __init__(self, listening: int, build: str, store_bytes: int = 0) -> None: ...
    def take(self, timeout: float) -> tuple[int, int, bytes, list[int]] | None: ...  # connection, serial, body, files
    def answer(self, connection: int, serial: int, body: bytes) -> None: ...
    def serve(self, model: int, engine: Engine) -> None: ...
    def retire(self, model: int) -> None: ...
    def use(self, model: int) -> tuple[int, float]: ...
    def clients(self) -> list[dict[str, int]]: ...
    def stats(self) -> dict[str, float]: ...
    def close(self) -> None: ...

class Client:
    def __init__(self, build: str, patience: float) -> None: ...
    def connect(self, fd: int) -> None: ...
    def disconnect(self) -> None: ...
    def ask(self, body: bytes, fds: Sequence[int] = ()) -> bytes: ...
    def empty(self, rows: int, width: int) -> np.ndarray: ...  # float32, in memory that the manager can write to
    # model, rows, offsets, out of empty(), and the rest as in Engine.submit
    def submit(self, model: int, *arrays: np.ndarray, **options: object) -> Job: ...
    @property
    def manager_pid(self) -> int: ...  # 0: not connected

class Job:
    def wait(self, timeout: float = -1.0) -> bool: ...  # False: not finished in time; raises what failed the job
    def cancel(self) -> None: ...  # after it returns nothing writes to `out`
    @property
    def errors(self) -> list[tuple[int, str, str]]: ...  # (row, row code, sentence): rows that were not computed
    @property
    def hits(self) -> int: ...  # rows that a manager knew from before
    @property
    def duplicates(self) -> int: ...  # rows that were copied from an equal row

# "model_type", "architectures" (patterns), "base", "head" (names of weights)
def architectures() -> list[dict[str, object]]: ...
def devices() -> list[dict[str, object]]: ...  # {"backend", "count"} of what could be opened; nothing is opened

# cores, affinity, quota, total, available, cgroup_limit, address_limit (bytes; 0: none), and "paths": the CPU kernel
# paths best first, as (name, None or why it cannot run here)
def host() -> dict[str, object]: ...

# The next four open what they ask: the CUDA driver and, for a moment, each GPU; cuBLASLt; NCCL. DeviceError without.
# "cuda": 12090 for 12.9; "gpus": name, capability (8, 0), total and free bytes, image (the kernels this build has for
# it, or None), problem (None, or why an engine cannot use it)
def gpus() -> dict[str, object]: ...

# (name, UUID) of the GPUs that an engine with these devices would open, [] where they are CPUs; opens the driver only
def gpu_ids(devices: Sequence[str]) -> list[tuple[str, str]]: ...
def cublaslt() -> dict[str, object]: ...  # "version": 120901 for 12.9.1; "file": where it was found
def nccl() -> int: ...  # 22705 for 2.27.5
def knobs() -> list[dict[str, str]]: ...  # name, default, what it does
def row_codes() -> list[dict[str, str]]: ...  # code, what it means

# Where a model would go; no device is opened, no weight read. Keys: "parallel", "why", "fits", "dtype", "layers",
# "heads", "inner_width", "weights" (bytes on one device), "batch_tokens", "slots"; "devices" (name, limit, weights,
# workspace, staging in bytes); "replicas" (of each its stages: first_layer, last_layer, devices); "stage_costs"
# (multiply-adds of a full batch, of all stages one after the other)
def plain_text(text: str) -> str: ...  # one line of valid UTF-8; what is neither becomes escapes: "caf\\xe9"
def plan(
    *,
    config: dict[str, object],
    tensors: Sequence[Tensor] = (),
    devices: Sequence[str] = ("auto",),
    memory: Sequence[int] = (),  # bytes of each device, or one for all; 0: what the host has
    dtype: str = "auto",
    parallel: str | None = None,
    cpu_path: str | None = None,
    name: str = "config",  # the model's folder, which sentences name
    chain: Sequence[tuple[object, ...]] = (),  # as in Engine
) -> dict[str, object]: ...

# Raises the ConfigError that Engine would raise for these options on any machine, without asking this one what it has.
# config None: whatever the model; else also for numbers that this model cannot be cut into
def check_options(
    *,
    devices: Sequence[str] = ("auto",),
    parallel: str | None = None,
    dtype: str = "auto",
    cpu_path: str | None = None,
    threads: int = 0,
    config: dict[str, object] | None = None,
    name: str = "config",
) -> None: ...

# (name, shape) of each tensor that a model of this config has, a head's excepted
def weights(config: dict[str, object], name: str = "config") -> list[tuple[str, tuple[int, ...]]]: ...

# the ops one batch runs, from the measure backend
def trace(
    config: dict[str, object], lengths: Sequence[int], targets: Sequence[int] | None = None, name: str = "config"
) -> str: ...
