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

from .._core import CheckpointError, RequestError
from .tokenizer_cuts import Cuts
from .tokenizer_files import Loaded, load, named_errors
from .tokenizer_plain import Plain, hide, look_for_none

if TYPE_CHECKING:
    import tokenizers

    from .checkpoint import Checkpoint

RowError = tuple[int, str, str]  # row, row code, sentence
Truncate = bool | str  # True, "left", "right"; False and "error" do not cut
TYPE_BITS = 24  # bits of an id; a token's type in its pair stands above them
_CHARACTERS = 8  # of a long text for each token that is kept, at first
_KEPT = 8  # tokenizers of other lengths that are kept ready


class Encoded(NamedTuple):
    ids: np.ndarray  # int32 [T]; of pairs: id | type << TYPE_BITS
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

    def __init__(self, checkpoint: Checkpoint, special_tokens: bool = False) -> None:
        """Reads the folder's tokenizer files as `tokenizer_files` says. Raises what its `load` raises.

        special_tokens    True: those that stand in a text are special there too, as in transformers; False: a user's
                          `[SEP]` or `</s>` is plain text, and only the template puts special tokens into a row
        """
        self._checkpoint = checkpoint
        self._special = special_tokens
        self._lock = threading.Lock()
        # By max_length (0: never truncates), side, and whether the model's special tokens are hidden.
        self._ready: dict[tuple[int, str, bool], tokenizers.Tokenizer] = {}
        first = self._load()
        self._side, self._typed = first.truncation_side, first.typed
        self._added = [first.tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)]
        self._spare: Loaded | None = first
        with named_errors(str(checkpoint.tokenizer_file)):
            self._plain = None if special_tokens else Plain(first.tokenizer)
            self._cuts = Cuts(first.tokenizer)

    def encode(
        self,
        texts: Sequence[str],
        max_length: int,
        truncate: Truncate = True,
        prompt: str = "",
        pairs: Sequence[str] | None = None,
    ) -> Encoded:
        """Token ids of `texts`, each with `prompt` before it and the special tokens around it.

        truncate    True: a row longer than `max_length` tokens is cut there, on the side that the folder says; "left",
                    "right": on this side; "error" or False: it becomes the row error TOO_LONG
        pairs       second texts, one a row: row and second text become one row by the tokenizer's own template, the
                    longer one is cut first, and each id carries the type of its token, if the model is given types

        Text with lone surrogates is BAD_UTF8, what is no string is SCHEMA.
        """
        if truncate not in (True, False, "left", "right", "error"):
            raise RequestError(f'truncate is {truncate!r}; True, "left", "right" or "error" belongs there')
        added = self._added[pairs is not None]
        if max_length < added:
            raise RequestError(f"max_length is {max_length}; {added} special tokens alone need {added}")
        if pairs is not None and len(pairs) != len(texts):
            raise RequestError(f"there are {len(pairs)} second texts and {len(texts)} rows; each row has one")
        cuts = truncate not in (False, "error")
        side = truncate if cuts and truncate is not True else self._side
        faults: dict[int, RowError] = {}
        sides = _Sides(texts, pairs, prompt)
        encodings = self._encodings(sides, max_length if cuts else 0, side, faults)
        if self._plain is not None:
            self._make_plain(self._plain, encodings, sides, max_length if cuts else 0, side, faults)
        rows = len(encodings)
        lengths = np.fromiter(map(len, encodings), np.int64, rows)
        if not cuts:
            for row in np.flatnonzero(lengths > max_length).tolist():
                if row not in faults:
                    said = f"the row has {lengths[row]} tokens; the limit is {max_length}"
                    faults[row] = (row, "TOO_LONG", said)
        if faults:
            lengths[list(faults)] = 0
            encodings = [encoding for row, encoding in enumerate(encodings) if row not in faults]
        ids, offsets = _flat(encodings, lengths)
        if pairs is not None:
            self._add_types(ids, encodings)
        return Encoded(ids, offsets, [faults[row] for row in sorted(faults)])

    def _encodings(
        self, sides: _Sides, max_length: int, side: str, faults: dict[int, RowError]
    ) -> list[tokenizers.Encoding]:
        sides.keep_strings(faults)
        with named_errors(str(self._checkpoint.tokenizer_file)):
            tokenizer = self._tokenizer(max_length, side)
            if max_length:
                self._shorten(sides, tokenizer, max_length, side)
            try:
                return self._run(tokenizer, sides.inputs())
            except (TypeError, UnicodeError):  # the only strings it refuses are those UTF-8 cannot say
                sides.keep_unicode(faults)
                return self._run(tokenizer, sides.inputs())

    @staticmethod
    def _run(
        tokenizer: tokenizers.Tokenizer, inputs: list[str] | list[tuple[str, str]], add_special_tokens: bool = True
    ) -> list[tokenizers.Encoding]:
        """All text goes to the library here."""
        encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
        return encode(inputs, add_special_tokens=add_special_tokens)

    def _shorten(self, sides: _Sides, tokenizer: tokenizers.Tokenizer, max_length: int, side: str) -> None:
        """Of texts that are far too long, only as much stays as settles which tokens are kept."""
        count = _CHARACTERS * (max_length + 8)
        rows = sides.longer_than(2 * count)
        if not rows:
            return
        room = max_length - self._added[len(sides.texts) - 1]
        whole = sides.whole = sides.texts
        sides.texts = [list(texts) for texts in whole]
        while rows:
            parts = {}
            for row in rows:
                texts = [texts[row] for texts in whole]
                kept = [self._cuts.kept(text, count, side) if len(text) > 2 * count else text for text in texts]
                if kept != texts and all(map(_is_unicode, texts)):  # else the row stays as it is
                    parts[row] = kept
            encodings = iter(self._run(tokenizer, [text for kept in parts.values() for text in kept], False))
            rows = []
            for row, kept in parts.items():
                tokens = [_tokens(next(encodings)) for _ in kept]
                cut = [part is not texts[row] for part, texts in zip(kept, whole, strict=True)]
                if _settled(tokens, cut, room):
                    for texts, part in zip(sides.texts, kept, strict=True):
                        texts[row] = part
                elif any(2 * len(part) < len(texts[row]) for part, texts in zip(kept, whole, strict=True)):
                    rows.append(row)
            count *= 8

    def _make_plain(
        self,
        plain: Plain,
        encodings: list[tokenizers.Encoding],
        sides: _Sides,
        max_length: int,
        side: str,
        faults: dict[int, RowError],
    ) -> None:
        """Rows with special tokens from their texts are tokenised once more, without."""
        if not plain.any:
            return
        ids, offsets = _flat(encodings, np.fromiter(map(len, encodings), np.int64, len(encodings)))
        again = plain.rows(ids, offsets, sides.texts)
        if not plain.can:
            import tokenizers

            said = (
                f"the text holds a special token, which tokenizers {tokenizers.__version__} cannot take as plain text"
            )
            for row in again:
                faults.setdefault(row, (row, "SCHEMA", f"{said}; install a newer one"))
        elif again:
            some = sides.of(again)
            with named_errors(str(self._checkpoint.tokenizer_file)):
                hidden = self._tokenizer(max_length, side, hidden=True)
                if max_length:
                    self._shorten(some, hidden, max_length, side)
                for row, encoding in zip(again, self._run(hidden, some.inputs()), strict=True):
                    encodings[row] = encoding

    def _add_types(self, ids: np.ndarray, encodings: list[tokenizers.Encoding]) -> None:
        if ids.size and int(ids.max()) >> TYPE_BITS:
            raise CheckpointError(
                f"{self._checkpoint.tokenizer_file}: a token has id {ids.max()}; ids of pairs end at {2**TYPE_BITS - 1}"
            )
        if self._typed:
            types = np.fromiter(chain.from_iterable(e.type_ids for e in encodings), np.int32, ids.size)
            if types.size and int(types.max()) > 127:
                raise CheckpointError(
                    f"{self._checkpoint.tokenizer_file}: a pair has tokens of type {types.max()}; types end at 127"
                )
            ids |= types << TYPE_BITS

    def _load(self) -> Loaded:
        loaded = load(self._checkpoint)
        if not self._special:
            look_for_none(loaded.tokenizer)
        return loaded

    def _tokenizer(self, max_length: int, side: str, hidden: bool = False) -> tokenizers.Tokenizer:
        """The library's object for one length. Changing one while another thread encodes with it would raise there."""
        key = (max_length, side if max_length else "", hidden)
        with self._lock:
            found = self._ready.pop(key, None)
            if found is None:
                loaded, self._spare = self._spare or self._load(), None
                found = loaded.tokenizer
                if hidden:
                    hide(found)
                if max_length:
                    found.enable_truncation(max_length, strategy="longest_first", direction=side)
                while len(self._ready) >= _KEPT:
                    del self._ready[next(iter(self._ready))]
            self._ready[key] = found  # the latest used is the last
            return found


def _tokens(encoding: tokenizers.Encoding) -> int:
    """How many tokens there were before the rest was cut."""
    return len(encoding) + sum(map(len, encoding.overflowing))


def _settled(tokens: list[int], cut: list[bool], room: int) -> bool:
    """Whether texts of which some are `cut` to so many `tokens` leave the same in `room` tokens as the whole ones.

    Of two texts that are both longer than the room, the longer one keeps the odd token.
    """
    if any(count <= room for count, is_cut in zip(tokens, cut, strict=True) if is_cut):
        return False
    if len(tokens) == 1 or min(tokens) <= room or room % 2 == 0:
        return True
    return not all(cut) and tokens[cut.index(True)] > tokens[cut.index(False)]


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _flat(encodings: list[tokenizers.Encoding], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All ids one after the other, and where rows of these lengths begin; a row without tokens may have no encoding."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, int(offsets[-1])), offsets


class _Sides:
    """The texts of some rows, or their first and second texts, with the prompt before the first."""

    def __init__(self, texts: Sequence[object], pairs: Sequence[object] | None, prompt: str) -> None:
        self.texts: list[Sequence[object]] = [texts] if pairs is None else [texts, pairs]
        self.whole: list[Sequence[object]] | None = None  # where some were shortened
        self._prompt = prompt
        self._names = ["the row"] if pairs is None else ["the first text", "the second text"]

    def inputs(self) -> list[str] | list[tuple[str, str]]:
        """As the library takes them."""
        return list(self.texts[0]) if len(self.texts) == 1 else list(zip(*self.texts, strict=True))

    def of(self, rows: list[int]) -> _Sides:
        """Some rows, as long as they were at first."""
        some = _Sides([], [] if len(self.texts) > 1 else None, "")
        some.texts = [[texts[row] for row in rows] for texts in self.whole or self.texts]
        return some

    def longer_than(self, characters: int) -> list[int]:
        """Rows of which a text is."""
        found = {row for texts in self.texts for row, text in enumerate(texts) if len(text) > characters}
        return sorted(found)

    def keep_strings(self, faults: dict[int, RowError]) -> None:
        """What is no string becomes an empty one and a fault; then the prompt is there."""
        for at, (texts, name) in enumerate(zip(self.texts, self._names, strict=True)):
            if not set(map(type, texts)) <= {str}:
                self.texts[at] = _strings_only(texts, name, faults)
        if self._prompt:
            self.texts[0] = [self._prompt + text for text in self.texts[0]]

    def keep_unicode(self, faults: dict[int, RowError]) -> None:
        for at, (texts, name) in enumerate(zip(self.texts, self._names, strict=True)):
            skip = 0 if at else len(self._prompt)
            self.texts[at] = _unicode_only(texts, skip, name.replace("row", "text"), faults)


def _strings_only(texts: Sequence[object], name: str, faults: dict[int, RowError]) -> list[str]:
    kept = []
    for row, text in enumerate(texts):
        if isinstance(text, str):
            kept.append(str(text))
        else:
            said = f"{name} is a {type(text).__name__}; a string belongs there"
            faults.setdefault(row, (row, "SCHEMA", said))
            kept.append("")
    return kept


def _unicode_only(texts: Sequence[str], skip: int, name: str, faults: dict[int, RowError]) -> list[str]:
    """`skip`: characters of the prompt in front of each text."""
    kept = []
    for row, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            what = f"the lone surrogate U+{ord(text[error.start]):04X} at character {error.start - skip}"
            faults.setdefault(row, (row, "BAD_UTF8", f"{name} has {what}"))
            text = ""
        kept.append(text)
    return kept
