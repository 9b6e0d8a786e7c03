"""What the tokenizer files of a folder say: which class, which special and added tokens, which keys.

Nothing is built here; `tokenizer_files` says what the rules are, and `tokenizer_classes` makes the library's object.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .._core import CheckpointError, ConfigError
from .checkpoint import OTHER_VOCABULARIES, Checkpoint
from .files import content, optional_json, there

BERT, MPNET, ROBERTA = "BertTokenizer", "MPNetTokenizer", "RobertaTokenizer"
XLM_ROBERTA, CAMEMBERT, ALBERT = "XLMRobertaTokenizer", "CamembertTokenizer", "AlbertTokenizer"
AS_IS = "PreTrainedTokenizerFast"
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_BRACKETS = {role: f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
_ANGLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}


class Kind(NamedTuple):
    """Classes that are made alike."""

    model: str = ""  # the library's name; "": whatever tokenizer.json holds
    files: tuple[str, ...] = ()  # the vocabulary, where there is no tokenizer.json
    presets: Mapping[str, str] = {}  # special tokens where no file names them
    extra: tuple[str, ...] = ()  # and those without a name
    mask_takes_space: bool = False  # before it


KINDS = {
    BERT: Kind("WordPiece", ("vocab.txt",), _BRACKETS),
    MPNET: Kind("WordPiece", ("vocab.txt",), _ANGLES | {"unk": "[UNK]"}, mask_takes_space=True),
    ROBERTA: Kind("BPE", ("vocab.json", "merges.txt"), _ANGLES),
    XLM_ROBERTA: Kind("Unigram", ("sentencepiece.bpe.model",), _ANGLES),
    CAMEMBERT: Kind(
        *("Unigram", ("sentencepiece.bpe.model",), _ANGLES),
        extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
        mask_takes_space=True,
    ),
    ALBERT: Kind(
        "Unigram", ("spiece.model",), _BRACKETS | {"bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "pad": "<pad>"}
    ),
    AS_IS: Kind(),
}
_SAME_AS_BERT = ("Bert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "SqueezeBert")
CLASSES = {
    **{f"{name}Tokenizer": BERT for name in _SAME_AS_BERT},
    **{kind: kind for kind in (MPNET, ROBERTA, XLM_ROBERTA, CAMEMBERT, ALBERT)},
    **dict.fromkeys(("PreTrainedTokenizer", "PythonBackend", "TokenizersBackend"), AS_IS),
}
_OF_MODEL_TYPE = {
    **dict.fromkeys(("bert", "distilbert", "electra"), BERT),
    **{"mpnet": MPNET, "roberta": ROBERTA, "xlm-roberta": XLM_ROBERTA, "camembert": CAMEMBERT, "albert": ALBERT},
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
_COPY_JSON = "copy tokenizer.json from where the model came from"


class Token(NamedTuple):
    """An added token, with the library's flags as its strings have them."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass
class Said:
    """The tokenizer files of a folder, read; nothing is built yet."""

    folder: str
    class_name: str  # without Fast
    kind: str  # a key of KINDS
    whole: bool  # the library's object is all of tokenizer.json
    text: str | None  # tokenizer.json as it is; None: the files of its kind
    parsed: dict[str, object]  # tokenizer.json, or {}
    settings: dict[str, object]  # tokenizer_config.json, with special_tokens_map.json over it where that counts
    special_map: dict[str, object]
    listed: dict[int, Token]  # added tokens by id
    promised: list[tuple[str, int, str]]  # file, id and content of each that any file lists

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    @property
    def source(self) -> str:
        return self.path(KINDS[self.kind].files[0] if self.text is None else "tokenizer.json")

    @property
    def copy_it(self) -> str:
        return _copy(self.kind)

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
        raise ConfigError(f"{self.where(key)} = {shown(value)}; it must be {wanted}")

    def truncation_side(self) -> str:
        truncation = self.parsed.get("truncation")
        preset = truncation.get("direction") if isinstance(truncation, dict) else None
        value = self.settings.get("truncation_side", str(preset or "right").lower())
        if value in ("left", "right"):
            return value
        raise ConfigError(f'{self.where("truncation_side")} = {shown(value)}; it must be "left" or "right"')

    def typed(self) -> bool:
        """Whether the model is told the types of a pair's tokens; without, all are of the first."""
        told = self.kind == BERT and self.class_name != "DistilBertTokenizer"
        preset = ["token_type_ids"] if told else []
        names = self.settings.get("model_input_names", preset)
        if not isinstance(names, list):
            raise ConfigError(f"{self.where('model_input_names')} = {shown(names)}; it must be a list of names")
        return "token_type_ids" in names

    def named(self) -> dict[str, Token]:
        """Special tokens by what they are for, in the order in which they get ids."""
        by_content = {token.content: token for token in self.listed.values()}
        padding = self.parsed.get("padding") if self.kind == AS_IS else None
        presets = KINDS[self.kind].presets | ({"pad": padding.get("pad_token")} if isinstance(padding, dict) else {})
        found: dict[str, Token] = {}
        for role in _ROLES:
            key = f"{role}_token"
            if self.settings.get(key) is not None:
                token = token_of(self.settings[key], self.where(key))
                if role == "mask" and isinstance(self.settings[key], str):
                    token = self._mask(token)
                found[role] = by_content.get(token.content, token)
            elif key not in self.settings and isinstance(presets.get(role), str):
                found[role] = self._mask(Token(presets[role])) if role == "mask" else Token(presets[role])
        for key, value in self.settings.items():
            tagged = isinstance(value, dict) and "__type" in value
            if key.endswith("_token") and key[: -len("_token")] not in _ROLES and (tagged or isinstance(value, str)):
                found[key] = token_of(value, self.where(key))
        extra = self.settings.get("extra_special_tokens")
        if isinstance(extra, dict):
            found.update((key, token_of(value, self.where("extra_special_tokens"))) for key, value in extra.items())
        return found

    def extra(self) -> list[Token]:
        """Special tokens without a name."""
        key = "extra_special_tokens" if "extra_special_tokens" in self.settings else "additional_special_tokens"
        if key not in self.settings:
            return [Token(content) for content in KINDS[self.kind].extra]
        value = self.settings[key]
        return [token_of(item, self.where(key)) for item in value] if isinstance(value, list) else []

    def _mask(self, token: Token) -> Token:
        return token._replace(lstrip=KINDS[self.kind].mask_takes_space)

    def tokens_to_add(self) -> list[Token]:
        """All that the library adds to its vocabulary, in its order: the place of a new one is its id."""
        named = list(self.named().values())
        tokens = [self.listed[number] for number in sorted(self.listed)]
        known = {token.content for token in tokens}
        if self.whole:
            known |= {token.content for _, token in json_tokens(self.parsed, self.source)}
        for token in (*named, *self.extra()):
            if token.content not in known:
                known.add(token.content)
                tokens.append(token)
        special = {token.content for token in named}
        return [token._replace(special=token.special or token.content in special) for token in tokens if token.content]

    def required(self, role: str) -> str:
        token = self.named().get(role)
        if token is None or not token.content:
            value = shown(self.settings.get(f"{role}_token"))
            raise ConfigError(f"{self.where(role + '_token')} = {value}; a token belongs there, which every row needs")
        return token.content


def read(checkpoint: Checkpoint) -> Said:
    """Raises CheckpointError and ConfigError as `tokenizer_files.load`."""
    folder, vocabulary = checkpoint.folder, checkpoint.tokenizer_file
    has_json = vocabulary is not None and os.path.basename(vocabulary) == "tokenizer.json"
    ignored = os.environ.get("FIRESTEEL_IGNORE_KEYS", "").replace(" ", "").split(",")
    settings = {key: value for key, value in checkpoint.tokenizer_config.items() if key not in ignored}
    # Without a tokenizer.json there is nothing to take as it is: the class counts, whoever ignores it.
    as_it_is = "tokenizer_class" in ignored and has_json
    class_name = "PreTrainedTokenizer" if as_it_is else _class(checkpoint, has_json)
    kind = CLASSES[class_name]
    if not has_json:
        _check_without_json(folder, kind)
    _check_keys(os.path.join(folder, "tokenizer_config.json"), settings)
    _check_lists(os.path.join(folder, "tokenizer_config.json"), settings)
    text = text_of(vocabulary, _copy(kind)) if has_json else None
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    special_map = optional_json(os.path.join(folder, "special_tokens_map.json"))
    said = Said(
        folder=folder,
        class_name=class_name,
        kind=kind,
        # transformers saves what it was called with, and with this it leaves the file as it is, all but the ends
        whole=kind == AS_IS or (has_json and bool(settings.get("trust_remote_code"))),
        text=text,
        parsed={} if text is None else _parse(text, vocabulary, _copy(kind)),
        settings=settings,
        special_map={key: value for key, value in special_map.items() if key not in ignored},
        listed={},
        promised=[],
    )
    _list_tokens(said, optional_json(os.path.join(folder, "added_tokens.json")))
    return said


def _class(checkpoint: Checkpoint, has_json: bool) -> str:
    """The class that the files name, or that belongs to the model_type; a key of CLASSES."""
    path, name = "tokenizer_config.json", checkpoint.tokenizer_config.get("tokenizer_class")
    if name is None:
        path, name = "config.json", checkpoint.config.get("tokenizer_class")
    if name is None:
        return _OF_MODEL_TYPE.get(str(checkpoint.config.get("model_type")), "PreTrainedTokenizer")
    if isinstance(name, str) and name.removesuffix("Fast") in CLASSES:
        return name.removesuffix("Fast")
    said = f"{os.path.join(checkpoint.folder, path)}: tokenizer_class = {shown(name)}"
    made = ", ".join(name for name, kind in CLASSES.items() if kind != AS_IS)
    if not has_json:
        raise ConfigError(f"{said} is not supported; supported are {made}; {_COPY_JSON}, which can be taken as it is")
    raise ConfigError(
        f"{said} is not supported; supported are {made} and, to take tokenizer.json as it is, {AS_IS} "
        f"(FIRESTEEL_IGNORE_KEYS=tokenizer_class takes it so too)"
    )


def _check_keys(path: str, settings: Mapping[str, object]) -> None:
    """A key that asks for other tokens is an error, unless the user knows better. The rest changes none."""
    refused = [key for key, neutral in _NEUTRAL.items() if key in settings and settings[key] not in neutral]
    remote = settings.get("auto_map")
    if remote and (not isinstance(remote, dict) or remote.get("AutoTokenizer")):
        refused.append("auto_map")
    for key in refused:
        value = shown(settings[key])
        raise ConfigError(
            f"{path}: {key} = {value} is not supported; if it is harmless, set FIRESTEEL_IGNORE_KEYS={key}"
        )


def _check_without_json(folder: str, kind: str) -> None:
    """The files of the kind are there, and none that comes before them."""
    files = KINDS[kind].files
    if not files:
        raise CheckpointError(
            f"{folder}: tokenizer.json is missing, of which alone the tokenizer_class {kind} is made; give rows of "
            f"token ids, or {_COPY_JSON}, or let transformers write it: AutoTokenizer.from_pretrained(...) and "
            f"save_pretrained(...)"
        )
    missing = [name for name in files if not there(os.path.join(folder, name))]
    if missing:
        also = "" if files[0] in missing else f", and so is {missing[0]}, which belongs to {files[0]}"
        raise CheckpointError(f"{folder}: tokenizer.json is missing{also}; give rows of token ids, or {_copy(kind)}")
    for name in OTHER_VOCABULARIES:
        if there(os.path.join(folder, name)):
            raise CheckpointError(
                f"{os.path.join(folder, name)}: comes before {files[0]} where there is no tokenizer.json, and is not "
                f"supported; remove it, or {_COPY_JSON}"
            )


def _copy(kind: str) -> str:
    names = " or ".join(filter(None, ("tokenizer.json", " with ".join(KINDS[kind].files))))
    return f"copy {names} from where the model came from"


def text_of(path: str, copy_it: str) -> str:
    try:
        return content(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: cannot be read: byte {error.start} is not UTF-8; {copy_it}") from None


def json_value(text: str, path: str, copy_it: str) -> object:
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; {copy_it}") from None


def _parse(text: str, path: str, copy_it: str) -> dict[str, object]:
    value = json_value(text, path, copy_it)
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise CheckpointError(f"{path}: cannot be read: it holds no model; {copy_it}")
    return value


# --- added tokens -----------------------------------------------------------------------------------------------------


def token_of(value: object, said: str, special: bool | None = None) -> Token:
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
            f'{said} has {shown(value)}; a string belongs there, or an object with "content" and flags'
        )
    special = bool(value.get("special", False)) if special is None else special
    token = Token(value["content"], normalized=bool(value.get("normalized", not special)), special=special)
    return token._replace(**{flag: value[flag] for flag in flags[:3] if flag in value})


def json_tokens(parsed: Mapping[str, object], path: str) -> list[tuple[int, Token]]:
    """(id, token) of tokenizer.json's added_tokens."""
    listed = parsed.get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(item, dict) and is_id(item.get("id")) for item in listed):
        raise CheckpointError(f"{path}: added_tokens is no list of tokens with ids")
    return [(item["id"], token_of(item, f"{path}: added_tokens")) for item in listed]


def shown(value: object) -> str:
    """A value as its file has it, cut where a sentence has no room for it."""
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:100] + "..."


def is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _list_tokens(said: Said, added: Mapping[str, object]) -> None:
    """Fills `listed` and `promised`, and lays special_tokens_map.json over the settings where it counts."""
    for key, value in said.special_map.items():
        known = (*(f"{role}_token" for role in _ROLES), "additional_special_tokens", "extra_special_tokens")
        if key not in known and not (key.endswith("_token") and isinstance(value, str)):
            path = said.path("special_tokens_map.json")
            said_so = f"{path}: {key} = {shown(value)}"
            raise ConfigError(
                f"{said_so} is not supported; known are {', '.join(known)}; "
                f"if it is harmless, set FIRESTEEL_IGNORE_KEYS={key}"
            )
    path = said.path("added_tokens.json")
    if not all(map(is_id, added.values())):
        raise CheckpointError(f"{path}: an object from tokens to ids belongs there")
    _check_lists(said.path("special_tokens_map.json"), said.special_map)
    from_json = json_tokens(said.parsed, said.path("tokenizer.json"))
    said.promised += [(path, number, token) for token, number in added.items()]
    said.promised += [(said.path("tokenizer.json"), number, token.content) for number, token in from_json]
    if "added_tokens_decoder" in said.settings:
        decoder, where = said.settings["added_tokens_decoder"], said.where("added_tokens_decoder")
        if not isinstance(decoder, dict) or not all(key.isdecimal() and len(key) < 11 for key in decoder):
            raise CheckpointError(f"{where} is no object from ids to tokens")
        said.listed = {int(key): token_of(value, where) for key, value in decoder.items()}
        said.promised += [(where, number, token.content) for number, token in said.listed.items()]
        return
    _lay_over(said)
    values = {f"{role}_token": said.settings.get(f"{role}_token") for role in _ROLES}
    special = {token_of(value, said.where(key)).content for key, value in values.items() if value}
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
            raise ConfigError(f"{path}: {key} = {shown(value)}; it must be a list of tokens")
        for item in value.values() if isinstance(value, dict) else value or ():
            token_of(item, f"{path}: {key}")


def _lay_over(said: Said) -> None:
    """special_tokens_map.json over tokenizer_config.json; an object there is special whatever it says."""
    for key, value in said.special_map.items():
        if key == "extra_special_tokens" and isinstance(value, list):
            value = [*(said.settings.get(key) or []), *value]
        elif isinstance(value, dict) and key != "extra_special_tokens":
            value = {"normalized": False, **value, "special": True}
        said.settings[key] = value
