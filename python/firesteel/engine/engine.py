"""An engine in this process: texts, token ids or features in, NumPy arrays out.

Everything goes one way: rows -> windows -> token ids -> jobs of the C engine, which writes into an array made up front.
The first window is small and each next one twice as large, so the devices start at once and tokenising a window happens
while they compute the one before. Nothing waits until the caller asks for a result.

    Engine.start_embed, start_classify, start_rerank, start_hidden_states -> Pending
                                         faults of rows are values, Pending.result() waits; what the Spark side uses
    Engine.embed, classify, rerank, hidden_states
                                         the same, waited for; faults of rows raise RequestError
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from .. import _core
from .._core import ConfigError, Error, RequestError
from ..host.values import plain
from ..model.checkpoint import Checkpoint
from ..model.heads import warn_of_head
from ..model.labels import NONE, classifier_of, label_names, reranker_of
from ..model.locate import find
from ..model.sentence import pooling_modes
from ..model.tokenizer import Tokenizer, set_threads
from .claims import Claim, open_engine
from .given import as_pairs, as_rows, hold_texts
from .options import check_truncate, engine_options, prompt_text
from .pending import Pending, plain_empty, result_or_error
from .placement import Placement, placement_of
from .rows import FlatRows, Rows, encoded, joined, window_of, windows_of
from .scores import activated, first_of

_SCORED = ("classify", "rerank")  # by a head, whose logits are one row's result
# How errors call what a task is given.
_SIDES = {"embed": ("texts", ""), "classify": ("texts", "text_pairs"), "rerank": ("queries", "documents")}


class Engine:
    """A model on this process' devices.

    model       folder with config.json, *.safetensors and tokenizer.json, be it on a network mount; "file:///...",
                "dbfs:/...", "models:/name/version", "models:/name@alias" (MLflow); a hub id, "org/name" or
                "org/name@revision"
    devices     "auto": all GPUs where there are any, else the CPU; "cpu", "cuda" (all GPUs), "cuda:1", or a list;
                ["cpu:0", "cpu:1"] cuts the cores in two
    parallel    how several devices are used: "replicate", the whole model on each; "split", its layers cut into as many
                stages; "tensor", each layer shared by all, whose degree is part of a row's bits; "stream", layers that
                find no room in max_memory come again for each pass of many rows; combinations such as
                "replicate=2,split=2", whose numbers multiply to the number of devices; "auto": "replicate" where the
                model fits on one device, else as few stages as it takes, else "stream"
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
        options = engine_options(
            devices=devices,
            parallel=parallel,
            dtype=dtype,
            max_memory=max_memory,
            threads=threads,
            cpu_path=cpu_path,
        )
        checkpoint = Checkpoint.open(find(model))
        tokenizing = options["threads"] or os.environ.get("FIRESTEEL_THREADS", "")
        if str(tokenizing).isdecimal() and int(tokenizing) > 0:  # the C side complains about any other value
            set_threads(int(tokenizing))
        self._open(
            checkpoint,
            lambda: self._claimed(
                config=checkpoint.config,
                tensors=checkpoint.tensors,
                files=checkpoint.files,
                chain=checkpoint.chain.steps,
                name=checkpoint.folder,
                **options,
            ),
        )

    def _claimed(self, **options: object) -> _core.Engine:
        core, self._claim = open_engine(**options)
        return core

    def _open(self, checkpoint: Checkpoint, open_core: Callable[[], _core.Engine]) -> None:
        self._claim = Claim()
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        self._tokenizer: Tokenizer | None = None
        preload = threading.Thread(target=self._preload)  # parsing a vocabulary while the weights are read
        preload.start()
        try:
            self._core = open_core()
        finally:
            preload.join()
        settings = self._core.settings
        self._width: int = settings["width"]
        self._positions: int = settings["positions"]
        self._any_length: bool = settings["any_length"]
        self._labels: int = settings["labels"]
        self._typed: bool = settings["token_types"] > 1
        self._rows: str = settings["rows"]
        self._targets: str | None = settings["targets"]

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
        prompt_name: str | None = None,
    ) -> np.ndarray:
        """One vector a row: float32 [rows, dimension].

        texts       strings, or rows of token ids (lists of int, or int arrays), which need no tokenizer; arrays of
                    numbers [tokens, width] where the model takes features (`settings["rows"]`). A list, an array, or a
                    column of pandas, Arrow or polars; what most rows are, texts or ids, all have to be. A missing value
                    (None, NaN, NA) is a fault of its row
        pooling     "auto": as the folder says, mean where it says nothing; else "cls", "mean", "max",
                    "mean_sqrt_len_tokens", "weightedmean", "lasttoken", or a list of these, put side by side
        normalize   "auto": as the folder says, no where it says nothing
        max_length  tokens of a row, special ones included; None: as the folder says, at most the model's positions
        prompt      a text that is put before each text; None: the folder's default prompt; "": none. The name of a
                    prompt is no text, and refused
        prompt_name instead, a prompt of the folder, by its name (`settings["prompts"]`); "query" and "document", which
                    sentence-transformers knows everywhere, are no prompt where the folder has none of that name
        dimensions  keep the first n of each vector, before normalising
        truncate    True: longer texts are cut at max_length, on the side that the folder says; "left", "right": on this
                    side; "error": they are faults of their rows

        Rows of token ids are taken as they are: one that is too long is a fault, because cutting it would take its last
        special token. Raises RequestError naming all rows that have a fault (`error.rows`: row, code, sentence).

        Example::

            engine.embed(["how do I parse a date?"], prompt="query: ")      # float32 [1, 384]
        """
        return result_or_error(
            self.start_embed(texts, pooling, normalize, max_length, prompt, dimensions, truncate, prompt_name)
        )

    def start_embed(
        self,
        texts: Rows,
        pooling: str | Sequence[str] = "auto",
        normalize: bool | str = "auto",
        max_length: int | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        truncate: bool | str = True,
        prompt_name: str | None = None,
    ) -> Pending:
        """As `embed`, but returns once all rows are tokenised and queued; a missing value is a null row: no work.

        Example::

            pending = engine.start_embed(["one", None])
            vectors, errors = pending.result()           # float32 [2, 384], the second row NaN; []
        """
        return self._start(
            "embed", texts, pooling, normalize, max_length, prompt, dimensions, truncate, prompt_name=prompt_name
        )

    def classify(
        self,
        texts: Rows,
        text_pairs: Rows | None = None,
        max_length: int | None = None,
        truncate: bool | str = True,
        raw: bool = False,
    ) -> np.ndarray:
        """A classifier's scores: float32 [rows, labels], labels in the order of `settings["labels"]`.

        They are those of transformers' text-classification pipeline: softmax over the labels; sigmoid of each where
        config.json's problem_type is multi_label_classification, or there is one label; nothing is done for regression.

        texts       as in `embed`
        text_pairs  second texts, one for each row, of models that judge pairs; the longer of both is cut first
        max_length, truncate    as in `embed`
        raw         the logits, as they are

        Raises ConfigError where the model has no head of a *ForSequenceClassification, and RequestError as `embed`.

        Example::

            scores = engine.classify(["what a fine day"])       # float32 [1, 2]
            [engine.settings["labels"][best] for best in scores.argmax(axis=1)]       # ["POSITIVE"]
        """
        return result_or_error(self.start_classify(texts, text_pairs, max_length, truncate, raw))

    def start_classify(
        self,
        texts: Rows,
        text_pairs: Rows | None = None,
        max_length: int | None = None,
        truncate: bool | str = True,
        raw: bool = False,
    ) -> Pending:
        """As `classify`, but returns once all rows are queued; a missing value on either side is a null row: no work.

        Example::

            scores, errors = engine.start_classify(["one", None]).result()     # float32 [2, 2], the second row NaN; []
        """
        raw = _truth("raw", raw)
        head = classifier_of(self._checkpoint, self._labels)
        finish = partial(activated, activation=NONE if raw else head.activation)
        return self._start(
            "classify", texts, "auto", False, max_length, "", None, truncate, pairs=text_pairs, finish=finish
        )

    def rerank(
        self,
        queries: str | Rows,
        documents: Rows,
        max_length: int | None = None,
        truncate: bool | str = True,
        raw: bool = False,
    ) -> np.ndarray:
        """How well each document answers its query: float32 [rows], higher is better.

        They are the scores of sentence-transformers' CrossEncoder: of a head with one label, through the activation
        that the folder names (`activation_fn`, `sbert_ce_default_activation_function`), else a sigmoid.

        queries     one text for all documents, or one for each
        documents   texts; the longer of query and document is cut first
        max_length, truncate    as in `embed`
        raw         the logits, as they are

        Raises ConfigError where the model's head has not one label, and RequestError as `embed`.

        Example::

            scores = engine.rerank("how do I parse a date?", ["to_date(column, format)", "a fine day"])
            best = scores.argsort()[::-1]
        """
        return result_or_error(self.start_rerank(queries, documents, max_length, truncate, raw))

    def start_rerank(
        self,
        queries: str | Rows,
        documents: Rows,
        max_length: int | None = None,
        truncate: bool | str = True,
        raw: bool = False,
    ) -> Pending:
        """As `rerank`, but returns once all rows are queued; a missing value on either side is a null row: no work.

        Example::

            scores, errors = engine.start_rerank("a query", ["a document", None]).result()    # float32 [2], []
        """
        head = reranker_of(self._checkpoint, self._labels, _truth("raw", raw))
        documents = as_rows(documents, "documents")
        if isinstance(queries, str):
            queries = [queries] * len(documents)
        finish = partial(first_of, activation=head.activation)
        return self._start(
            "rerank", queries, "auto", False, max_length, None, None, truncate, pairs=documents, finish=finish
        )

    def hidden_states(self, rows: Rows, targets: Rows | None = None) -> list[np.ndarray]:
        """transformers' last_hidden_state, or the output of a PyTorch module: float32 [tokens, hidden] a row.

        rows     token ids, or strings, which are tokenised, and cut at the folder's length, as in `embed`; or features,
                 numbers [tokens, width], where the model takes those. `settings["rows"]` says "ids" or "features".
        targets  of a model with a decoder, and of no other: the decoder's input, one for each row, token ids or
                 features as `settings["targets"]` says. `rows` are then the encoder's input or, where the model is a
                 decoder alone, the memory it attends to. The result has the targets' tokens.

        Arrays of one call may share memory. Raises RequestError naming all rows that have a fault, and where targets
        are missing, superfluous, or not as many as rows.

        Example::

            engine.hidden_states([[101, 7592, 102]])[0].shape      # (3, 384)
        """
        return result_or_error(self._start("hidden_states", rows, "auto", False, None, "", None, True, targets))

    def start_hidden_states(
        self, rows: Rows, targets: Rows | None = None, max_length: int | None = None, truncate: bool | str = True
    ) -> Pending:
        """As `hidden_states`, but returns once all rows are queued; a missing value is a null row: no work.

        max_length and truncate are as in `embed`.

        Example::

            states, offsets, errors = engine.start_hidden_states([[101, 7592, 102], None]).flat_result()
            states.shape, offsets      # (3, 384), [0, 3, 3]
        """
        return self._start("hidden_states", rows, "auto", False, max_length, "", None, truncate, targets)

    def dimension(self, pooling: str | Sequence[str] = "auto", dimensions: int | None = None) -> int:
        """Floats in one vector that `embed` makes with these options."""
        pooling, dimensions = plain(pooling), plain(dimensions)
        width = self._checkpoint.chain.width(self._width * len(self._pooling(pooling)))
        return self._dimensions(dimensions, False, width) or width

    # --- what it is

    @property
    def settings(self) -> dict[str, object]:
        """What was resolved when the model was opened: architecture, sizes, dtype, pooling, length, prompts."""
        sentence = self._checkpoint.sentence
        return {
            **self._core.settings,
            "folder": self._checkpoint.folder,
            "labels": list(label_names(self._checkpoint.config, self._labels)),
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
        self._claim.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({self._checkpoint.folder!r})"

    def __reduce__(self) -> str:
        raise RequestError(
            f"{self!r} lives in the process that opened it, and can be neither pickled nor copied: open it inside the "
            f"function that runs elsewhere, or use firesteel.connect there; for Spark's columns there is "
            f"firesteel.embed_udf"
        )

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
        targets: Rows | None = None,
        prompt_name: object = None,
        pairs: Rows | None = None,
        finish: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Pending:
        sentence = self._checkpoint.sentence
        pooling, normalize, max_length, prompt, dimensions, truncate, prompt_name = map(
            plain, (pooling, normalize, max_length, prompt, dimensions, truncate, prompt_name)
        )
        modes = self._pooling(pooling) if task == "embed" else ()
        if isinstance(normalize, str) and normalize == "auto":
            normalize = sentence.normalize
        if not isinstance(normalize, bool):
            raise RequestError(f'normalize is {normalize!r}; True, False or "auto" belongs there')
        check_truncate(truncate)
        width = self._labels if task in _SCORED else self._width
        if task == "embed":
            width = self._checkpoint.chain.width(self._width * len(modes))
        keep = self._dimensions(dimensions, normalize, width) if task == "embed" else 0
        limit = self._max_length(max_length)
        most = None if self._any_length and max_length is None else limit  # the engine says what a batch has room for
        names = _SIDES.get(task, ("rows", ""))
        rows = as_rows(rows, names[0])
        texts = hold_texts(rows)
        if pairs is not None:
            pairs, texts = as_pairs(rows, pairs, names), True
        if task == "hidden_states":
            targets = self._checked_targets(targets, len(rows))
        elif task == "embed":
            warn_of_head(self._checkpoint.folder, self._checkpoint.head)
        if texts and self._rows == "features":
            raise RequestError(f"the rows are texts; the model takes features, numbers [tokens, {self._width}]")
        prefix = prompt_text(sentence, prompt, prompt_name)
        if texts:
            if prefix and not sentence.include_prompt and task == "embed":
                raise ConfigError(
                    f"{self._checkpoint.folder}: its Pooling has include_prompt = false, which is not supported; pass "
                    f'prompt="" to embed without a prompt'
                )
            tokenizer = self._tokenizer_once()
        elif prefix and (prompt, prompt_name) != (None, None):
            raise RequestError("prompt goes before texts; rows of token ids are taken as they are")
        sides = ((rows, self._rows), (targets, self._targets))
        features = [side for side, kind in sides if kind == "features" and isinstance(side, list)]

        pending = Pending(task, len(rows), keep or width, getattr(self._core, "empty", plain_empty), finish)
        options = {"task": task, "pooling": modes, "normalize": normalize, "dimensions": keep}
        if task in _SCORED:
            options = {"task": "classify"}
        try:
            for begin, end in windows_of(rows, texts, features, self._width, pairs):
                if texts:
                    seconds = None if pairs is None else pairs[begin:end]
                    window = encoded(tokenizer, rows[begin:end], limit, truncate, prefix, seconds, self._typed)
                else:
                    window = window_of(rows, begin, end, most, self._rows, self._width)
                if targets is not None:
                    window = joined(
                        window, window_of(targets, begin, end, None, self._targets, self._width), end - begin
                    )
                pending._submit(self._core, begin, end, window, options)
        except BaseException:
            pending.cancel()
            raise
        return pending

    def _checked_targets(self, targets: Rows | None, rows: int) -> FlatRows | list[object] | None:
        if targets is None and self._targets is None:
            return None
        if targets is None:
            raise RequestError("the model has a decoder, whose input is missing; give targets, one for each row")
        if self._targets is None:
            raise RequestError("targets were given to a model without a decoder; leave them out")
        targets = as_rows(targets, "targets")
        if len(targets) != rows:
            raise RequestError(f"there are {len(targets)} targets and {rows} rows; each row has one")
        return targets

    def _preload(self) -> None:
        """Whatever is wrong with the tokenizer is said at the first text: rows of token ids need none."""
        with suppress(Error):
            self._tokenizer_once()

    def _tokenizer_once(self) -> Tokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = Tokenizer(self._checkpoint)
            return self._tokenizer


def _truth(name: str, value: object) -> bool:
    value = plain(value)
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {value!r}; True or False belongs there")
    return value
