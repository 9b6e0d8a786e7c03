"""Special tokens that stand in a text are plain text: `</s>` typed by a user does not end the row.

The library looks for no special tokens where it is asked so. But a Unigram model holds the same words as pieces, with
the best of scores, so that `</s>` would come out again, and so would what the normalizer makes `</s>` of. SentencePiece
itself never gives such a piece; so rows in which one came out are tokenised again, with its name hidden in the model.
A special token that is a word, as where a folder says "mask_token": "the", stays the word that it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers

_HIDDEN = "\uffff \uffff"  # no pre-tokenizer leaves a word with such a space


class Plain:
    """Which rows hold special tokens that no template put there."""

    def __init__(self, built: tokenizers.Tokenizer) -> None:
        """`built` looks for no special tokens, if the library can do so."""
        self.can = hasattr(built, "encode_special_tokens")
        kind = type(built.model).__name__
        pieces = dict(_marks(built))
        if kind == "Unigram":
            unknown = built.id_to_token(json.loads(built.model.__getstate__())["unk_id"] or 0)
        else:
            unknown = built.model.unk_token
        reached = not self.can or _gives_marks(built, kind)
        ids = {number for token, number in pieces.items() if token != unknown} if reached else set()
        self._is_mark = np.zeros(max(ids, default=-1) + 2, bool)  # the last is for all higher ids
        self._is_mark[list(ids)] = True
        self._own = [int(self._marks(np.array(built.encode(*texts).ids, np.int32)).sum()) for texts in ([""], ["", ""])]
        # An unknown character has the same id as the piece; only its name in the text tells them apart.
        self._unknown = unknown if reached and self.can and unknown in pieces and kind == "Unigram" else None

    @property
    def any(self) -> bool:
        return self._is_mark.size > 1 or self._unknown is not None

    def rows(self, ids: np.ndarray, offsets: np.ndarray, sides: Sequence[Sequence[str]]) -> list[int]:
        """Rows of `ids` to tokenise once more, ascending. `sides`: their texts, or first and second texts."""
        found: set[int] = set()
        if self._is_mark.size > 1:
            count = np.concatenate(([0], np.cumsum(self._marks(ids))))
            more = np.diff(count[offsets]) > self._own[len(sides) - 1]
            found.update(np.flatnonzero(more).tolist())
        if self._unknown is not None:
            for texts in sides:
                found.update(row for row, text in enumerate(texts) if self._unknown in text)
        return sorted(found)

    def _marks(self, ids: np.ndarray) -> np.ndarray:
        return self._is_mark[np.minimum(ids, self._is_mark.size - 1)]


def look_for_none(built: tokenizers.Tokenizer) -> None:
    if hasattr(built, "encode_special_tokens"):
        built.encode_special_tokens = True


def hide(built: tokenizers.Tokenizer) -> None:
    """Special tokens lose their names in the model, and keep their ids."""
    model = json.loads(built.model.__getstate__())
    names = {token for token, _ in _marks(built)}
    if isinstance(model["vocab"], list):
        model["vocab"] = [[_HIDDEN * (piece in names) + piece, score] for piece, score in model["vocab"]]
    else:
        names.discard(model.get("unk_token"))
        model["vocab"] = {_HIDDEN * (piece in names) + piece: number for piece, number in model["vocab"].items()}
    state = type(built.model)()
    state.__setstate__(json.dumps(model).encode())
    built.model = state


def _marks(built: tokenizers.Tokenizer) -> Iterator[tuple[str, int]]:
    """Special tokens that are no words, and their ids."""
    for number, token in json_tokens_of(built):
        if token["special"] and not token["content"].isalnum():
            yield token["content"], number


def json_tokens_of(built: tokenizers.Tokenizer) -> Iterator[tuple[int, dict[str, object]]]:
    """(id, flags) of the added tokens."""
    if hasattr(built, "get_added_tokens_decoder"):
        for number, token in sorted(built.get_added_tokens_decoder().items()):
            yield number, {flag: getattr(token, flag) for flag in ("content", "special", "normalized", "rstrip")}
    else:
        for item in json.loads(built.to_str())["added_tokens"]:
            yield item["id"], item


def _gives_marks(built: tokenizers.Tokenizer, kind: str) -> bool:
    """Whether the model can give them for a text: byte pairs have no merges to them, and BERT cuts at punctuation."""
    if kind == "WordPiece" and built.pre_tokenizer is not None:
        return json.loads(built.pre_tokenizer.__getstate__()).get("type") != "BertPreTokenizer"
    return kind != "BPE"
