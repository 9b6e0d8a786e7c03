"""Text to token ids, by Hugging Face `tokenizers`, in parallel and with the GIL released.

The answer is flat: all ids one after the other (int32) and where each row starts (int64), as the engine takes them. The
library hands out one Python object a row at most; what happens to its ids happens once for all rows.

How many threads work is a setting of the whole process, because the library owns one pool a process: `set_threads`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._core import CheckpointError, RequestError

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
        """Reads tokenizer.json, or builds what a vocab.txt of BERT stands for.

        Raises CheckpointError when there is neither, or when the file is damaged.
        """
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        self._ready: dict[int, tokenizers.Tokenizer] = {}  # by max_length; 0: never truncates
        first = self._load()
        self.special_tokens: int = first.num_special_tokens_to_add(False)
        self._spare: tokenizers.Tokenizer | None = first

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
                found, self._spare = self._spare or self._load(), None
                if max_length:
                    side = self._checkpoint.tokenizer_config.get("truncation_side", "right")
                    found.enable_truncation(max_length, direction="left" if side == "left" else "right")
                while len(self._ready) >= _KEPT:
                    del self._ready[next(iter(self._ready))]
            self._ready[max_length] = found  # the latest used is the last
            return found

    def _load(self) -> tokenizers.Tokenizer:
        """A fresh library object that neither pads nor truncates, whatever its file says."""
        import tokenizers

        path = self._checkpoint.tokenizer_file
        if path is None:
            folder = self._checkpoint.folder
            raise CheckpointError(
                f'{folder}: tokenizer.json is missing; give rows of token ids, or make it once: python -c "from '
                f'transformers import AutoTokenizer as T; p = {folder!r}; T.from_pretrained(p).save_pretrained(p)"'
            )
        config = self._checkpoint.tokenizer_config
        if path.endswith("vocab.txt"):
            loaded = _from_vocab(path, self._checkpoint)
        else:
            try:
                with open(path, "rb") as file:  # the library takes no path that is not UTF-8
                    loaded = tokenizers.Tokenizer.from_buffer(file.read())
            except Exception as error:  # the library has no exception class of its own
                raise CheckpointError(f"{path}: tokenizers {tokenizers.__version__} cannot read it: {error}") from None
        loaded.no_padding()
        loaded.no_truncation()
        normalizer = loaded.normalizer
        if isinstance(normalizer, tokenizers.normalizers.BertNormalizer):
            # As in transformers, where the two files differ tokenizer_config.json is right.
            names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
            names["tokenize_chinese_chars"] = "handle_chinese_chars"
            for key, name in names.items():
                if key in config and getattr(normalizer, name) != config[key]:
                    setattr(normalizer, name, config[key])
        if self._checkpoint.sentence.do_lower_case:
            lower = tokenizers.normalizers.Lowercase()
            loaded.normalizer = tokenizers.normalizers.Sequence([lower] if normalizer is None else [lower, normalizer])
        return loaded


def _from_vocab(path: str, checkpoint: Checkpoint) -> tokenizers.Tokenizer:
    """What BertTokenizer makes of a vocab.txt: one token a line, the line number is its id."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    config = checkpoint.tokenizer_config
    if checkpoint.config.get("model_type") != "bert":
        raise CheckpointError(f"{path}: only a bert's vocab.txt can be used alone; tokenizer.json is missing")
    try:
        with open(path, encoding="utf-8") as file:
            vocab = {line.rstrip("\n"): number for number, line in enumerate(file)}
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    names = {}
    for role in ("unk", "sep", "pad", "cls", "mask"):
        token = config.get(f"{role}_token", f"[{role.upper()}]")
        names[role] = str(token.get("content") if isinstance(token, dict) else token)
    missing = [names[role] for role in ("unk", "sep", "cls") if names[role] not in vocab]
    if missing:
        raise CheckpointError(f"{path}: lacks {json.dumps(missing)}, which every row needs")
    built = Tokenizer(models.WordPiece(vocab, unk_token=names["unk"], max_input_chars_per_word=100))
    built.normalizer = normalizers.BertNormalizer(clean_text=True)  # tokenizer_config.json is applied by the caller
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = names["cls"], names["sep"]
    built.post_processor = processors.BertProcessing((sep, vocab[sep]), (cls, vocab[cls]))
    built.add_special_tokens([token for token in names.values() if token in vocab])
    return built


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
