"""An engine in this process: texts or token ids in, NumPy arrays out.

Everything goes one way: rows -> windows -> token ids -> jobs of the C engine, which writes into an array made up front.
The first window is small and each next one twice as large, so the devices start at once and tokenising a window happens
while they compute the one before. Nothing waits until the caller asks for a result.

    Engine.start_embed -> Pending        faults of rows are values, Pending.result() waits; what the Spark side uses
    Engine.embed, Engine.hidden_states   the same, waited for; faults of rows raise RequestError
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import _core
from ._core import ConfigError, Error, RequestError
from .checkpoint import Checkpoint, pooling_modes
from .placement import Placement, placement_of
from .tokenizer import RowError, Tokenizer, set_threads

FIRST_WINDOW = 256  # rows; the next ones double, up to
LAST_WINDOW = 4096
WINDOW_CHARACTERS = 1 << 20  # the tokeniser needs some 50 bytes for each while it works
LISTED_ROWS = 20  # bad rows that a RequestError spells out

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class FlatRows:
    """Rows of token ids that already lie one after the other, as an Arrow list column does."""

    ids: np.ndarray  # integers [T]
    offsets: np.ndarray  # integers [rows + 1], ascending, inside ids
    nulls: np.ndarray | None = None  # bool [rows]

    def __len__(self) -> int:
        return len(self.offsets) - 1


Rows = Sequence[object] | np.ndarray | FlatRows


class Engine:
    """A model on this process' devices.

    model       folder with config.json, *.safetensors and tokenizer.json
    devices     "auto": all GPUs where there are any, else the CPU; "cpu", "cuda" (all GPUs), "cuda:1", or a list;
                ["cpu:0", "cpu:1"] cuts the cores in two
    parallel    how several devices are used: "replicate", the whole model on each; "split", its layers cut into as many
                stages; "tensor", each layer shared by all, whose degree is part of a row's bits; combinations such as
                "replicate=2,split=2", whose numbers multiply to the number of devices; "auto": "replicate" where the
                model fits on one device, else as few stages as it takes
    dtype       "auto": the checkpoint's where the device computes in it, else fp32; or "fp32", "fp16", "bf16"
    max_memory  bytes a device may take, also as "2GB" or "512MiB"; None: what there is
    threads     of all CPU devices and of the tokeniser; None: FIRESTEEL_THREADS, else the cores this process may use
    cpu_path    "avx512", "avx2" or "portable"; None: the best this CPU has

    Threads may share an engine. A process forked from this one may not use it: DeviceError. Raises CheckpointError,
    ConfigError, DeviceError or OutOfMemory where the model cannot be opened.

    Example::

        with firesteel.Engine("models/all-MiniLM-L6-v2") as engine:
            vectors = engine.embed(["a sentence", "and another"])      # float32 [2, 384]
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        devices: str | Sequence[str] = "auto",
        parallel: str = "auto",
        dtype: str = "auto",
        max_memory: int | str | None = None,
        threads: int | None = None,
        cpu_path: str | None = None,
    ) -> None:
        wanted = string_tuple("devices", devices)
        if not isinstance(parallel, str):
            raise ConfigError(f'parallel is {parallel!r}; a string such as "replicate" or "split" belongs there')
        if not isinstance(dtype, str):
            raise ConfigError(f'dtype is {dtype!r}; a string such as "fp32" belongs there')
        if threads is not None and (type(threads) is not int or not 1 <= threads <= 4096):
            raise ConfigError(f"threads is {threads!r}; a whole number from 1 to 4096, or None, belongs there")
        if cpu_path is not None and not isinstance(cpu_path, str):
            raise ConfigError(f'cpu_path is {cpu_path!r}; "avx512", "avx2", "portable" or None belongs there')
        memory = byte_count(max_memory)
        self._checkpoint = checkpoint = Checkpoint.open(model)
        self._lock = threading.Lock()
        self._tokenizer: Tokenizer | None = None
        tokenizing = threads or os.environ.get("FIRESTEEL_THREADS", "")
        if str(tokenizing).isdecimal() and int(tokenizing) > 0:  # the C side complains about any other value
            set_threads(int(tokenizing))
        preload = threading.Thread(target=self._preload)  # parsing a vocabulary while the weights are read
        preload.start()
        try:
            self._core = _core.Engine(
                config=checkpoint.config,
                tensors=checkpoint.tensors,
                files=checkpoint.files,
                name=checkpoint.folder,
                devices=wanted,
                dtype=dtype,
                threads=threads or 0,
                max_memory=memory,
                cpu_path=cpu_path,
                parallel=parallel,
            )
        finally:
            preload.join()
        settings = self._core.settings
        self._width: int = settings["width"]
        self._positions: int = settings["positions"]

    # --- what it computes

    def embed(
        self,
        texts: Rows,
        pooling: str | Sequence[str] = "auto",
        normalize: bool | str = "auto",
        max_length: int | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        truncate: bool | str = True,
    ) -> np.ndarray:
        """One vector a row: float32 [rows, dimension].

        texts       strings, or rows of token ids (lists of int, or int arrays), which need no tokenizer
        pooling     "auto": as the folder says, mean where it says nothing; else "cls", "mean", "max",
                    "mean_sqrt_len_tokens", "weightedmean", "lasttoken", or a list of these, put side by side
        normalize   "auto": as the folder says, no where it says nothing
        max_length  tokens of a row, special ones included; None: as the folder says, at most the model's positions
        prompt      put before each text: one of the folder's prompts, by its name, else this text itself; None: the
                    folder's default prompt; "": none
        dimensions  keep the first n of each vector, before normalising
        truncate    True: longer texts are cut at max_length; "error": they are faults of their rows

        Rows of token ids are taken as they are: one that is too long is a fault, because cutting it would take its last
        special token. Raises RequestError naming all rows that have a fault (`error.rows`: row, code, sentence).

        Example::

            engine.embed(["how do I parse a date?"], prompt="query: ")      # float32 [1, 384]
        """
        return _all_or_error(self.start_embed(texts, pooling, normalize, max_length, prompt, dimensions, truncate))

    def start_embed(
        self,
        texts: Rows,
        pooling: str | Sequence[str] = "auto",
        normalize: bool | str = "auto",
        max_length: int | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        truncate: bool | str = True,
    ) -> Pending:
        """As `embed`, but returns once all rows are tokenised and queued; None is a null row, on which no work is done.

        Example::

            pending = engine.start_embed(["one", None])
            vectors, errors = pending.result()           # float32 [2, 384], the second row NaN; []
        """
        return self._start("embed", texts, pooling, normalize, max_length, prompt, dimensions, truncate)

    def hidden_states(self, rows: Rows) -> list[np.ndarray]:
        """transformers' last_hidden_state: float32 [tokens, hidden] a row.

        Rows are token ids or strings, which are tokenised, and cut at the folder's length, as in `embed`. Rows of one
        call may share memory. Raises RequestError naming all rows that have a fault.

        Example::

            engine.hidden_states([[101, 7592, 102]])[0].shape      # (3, 384)
        """
        return _all_or_error(self._start("hidden_states", rows, "auto", False, None, "", None, True))

    def dimension(self, pooling: str | Sequence[str] = "auto", dimensions: int | None = None) -> int:
        """Floats in one vector that `embed` makes with these options."""
        width = self._width * len(self._pooling(pooling))
        return self._dimensions(dimensions, False, width) or width

    # --- what it is

    @property
    def settings(self) -> dict[str, object]:
        """What was resolved when the model was opened: architecture, sizes, dtype, pooling, length, prompts."""
        sentence = self._checkpoint.sentence
        return {
            **self._core.settings,
            "folder": self._checkpoint.folder,
            "pooling": list(sentence.pooling),
            "normalize": sentence.normalize,
            "max_length": self._max_length(None),
            "prompts": dict(sentence.prompts),
            "default_prompt_name": sentence.default_prompt_name,
        }

    @property
    def placement(self) -> Placement:
        """Which layers lie on which device, and the bytes taken there. Print it: it is a table."""
        settings = self._core.settings
        title = f"{settings['model_type']}, {settings['layers']} layers, {settings['dtype']}"
        return placement_of(title, self._core.placement)

    @property
    def numerics(self) -> str:
        """Backend, kernel path and dtype: two engines with the same one give the same bits for the same row."""
        return self._core.numerics

    def stats(self) -> dict[str, object]:
        """Rows, tokens, batches, replicas, and of each device memory and busy seconds, since the engine was opened."""
        return self._core.stats()

    def close(self) -> None:
        """Gives threads and memory back; unfinished calls raise RequestError. Closing twice is fine."""
        self._core.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({self._checkpoint.folder!r})"

    # --- options

    def _pooling(self, pooling: object) -> tuple[str, ...]:
        if isinstance(pooling, str) and pooling == "auto":
            return self._checkpoint.sentence.pooling
        return pooling_modes(pooling, "embed")

    def _dimensions(self, dimensions: object, normalize: bool, width: int) -> int:
        """0: all of them."""
        if dimensions is None:
            dimensions = self._checkpoint.sentence.truncate_dim
            if dimensions is None:
                return 0
            if normalize:
                raise ConfigError(
                    f"{self._checkpoint.folder}: truncate_dim = {dimensions} cuts vectors after they were normalised, "
                    f"which is not supported; pass dimensions={dimensions}, which cuts before"
                )
        if type(dimensions) is not int or not 1 <= dimensions <= width:
            raise RequestError(f"dimensions is {dimensions!r}; vectors have {width}, so 1 to {width} belongs there")
        return dimensions

    def _max_length(self, max_length: object) -> int:
        if max_length is None:
            return min(self._checkpoint.sentence.max_length or self._positions, self._positions)
        if type(max_length) is not int or not 1 <= max_length <= self._positions:
            raise RequestError(
                f"max_length is {max_length!r}; the model has {self._positions} positions, so 1 to {self._positions} "
                f"belongs there"
            )
        return max_length

    def _prompt(self, prompt: object) -> str:
        sentence = self._checkpoint.sentence
        if prompt is None:
            text = sentence.prompts[sentence.default_prompt_name] if sentence.default_prompt_name is not None else ""
        elif isinstance(prompt, str):
            text = sentence.prompts.get(prompt, prompt)
        else:
            raise RequestError(f"prompt is a {type(prompt).__name__}; a string or None belongs there")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise RequestError(f"prompt {text!r} has a lone surrogate, which is no Unicode text") from None
        return text

    # --- the way of the rows

    def _start(
        self,
        task: str,
        rows: Rows,
        pooling: object,
        normalize: object,
        max_length: object,
        prompt: object,
        dimensions: object,
        truncate: object,
    ) -> Pending:
        sentence = self._checkpoint.sentence
        modes = self._pooling(pooling) if task == "embed" else ()
        if isinstance(normalize, str) and normalize == "auto":
            normalize = sentence.normalize
        if not isinstance(normalize, (bool, np.bool_)):
            raise RequestError(f'normalize is {normalize!r}; True, False or "auto" belongs there')
        if truncate is not True and not (isinstance(truncate, str) and truncate == "error"):
            raise RequestError(f'truncate is {truncate!r}; True or "error" belongs there')
        width = self._width * max(1, len(modes))
        keep = self._dimensions(dimensions, bool(normalize), width) if task == "embed" else 0
        limit = self._max_length(max_length)
        rows = _as_rows(rows)
        texts = _hold_texts(rows)
        if texts:
            prefix = self._prompt(prompt)
            if prefix and not sentence.include_prompt and task == "embed":
                raise ConfigError(
                    f"{self._checkpoint.folder}: its Pooling has include_prompt = false, which is not supported; pass "
                    f'prompt="" to embed without a prompt'
                )
            tokenizer = self._tokenizer_once()
        elif prompt:
            raise RequestError("prompt goes before texts; rows of token ids are taken as they are")

        pending = Pending(task, len(rows), keep or width)
        options = {"task": task, "pooling": modes, "normalize": bool(normalize), "dimensions": keep}
        try:
            for begin, end in _windows(rows, texts):
                if texts:
                    window = _encode(tokenizer, rows[begin:end], limit, truncate is True, prefix)
                else:
                    window = _id_window(rows, begin, end, limit)
                pending._submit(self._core, begin, end, window, options)
        except BaseException:
            pending.cancel()
            raise
        return pending

    def _preload(self) -> None:
        """Whatever is wrong with the tokenizer is said at the first text: rows of token ids need none."""
        with suppress(Error):
            self._tokenizer_once()

    def _tokenizer_once(self) -> Tokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = Tokenizer(self._checkpoint)
            return self._tokenizer


class Pending:
    """Rows on their way. `tokens` int32 [rows]: what each row costs, 0 where it is null or has a fault.

    Dropping it without asking for the result cancels what has not run.
    """

    def __init__(self, task: str, rows: int, width: int) -> None:
        self.tokens = np.zeros(rows, np.int32)
        self.nulls = np.zeros(rows, bool)
        self._task = task
        self._width = width
        self._parts: list[_Part] = []
        self._errors: list[RowError] = []
        self._lock = threading.Lock()
        self._collected: tuple[np.ndarray | list[np.ndarray], list[RowError]] | None = None
        # One array for all windows; rows that are not computed are NaN, so that none is taken for a vector.
        self._vectors = np.empty((rows, width) if task == "embed" else (0, 0), np.float32)

    def result(self) -> tuple[np.ndarray | list[np.ndarray], list[RowError]]:
        """Waits. (float32 [rows, dimension], [(row, row code, sentence), ...]); null and faulty rows are NaN.

        Raises what failed the whole request: DeviceError, OutOfMemory, RequestError after `cancel`. Ctrl-C cancels.
        """
        try:
            for part in self._parts:
                part.job.wait()
        except BaseException:
            self.cancel()
            raise
        with self._lock:
            if self._collected is None:
                self._collected = self._collect()
            return self._collected

    def cancel(self) -> None:
        """Takes what has not run out of the queue; afterwards nothing writes to the result any more."""
        for part in reversed(self._parts):  # a job waits for its batches that run; cancelled later, it would start more
            part.job.cancel()

    def _submit(self, core: _core.Engine, begin: int, end: int, window: _Window, options: Mapping[str, object]) -> None:
        """Queues rows [begin, end), of which `window` holds those that can be computed."""
        self._errors += [(begin + row, code, sentence) for row, code, sentence in window.errors]
        self.nulls[begin:end] = window.nulls
        count = len(window.offsets) - 1
        rows = np.arange(begin, end) if window.rows is None else begin + window.rows
        self.tokens[rows] = np.diff(window.offsets)
        if self._task != "embed":
            out = np.empty((len(window.ids), self._width), np.float32)
        elif count == end - begin:
            out = self._vectors[begin:end]
        else:
            self._vectors[begin:end] = np.nan
            out = np.empty((count, self._width), np.float32)
        if count:
            job = core.submit(window.ids, window.offsets, out, **options)
            self._parts.append(_Part(job, rows, window.offsets, out))

    def _collect(self) -> tuple[np.ndarray | list[np.ndarray], list[RowError]]:
        errors = list(self._errors)
        states = [np.empty((0, self._width), np.float32)] * len(self.tokens)
        for part in self._parts:
            failed = [(int(part.rows[row]), code, sentence) for row, code, sentence in part.job.errors]
            errors += failed
            if self._task != "embed":
                for row, begin, end in zip(part.rows, part.offsets, part.offsets[1:], strict=False):
                    states[row] = part.out[begin:end]
            elif part.out.base is not self._vectors:
                self._vectors[part.rows] = part.out
            for row, _, _ in failed:
                self.tokens[row] = 0
                if self._task == "embed":
                    self._vectors[row] = np.nan
        return (self._vectors if self._task == "embed" else states), sorted(errors)


class _Part(NamedTuple):
    job: _core.Job
    rows: np.ndarray  # int64, where its rows stand in the request
    offsets: np.ndarray
    out: np.ndarray


class _Window(NamedTuple):
    """Some consecutive rows, tokenised: those that can be computed, packed, and why the others cannot."""

    ids: np.ndarray  # int32 [T]
    offsets: np.ndarray  # int64 [computable rows + 1]
    rows: np.ndarray | None  # int64, which rows of the window these are; None: all
    nulls: np.ndarray | bool  # bool [rows], or one answer for all
    errors: list[RowError]


def _encode(tokenizer: Tokenizer, texts: list[object], limit: int, truncate: bool, prompt: str) -> _Window:
    live = None
    nulls: np.ndarray | bool = False
    if None in texts:
        nulls = np.fromiter((text is None for text in texts), bool, len(texts))
        live = np.flatnonzero(~nulls)
        texts = [text for text in texts if text is not None]
    ids, offsets, errors = tokenizer.encode(texts, limit, truncate, prompt)
    if errors:
        good = np.ones(len(texts), bool)
        good[[row for row, _, _ in errors]] = False
        if live is None:
            live = np.arange(len(texts))
        errors = [(int(live[row]), code, sentence) for row, code, sentence in errors]
        live = live[good]
        offsets = np.append(offsets[:-1][good], offsets[-1])  # rows with an error have no tokens
    return _Window(ids, offsets, live, nulls, errors)


def _id_window(rows: FlatRows | list[object], begin: int, end: int, limit: int) -> _Window:
    errors: list[RowError] = []
    if not isinstance(rows, FlatRows):
        rows, begin, end = _flat(rows[begin:end], errors), 0, end - begin
    offsets = rows.offsets[begin : end + 1].astype(np.int64)
    ids = rows.ids[offsets[0] : offsets[-1]]
    offsets -= offsets[0]
    lengths = np.diff(offsets)
    good = np.ones(end - begin, bool)
    good[[row for row, _, _ in errors]] = False
    nulls = np.zeros(end - begin, bool) if rows.nulls is None else rows.nulls[begin:end]
    good[nulls] = False
    for row in np.flatnonzero(good & (lengths > limit)).tolist():
        errors.append((row, "TOO_LONG", f"the row has {lengths[row]} tokens; the limit is {limit}"))
        good[row] = False
    if ids.dtype != np.int32:  # what does not fit cannot be in any vocabulary; the engine checks the rest
        for at in np.flatnonzero((ids < -(2**31)) | (ids >= 2**31)).tolist():
            row = int(np.searchsorted(offsets, at, side="right")) - 1
            if good[row]:
                errors.append((row, "SCHEMA", f"the row has the token id {ids[at]}, which is in no vocabulary"))
                good[row] = False
    if good.all():
        return _Window(np.ascontiguousarray(ids, np.int32), offsets, None, nulls, errors)
    ids = ids[np.repeat(good, lengths)]
    offsets = np.concatenate(([0], np.cumsum(lengths[good])))
    return _Window(np.ascontiguousarray(ids, np.int32), offsets, np.flatnonzero(good), nulls, errors)


def _flat(rows: list[object], errors: list[RowError]) -> FlatRows:
    """Lists of token ids, one array a row, laid one after the other. What is no such list gets an error and no ids."""
    nothing = np.empty(0, np.int64)
    flat, nulls = [], np.zeros(len(rows), bool)
    for number, row in enumerate(rows):
        ids = nothing
        if row is None:
            nulls[number] = True
        elif isinstance(row, (str, bytes, bytearray)) or not hasattr(row, "__len__"):
            errors.append((number, "SCHEMA", f"the row is a {type(row).__name__}; a list of token ids belongs there"))
        elif len(row):
            try:
                ids = np.asarray(row)
                if ids.dtype == np.uint64:  # would make floats of the others
                    ids = np.minimum(ids, 2**62).astype(np.int64)
            except (ValueError, OverflowError, TypeError):
                ids = np.empty(0)
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                ids = nothing
                errors.append((number, "SCHEMA", "the row is no flat list of whole numbers that fit into 64 bits"))
        flat.append(ids)
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(ids) for ids in flat], out=offsets[1:])
    return FlatRows(np.concatenate(flat) if flat else nothing, offsets, nulls)


def _as_rows(rows: object) -> FlatRows | list[object]:
    if isinstance(rows, FlatRows):
        parts = (rows.ids, rows.offsets, rows.nulls)
        ids, offsets, nulls = (None if part is None else np.asarray(part) for part in parts)
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
            raise RequestError("FlatRows takes two flat arrays of whole numbers, ids and offsets")
        ascending = len(offsets) > 0 and offsets[0] >= 0 and not (np.diff(offsets.astype(np.int64)) < 0).any()
        if not ascending or offsets[-1] > len(ids):
            raise RequestError(f"FlatRows' offsets do not ascend from 0 on, to {len(ids)} ids at most")
        if nulls is not None and (nulls.dtype != bool or nulls.shape != (len(offsets) - 1,)):
            raise RequestError(f"FlatRows' nulls must be bool [{len(offsets) - 1}], one a row")
        return FlatRows(ids, offsets, nulls)
    if isinstance(rows, (str, bytes)):
        raise RequestError(f"texts is one {type(rows).__name__}; a list of rows belongs there: [text]")
    if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype.kind in "iu":
        return FlatRows(rows.reshape(-1), np.arange(rows.shape[0] + 1) * rows.shape[1])
    try:
        return list(rows.tolist() if isinstance(rows, np.ndarray) else rows)
    except TypeError:
        raise RequestError(f"texts is a {type(rows).__name__}; a list of rows belongs there") from None


def _hold_texts(rows: FlatRows | list[object]) -> bool:
    """One call is all texts or all token ids; the first row that is not null decides."""
    return not isinstance(rows, FlatRows) and isinstance(next((row for row in rows if row is not None), None), str)


def _windows(rows: FlatRows | list[object], texts: bool) -> Iterator[tuple[int, int]]:
    begin, most = 0, FIRST_WINDOW
    while begin < len(rows):
        end = min(len(rows), begin + most)
        if texts:
            sizes = np.fromiter((len(t) if isinstance(t, str) else 0 for t in rows[begin:end]), np.int64, end - begin)
            end = begin + max(1, int(np.searchsorted(np.cumsum(sizes), WINDOW_CHARACTERS, side="right")))
        yield begin, end
        begin, most = end, min(2 * most, LAST_WINDOW)


def _all_or_error(pending: Pending) -> np.ndarray | list[np.ndarray]:
    found, errors = pending.result()
    none = "the row is None; a text or a list of token ids belongs there"
    errors = sorted(errors + [(row, "SCHEMA", none) for row in np.flatnonzero(pending.nulls).tolist()])
    if not errors:
        return found
    listed = "; ".join(f"row {row} ({code}): {sentence}" for row, code, sentence in errors[:LISTED_ROWS])
    rest = f"; and {len(errors) - LISTED_ROWS} more" if len(errors) > LISTED_ROWS else ""
    failure = RequestError(f"{len(errors)} of {len(pending.tokens)} rows cannot be computed: {listed}{rest}")
    failure.rows = errors
    raise failure


# --- options of Engine -----------------------------------------------------------------------------------------------


def string_tuple(name: str, value: object) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not listed or not all(isinstance(item, str) for item in listed):
        raise ConfigError(f'{name} is {value!r}; a string or a list of strings belongs there, such as "cpu"')
    return tuple(listed)


def byte_count(value: object, name: str = "max_memory") -> int:
    """0: no limit of our own."""
    if value is None:
        return 0
    if type(value) is int and 0 < value < 2**63:
        return value
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([KMGT]i?B)?", value.strip(), re.IGNORECASE | re.ASCII)
        size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
        if 0 < size < 2**63:
            return size
    raise ConfigError(f'{name} is {value!r}; bytes or a size such as "2GB" or "512MiB" belongs there')
