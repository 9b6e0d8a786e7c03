"""The library's object of each class: what transformers makes of a vocabulary, its added tokens and its settings."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from .._core import CheckpointError, ConfigError
from . import sentencepiece_file
from .tokenizer_settings import (
    ALBERT,
    AS_IS,
    BERT,
    CAMEMBERT,
    KINDS,
    XLM_ROBERTA,
    Said,
    Token,
    is_id,
    json_tokens,
    json_value,
    shown,
    text_of,
)

if TYPE_CHECKING:
    import tokenizers

Pieces = list[tuple[str, float]]


def make(said: Said) -> tokenizers.Tokenizer:
    """With its added tokens and its template; it still pads and truncates as its file says."""
    by_model = {"WordPiece": _word_piece, "BPE": _byte_level, "Unigram": _unigram, "": _whole}
    built = _whole(said) if said.whole else by_model[KINDS[said.kind].model](said)
    _add(built, said.tokens_to_add())
    if said.kind != AS_IS:
        built.post_processor = _template(built, said)
    if said.flag("split_special_tokens", False):
        _split_special_tokens(built, said)
    return built


def _add(built: tokenizers.Tokenizer, tokens: Iterable[Token]) -> None:
    from tokenizers import AddedToken

    pending: list[AddedToken] = []
    before: bool | None = None

    def flush() -> None:
        if pending:
            (built.add_special_tokens if before else built.add_tokens)(pending[:])
            pending.clear()

    for token in tokens:
        if token.special != before:
            flush()
            before = token.special
        pending.append(AddedToken(*token[:1], **dict(zip(Token._fields[1:5], token[1:5], strict=True))))
    flush()


# --- WordPiece --------------------------------------------------------------------------------------------------------


def _word_piece(said: Said) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocab = _wordpieces(said)
    unknown = said.required("unk")
    known = {*vocab, *(token.content for token in said.listed.values())}
    _check_held(said, ("unk",), vocab)
    _check_held(said, ("sep", "cls"), known)
    built = Tokenizer(models.WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=100))
    built.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=said.flag("tokenize_chinese_chars", True),
        strip_accents=said.flag("strip_accents", None),
        lowercase=said.flag("do_lower_case", True),
    )
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return built


def _check_held(said: Said, roles: Iterable[str], known: Collection[str]) -> None:
    missing = [role for role in roles if said.required(role) not in known]
    if missing:
        lost = ", ".join(f"{shown(said.required(role))} ({role}_token)" for role in missing)
        raise CheckpointError(f"{said.source}: lacks {lost}, which every row needs; {said.copy_it}")


def _wordpieces(said: Said) -> dict[str, int]:
    if said.text is None:
        lines = text_of(said.source, said.copy_it).split("\n")
        return {line.rstrip(_BLANKS): number for number, line in enumerate(lines if lines[-1] else lines[:-1])}
    return _vocab(said, str(said.parsed["model"].get("type", "WordPiece")))


def _vocab(said: Said, kind: str) -> dict[str, int]:
    """The vocabulary of tokenizer.json, whose model is of `kind`."""
    vocab = said.parsed["model"].get("vocab")
    if kind != KINDS[said.kind].model or not isinstance(vocab, dict):
        raise _other_model(said, kind)
    if not all(map(is_id, vocab.values())):
        raise CheckpointError(f"{said.source}: cannot be read: its vocabulary has ids that are no whole numbers")
    return vocab


def _other_model(said: Said, kind: str) -> ConfigError:
    return ConfigError(
        f"{said.source}: holds a {kind[:40]} model, and {said.kind} needs {KINDS[said.kind].model}; if the file is to "
        f'be taken as it is, say "tokenizer_class": "{AS_IS}" in tokenizer_config.json'
    )


# What the library strips from the end of a line of vocab.txt: Unicode's White_Space.
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


# --- BPE over bytes ---------------------------------------------------------------------------------------------------


def _byte_level(said: Said) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers

    if said.text is None:
        vocab, merges = _vocab_and_merges(said)
    else:
        model = said.parsed["model"]
        vocab = _vocab(said, str(model.get("type", "BPE" if "merges" in model else "WordPiece")))
        merges = [tuple(item.split(" ") if isinstance(item, str) else item) for item in model.get("merges") or ()]
    parts = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False, "dropout": None}
    built = Tokenizer(models.BPE(vocab=vocab, merges=merges, **parts))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=said.flag("add_prefix_space", False))
    return built


def _vocab_and_merges(said: Said) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    vocab_path, merges_path = (said.path(name) for name in KINDS[said.kind].files)
    vocab = json_value(text_of(vocab_path, said.copy_it), vocab_path, said.copy_it)
    if not isinstance(vocab, dict) or not all(map(is_id, vocab.values())):
        raise CheckpointError(f"{vocab_path}: cannot be read: an object from tokens to ids belongs there")
    lines = text_of(merges_path, said.copy_it).split("\n")
    merges = []
    for number, line in enumerate(lines if lines[-1] else lines[:-1], 1):
        line = line.removesuffix("\r")
        if line.startswith("#version"):
            continue
        parts = tuple(line.split(" "))
        if len(parts) != 2:
            raise CheckpointError(
                f"{merges_path}: line {number} is {shown(line)}; two tokens with a space between belong there"
            )
        merges.append(parts)
    return vocab, merges


# --- Unigram ----------------------------------------------------------------------------------------------------------


def _unigram(said: Said) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces, characters = _pieces_of_model(said) if said.text is None else _pieces_of_json(said)
    built = Tokenizer(models.Unigram(pieces, _unknown(said, pieces)))
    steps = []
    if said.kind == ALBERT:
        _check_held(said, ("cls", "sep"), {piece for piece, _ in pieces})
        steps = _albert_steps(said)
    if characters is not None:
        steps.append(normalizers.Precompiled(characters))
    if steps:
        built.normalizer = steps[0] if len(steps) == 1 else normalizers.Sequence(steps)
    scheme = "always" if said.flag("add_prefix_space", True) else "never"
    try:
        space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    except TypeError:  # before 0.19
        space = pre_tokenizers.Metaspace(replacement="▁", add_prefix_space=scheme == "always")
    built.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    return built


def _unknown(said: Said, pieces: Pieces) -> int:
    if said.kind != CAMEMBERT:
        return {XLM_ROBERTA: 3, ALBERT: 1}[said.kind]
    unknown = said.required("unk")
    return next((number for number, (piece, _) in enumerate(pieces) if piece == unknown), 0)


def _albert_steps(said: Said) -> list[tokenizers.normalizers.Normalizer]:
    from tokenizers import normalizers

    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not said.flag("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if said.flag("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    return steps


def _pieces_of_json(said: Said) -> tuple[Pieces, bytes | None]:
    """Pieces with their scores, and the map of characters."""
    model = said.parsed["model"]
    vocab = model.get("vocab")
    if not isinstance(vocab, list) or not all(isinstance(item, list) and len(item) == 2 for item in vocab):
        raise _other_model(said, str(model.get("type")))
    characters = None
    for step in steps_of(said.parsed.get("normalizer"), "normalizers"):
        if step.get("type") == "Precompiled":
            characters = base64.b64decode(step["precompiled_charsmap"])
            break
    return [(piece, float(score)) for piece, score in vocab], characters


def _pieces_of_model(said: Said) -> tuple[Pieces, bytes | None]:
    """Of a SentencePiece file, at the ids that the class moves them to."""
    found = sentencepiece_file.read(said.source, said.copy_it)
    pieces = [(piece.text, piece.score) for piece in found.pieces]
    tokens = {role: said.required(role) for role in ("bos", "pad", "eos", "unk", "mask")}
    if said.kind == XLM_ROBERTA:
        pieces = [*((tokens[role], 0.0) for role in ("bos", "pad", "eos", "unk")), *pieces[3:], (tokens["mask"], 0.0)]
    elif said.kind == CAMEMBERT:
        first = [("<s>NOTUSED", 0.0), (tokens["pad"], 0.0), ("</s>NOTUSED", 0.0), (tokens["unk"], 0.0)]
        pieces = [*first, ("<unk>NOTUSED", -100.0), *pieces[1:], (tokens["mask"], 0.0)]
    added = [piece for piece in found.pieces if piece.kind in (sentencepiece_file.CONTROL, sentencepiece_file.USER)]
    listed = [
        {"content": piece.text, "normalized": False, "special": piece.kind == sentencepiece_file.CONTROL}
        for piece in added
    ]
    said.settings.setdefault("extra_special_tokens", listed)
    return pieces, found.characters


def steps_of(value: object, key: str) -> list[dict[str, object]]:
    """A step of tokenizer.json, or the steps of a Sequence."""
    if isinstance(value, dict) and value.get("type") == "Sequence":
        value = value.get(key)
    listed = value if isinstance(value, list) else [value]
    return [item for item in listed if isinstance(item, dict)]


# --- as it is ---------------------------------------------------------------------------------------------------------


def _whole(said: Said) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    held = dict(json_tokens(said.parsed, said.source))
    flags = {
        number: token._asdict()
        for number, token in said.listed.items()
        if number in held and held[number].content == token.content and held[number] != token
    }
    if not flags:
        return Tokenizer.from_str(said.text)
    # Adding a token again would change its flags too, but old versions keep looking for it as before.
    tokens = [item | flags.get(item["id"], {}) for item in said.parsed["added_tokens"]]
    return Tokenizer.from_str(json.dumps(said.parsed | {"added_tokens": tokens}))


# --- what comes after the added tokens, because it needs their ids ----------------------------------------------------


def _template(built: tokenizers.Tokenizer, said: Said) -> tokenizers.processors.PostProcessor:
    """The special tokens around a text, and around and between the two of a pair."""
    from tokenizers import processors

    if said.kind == ALBERT:
        return _albert_template(built, said)
    roles = ("bos", "eos") if said.kind in (XLM_ROBERTA, CAMEMBERT) else ("cls", "sep")
    first, last = ((said.required(role), built.token_to_id(said.required(role))) for role in roles)
    if said.kind == BERT:
        return processors.BertProcessing(last, first)  # [CLS] a [SEP] b [SEP]
    return processors.RobertaProcessing(last, first)  # <s> a </s> </s> b </s>


def _albert_template(built: tokenizers.Tokenizer, said: Said) -> tokenizers.processors.PostProcessor:
    """The class's own counts only where tokenizer.json has none."""
    from tokenizers import Tokenizer, processors

    for key in ("add_bos_token", "add_eos_token"):
        if said.text is None and key in said.settings:
            raise ConfigError(
                f"{said.where(key)} = {shown(said.settings[key])} is not supported without tokenizer.json"
            )
    if said.parsed.get("post_processor"):
        model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
        kept = {"version": "1.0", "model": model, "post_processor": said.parsed["post_processor"]}
        return Tokenizer.from_str(json.dumps(kept)).post_processor
    ends = [(name, built.token_to_id(said.required(role))) for name, role in (("[CLS]", "cls"), ("[SEP]", "sep"))]
    single, pair = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)


def _split_special_tokens(built: tokenizers.Tokenizer, said: Said) -> None:
    import tokenizers

    if not hasattr(built, "encode_special_tokens"):
        where = said.where("split_special_tokens")
        raise ConfigError(f"{where} = true is more than tokenizers {tokenizers.__version__} can; install a newer one")
    built.encode_special_tokens = True


def lower_first(built: tokenizers.Tokenizer) -> None:
    """sentence_bert_config.json's do_lower_case: a step before the others, unless they have it."""
    from tokenizers import normalizers

    before = built.normalizer
    steps = [] if before is None else steps_of(json.loads(before.__getstate__()), "normalizers")
    if not any(step.get("type") == "Lowercase" for step in steps):
        lower = normalizers.Lowercase()
        built.normalizer = normalizers.Sequence([lower] if before is None else [lower, before])
