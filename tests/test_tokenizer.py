"""Texts to flat token ids: as transformers makes them, whatever the batch, the length and the thread."""

import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny
from firesteel import CheckpointError, ConfigError, RequestError
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.tokenizer import Tokenizer
from firesteel.model.tokenizer_files import load
from firesteel.model.tokenizer_plain import Plain

IDS = {token: number for number, token in enumerate(tiny.vocabulary())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("tokenizer") / "model", hidden=8, heads=1, inner=8, layers=1)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer(Checkpoint.open(folder))


def ids(*tokens):
    return [IDS[token] for token in ("[CLS]", *tokens, "[SEP]")]


def rows(encoded):
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)]


def test_flat_ids_and_offsets(tokenizer):
    encoded = tokenizer.encode(["the table", "", "The ab!", "[SEP]"], 64)
    assert encoded.ids.dtype == np.int32 and encoded.offsets.dtype == np.int64
    assert rows(encoded) == [
        ids("the", "table"),
        ids(),
        ids("the", "a", "##b", "!"),
        ids("[UNK]", "s", "##e", "##p", "[UNK]"),
    ]
    assert encoded.errors == []


def test_no_rows(tokenizer):
    encoded = tokenizer.encode([], 64)
    assert encoded.ids.shape == (0,) and encoded.offsets.tolist() == [0] and encoded.errors == []


@pytest.mark.parametrize(
    "words, limit, kept",
    [(3, 5, 3), (4, 5, 3), (100, 5, 3), (100, 64, 62), (1, 2, 0), (0, 2, 0), (1, 3, 1)],
)
def test_long_texts_are_cut_between_the_special_tokens(tokenizer, words, limit, kept):
    assert rows(tokenizer.encode(["the " * words], limit)) == [ids(*["the"] * kept)]


@pytest.mark.parametrize("words, fails", [(3, False), (4, True), (200, True)])
def test_long_texts_are_faults_where_cutting_is_refused(tokenizer, words, fails):
    encoded = tokenizer.encode(["a", "the " * words, "b"], 5, truncate=False)
    if not fails:
        assert encoded.errors == [] and rows(encoded)[1] == ids(*["the"] * words)
        return
    assert encoded.errors == [(1, "TOO_LONG", f"the row has {words + 2} tokens; the limit is 5")]
    assert rows(encoded) == [ids("a"), [], ids("b")]


def test_a_limit_below_the_special_tokens(tokenizer):
    with pytest.raises(RequestError, match="max_length is 1; 2 special tokens"):
        tokenizer.encode(["a"], 1)


def test_rows_that_are_no_text(tokenizer):
    encoded = tokenizer.encode(["a", None, "x\ud800y", b"b", 3, "b", ("a", "b"), np.str_("of")], 64, prompt="the")
    assert [(row, code) for row, code, _ in encoded.errors] == [
        (1, "SCHEMA"),
        (2, "BAD_UTF8"),
        (3, "SCHEMA"),
        (4, "SCHEMA"),
        (6, "SCHEMA"),
    ]
    assert "NoneType" in encoded.errors[0][2] and "U+D800 at character 1" in encoded.errors[1][2]
    got = rows(encoded)
    assert [len(row) for row in got] == [4, 0, 0, 0, 0, 4, 0, 5]
    assert got[0] == ids("the", "##a") and not any(got[row] for row in (1, 2, 3, 4, 6))


def test_a_row_with_two_faults_has_one_error(tokenizer):
    encoded = tokenizer.encode(["the " * 50 + "\udfff", "a"], 5, truncate=False)
    assert [(row, code) for row, code, _ in encoded.errors] == [(0, "BAD_UTF8")]


PAIRS = {  # text, second text, limit, side -> tokens of each
    "both fit": ("the a", "of", 64, True, ["the", "a"], ["of"]),
    "the second is longer": ("the", "of " * 9, 8, True, ["the"], ["of"] * 4),
    "the first is longer": ("the " * 9, "of", 8, "right", ["the"] * 4, ["of"]),
    "both are longer": ("the " * 9, "of " * 8, 8, "right", ["the"] * 3, ["of"] * 2),
    "the odd token is the longer one's": ("the " * 8, "of " * 9, 8, "right", ["the"] * 2, ["of"] * 3),
    "on the left": ("a the b", "the c of", 7, "left", ["the", "b"], ["c", "of"]),
    "no room": ("the", "of", 3, True, [], []),
    "no texts": ("", "", 64, True, [], []),
}


@pytest.mark.parametrize("case", PAIRS.values(), ids=PAIRS)
def test_pairs(tokenizer, case):
    text, second, limit, truncate, first, other = case
    encoded = tokenizer.encode([text, ""], limit, truncate, pairs=[second, ""])
    right = [*ids(*first), *(IDS[token] | 1 << 24 for token in (*other, "[SEP]"))]
    assert rows(encoded) == [right, [*ids(), IDS["[SEP]"] | 1 << 24]] and encoded.ids.dtype == np.int32
    assert rows(tokenizer.encode([text], 64)) == [ids(*text.split())], "a single text has no types"


def test_pairs_that_are_too_long_where_cutting_is_refused(tokenizer):
    encoded = tokenizer.encode(["the a", "a", "a"], 6, "error", prompt="the ", pairs=["of", "a a", "b"])
    assert encoded.errors == [(row, "TOO_LONG", "the row has 7 tokens; the limit is 6") for row in (0, 1)]
    assert [len(row) for row in rows(encoded)] == [0, 0, 6]


def test_pairs_with_faults(tokenizer):
    texts = ["a", None, "x\ud800", "a", "a", None, "a"]
    encoded = tokenizer.encode(texts, 64, prompt="the ", pairs=[3, "b", "b", "\udfff", "b", None, np.str_("of")])
    assert encoded.errors == [
        (0, "SCHEMA", "the second text is a int; a string belongs there"),
        (1, "SCHEMA", "the first text is a NoneType; a string belongs there"),
        (2, "BAD_UTF8", "the first text has the lone surrogate U+D800 at character 1"),
        (3, "BAD_UTF8", "the second text has the lone surrogate U+DFFF at character 0"),
        (5, "SCHEMA", "the first text is a NoneType; a string belongs there"),
    ]
    assert [len(row) for row in rows(encoded)] == [0, 0, 0, 0, 6, 0, 6]


def test_special_tokens_in_a_text_are_plain_text(tmp_path):
    folder = say(
        tiny.write(tmp_path / "m"), settings={"extra_special_tokens": ["[A]", "table"]}, added={"dog cat": NEW}
    )
    plain, special = (Tokenizer(Checkpoint.open(folder), special_tokens=asked) for asked in (False, True))
    texts = ["a [SEP]", "[A]", "the table", "dog cat"]
    assert rows(plain.encode(texts, 64)) == [
        ids("a", "[UNK]", "s", "##e", "##p", "[UNK]"),
        ids("[UNK]", "a", "[UNK]"),
        ids("the", "table"),
        [IDS["[CLS]"], NEW, IDS["[SEP]"]],
    ], "added tokens that are not special are found, and special ones that are words are words"
    assert rows(special.encode(texts, 64))[:2] == [ids("a", "[SEP]"), [IDS["[CLS]"], NEW + 1, IDS["[SEP]"]]]
    assert rows(plain.encode(["a"], 64, pairs=["[SEP]"]))[0].count(IDS["[SEP]"]) == 1, "the other one has type 1"


def test_special_tokens_in_a_text_where_the_library_cannot_leave_them(tmp_path, monkeypatch):
    """tokenizers before 0.19: such a row is a fault, because its ids would differ from those of newer ones."""
    monkeypatch.setattr("firesteel.model.tokenizer.look_for_none", lambda built: None)
    tokenizer = Tokenizer(Checkpoint.open(tiny.write(tmp_path / "m")))
    tokenizer._plain = Plain(OldLibrary(tokenizer._spare.tokenizer))
    encoded = tokenizer.encode(["a", "a [SEP]", "the"], 64)
    assert rows(encoded) == [ids("a"), [], ids("the")]
    assert [error[:2] for error in encoded.errors] == [(1, "SCHEMA")]
    assert "the text holds a special token, which tokenizers" in encoded.errors[0][2]


class OldLibrary:
    """A library's object without its newest attribute."""

    def __init__(self, built):
        self._built = built

    def __getattr__(self, name):
        if name == "encode_special_tokens":
            raise AttributeError(name)
        return getattr(self._built, name)


@pytest.mark.parametrize("model", ["WordLevel", "WordPiece"])
def test_special_tokens_that_a_model_gives_itself(tmp_path, model):
    """A tokenizer.json as it is may cut at blanks alone."""
    folder = say(tiny.write(tmp_path / "m"), settings=AS_IS)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    more = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100} if model == "WordPiece" else {}
    whole["model"] = {"type": model, "vocab": whole["model"]["vocab"], "unk_token": "[UNK]"} | more
    whole["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    texts = ["the [SEP] a", "[MASK]", "the a", "[UNK] ?!"]
    plain, special = (Tokenizer(Checkpoint.open(folder), special_tokens=asked) for asked in (False, True))
    assert rows(special.encode(texts, 64))[:2] == [ids("the", "[SEP]", "a"), ids("[MASK]")]
    assert rows(plain.encode(texts, 64)) == [
        ids("the", "[UNK]", "a"),
        ids("[UNK]"),
        ids("the", "a"),
        ids("[UNK]", "[UNK]"),
    ]


def test_pairs_that_are_none(tokenizer):
    assert rows(tokenizer.encode([], 64, pairs=[])) == []
    with pytest.raises(RequestError, match="max_length is 2; 3 special tokens alone need 3"):
        tokenizer.encode(["a"], 2, pairs=["b"])
    with pytest.raises(RequestError, match="there are 1 second texts and 2 rows"):
        tokenizer.encode(["a", "b"], 64, pairs=["c"])


@pytest.mark.parametrize(
    "settings, types",
    [
        ({"tokenizer_class": "DistilBertTokenizer"}, 0),
        ({"model_input_names": ["input_ids", "attention_mask"]}, 0),
        ({"tokenizer_class": "DistilBertTokenizer", "model_input_names": ["input_ids", "token_type_ids"]}, 1),
    ],
    ids=str,
)
def test_types_are_for_models_that_are_told_them(tmp_path, settings, types):
    folder = say(tiny.write(tmp_path / "m"), settings=settings)
    encoded = Tokenizer(Checkpoint.open(folder)).encode(["a"], 64, pairs=["b"])
    assert (encoded.ids >> 24).tolist() == [0, 0, 0, types, types]


def test_the_side_can_be_said(tokenizer):
    texts = ["the table of"]
    assert rows(tokenizer.encode(texts, 4, "left")) == [ids("table", "of")]
    assert rows(tokenizer.encode(texts, 4, "right")) == rows(tokenizer.encode(texts, 4)) == [ids("the", "table")]
    assert tokenizer.encode(texts, 4, "error").errors[0][1] == "TOO_LONG"
    with pytest.raises(RequestError, match="truncate is 'middle'; True, \"left\""):
        tokenizer.encode(texts, 4, "middle")


def test_prompts_go_in_front(tokenizer):
    plain = tokenizer.encode(["the table", "the "], 64, prompt="date: ")
    assert rows(plain) == [ids("date", ":", "the", "table"), ids("date", ":", "the")]


def test_the_files_own_padding_and_truncation_do_not_count(tokenizer):
    assert [len(row) for row in rows(tokenizer.encode(["a", "the " * 40], 64))] == [3, 42]


def test_threads_with_different_lengths_do_not_disturb_each_other(tokenizer):
    wrong = []

    def work(limit):
        for _ in range(50):
            got = rows(tokenizer.encode(["the " * 100] * 3, limit))
            if got != [ids(*["the"] * (limit - 2))] * 3:
                wrong.append((limit, got))

    threads = [threading.Thread(target=work, args=(limit,)) for limit in range(4, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_lower_casing_of_sentence_transformers(tmp_path):
    folder = tiny.write(tmp_path / "m", sentence={"transformer": {"do_lower_case": True}})
    settings = (folder / "tokenizer_config.json").read_text().replace('"do_lower_case": true', '"do_lower_case": false')
    (folder / "tokenizer_config.json").write_text(settings)
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(["THE"], 64)) == [ids("the")]
    (folder / "sentence_bert_config.json").write_text("{}")
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(["THE"], 64)) == [ids("[UNK]")]


def test_texts_can_be_cut_on_the_left(tmp_path):
    folder = tiny.write(tmp_path / "m")
    settings = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(settings.replace("{", '{"truncation_side": "left", ', 1))
    tokenizer = Tokenizer(Checkpoint.open(folder))
    assert rows(tokenizer.encode(["the table of"], 4)) == [ids("table", "of")]
    assert rows(tokenizer.encode(["the table of"], 4, "right")) == [ids("the", "table")]


@pytest.mark.parametrize(
    "vocabulary, part",
    [
        (None, "tokenizer.json is missing; give rows of token ids, or copy tokenizer.json or vocab.txt from where"),
        (b"{}", "holds no model"),
        (b"[]", "holds no model"),
        (b'{"model"', "cannot be read"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'{"model": {"type": "WordPiece"}}', "holds a WordPiece model"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}}}', "holds a BPE model, and BertTokenizer needs WordPiece"),
        (b'{"model": {"vocab": {"a": "0"}}}', "ids that are no whole numbers"),
        (b'{"model": {"vocab": {"a": 0}}}', 'lacks "[UNK]" (unk_token), which every row needs'),
        (b'{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": -1}]}', "added_tokens is no list of tokens with ids"),
        (b'{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}', 'an object with "content"'),
    ],
)
def test_no_tokenizer(tmp_path, vocabulary, part):
    folder = tiny.write(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    if vocabulary is not None:
        (folder / "tokenizer.json").write_bytes(vocabulary)
    with pytest.raises((CheckpointError, ConfigError)) as raised:
        Tokenizer(Checkpoint.open(folder))
    assert part in str(raised.value)


TEXTS = ["", "The Table of Dates!", "naïve é 中文 x" * 3, "[SEP] [MASK] a_b-c", "a\x00b\tc", "Ünïcode\u200b", "x" * 120]


@pytest.mark.parametrize("lower", [True, False])
def test_a_vocab_alone_is_the_same_tokenizer(tmp_path, lower):
    folder = tiny.write(tmp_path / "m")
    settings = (folder / "tokenizer_config.json").read_text()
    if not lower:
        (folder / "tokenizer_config.json").write_text(
            settings.replace('"do_lower_case": true', '"do_lower_case": false')
        )
    whole = Tokenizer(Checkpoint.open(folder)).encode(TEXTS, 64)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in tiny.vocabulary()), encoding="utf-8")
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(TEXTS, 64)) == rows(whole)


@pytest.mark.parametrize(
    "vocab, part",
    [(b"[PAD]\n[UNK]\n", 'lacks "[SEP]" (sep_token), "[CLS]" (cls_token)'), (b"\xff", "cannot be read")],
    ids=str,
)
def test_a_vocab_that_is_none(tmp_path, vocab, part):
    folder = tiny.write(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_bytes(vocab)
    with pytest.raises(CheckpointError) as raised:
        Tokenizer(Checkpoint.open(folder))
    assert part in str(raised.value)


# --- what the files say, beside the vocabulary; test_reference_tokenizers.py compares live with transformers ----------

NEW = 160  # the id of the first token that is added to tiny's vocabulary


def add(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": True} | flags


def say(folder, *, vocab=False, size=200, remove=(), **files):
    """`files`: settings, special, added, config; each is laid over the file that is there. vocab: vocab.txt alone."""
    names = {"settings": "tokenizer_config.json", "special": "special_tokens_map.json", "added": "added_tokens.json"}
    files = {"settings": {}, **files, "config": {"vocab_size": size} | files.get("config", {})}
    for key, value in files.items():
        path = folder / names.get(key, "config.json")
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({key: held for key, held in before.items() if key not in remove} | value))
    if vocab:
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("".join(token + "\n" for token in tiny.vocabulary()), encoding="utf-8")
    return folder


SAID = {  # files, text, tokens
    "missing keys are transformers'": ({"remove": ("do_lower_case", "strip_accents")}, "The É", ["the", "e"]),
    "lower case kept": ({"settings": {"do_lower_case": False}}, "The of", ["[UNK]", "of"]),
    "accents kept": ({"settings": {"strip_accents": False}}, "É", ["é"]),
    "accents stripped": ({"settings": {"strip_accents": True}}, "É", ["e"]),
    "chinese split": ({}, "中the", ["中", "the"]),
    "chinese together": ({"settings": {"tokenize_chinese_chars": False}}, "中a", ["中", "##a"]),
    "other ends": ({"settings": {"cls_token": "the", "sep_token": "of"}}, "a", ["a"]),
    "special token in the text": ({"settings": {"mask_token": "[unused0]"}}, "a[unused0]a", ["a", "[unused0]", "a"]),
    "special tokens split": (
        {"settings": {"split_special_tokens": True}},
        "[SEP]",
        ["[UNK]", "s", "##e", "##p", "[UNK]"],
    ),
    "added_tokens.json": ({"added": {"tableof": NEW}}, "a TableOf", ["a", NEW]),
    "added_tokens.json, two": ({"added": {"x y": NEW + 1, "ab": NEW}}, "ab x y", [NEW, NEW + 1]),
    "added_tokens_decoder": ({"settings": {"added_tokens_decoder": {"160": add("dates")}}}, "xdates", ["x", NEW]),
    "one word": (
        {"settings": {"added_tokens_decoder": {"160": add("ab", single_word=True)}}},
        "abc ab",
        ["a", "##b", "##c", NEW],
    ),
    "as written": (
        {"settings": {"added_tokens_decoder": {"160": add("AB", normalized=False)}}},
        "AB ab",
        [NEW, "a", "##b"],
    ),
    "additional_special_tokens": (
        {"settings": {"additional_special_tokens": ["[A]", "table"]}},
        "[A]tablea",
        [NEW, "table", "a"],
    ),
    "extra_special_tokens": ({"settings": {"extra_special_tokens": {"a_token": "<a>"}}}, "<a>", [NEW]),
    "special_tokens_map.json": ({"special": {"additional_special_tokens": ["[A]"]}}, "a[A]", ["a", NEW]),
    "special_tokens_map.json's ends": ({"special": {"cls_token": "the", "sep_token": add("of")}}, "b", ["b"]),
}


@pytest.mark.parametrize("vocab", [False, True], ids=["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("case", SAID.values(), ids=SAID)
def test_what_the_files_say(tmp_path, case, vocab):
    files, text, tokens = case
    folder = say(tiny.write(tmp_path / "m"), vocab=vocab, **files)
    ends = ["the", "of"] if "the" in str(files) and "cls_token" in str(files) else ["[CLS]", "[SEP]"]
    right = [IDS.get(token, token) for token in (ends[0], *tokens, ends[1])]
    assert rows(Tokenizer(Checkpoint.open(folder), special_tokens=True).encode([text], 64)) == [right]


def test_a_tokenizer_json_as_it_is(tmp_path):
    folder = say(
        tiny.write(tmp_path / "m"), settings={"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}
    )
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(["The É"], 64)) == [ids("the", "é")]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        CheckpointError, match="tokenizer.json is missing, of which alone the tokenizer_class PreTrained"
    ):
        Tokenizer(Checkpoint.open(folder))


REFUSED = {  # files -> what the sentence has
    "japanese": (
        {"settings": {"tokenizer_class": "BertJapaneseTokenizer"}},
        'tokenizer_class = "BertJapaneseTokenizer"',
    ),
    "gpt2": ({"settings": {"tokenizer_class": "GPT2TokenizerFast"}}, 'tokenizer_class = "GPT2TokenizerFast"'),
    "of config.json": (
        {"remove": ("tokenizer_class",), "config": {"tokenizer_class": "X"}},
        'config.json: tokenizer_class = "X"',
    ),
    "no class": ({"settings": {"tokenizer_class": 3}}, "tokenizer_class = 3"),
    "no basic": ({"settings": {"do_basic_tokenize": False}}, "do_basic_tokenize = false"),
    "never split": ({"settings": {"never_split": ["a"]}}, 'never_split = ["a"]'),
    "remote code": ({"settings": {"auto_map": {"AutoTokenizer": ["a.B", None]}}}, "FIRESTEEL_IGNORE_KEYS=auto_map"),
    "no flag": ({"settings": {"do_lower_case": "no"}}, 'do_lower_case = "no"; it must be true or false'),
    "no input names": ({"settings": {"model_input_names": "input_ids"}}, 'model_input_names = "input_ids"; it must be'),
    "no side": ({"settings": {"truncation_side": "both"}}, 'truncation_side = "both"; it must be "left" or "right"'),
    "dpr": ({"settings": {"tokenizer_class": "DPRContextEncoderTokenizer"}}, '"DPRContextEncoderTokenizer" is not'),
    "fast dpr": (
        {"remove": ("tokenizer_class",), "config": {"tokenizer_class": "DPRQuestionEncoderTokenizerFast"}},
        'config.json: tokenizer_class = "DPRQuestionEncoderTokenizerFast" is not',
    ),
    "empty class": ({"settings": {"tokenizer_class": ""}}, 'tokenizer_config.json: tokenizer_class = "" is not'),
    "false class": ({"settings": {"tokenizer_class": False}}, "tokenizer_class = false is not"),
    "empty class of config.json": (
        {"settings": {"tokenizer_class": None}, "config": {"tokenizer_class": ""}},
        '/config.json: tokenizer_class = "" is not',
    ),
    "no ends": ({"settings": {"cls_token": None}}, "cls_token = null"),
    "empty ends": ({"settings": {"cls_token": ""}}, 'tokenizer_config.json: cls_token = ""; a token belongs there'),
    "empty unknown": ({"special": {"unk_token": ""}}, 'special_tokens_map.json: unk_token = ""; a token belongs there'),
    "empty content": ({"settings": {"sep_token": add("")}}, 'sep_token = {"content": "", "lstrip": false'),
    "no list": (
        {"settings": {"additional_special_tokens": "cat"}},
        'tokenizer_config.json: additional_special_tokens = "cat"; it must be a list',
    ),
    "no list by its new name": (
        {"settings": {"extra_special_tokens": 7}},
        "tokenizer_config.json: extra_special_tokens = 7; it must be a list",
    ),
    "a list of numbers": (
        {"settings": {"additional_special_tokens": [7]}},
        "tokenizer_config.json: additional_special_tokens has 7; a string belongs there",
    ),
    "numbers by name": (
        {"settings": {"additional_special_tokens": {"a": 7}}},
        "tokenizer_config.json: additional_special_tokens has 7; a string belongs there",
    ),
    "numbers beside a good list": (
        {"settings": {"extra_special_tokens": [7]}, "special": {"extra_special_tokens": ["the"]}},
        "tokenizer_config.json: extra_special_tokens has 7; a string belongs there",
    ),
    "no list in the map": (
        {"special": {"additional_special_tokens": "cat"}},
        'special_tokens_map.json: additional_special_tokens = "cat"; it must be a list',
    ),
    "no unknown": ({"settings": {"unk_token": "[NO]"}}, 'lacks "[NO]" (unk_token)'),
    "no token": ({"settings": {"mask_token": {"lstrip": True}}}, 'mask_token has {"lstrip": true}'),
    "an id of another": ({"added": {"dates": 7}}, 'added_tokens.json: token "dates" has id 7 there, and ids of'),
    "a gap": (
        {"settings": {"added_tokens_decoder": {"163": add("dates")}}},
        '"dates" has id 163 there, and ids of added tokens follow on the vocabulary without gaps, so it would get 160;',
    ),
    "a gap after another": (
        {"added": {"dates": NEW, "dogcat": NEW + 9}},
        '"dogcat" has id 169 there, and ids of added tokens follow on the vocabulary without gaps, so it would get 161',
    ),
    "a gap beyond the model": (
        {"added": {"dogcat": NEW + 50}},
        '"dogcat" has id 210 there, the model\'s vocab_size is 200, so its ids end at 199; copy all',
    ),
    "a listed id beyond the model": (
        {"settings": {"added_tokens_decoder": {"300": add("dates")}}},
        '"dates" has id 300 there, the model\'s vocab_size is 200, so its ids end at 199; copy all',
    ),
    "an id of the vocabulary": ({"added": {"the": 7}}, f'"the" has id 7 there, and id {IDS["the"]} by the other files'),
    "two files": (
        {"settings": {"added_tokens_decoder": {}}, "added": {"dates": NEW}},
        '"dates" has id 160 there, and no id',
    ),
    "dropped": (
        {"settings": {"added_tokens_decoder": {}}, "special": {"additional_special_tokens": ["[A]"]}},
        '"[A]", which',
    ),
    "no ids": ({"added": {"dates": "160"}}, "added_tokens.json: an object from tokens to ids"),
    "a setting in the map": ({"special": {"do_lower_case": False}}, "special_tokens_map.json: do_lower_case = false"),
    "beyond": ({"added": {"dates": NEW}, "size": 160}, '"dates" has id 160, the model\'s vocab_size is 160'),
    "beyond the vocabulary": ({"size": 150}, '"[unused45]" has id 159, the model\'s vocab_size is 150'),
    "of another model": (
        {"size": 321},
        "the tokenizer has 160 entries, the model's vocab_size is 321; fewer than half",
    ),
}


@pytest.mark.parametrize("vocab", [False, True], ids=["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(tmp_path, case, vocab):
    files, part = case
    folder = say(tiny.write(tmp_path / "m"), vocab=vocab, **files)
    with pytest.raises((CheckpointError, ConfigError)) as raised:
        Tokenizer(Checkpoint.open(folder))
    assert part in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.parametrize(
    "file, key, value",
    [
        ("settings", "auto_map", {"AutoTokenizer": "a"}),
        ("settings", "never_split", ["a"]),
        ("settings", "tokenizer_class", "X"),
        ("settings", "tokenizer_class", ""),
        ("config", "tokenizer_class", "X"),
        ("config", "tokenizer_class", "DPRContextEncoderTokenizer"),
        ("special", "do_lower_case", False),
        ("special", "tokenizer_type", "x"),
        ("special", "name_token", 7),
        ("special", "image", {"content": "x"}),
    ],
)
def test_keys_that_the_user_knows_to_be_harmless(tmp_path, monkeypatch, file, key, value):
    """What the refusal says, done."""
    remove = ("tokenizer_class",) if file == "config" else ()
    folder = say(tiny.write(tmp_path / "m"), remove=remove, **{file: {key: value}})
    with pytest.raises(ConfigError, match=f"FIRESTEEL_IGNORE_KEYS={key}") as raised:
        Tokenizer(Checkpoint.open(folder))
    suggested = re.search(r"FIRESTEEL_IGNORE_KEYS=(\w+)", str(raised.value))[1]
    monkeypatch.setenv("FIRESTEEL_IGNORE_KEYS", f"other, {suggested}")
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(["The a"], 64)) == [ids("the", "a")]


@pytest.mark.parametrize("where", ["settings", "config"])
@pytest.mark.parametrize("name", ["X", "", "DPRContextEncoderTokenizer", "GPT2TokenizerFast", 3])
def test_a_class_that_cannot_be_ignored(tmp_path, monkeypatch, where, name):
    """With vocab.txt alone there is nothing to take as it is; the refusal suggests what helps, and it does."""
    folder = tiny.write(tmp_path / "m")
    whole = (folder / "tokenizer.json").read_bytes()
    say(folder, vocab=True, remove=("tokenizer_class",), **{where: {"tokenizer_class": name}})
    for ignored in ("", "tokenizer_class"):
        monkeypatch.setenv("FIRESTEEL_IGNORE_KEYS", ignored)
        with pytest.raises(ConfigError, match="copy tokenizer.json from where the model came from") as raised:
            Tokenizer(Checkpoint.open(folder))
        assert f"tokenizer_class = {json.dumps(name)} is not" in str(raised.value)
        assert "IGNORE_KEYS" not in str(raised.value)
    (folder / "tokenizer.json").write_bytes(whole)
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(["The a"], 64)) == [ids("the", "a")]


@pytest.mark.parametrize("name, made", [("BertTokenizer", True), (None, True), ("PreTrainedTokenizerFast", False)])
def test_a_known_class_is_not_ignored_for_a_vocab_alone(tmp_path, monkeypatch, name, made):
    folder = say(tiny.write(tmp_path / "m"), vocab=True, settings={"tokenizer_class": name})
    monkeypatch.setenv("FIRESTEEL_IGNORE_KEYS", "tokenizer_class")
    if made:
        assert rows(Tokenizer(Checkpoint.open(folder)).encode(["The a"], 64)) == [ids("the", "a")]
        return
    with pytest.raises(CheckpointError, match="copy tokenizer.json"):
        Tokenizer(Checkpoint.open(folder))


AS_IS = {"tokenizer_class": "PreTrainedTokenizerFast"}
SAME_TEXT = {  # files, added_tokens of tokenizer.json, the tokens with their ids, the text of both
    "case": ({"added": {"Covid": NEW, "covid": NEW + 1}}, [], ("Covid", 160), ("covid", 161), "covid"),
    "other order": ({"added": {"covid": NEW + 1, "COVID": NEW}}, [], ("COVID", 160), ("covid", 161), "covid"),
    "accents": (
        {"settings": {"strip_accents": True}, "added": {"é x": NEW, "e x": NEW + 1}},
        [],
        ("\\u00e9 x", 160),
        ("e x", 161),
        "e x",
    ),
    "of the vocabulary": ({"added": {"The": NEW, "the": IDS["the"]}}, [], ("the", IDS["the"]), ("The", 160), "the"),
    "decoder": (
        {"settings": {"added_tokens_decoder": {"160": add("Ab"), "161": add("aB", single_word=True)}}},
        [],
        ("Ab", 160),
        ("aB", 161),
        "ab",
    ),
    "two files": ({"added": {"covid": NEW + 1}}, [(NEW, add("COVID"))], ("COVID", 160), ("covid", 161), "covid"),
    "as it is": ({"settings": AS_IS}, [(NEW, add("Xy")), (NEW + 1, add("xy"))], ("Xy", 160), ("xy", 161), "xy"),
    "special": (
        {"settings": {"mask_token": add("X", special=True), "extra_special_tokens": [add("x", special=True)]}},
        [],
        ("x", IDS["x"]),
        ("X", 160),
        "x",
    ),
}


def with_tokens(folder, tokens):
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["added_tokens"] += [{"id": number, "special": False} | token for number, token in tokens]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize("case", SAME_TEXT.values(), ids=SAME_TEXT)
def test_tokens_that_are_the_same_once_normalized(tmp_path, case):
    """The library would give one of the two ids, by the order of a hash map; the refusal's way out is clear again."""
    files, more, (one, first), (other, second), text = case
    folder = with_tokens(say(tiny.write(tmp_path / "m"), **files), more)
    with pytest.raises(CheckpointError) as raised:
        Tokenizer(Checkpoint.open(folder))
    assert f'"{one}" (id {first}) and "{other}" (id {second}) are both "{text}"' in str(raised.value)
    both = {str(first): add(json.loads(f'"{one}"')), str(second): add(json.loads(f'"{other}"'), normalized=False)}
    say(folder, settings={"added_tokens_decoder": both})
    texts = [f"a {token['content']} a" for token in both.values()]
    found = rows(Tokenizer(Checkpoint.open(folder), special_tokens=True).encode(texts, 64))
    assert found == [
        [IDS.get(token, token) for token in ("[CLS]", "a", number, "a", "[SEP]")] for number in (first, second)
    ]


@pytest.mark.parametrize(
    "files",
    [
        {"settings": {"do_lower_case": False}, "added": {"Covid": NEW, "covid": NEW + 1}},
        {"settings": {"strip_accents": False}, "added": {"é x": NEW, "e x": NEW + 1}},
        {
            "settings": {
                "added_tokens_decoder": {"160": add("Ab", normalized=False), "161": add("aB", normalized=False)}
            }
        },
        {"settings": {"extra_special_tokens": ["Covid", "covid"]}},
        {"added": {"\x07": NEW, "\x08": NEW + 1}},
    ],
    ids=str,
)
def test_tokens_that_differ_once_normalized(tmp_path, files):
    Tokenizer(Checkpoint.open(say(tiny.write(tmp_path / "m"), **files)))


def test_tokens_that_sentence_transformers_makes_the_same(tmp_path):
    folder = tiny.write(tmp_path / "m", sentence={"transformer": {"do_lower_case": True}})
    say(folder, settings={"do_lower_case": False}, added={"Covid": NEW, "covid": NEW + 1})
    with pytest.raises(CheckpointError, match=r'"Covid" \(id 160\) and "covid" \(id 161\) are both "covid"'):
        Tokenizer(Checkpoint.open(folder))


@pytest.mark.parametrize("size", [160, 161, 200, 319, 320])
def test_models_whose_table_is_padded_up(tmp_path, size):
    assert rows(Tokenizer(Checkpoint.open(say(tiny.write(tmp_path / "m"), size=size))).encode(["a"], 64)) == [ids("a")]


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json", "tiktoken.model"])
def test_vocabularies_that_come_before_vocab_txt(tmp_path, name):
    folder = say(tiny.write(tmp_path / "m"), vocab=True)
    (folder / name).write_text("x")
    with pytest.raises(CheckpointError, match=f"{name}: comes before vocab.txt"):
        Tokenizer(Checkpoint.open(folder))


def test_a_vocab_without_a_mask_is_no_fault_of_the_folder(tmp_path):
    folder = say(tiny.write(tmp_path / "m"), vocab=True, remove=("mask_token",), settings={}, size=160)
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").replace("[MASK]", "[unused]")
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(["a"], 64)) == [ids("a")]


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"]
)
@pytest.mark.parametrize("what", ["broken link", "directory", "no JSON", "a list"])
def test_files_that_are_there_and_cannot_be_read(tmp_path, name, what):
    folder = say(tiny.write(tmp_path / "m"), vocab=name == "vocab.txt")
    (folder / name).unlink(missing_ok=True)
    if what == "broken link":
        (folder / name).symlink_to("gone")
    elif what == "directory":
        (folder / name).mkdir()
    else:
        (folder / name).write_text("{" if what == "no JSON" else "[]")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Tokenizer(Checkpoint.open(folder))


@pytest.mark.parametrize(
    "settings, made",
    [
        (
            {"tokenizer_class": "PreTrainedTokenizerFast"},
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        ),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, {"normalizer": {"type": "NoSuch"}}),
        (
            {"tokenizer_class": "PreTrainedTokenizerFast"},
            {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "?"}},
        ),
        ({}, {"model": {"vocab": {"\ud800": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}}, "added_tokens": []}),
    ],
    ids=["panic", "no such step", "no unknown token", "no text"],
)
def test_what_the_library_fails_on(tmp_path, settings, made):
    """Its panics are no Exception to Python, and its errors are of no class."""
    folder = say(tiny.write(tmp_path / "m"), settings=settings, size=4)
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(whole | {"added_tokens": []} | made))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: tokenizers [\d.]+ fails on it"):
        Tokenizer(Checkpoint.open(folder)).encode(["xyz"], 64)


def test_lines_of_a_vocab_end_as_the_library_has_it(tmp_path):
    from tokenizers.models import WordPiece

    folder = say(tiny.write(tmp_path / "m"), vocab=True)
    text = (
        (folder / "vocab.txt").read_text(encoding="utf-8").replace("the\n", "the \t\u3000\n").replace("of\n", "of\r\n")
    )
    (folder / "vocab.txt").write_bytes((text + "a\rb\n\n\x1cx\x1c\nlast").encode())
    tokenizer = load(Checkpoint.open(folder)).tokenizer
    right = WordPiece.read_file(str(folder / "vocab.txt"))
    assert {token: tokenizer.token_to_id(token) for token in right} == right and len(right) > 160


def test_an_xlm_roberta(tmp_path):
    """multilingual-e5-small says so: a BERT with XLM-R's pieces."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁the", "▁", *"abcd", "<mask>"]
    special = [
        {"id": pieces.index(token), "special": True} | add(token) for token in ("<s>", "<pad>", "</s>", "<mask>")
    ]
    model = {"type": "Unigram", "unk_id": 3, "vocab": [[piece, -1.0 * n] for n, piece in enumerate(pieces)]}
    folder = tiny.write(tmp_path / "m")
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": special, "model": model}))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    say(folder, size=12)
    texts = ["the ab", "", "<mask>the"]
    found = rows(Tokenizer(Checkpoint.open(folder), special_tokens=True).encode(texts, 64))
    assert found == [[0, 4, 5, 6, 7, 2], [0, 2], [0, 10, 4, 2]]
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(texts, 64)) == [*found[:2], [0, 5, 3, 6, 3, 2]]


@pytest.mark.parametrize(
    "settings, length",
    [({"model_max_length": 9}, 9), ({"max_len": 8}, 8), ({"model_max_length": 7.0, "max_len": 5}, 7)]
    + [({"model_max_length": 1e30}, None), ({"model_max_length": None, "max_len": 5}, None), ({}, None)],
)
def test_the_length_that_the_tokenizer_says(tmp_path, settings, length):
    folder = say(tiny.write(tmp_path / "m"), remove=("model_max_length",), settings=settings)
    assert Checkpoint.open(folder).sentence.max_length == length


@pytest.mark.parametrize("value", ["128", 0, -1, 12.5, True, [64]])
def test_lengths_that_cannot_be(tmp_path, value):
    folder = say(tiny.write(tmp_path / "m"), settings={"model_max_length": value})
    with pytest.raises(ConfigError, match="tokenizer_config.json: model_max_length is"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("threads, expected", [(1, 0), (3, 3)])
def test_the_pool_has_the_threads_asked_for(folder, threads, expected):
    """In a fresh process, because a pool lives as long as its process does."""
    code = f"""
import os
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.tokenizer import Tokenizer, set_threads
set_threads({threads})
tokenizer = Tokenizer(Checkpoint.open({str(folder)!r}))
before = len(os.listdir("/proc/self/task"))
tokenizer.encode(["the table"] * 100, 64)
print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {
        name: value for name, value in os.environ.items() if "RAYON" not in name and "TOKENIZERS" not in name
    }
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) == expected


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True])
def test_threads_that_cannot_be(count):
    from firesteel.model.tokenizer import set_threads

    with pytest.raises(RequestError, match="threads is"):
        set_threads(count)
