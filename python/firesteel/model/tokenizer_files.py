"""From the tokenizer files of a folder to the library's object: the one that transformers makes of them.

The measure is what sentence-transformers 6.2 computes with transformers 5.24. What a file says that would change tokens
is done as there, or it is refused by file, key and value; tests compare the two for every class, key and file below.

Which class   tokenizer_config.json's tokenizer_class, else config.json's, else what belongs to the model_type. Only the
              vocabulary is taken of tokenizer.json, or of the class's own files where there is none, and the added
              tokens; the rest is made anew from tokenizer_config.json. A key that is missing there has its default,
              whatever tokenizer.json says.
    BERT's    BertTokenizer and classes that are the same: vocab.txt. do_lower_case and tokenize_chinese_chars are true,
              strip_accents is as do_lower_case.
    MPNet's   likewise, with <s> a </s></s> b </s> around the texts.
    RoBERTa's byte pairs: vocab.json with merges.txt. add_prefix_space is false.
    XLM-R's, CamemBERT's    pieces and their map of characters: sentencepiece.bpe.model. add_prefix_space is true.
    ALBERT's  likewise: spiece.model. do_lower_case is true, keep_accents false; tokenizer.json's template counts.
    as it is  PreTrainedTokenizerFast, TokenizersBackend and a model_type without a class: all of tokenizer.json, and
              of tokenizer_config.json only special tokens, truncation_side, split_special_tokens, model_input_names
              and model_max_length.
    Any other class is refused. FIRESTEEL_IGNORE_KEYS=tokenizer_class takes tokenizer.json as it is, where there is one.

Added tokens  tokenizer_config.json's added_tokens_decoder; where there is none, added_tokens.json and over it those of
              tokenizer.json, and special_tokens_map.json is laid over tokenizer_config.json. Then special tokens that
              have no id yet get the next ones. An id that a file names must come out, and what the normalizer makes
              of two tokens must differ: else the library picks one of their ids by the order of a hash map.

Special tokens in a text are found where `Tokenizer` is asked for them, as in transformers; else they are plain text
(`tokenizer_plain`). split_special_tokens makes them so in either case.

Rows are not padded, and cut at the model's length: tokenizer.json's padding and truncation do not count, but the side
that it cuts is the preset of truncation_side. A pair's tokens have types where model_input_names, else the class, has
token_type_ids: BERT's and those that are the same, all but DistilBertTokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from .._core import CheckpointError, ConfigError
from .checkpoint import Checkpoint
from .tokenizer_classes import lower_first, make
from .tokenizer_settings import KINDS, Said, read, shown, token_of

if TYPE_CHECKING:
    import tokenizers

COPY_ALL = "copy all of the tokenizer's files from where the model came from"


class Loaded(NamedTuple):
    tokenizer: tokenizers.Tokenizer  # neither pads nor truncates
    truncation_side: str  # "left" or "right"
    typed: bool  # a pair's tokens have types


@contextmanager
def named_errors(path: str) -> Iterator[None]:
    """The library's errors and panics as CheckpointError with the file."""
    import tokenizers

    try:
        yield
    except (CheckpointError, ConfigError, MemoryError):
        raise
    except BaseException as error:  # the library has no exception class of its own, and its panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{path}: tokenizers {tokenizers.__version__} fails on it: {error}") from None


def load(checkpoint: Checkpoint) -> Loaded:
    """A fresh library object for the folder.

    Raises CheckpointError for files that are missing, damaged or contradict each other or the model's vocab_size, and
    ConfigError for what a class or a key asks that is not done here.
    """
    said = read(checkpoint)
    with named_errors(said.source):
        built = make(said)
    _check_ids(built, said, checkpoint.config.get("vocab_size"))
    _check_size(built, said, checkpoint.config.get("vocab_size"))
    built.no_padding()
    built.no_truncation()
    if checkpoint.sentence.do_lower_case:
        lower_first(built)
    _check_normal_forms(built, said)
    return Loaded(built, said.truncation_side(), said.typed())


# --- what must come out -----------------------------------------------------------------------------------------------


def _check_ids(built: tokenizers.Tokenizer, said: Said, size: object) -> None:
    """Every token that a file lists has the id listed there."""
    for path, number, token in said.promised:
        found = built.token_to_id(token)
        if found != number:
            why = _instead(built, said, number, token, size)
            raise CheckpointError(f"{path}: token {shown(token)} has id {number} there, {why}; {COPY_ALL}")
    for key, value in said.special_map.items():
        for item in value if isinstance(value, list) else [value]:
            token = token_of(item, f"{said.path('special_tokens_map.json')}: {key}").content if item else ""
            if token and built.token_to_id(token) is None:
                raise CheckpointError(
                    f"{said.path('special_tokens_map.json')}: {key} is {shown(token)}, which has no id by the "
                    f"other files; {COPY_ALL}"
                )


def _instead(built: tokenizers.Tokenizer, said: Said, number: int, token: str, size: object) -> str:
    """What speaks against the id that a file promises."""
    found = built.token_to_id(token)
    if type(size) is int and number >= size:
        return f"the model's vocab_size is {size}, so its ids end at {size - 1}"
    if found is None:
        return "and no id by the other files"
    listed = (found, token) in ((number, content) for _, number, content in said.promised)
    if listed or token in built.get_vocab(False):
        return f"and id {found} by the other files"
    return f"and ids of added tokens follow on the vocabulary without gaps, so it would get {found}"


def _check_normal_forms(built: tokenizers.Tokenizer, said: Said) -> None:
    """No two added tokens are looked for by the same text. One that is not normalized is looked for as it is, first."""
    if built.normalizer is None:
        return
    first: dict[str, str] = {}
    for token in _normalized(built):
        text = built.normalizer.normalize_str(token)
        if text and text in first:  # an empty one is never found
            one, other = (f"{shown(each)} (id {built.token_to_id(each)})" for each in (first[text], token))
            raise CheckpointError(
                f"{said.source}: the added tokens {one} and {other} are both {shown(text)} once they are normalized, "
                f"so that a text would have either id; remove one of them, or list both in tokenizer_config.json's "
                f'added_tokens_decoder, one of them with "normalized": false'
            )
        first[text] = token


def _normalized(built: tokenizers.Tokenizer) -> list[str]:
    """Added tokens that are looked for in normalized text, by their ids."""
    if hasattr(built, "get_added_tokens_decoder"):
        return [token.content for _, token in sorted(built.get_added_tokens_decoder().items()) if token.normalized]
    return [item["content"] for item in json.loads(built.to_str())["added_tokens"] if item["normalized"]]


def _check_size(built: tokenizers.Tokenizer, said: Said, size: object) -> None:
    """The tokenizer belongs to the model: its entries are most of the model's, which may be padded up, and no more."""
    if type(size) is not int:
        return
    vocab = built.get_vocab(True)
    if 2 * len(vocab) < size:
        raise CheckpointError(
            f"{said.source}: the tokenizer has {len(vocab)} entries, the model's vocab_size is {size}; fewer than half "
            f"are no tokenizer of this model; {said.copy_it}"
        )
    kind = KINDS[said.kind]
    presets = {name for role, name in kind.presets.items() if f"{role}_token" not in said.settings} | {*kind.extra}
    beyond = {number: token for token, number in vocab.items() if number >= size and token not in presets}
    if beyond:
        number = max(beyond)
        raise CheckpointError(
            f"{said.source}: token {shown(beyond[number])} has id {number}, the model's vocab_size is {size}, so "
            f"its ids end at {size - 1}; {said.copy_it}"
        )
