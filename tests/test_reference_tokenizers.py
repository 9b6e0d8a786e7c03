"""Tokenizer files against transformers, live: every class, key and file gives equal token ids, or is refused by name.

A row says which of the two it must be, so that nothing passes by being refused. What transformers itself cannot load is
refused as well.
"""

import itertools
import json
import string

import pytest
import tiny
import tokenizer_kit
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.tokenizer import Tokenizer
from tokenizer_kit import added, unigram

transformers = pytest.importorskip("transformers", reason="made by: make test-reference")
pytestmark = pytest.mark.reference

CHARACTERS = [*string.ascii_letters, *string.digits, *".,:;!?-_()[]'", *"éÉüß東京"]
WORDS = ["the", "The", "cat", "york", "York", "dogcat", "[unused1]", "<s>", "</s>", "[OTHER]"]
VOCAB = [*tiny.SPECIAL, *CHARACTERS, *("##" + sign for sign in CHARACTERS), *WORDS]
NEW = len(VOCAB)  # the id of the first token that is added
SPARE = 8
TEXTS = [
    "",
    "The cat",
    "the dogcat of York",
    "DogCat [unused1]the new token NEW TOKEN newtoken",
    "É é ü ÜBER naïve",
    "東京 a東b",
    "[CLS] [MASK]the [SEP][UNK] [PAD]",
    "<s> the </s> [OTHER]x [X1] [X2]",
    "a\x00b\tc\u200bd\x07e",
    "x" * 101 + " " + "ab" * 30,
    "it's a (cat)_dog-cat!",
    "☃ the",
]


def word_piece(*, more=(), **normalizer):
    """A tokenizer.json that differs in everything from what BertTokenizer makes of its vocabulary."""
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Library

    made = Library(
        models.WordPiece({t: i for i, t in enumerate(VOCAB)}, unk_token="[UNK]", max_input_chars_per_word=20)
    )
    given = {"lowercase": False, "handle_chinese_chars": False, "strip_accents": False} | normalizer
    made.normalizer = normalizers.BertNormalizer(**given)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, VOCAB.index(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP] [SEP]", special_tokens=ends)
    made.add_special_tokens(tiny.SPECIAL)
    made.add_tokens([AddedToken(content, **flags) for content, flags in more])
    made.enable_truncation(12)
    made.enable_padding(length=12)
    return json.loads(made.to_str())


def write(folder, files, config=None):
    return tokenizer_kit.write(folder, files, {"vocab_size": NEW + SPARE} | (config or {}))


def spelled(ids):
    return [VOCAB[number] if number < NEW else number for number in ids]


def outcome(folder, name, texts=TEXTS):
    return tokenizer_kit.outcome(folder, name, texts, spelled)


SUPPORTED = {  # class -> what it takes of tokenizer.json
    None: "vocabulary",
    **dict.fromkeys(
        (
            f"{name}Tokenizer{fast}"
            for name in ("Bert", "DistilBert", "Electra", "MobileBert", "SqueezeBert", "LayoutLM", "Lxmert", "MPNet")
            for fast in ("", "Fast")
        ),
        "vocabulary",
    ),
    **dict.fromkeys(("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer"), "whole"),
}
REFUSED = [
    *("BertJapaneseTokenizer", "GPT2Tokenizer", "GPT2TokenizerFast", "BartTokenizer", "BertweetTokenizer"),
    *("BertTokenizerLegacy", "ConvBertTokenizer", "LlamaTokenizer", "NoSuchTokenizer", "KoBertTokenizerFast"),
    *("RoFormerTokenizer", "FunnelTokenizer", "HerbertTokenizer", "TapasTokenizer", "bert", 3, ["BertTokenizer"]),
    *(f"DPR{part}EncoderTokenizer{fast}" for part in ("Context", "Question") for fast in ("", "Fast")),
    *("DPRReaderTokenizer", "", False),
]
TOO_MANY = [f"[X{number}]" for number in range(SPARE + 1)]
# settings of tokenizer_config.json -> what must come of them
KEYS = {
    "equal": [
        {},
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"strip_accents": True},
        {"strip_accents": False},
        {"strip_accents": None},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"tokenize_chinese_chars": True},
        {"do_basic_tokenize": True, "never_split": None},
        {"never_split": []},
        {"model_max_length": 512, "max_len": 512, "padding_side": "left", "clean_up_tokenization_spaces": True},
        {"model_max_length": 1000000000000000019884624838656},
        {"split_special_tokens": False},
        {"split_special_tokens": True},
        {"mask_token": "[OTHER]"},
        {"mask_token": None, "pad_token": None},
        {"mask_token": {"__type": "AddedToken", **added("[OTHER]", lstrip=True, normalized=False)}},
        {"cls_token": "<s>", "sep_token": "</s>"},
        {"bos_token": "<s>", "eos_token": "</s>"},
        {"unk_token": "x"},
        {"additional_special_tokens": ["[OTHER]", "dogcat"]},
        {"extra_special_tokens": ["[X1]", "[X2]"]},
        {"extra_special_tokens": ["[X1]"], "additional_special_tokens": ["[X2]"]},
        {"extra_special_tokens": {"a_token": "[X1]", "b_token": "york"}},
        {"extra_special_tokens": [{"__type": "AddedToken", **added("York", single_word=True)}]},
        {"image_token": "york", "add_bos_token": True, "add_eos_token": False},
        {"added_tokens_decoder": {}},
        {"added_tokens_decoder": {str(NEW): added("newtoken", special=False)}},
        {"added_tokens_decoder": {str(NEW): added("new token", lstrip=True, rstrip=True, normalized=False)}},
        {"added_tokens_decoder": {str(NEW + 1): added("[X2]", special=True), str(NEW): added("New", single_word=True)}},
        {
            "added_tokens_decoder": {
                str(i): added(t, normalized=False, special=True) for i, t in enumerate(tiny.SPECIAL)
            }
        },
        {"added_tokens_decoder": {"4": added("[MASK]", lstrip=True)}, "mask_token": "[MASK]"},
        {"added_tokens_decoder": {str(VOCAB.index("york")): added("york")}},
        {"add_prefix_space": True, "trim_offsets": False, "tokenizer_type": "roberta", "use_fast": False},
        {"tokenizer_file": "/nowhere/tokenizer.json", "vocab_file": "/nowhere", "name_or_path": "a/b"},
        {"special_tokens_map_file": None, "backend": "tokenizers", "is_local": True, "device_map": "auto"},
        {"chat_template": "{{ messages }}", "model_input_names": ["input_ids"], "auto_map": {"AutoTokenizer": None}},
        {"max_length": 5, "stride": 2, "truncation_strategy": "longest_first", "pad_to_multiple_of": 8},
        {"do_lowercase": False, "anything": [1, 2]},
    ],
    "refused": [
        {"do_lower_case": None},
        {"do_lower_case": "false"},
        {"tokenize_chinese_chars": None},
        {"strip_accents": 0},
        {"do_basic_tokenize": False},
        {"never_split": ["York"]},
        {"clean_text": False},
        {"wordpieces_prefix": "@@"},
        {"word_tokenizer_type": "mecab"},
        {"subword_tokenizer_type": "character"},
        {"truncation_side": "middle"},
        {"split_special_tokens": None},
        {"cls_token": None},
        {"unk_token": "nowhere"},
        {"sep_token": 7},
        {"extra_special_tokens": "[X1]"},
        {"extra_special_tokens": [7]},
        {"added_tokens_decoder": {"3": added("newtoken")}},
        {"added_tokens_decoder": {str(NEW + 3): added("newtoken")}},
        {"added_tokens_decoder": {str(NEW): {"content": "newtoken", "lstrip": "no"}}},
        {"added_tokens_decoder": {"x": added("newtoken")}},
        {"added_tokens_decoder": ["newtoken"]},
        {"auto_map": {"AutoTokenizer": ["a--b.c", None]}},
        {"auto_map": ["b.c", None]},
        {"init_inputs": ["a"]},
        {"vocab": {"a": 0}},
        {"fast_tokenizer_files": ["tokenizer.4.0.json"]},
        {"extra_special_tokens": TOO_MANY},
    ],
}
FOR_BERT = ("do_lower_case", "tokenize_chinese_chars", "strip_accents", "cls_token", "unk_token")
FILES = {"tokenizer.json": ("json",), "vocab.txt": ("vocab",), "both": ("json", "vocab")}


def files_of(names):
    made = {"json": {"tokenizer.json": word_piece()}, "vocab": {"vocab.txt": "\n".join(VOCAB) + "\n"}}
    return {name: value for key in names for name, value in made[key].items()}


WAYS = dict.fromkeys((None, "BertTokenizer", "DistilBertTokenizerFast", "MPNetTokenizer"), "vocabulary")
WAYS |= dict.fromkeys(("PreTrainedTokenizerFast", "TokenizersBackend"), "whole")


def expected(way, names, settings, verdict):
    """(verdict, what a refusal names)."""
    key = next(iter(settings), "")
    if way == "whole" and "json" not in names:
        return "refused", "tokenizer.json is missing"
    if way == "whole" and key in FOR_BERT:
        return "equal", ""
    return verdict, "[X8]" if settings.get(key) == TOO_MANY else key


@pytest.mark.parametrize("names", FILES.values(), ids=FILES)
@pytest.mark.parametrize("kind", WAYS, ids=str)
def test_keys(tmp_path, kind, names):
    wrong = []
    for number, (verdict, settings) in enumerate((v, s) for v, rows in KEYS.items() for s in rows):
        files = files_of(names) | {"tokenizer_config.json": settings | ({"tokenizer_class": kind} if kind else {})}
        verdict, part = expected(WAYS[kind], names, settings, verdict)
        try:
            found = outcome(write(tmp_path / str(number), files), part)
            assert found == verdict, f"is {found}"
        except AssertionError as error:
            wrong.append(f"{settings}: {error}")
    assert not wrong, "\n".join(wrong)


CASED = [
    {"do_lower_case": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": True, "strip_accents": False},
    {"tokenize_chinese_chars": False},
    {"do_lower_case": False, "cls_token": "<s>", "sep_token": "</s>", "extra_special_tokens": ["[X1]"]},
]


@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("kind", [kind for kind, way in SUPPORTED.items() if way == "vocabulary"], ids=str)
def test_classes_that_are_the_same_as_bert(tmp_path, kind, where):
    """Keys count for each of them, Fast or not, and a cased or a lower-casing tokenizer.json does not."""
    config = {"tokenizer_class": kind} if kind and where == "config.json" else {}
    tagged = {"tokenizer_class": kind} if kind and where == "tokenizer_config.json" else {}
    for (number, settings), lowercase in itertools.product(enumerate(CASED), (False, True)):
        files = {"tokenizer.json": word_piece(lowercase=lowercase), "tokenizer_config.json": settings | tagged}
        assert outcome(write(tmp_path / f"{number}{lowercase}", files, config), "") == "equal", settings


@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("kind", [*SUPPORTED, *REFUSED], ids=str)
def test_classes(tmp_path, kind, where):
    """Of each class what it takes of tokenizer.json, and what it makes of vocab.txt alone."""
    tagged = {} if kind is None else {"tokenizer_class": kind}
    config, settings = (tagged, None) if where == "config.json" else ({}, tagged)
    way = "refused" if kind in REFUSED else SUPPORTED[kind]
    for names in FILES.values():
        verdict = "refused" if way == "refused" or (way == "whole" and "json" not in names) else "equal"
        folder = write(tmp_path / "-".join(names), files_of(names) | {"tokenizer_config.json": settings}, config)
        found = outcome(folder, "tokenizer_class" if way == "refused" else "tokenizer.json is missing")
        assert found == verdict, names


def decoder(*tokens, at=NEW, **flags):
    return {str(at + i): added(token, **flags) for i, token in enumerate(tokens)}


# Files beside the vocabulary: tokenizer_config.json, special_tokens_map.json, added_tokens.json; what must come of them
LISTS = {
    "equal": [
        (None, None, None),
        (None, {"mask_token": "[OTHER]", "cls_token": "[CLS]"}, None),
        (None, {"cls_token": "<s>", "sep_token": {"content": "</s>", "lstrip": True}}, None),
        ({"cls_token": "[OTHER]"}, {"cls_token": "<s>"}, None),
        ({"cls_token": "[OTHER]", "added_tokens_decoder": {}}, {"cls_token": "<s>"}, None),
        (None, {"additional_special_tokens": ["[X1]", "York"]}, None),
        (None, {"extra_special_tokens": ["[X1]", "York"]}, None),
        ({"extra_special_tokens": ["[X2]"]}, {"extra_special_tokens": ["[X1]", "York"]}, None),
        ({"additional_special_tokens": ["[X2]"]}, {"extra_special_tokens": ["[X1]"]}, None),
        (None, {"image_token": "[OTHER]"}, None),
        (None, {"mask_token": added("[OTHER]", normalized=False, lstrip=True, rstrip=True)}, None),
        (None, None, {"newtoken": NEW}),
        (None, None, {"new token": NEW, "DogCat": NEW + 1}),
        (None, None, {"york": VOCAB.index("york")}),
        ({}, None, {"newtoken": NEW + 1, "New": NEW}),
        ({"extra_special_tokens": ["newtoken"]}, None, {"newtoken": NEW}),
        ({"mask_token": "NEW"}, None, {"NEW": NEW}),
        (None, {"mask_token": "NEW"}, {"NEW": NEW}),
        (None, {"additional_special_tokens": ["NEW"]}, {"NEW": NEW}),
        ({"added_tokens_decoder": decoder("NEW", "[X1]")}, {"mask_token": "[MASK]"}, {"NEW": NEW, "[X1]": NEW + 1}),
        ({"added_tokens_decoder": decoder("NEW"), "do_lower_case": False}, None, {"NEW": NEW}),
        ({"added_tokens_decoder": decoder("[X1]", special=True), "extra_special_tokens": ["[X1]"]}, None, None),
    ],
    "refused": [  # with what it names
        (None, None, {"newtoken": NEW + 1}, "newtoken"),
        (None, None, {"newtoken": 3}, "newtoken"),
        (None, None, {"york": 3}, "york"),
        (None, None, {"newtoken": "5"}, "added_tokens.json"),
        (None, None, {"newtoken": None}, "added_tokens.json"),
        ({"added_tokens_decoder": {}}, None, {"newtoken": NEW}, "newtoken"),
        ({"added_tokens_decoder": {}}, {"additional_special_tokens": ["[X1]"]}, None, "[X1]"),
        ({"added_tokens_decoder": decoder("NEW")}, None, {"NEW": NEW + 1}, "NEW"),
        (None, {"do_lower_case": False}, None, "do_lower_case"),
        (None, {"cls_token": None}, None, "cls_token"),
        (None, {"sep_token": 5}, None, "sep_token"),
        (None, {"extra_special_tokens": [5]}, None, "extra_special_tokens"),
        ({"extra_special_tokens": ["[X2]"]}, {"additional_special_tokens": ["[X1]"]}, None, "[X1]"),
    ],
}


@pytest.mark.parametrize("names", FILES.values(), ids=FILES)
@pytest.mark.parametrize("kind", WAYS, ids=str)
def test_added_tokens(tmp_path, kind, names):
    wrong = []
    for number, (verdict, row) in enumerate((v, row) for v, rows in LISTS.items() for row in rows):
        settings = row[0] if kind is None else (row[0] or {}) | {"tokenizer_class": kind}
        files = {"tokenizer_config.json": settings, "special_tokens_map.json": row[1], "added_tokens.json": row[2]}
        part = row[3] if len(row) > 3 else ""
        if WAYS[kind] == "whole":
            if "json" not in names:
                verdict, part = "refused", "tokenizer.json is missing"
            elif row[1] == {"cls_token": None}:
                verdict = "equal"
        try:
            found = outcome(write(tmp_path / str(number), files_of(names) | files), part)
            assert found == verdict, f"is {found}"
        except AssertionError as error:
            wrong.append(f"{row}: {error}")
    assert not wrong, "\n".join(wrong)


JSONS = {
    "added": lambda: word_piece(more=[("newtoken", {}), ("DogCat", {"normalized": False}), ("[X1]", {"lstrip": True})]),
    "of the vocabulary": lambda: word_piece(more=[("york", {"single_word": True}), ("dogcat", {"rstrip": True})]),
    "lower": lambda: word_piece(lowercase=True, strip_accents=None),
    "no type": lambda: untyped(word_piece()),
    "no added_tokens": lambda: word_piece() | {"added_tokens": []},
    "cut on the left": lambda: cut(word_piece(), direction="Left"),
    "no steps": lambda: word_piece() | {"normalizer": None, "pre_tokenizer": None, "post_processor": None},
}


def untyped(made):
    del made["model"]["type"]
    return made


def cut(made, **changes):
    made["truncation"] |= changes
    return made


JSON_KEYS = [{}, {"do_lower_case": False}, {"trust_remote_code": True}, {"added_tokens_decoder": {}}]


@pytest.mark.parametrize("settings", JSON_KEYS, ids=str)
@pytest.mark.parametrize("kind", WAYS, ids=str)
@pytest.mark.parametrize("made", JSONS.values(), ids=JSONS)
def test_what_tokenizer_json_holds(tmp_path, made, kind, settings):
    files = {"tokenizer.json": made(), "tokenizer_config.json": settings | ({"tokenizer_class": kind} if kind else {})}
    lost = "added_tokens_decoder" in settings and WAYS[kind] == "vocabulary" and made is JSONS["added"]
    assert outcome(write(tmp_path / "m", files), "newtoken") == ("refused" if lost else "equal")


UNIGRAM_TEXTS = ["The cat", "the  dog. <mask> York", "ＤＯＧ ｘ Ｔhe", "</s> <s>", " ", "a\tb", "ÜU"]


UNIGRAM_KEYS = [{}, {"add_prefix_space": False}, {"mask_token": "dog"}, {"do_lower_case": True}]
UNIGRAM_KINDS = ["XLMRobertaTokenizer", "XLMRobertaTokenizerFast", "PreTrainedTokenizerFast", None, "BertTokenizer"]


@pytest.mark.parametrize("settings", UNIGRAM_KEYS, ids=str)
@pytest.mark.parametrize("normalizer", ["Precompiled", "Sequence", ""])
@pytest.mark.parametrize("kind", UNIGRAM_KINDS, ids=str)
def test_xlm_roberta(tmp_path, kind, normalizer, settings):
    made = unigram(normalizer=normalizer)
    settings = settings | ({"tokenizer_class": kind} if kind else {})
    folder = write(tmp_path / "m", {"tokenizer.json": made, "tokenizer_config.json": settings}, {"vocab_size": 40})
    assert outcome(folder, "WordPiece", UNIGRAM_TEXTS) == ("refused" if kind in (None, "BertTokenizer") else "equal")


SENTENCES = {  # sentence_bert_config.json, tokenizer_config.json, tokenizer.json's normalizer
    "plain": ({}, {}, {}),
    "lower": ({"do_lower_case": True}, {"do_lower_case": False}, {}),
    "lower, and with chinese characters": ({"do_lower_case": True}, {"tokenizer_class": "PreTrainedTokenizerFast"}, {}),
    "length of sentence-transformers": ({"max_seq_length": 6}, {"model_max_length": 9}, {}),
    "length of the tokenizer": ({}, {"model_max_length": 7}, {}),
    "length by its old name": ({}, {"max_len": 7}, {}),
    "no length": ({"max_seq_length": None}, {"model_max_length": 1e30}, {}),
    "cut on the left": ({"max_seq_length": 6}, {"truncation_side": "left"}, {}),
}


@pytest.mark.parametrize("case", SENTENCES.values(), ids=SENTENCES)
def test_sentence_transformers(tmp_path, case):
    from sentence_transformers import SentenceTransformer

    transformer, settings, normalizer = case
    shape = {"hidden": 12, "heads": 1, "inner": 12, "layers": 1, "positions": 48}
    folder = tiny.write(tmp_path / "m", sentence={"transformer": transformer}, **shape)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = SentenceTransformer(str(folder), device="cpu")
    texts = ["The Table of Dates", "É 中文 x [MASK] the ab", "the " * 99, ""]
    right = [model.preprocess([text])["input_ids"][0].tolist() for text in texts]
    opened = Checkpoint.open(folder)
    encoded = Tokenizer(opened, special_tokens=True).encode(texts, min(opened.sentence.max_length or 48, 48))
    assert [encoded.ids[a:b].tolist() for a, b in itertools.pairwise(encoded.offsets)] == right


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json", "tiktoken.model"])
@pytest.mark.parametrize("names", FILES.values(), ids=FILES)
def test_vocabularies_of_other_kinds(tmp_path, name, names):
    """transformers takes them before vocab.txt, and after tokenizer.json."""
    folder = write(tmp_path / "m", files_of(names) | {name: "{}"})
    assert outcome(folder, name) == ("equal" if "json" in names else "refused")


def test_what_transformers_saves(tmp_path):
    """A folder as save_pretrained leaves it, tokens that were added included."""
    folder = write(tmp_path / "m", files_of(("vocab",)))
    loaded = transformers.AutoTokenizer.from_pretrained(str(folder))
    loaded.add_tokens(["newtoken", "New York"])
    loaded.add_special_tokens({"additional_special_tokens": ["[X1]"]})
    (folder / "vocab.txt").unlink()
    loaded.save_pretrained(str(folder))
    assert outcome(folder, "") == "equal"


@pytest.mark.parametrize("kind", ["BertTokenizer", "MPNetTokenizer", "PreTrainedTokenizerFast"])
def test_special_tokens_as_plain_text(tmp_path, kind):
    """As transformers splits them where it is asked to."""
    settings = {"tokenizer_class": kind, "extra_special_tokens": ["[X1]", "[OTHER]"]}
    folder = write(tmp_path / "m", files_of(("json",)) | {"tokenizer_config.json": settings})
    right = transformers.AutoTokenizer.from_pretrained(str(folder))(TEXTS, split_special_tokens=True)["input_ids"]
    encoded = Tokenizer(Checkpoint.open(folder, weights=False)).encode(TEXTS, 512)
    assert [encoded.ids[a:b].tolist() for a, b in itertools.pairwise(encoded.offsets)] == right
