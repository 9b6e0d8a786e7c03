"""Text to token ids, by Hugging Face `tokenizers`, in parallel and with the GIL released.

The answer is flat: all ids one after the other (int32) and where each row starts (int64), as the engine takes them. The
library hands out one Python object a row at most; what happens to its ids happens once for all rows.

How many threads work is a setting of the whole process, because the library owns one pool a process: `set_threads`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._core import RequestError
from .tokenizer_files import Loaded, load, named_errors

if TYPE_CHECKING:
    import tokenizers

    from .checkpoint import Checkpoint

RowError = tuple[int, str, str]  # row, row code, sentence
_KEPT = 8  # tokenizers of other lengths that are kept ready


class Encoded(NamedTuple):
    ids: np.ndarray  # int32 [T]
    offsets: np.ndarray  # int64 [rows + 1]; a row with an error has no tokens
    errors: list[RowError]


def set_threads(count: int) -> None:
    """How many threads tokenise in this process; call it before the first text.

    The library reads RAYON_NUM_THREADS when its pool starts, with the first batch of texts, and keeps that pool for the
    life of the process. A later call can still go down to 1 (no pool is used) and back up (the first pool is), but
    to no other number. Without a call the pool has one thread for each core this process may use.
    """
    if type(count) is not int or count < 1:
        raise RequestError(f"threads is {count!r}; a whole number from 1 on belongs there")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if count > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(count)


class Tokenizer:
    """The tokenizer of one checkpoint. Threads may share it: a library object is never changed once it is in use.

    Example::

        tokenizer = Tokenizer(Checkpoint.open(folder))
        ids, offsets, errors = tokenizer.encode(["hello world"], max_length=256)     # ids: [101, 7592, 2088, 102]
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Reads the folder's tokenizer files as `tokenizer_files` says. Raises what its `load` raises."""
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        self._ready: dict[int, tokenizers.Tokenizer] = {}  # by max_length; 0: never truncates
        first = load(checkpoint)
        self.special_tokens: int = first.tokenizer.num_special_tokens_to_add(False)
        self._spare: Loaded | None = first

    def encode(self, texts: Sequence[str], max_length: int, truncate: bool = True, prompt: str = "") -> Encoded:
        """Token ids of `texts`, each with `prompt` before it and the special tokens around it.

        A row longer than `max_length` tokens is cut there as transformers does it, or becomes the row error TOO_LONG
        when `truncate` is false. Text with lone surrogates is BAD_UTF8, what is no string is SCHEMA.
        """
        if max_length < self.special_tokens:
            raise RequestError(
                f"max_length is {max_length}; {self.special_tokens} special tokens alone need {self.special_tokens}"
            )
        errors: list[RowError] = []
        if not set(map(type, texts)) <= {str}:
            texts = _strings_only(texts, errors)
        if prompt:
            texts = [prompt + text for text in texts]
        tokenizer = self._tokenizer(max_length if truncate else 0)
        encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
        with named_errors(str(self._checkpoint.tokenizer_file)):
            try:
                encodings = encode(texts)
            except (TypeError, UnicodeError):  # the only strings it refuses are those UTF-8 cannot say
                texts = _unicode_only(texts, len(prompt), errors)
                encodings = encode(texts)
        rows = len(encodings)
        lengths = np.fromiter(map(len, encodings), np.int64, rows)
        dropped = {row for row, _, _ in errors}
        if not truncate:
            for row in np.flatnonzero(lengths > max_length).tolist():
                if row not in dropped:
                    dropped.add(row)
                    errors.append((row, "TOO_LONG", f"the row has {lengths[row]} tokens; the limit is {max_length}"))
        if dropped:
            lengths[list(dropped)] = 0
            encodings = [encoding for row, encoding in enumerate(encodings) if row not in dropped]
            errors.sort()
        offsets = np.zeros(rows + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, int(offsets[-1]))
        return Encoded(ids, offsets, errors)

    def _tokenizer(self, max_length: int) -> tokenizers.Tokenizer:
        """The library's object for one length. Changing one while another thread encodes with it would raise there."""
        with self._lock:
            found = self._ready.pop(max_length, None)
            if found is None:
                (found, side), self._spare = self._spare or load(self._checkpoint), None
                if max_length:
                    found.enable_truncation(max_length, direction=side)
                while len(self._ready) >= _KEPT:
                    del self._ready[next(iter(self._ready))]
            self._ready[max_length] = found  # the latest used is the last
            return found


def _strings_only(texts: Sequence[object], errors: list[RowError]) -> list[str]:
    kept = []
    for row, text in enumerate(texts):
        if isinstance(text, str):
            kept.append(str(text))
        else:
            errors.append((row, "SCHEMA", f"the row is a {type(text).__name__}; a string belongs there"))
            kept.append("")
    return kept


def _unicode_only(texts: Sequence[str], skip: int, errors: list[RowError]) -> list[str]:
    """`skip`: characters of the prompt in front of each text."""
    kept = []
    for row, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            what = f"the lone surrogate U+{ord(text[error.start]):04X} at character {error.start - skip}"
            errors.append((row, "BAD_UTF8", f"the text has {what}"))
            text = ""
        kept.append(text)
    return kept
