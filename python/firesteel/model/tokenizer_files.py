"""From the tokenizer files of a folder to the library's object: the one that transformers makes of them.

The measure is what sentence-transformers 6.2 computes with transformers 5.24. What a file says that would change tokens
is done as there, or it is refused by file, key and value; tests compare the two for every class, key and file below.

Which class   tokenizer_config.json's tokenizer_class, else config.json's, else what belongs to the model_type.
    BERT's    BertTokenizer and classes that are the same. Only the vocabulary is taken, of tokenizer.json, else of
              vocab.txt, and the added tokens; the rest is made anew from tokenizer_config.json. A key that is missing
              there has its default (do_lower_case and tokenize_chinese_chars true, strip_accents as do_lower_case),
              whatever tokenizer.json says.
    XLM-R's   XLMRobertaTokenizer, likewise: the pieces and their character map are taken, of tokenizer.json.
    as it is  PreTrainedTokenizerFast, TokenizersBackend and a model_type without a class: all of tokenizer.json, and
              of tokenizer_config.json only special tokens, truncation_side, split_special_tokens and model_max_length.
    Any other class is refused. FIRESTEEL_IGNORE_KEYS=tokenizer_class takes tokenizer.json as it is, where there is one.

Added tokens  tokenizer_config.json's added_tokens_decoder; where there is none, added_tokens.json and over it those of
              tokenizer.json, and special_tokens_map.json is laid over tokenizer_config.json. Then special tokens that
              have no id yet get the next ones. An id that a file names must come out, and what the normalizer makes
              of two tokens must differ: else the library picks one of their ids by the order of a hash map.

Rows are not padded, and cut at the model's length: tokenizer.json's padding and truncation do not count, but the side
that it cuts is the preset of truncation_side.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .._core import CheckpointError, ConfigError
from .checkpoint import OTHER_VOCABULARIES, Checkpoint
from .files import content, optional_json, there

if TYPE_CHECKING:
    import tokenizers

_SAME_AS_BERT = ("Bert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "SqueezeBert")
_BERT, _XLM_ROBERTA, _AS_IS = "BertTokenizer", "XLMRobertaTokenizer", "PreTrainedTokenizerFast"
_CLASSES = {
    **{f"{name}Tokenizer": _BERT for name in _SAME_AS_BERT},
    _XLM_ROBERTA: _XLM_ROBERTA,
    **dict.fromkeys(("PreTrainedTokenizer", "PythonBackend", "TokenizersBackend"), _AS_IS),
}
_OF_MODEL_TYPE = {"bert": "BertTokenizer"}

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_PRESETS = {  # special tokens that a class has where no file names them
    _BERT: {role: f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")},
    _XLM_ROBERTA: {
        **{"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>"},
        **{"pad": "<pad>", "cls": "<s>", "mask": "<mask>"},
    },
    _AS_IS: {},
}
# Keys that ask for other tokens than are made here, and the values that do not.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("do_basic_tokenize", "clean_text", "do_word_tokenize", "do_subword_tokenize"), (None, True)),
    **dict.fromkeys(("wordpieces_prefix", "continuing_subword_prefix"), (None, "##")),
    **dict.fromkeys(("mecab_kwargs", "sudachi_kwargs", "jumanpp_kwargs", "model_specific_special_tokens"), (None, {})),
    **dict.fromkeys(("never_split", "init_inputs"), (None, [])),
    **dict.fromkeys(("vocab", "merges", "post_processor", "tokenizer_object", "gguf_file"), (None,)),
    **dict.fromkeys(("tokenizer_padding", "tokenizer_truncation", "_json_padding", "_json_truncation"), (None,)),
    "_spm_precompiled_charsmap": (None,),
    "max_input_chars_per_word": (None, 100),
    "word_tokenizer_type": (None, "basic"),
    "subword_tokenizer_type": (None, "wordpiece"),
    "fast_tokenizer_files": (None, [], ["tokenizer.json"]),
}
COPY_IT = "copy tokenizer.json or vocab.txt from where the model came from"
_COPY_JSON = "copy tokenizer.json from where the model came from"
_COPY_ALL = "copy all of the tokenizer's files from where the model came from"


class Loaded(NamedTuple):
    tokenizer: tokenizers.Tokenizer  # neither pads nor truncates
    truncation_side: str  # "left" or "right"
    typed: bool  # a pair's tokens have types


class Token(NamedTuple):
    """An added token, with the library's flags as its strings have them."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


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
    said = _read(checkpoint)
    with named_errors(said.source):
        make = {_BERT: _bert, _XLM_ROBERTA: _xlm_roberta, _AS_IS: _whole}[said.kind]
        built = _whole(said) if said.whole else make(said)
        _add(built, said.tokens_to_add())
        _finish(built, said)
    _check_ids(built, said, checkpoint.config.get("vocab_size"))
    _check_size(built, said, checkpoint.config.get("vocab_size"))
    built.no_padding()
    built.no_truncation()
    if checkpoint.sentence.do_lower_case:
        _lower_first(built)
    _check_normal_forms(built, said)
    return Loaded(built, said.truncation_side(), said.typed())


# --- what the files say -----------------------------------------------------------------------------------------------


@dataclass
class _Said:
    """The tokenizer files of a folder, read; nothing is built yet."""

    folder: str
    class_name: str  # without Fast
    kind: str  # _BERT, _XLM_ROBERTA or _AS_IS
    whole: bool  # the library's object is all of tokenizer.json
    text: str | None  # tokenizer.json as it is; None: vocab.txt
    parsed: dict[str, object]  # tokenizer.json, or {}
    settings: dict[str, object]  # tokenizer_config.json, with special_tokens_map.json over it where that counts
    special_map: dict[str, object]
    listed: dict[int, Token]  # added tokens by id
    promised: list[tuple[str, int, str]]  # file, id and content of each that any file lists

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    @property
    def source(self) -> str:
        return self.path("vocab.txt" if self.text is None else "tokenizer.json")

    def where(self, key: str) -> str:
        """`.../special_tokens_map.json: sep_token`: who says so."""
        merged = "added_tokens_decoder" not in self.settings and key in self.special_map
        return f"{self.path('special_tokens_map.json' if merged else 'tokenizer_config.json')}: {key}"

    def flag(self, key: str, preset: bool | None) -> bool | None:
        """A boolean; null only where that is the preset."""
        value = self.settings.get(key, preset)
        if type(value) is bool or (value is None and preset is None):
            return value
        wanted = "true, false or null" if preset is None else "true or false"
        raise ConfigError(f"{self.where(key)} = {_shown(value)}; it must be {wanted}")

    def truncation_side(self) -> str:
        truncation = self.parsed.get("truncation")
        preset = truncation.get("direction") if isinstance(truncation, dict) else None
        value = self.settings.get("truncation_side", str(preset or "right").lower())
        if value in ("left", "right"):
            return value
        raise ConfigError(f'{self.where("truncation_side")} = {_shown(value)}; it must be "left" or "right"')

    def typed(self) -> bool:
        """Whether the model is told the types of a pair's tokens; without, all are of the first."""
        told = self.kind == _BERT and self.class_name != "DistilBertTokenizer"
        preset = ["token_type_ids"] if told else []
        names = self.settings.get("model_input_names", preset)
        if not isinstance(names, list):
            raise ConfigError(f"{self.where('model_input_names')} = {_shown(names)}; it must be a list of names")
        return "token_type_ids" in names

    def named(self) -> dict[str, Token]:
        """Special tokens by what they are for, in the order in which they get ids."""
        by_content = {token.content: token for token in self.listed.values()}
        padding = self.parsed.get("padding") if self.kind == _AS_IS else None
        presets = _PRESETS[self.kind] | ({"pad": padding.get("pad_token")} if isinstance(padding, dict) else {})
        found = {}
        for role in _ROLES:
            key = f"{role}_token"
            if self.settings.get(key) is not None:
                token = _token(self.settings[key], self.where(key))
                found[role] = by_content.get(token.content, token)
            elif key not in self.settings and isinstance(presets.get(role), str):
                found[role] = Token(presets[role])
        for key, value in self.settings.items():
            tagged = isinstance(value, dict) and "__type" in value
            if key.endswith("_token") and key[: -len("_token")] not in _ROLES and (tagged or isinstance(value, str)):
                found[key] = _token(value, self.where(key))
        extra = self.settings.get("extra_special_tokens")
        if isinstance(extra, dict):
            found.update((key, _token(value, self.where("extra_special_tokens"))) for key, value in extra.items())
        return found

    def extra(self) -> list[Token]:
        """Special tokens without a name."""
        key = "extra_special_tokens" if "extra_special_tokens" in self.settings else "additional_special_tokens"
        value = self.settings.get(key)
        return [_token(item, self.where(key)) for item in value] if isinstance(value, list) else []

    def tokens_to_add(self) -> list[Token]:
        """All that the library adds to its vocabulary, in its order: the place of a new one is its id."""
        named = list(self.named().values())
        tokens = [self.listed[number] for number in sorted(self.listed)]
        known = {token.content for token in tokens}
        if self.whole:
            known |= {token.content for _, token in _json_tokens(self.parsed, self.source)}
        for token in (*named, *self.extra()):
            if token.content not in known:
                known.add(token.content)
                tokens.append(token)
        special = {token.content for token in named}
        return [token._replace(special=token.special or token.content in special) for token in tokens if token.content]

    def required(self, role: str) -> str:
        token = self.named().get(role)
        if token is None or not token.content:
            value = _shown(self.settings.get(f"{role}_token"))
            raise ConfigError(f"{self.where(role + '_token')} = {value}; a token belongs there, which every row needs")
        return token.content


def _read(checkpoint: Checkpoint) -> _Said:
    folder, vocabulary = checkpoint.folder, checkpoint.tokenizer_file
    has_json = vocabulary is not None and os.path.basename(vocabulary) == "tokenizer.json"
    ignored = os.environ.get("FIRESTEEL_IGNORE_KEYS", "").replace(" ", "").split(",")
    settings = {key: value for key, value in checkpoint.tokenizer_config.items() if key not in ignored}
    # Without a tokenizer.json there is nothing to take as it is: the class counts, whoever ignores it.
    as_it_is = "tokenizer_class" in ignored and has_json
    class_name = "PreTrainedTokenizer" if as_it_is else _class(checkpoint, has_json)
    kind = _CLASSES[class_name]
    if not has_json:
        _check_vocab_alone(folder, vocabulary, kind)
    _check_keys(os.path.join(folder, "tokenizer_config.json"), settings)
    _check_lists(os.path.join(folder, "tokenizer_config.json"), settings)
    text = _text(vocabulary) if has_json else None
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    special_map = optional_json(os.path.join(folder, "special_tokens_map.json"))
    said = _Said(
        folder=folder,
        class_name=class_name,
        kind=kind,
        # transformers saves what it was called with, and with this it leaves the file as it is, all but the ends
        whole=kind == _AS_IS or (has_json and bool(settings.get("trust_remote_code"))),
        text=text,
        parsed={} if text is None else _parse(text, vocabulary),
        settings=settings,
        special_map={key: value for key, value in special_map.items() if key not in ignored},
        listed={},
        promised=[],
    )
    _list_tokens(said, optional_json(os.path.join(folder, "added_tokens.json")))
    return said


def _class(checkpoint: Checkpoint, has_json: bool) -> str:
    """The class that the files name, or that belongs to the model_type; a key of _CLASSES."""
    path, name = "tokenizer_config.json", checkpoint.tokenizer_config.get("tokenizer_class")
    if name is None:
        path, name = "config.json", checkpoint.config.get("tokenizer_class")
    if name is None:
        return _OF_MODEL_TYPE.get(str(checkpoint.config.get("model_type")), "PreTrainedTokenizer")
    if isinstance(name, str) and name.removesuffix("Fast") in _CLASSES:
        return name.removesuffix("Fast")
    said = f"{os.path.join(checkpoint.folder, path)}: tokenizer_class = {_shown(name)}"
    made = ", ".join(name for name, kind in _CLASSES.items() if kind != _AS_IS)
    if not has_json:
        raise ConfigError(f"{said} is not supported; supported are {made}; {_COPY_JSON}, which can be taken as it is")
    raise ConfigError(
        f"{said} is not supported; supported are {made} and, to take tokenizer.json as it is, {_AS_IS} "
        f"(FIRESTEEL_IGNORE_KEYS=tokenizer_class takes it so too)"
    )


def _check_keys(path: str, settings: Mapping[str, object]) -> None:
    """A key that asks for other tokens is an error, unless the user knows better. The rest changes none."""
    refused = [key for key, neutral in _NEUTRAL.items() if key in settings and settings[key] not in neutral]
    remote = settings.get("auto_map")
    if remote and (not isinstance(remote, dict) or remote.get("AutoTokenizer")):
        refused.append("auto_map")
    for key in refused:
        value = _shown(settings[key])
        raise ConfigError(
            f"{path}: {key} = {value} is not supported; if it is harmless, set FIRESTEEL_IGNORE_KEYS={key}"
        )


def _check_vocab_alone(folder: str, vocabulary: str | None, kind: str) -> None:
    if kind != _BERT:
        raise CheckpointError(
            f"{folder}: tokenizer.json is missing, of which alone the tokenizer_class {kind} is made; give rows of "
            f"token ids, or {_COPY_JSON}"
        )
    if vocabulary is None:
        raise CheckpointError(f"{folder}: tokenizer.json is missing; give rows of token ids, or {COPY_IT}")
    for name in OTHER_VOCABULARIES:
        if there(os.path.join(folder, name)):
            raise CheckpointError(
                f"{os.path.join(folder, name)}: comes before vocab.txt where there is no tokenizer.json, and is not "
                f"supported; remove it, or {_COPY_JSON}"
            )


def _text(path: str) -> str:
    try:
        return content(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: cannot be read: byte {error.start} is not UTF-8; {COPY_IT}") from None


def _parse(text: str, path: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; {COPY_IT}") from None
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise CheckpointError(f"{path}: cannot be read: it holds no model; {COPY_IT}")
    return value


# --- added tokens -----------------------------------------------------------------------------------------------------


def _token(value: object, said: str, special: bool | None = None) -> Token:
    """A string, or the object that stands for an AddedToken."""
    if isinstance(value, str):
        return Token(value)
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("content"), str)
        or not all(type(value[flag]) is bool for flag in flags if flag in value)
    ):
        raise CheckpointError(
            f'{said} has {_shown(value)}; a string belongs there, or an object with "content" and flags'
        )
    special = bool(value.get("special", False)) if special is None else special
    token = Token(value["content"], normalized=bool(value.get("normalized", not special)), special=special)
    return token._replace(**{flag: value[flag] for flag in flags[:3] if flag in value})


def _json_tokens(parsed: Mapping[str, object], path: str) -> list[tuple[int, Token]]:
    """(id, token) of tokenizer.json's added_tokens."""
    listed = parsed.get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(item, dict) and _is_id(item.get("id")) for item in listed):
        raise CheckpointError(f"{path}: added_tokens is no list of tokens with ids")
    return [(item["id"], _token(item, f"{path}: added_tokens")) for item in listed]


def _shown(value: object) -> str:
    """A value as its file has it, cut where a sentence has no room for it."""
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:100] + "..."


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _list_tokens(said: _Said, added: Mapping[str, object]) -> None:
    """Fills `listed` and `promised`, and lays special_tokens_map.json over the settings where it counts."""
    for key, value in said.special_map.items():
        known = (*(f"{role}_token" for role in _ROLES), "additional_special_tokens", "extra_special_tokens")
        if key not in known and not (key.endswith("_token") and isinstance(value, str)):
            path = said.path("special_tokens_map.json")
            said_so = f"{path}: {key} = {_shown(value)}"
            raise ConfigError(
                f"{said_so} is not supported; known are {', '.join(known)}; "
                f"if it is harmless, set FIRESTEEL_IGNORE_KEYS={key}"
            )
    path = said.path("added_tokens.json")
    if not all(map(_is_id, added.values())):
        raise CheckpointError(f"{path}: an object from tokens to ids belongs there")
    _check_lists(said.path("special_tokens_map.json"), said.special_map)
    from_json = _json_tokens(said.parsed, said.path("tokenizer.json"))
    said.promised += [(path, number, token) for token, number in added.items()]
    said.promised += [(said.path("tokenizer.json"), number, token.content) for number, token in from_json]
    if "added_tokens_decoder" in said.settings:
        decoder, where = said.settings["added_tokens_decoder"], said.where("added_tokens_decoder")
        if not isinstance(decoder, dict) or not all(key.isdecimal() and len(key) < 11 for key in decoder):
            raise CheckpointError(f"{where} is no object from ids to tokens")
        said.listed = {int(key): _token(value, where) for key, value in decoder.items()}
        said.promised += [(where, number, token.content) for number, token in said.listed.items()]
        return
    _lay_over(said)
    values = {f"{role}_token": said.settings.get(f"{role}_token") for role in _ROLES}
    special = {_token(value, said.where(key)).content for key, value in values.items() if value}
    extra = said.settings.get("extra_special_tokens")
    special |= {item for item in extra or [] if isinstance(extra, list) and isinstance(item, str)}
    for token, number in added.items():
        said.listed[number] = Token(token, normalized=token not in special, special=token in special)
    said.listed.update(from_json)


def _check_lists(path: str, settings: Mapping[str, object]) -> None:
    """Before the two names and the two files become one, so that the one with the fault is named."""
    for key in ("extra_special_tokens", "additional_special_tokens"):
        value = settings.get(key)
        if not isinstance(value, (list, dict, type(None))):
            raise ConfigError(f"{path}: {key} = {_shown(value)}; it must be a list of tokens")
        for item in value.values() if isinstance(value, dict) else value or ():
            _token(item, f"{path}: {key}")


def _lay_over(said: _Said) -> None:
    """special_tokens_map.json over tokenizer_config.json; an object there is special whatever it says."""
    for key, value in said.special_map.items():
        if key == "extra_special_tokens" and isinstance(value, list):
            value = [*(said.settings.get(key) or []), *value]
        elif isinstance(value, dict) and key != "extra_special_tokens":
            value = {"normalized": False, **value, "special": True}
        said.settings[key] = value


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


# --- the three ways ---------------------------------------------------------------------------------------------------


def _bert(said: _Said) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocab = _wordpieces(said)
    unknown = said.required("unk")
    known = {*vocab, *(token.content for token in said.listed.values())}
    missing = [role for role in ("sep", "cls") if said.required(role) not in known]
    missing = ["unk"] * (unknown not in vocab) + missing
    if missing:
        lost = ", ".join(f"{_shown(said.required(role))} ({role}_token)" for role in missing)
        raise CheckpointError(f"{said.source}: lacks {lost}, which every row needs; {COPY_IT}")
    built = Tokenizer(models.WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=100))
    built.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=said.flag("tokenize_chinese_chars", True),
        strip_accents=said.flag("strip_accents", None),
        lowercase=said.flag("do_lower_case", True),
    )
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return built


def _wordpieces(said: _Said) -> dict[str, int]:
    if said.text is None:
        lines = _text(said.source).split("\n")
        return {line.rstrip(_BLANKS): number for number, line in enumerate(lines if lines[-1] else lines[:-1])}
    model = said.parsed["model"]
    vocab = model.get("vocab")
    kind = str(model.get("type", "WordPiece"))[:40]
    if kind != "WordPiece" or not isinstance(vocab, dict):
        raise ConfigError(
            f"{said.source}: holds a {kind} model, and {_BERT} needs WordPiece; if the file is to be "
            f'taken as it is, say "tokenizer_class": "{_AS_IS}" in tokenizer_config.json'
        )
    if not all(map(_is_id, vocab.values())):
        raise CheckpointError(f"{said.source}: cannot be read: its vocabulary has ids that are no whole numbers")
    return vocab


# What the library strips from the end of a line of vocab.txt: Unicode's White_Space.
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def _xlm_roberta(said: _Said) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    model = said.parsed["model"]
    vocab = model.get("vocab")
    kind = str(model.get("type"))[:40]
    if not isinstance(vocab, list) or not all(isinstance(item, list) and len(item) == 2 for item in vocab):
        raise ConfigError(
            f"{said.source}: holds a {kind} model, and {_XLM_ROBERTA} needs Unigram; if the file is to be "
            f'taken as it is, say "tokenizer_class": "{_AS_IS}" in tokenizer_config.json'
        )
    built = Tokenizer(models.Unigram([(piece, float(score)) for piece, score in vocab], 3))
    for normalizer in _flat(said.parsed.get("normalizer"), "normalizers"):
        if normalizer.get("type") == "Precompiled":
            built.normalizer = normalizers.Precompiled(base64.b64decode(normalizer["precompiled_charsmap"]))
            break
    scheme = "always" if said.flag("add_prefix_space", True) else "never"
    try:
        space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    except TypeError:  # before 0.19
        space = pre_tokenizers.Metaspace(replacement="▁", add_prefix_space=scheme == "always")
    built.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    return built


def _flat(value: object, key: str) -> list[dict[str, object]]:
    """A step of tokenizer.json, or the steps of a Sequence."""
    if isinstance(value, dict) and value.get("type") == "Sequence":
        value = value.get(key)
    listed = value if isinstance(value, list) else [value]
    return [item for item in listed if isinstance(item, dict)]


def _whole(said: _Said) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    held = dict(_json_tokens(said.parsed, said.source))
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


def _finish(built: tokenizers.Tokenizer, said: _Said) -> None:
    """What comes after the added tokens, because it needs their ids."""
    import tokenizers
    from tokenizers import processors

    if said.kind != _AS_IS:
        first, last = ("cls", "sep") if said.kind == _BERT else ("bos", "eos")
        cls, sep = said.required(first), said.required(last)
        make = processors.BertProcessing if said.kind == _BERT else processors.RobertaProcessing
        built.post_processor = make((sep, built.token_to_id(sep)), (cls, built.token_to_id(cls)))
    if said.flag("split_special_tokens", False):
        if not hasattr(built, "encode_special_tokens"):
            where = said.where("split_special_tokens")
            raise ConfigError(
                f"{where} = true is more than tokenizers {tokenizers.__version__} can; install a newer one"
            )
        built.encode_special_tokens = True


def _lower_first(built: tokenizers.Tokenizer) -> None:
    """sentence_bert_config.json's do_lower_case: a step before the others, unless they have it."""
    from tokenizers import normalizers

    before = built.normalizer
    steps = [] if before is None else _flat(json.loads(before.__getstate__()), "normalizers")
    if not any(step.get("type") == "Lowercase" for step in steps):
        lower = normalizers.Lowercase()
        built.normalizer = normalizers.Sequence([lower] if before is None else [lower, before])


# --- what must come out -----------------------------------------------------------------------------------------------


def _check_ids(built: tokenizers.Tokenizer, said: _Said, size: object) -> None:
    """Every token that a file lists has the id listed there."""
    for path, number, token in said.promised:
        found = built.token_to_id(token)
        if found != number:
            why = _instead(built, said, number, token, size)
            raise CheckpointError(f"{path}: token {_shown(token)} has id {number} there, {why}; {_COPY_ALL}")
    for key, value in said.special_map.items():
        for item in value if isinstance(value, list) else [value]:
            token = _token(item, f"{said.path('special_tokens_map.json')}: {key}").content if item else ""
            if token and built.token_to_id(token) is None:
                raise CheckpointError(
                    f"{said.path('special_tokens_map.json')}: {key} is {_shown(token)}, which has no id by the "
                    f"other files; {_COPY_ALL}"
                )


def _instead(built: tokenizers.Tokenizer, said: _Said, number: int, token: str, size: object) -> str:
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


def _check_normal_forms(built: tokenizers.Tokenizer, said: _Said) -> None:
    """No two added tokens are looked for by the same text. One that is not normalized is looked for as it is, first."""
    if built.normalizer is None:
        return
    first: dict[str, str] = {}
    for token in _normalized(built):
        text = built.normalizer.normalize_str(token)
        if text and text in first:  # an empty one is never found
            one, other = (f"{_shown(each)} (id {built.token_to_id(each)})" for each in (first[text], token))
            raise CheckpointError(
                f"{said.source}: the added tokens {one} and {other} are both {_shown(text)} once they are normalized, "
                f"so that a text would have either id; remove one of them, or list both in tokenizer_config.json's "
                f'added_tokens_decoder, one of them with "normalized": false'
            )
        first[text] = token


def _normalized(built: tokenizers.Tokenizer) -> list[str]:
    """Added tokens that are looked for in normalized text, by their ids."""
    if hasattr(built, "get_added_tokens_decoder"):
        return [token.content for _, token in sorted(built.get_added_tokens_decoder().items()) if token.normalized]
    return [item["content"] for item in json.loads(built.to_str())["added_tokens"] if item["normalized"]]


def _check_size(built: tokenizers.Tokenizer, said: _Said, size: object) -> None:
    """The tokenizer belongs to the model: its entries are most of the model's, which may be padded up, and no more."""
    if type(size) is not int:
        return
    vocab = built.get_vocab(True)
    if 2 * len(vocab) < size:
        raise CheckpointError(
            f"{said.source}: the tokenizer has {len(vocab)} entries, the model's vocab_size is {size}; fewer than half "
            f"are no tokenizer of this model; {COPY_IT}"
        )
    presets = {name for role, name in _PRESETS[said.kind].items() if f"{role}_token" not in said.settings}
    beyond = {number: token for token, number in vocab.items() if number >= size and token not in presets}
    if beyond:
        number = max(beyond)
        raise CheckpointError(
            f"{said.source}: token {_shown(beyond[number])} has id {number}, the model's vocab_size is {size}, so "
            f"its ids end at {size - 1}; {COPY_IT}"
        )
