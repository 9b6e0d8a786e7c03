"""Tokenizers of RoBERTa, XLM-R, CamemBERT and ALBERT against transformers; BERT's: test_reference_tokenizers."""

import itertools
import json
import random

import pytest
from firesteel.model import kinds
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.tokenizer import Tokenizer
from tokenizer_kit import added, character_map, outcome, sentencepiece_model, unigram, write

transformers = pytest.importorskip("transformers", reason="made by: make test-reference")
pytestmark = pytest.mark.reference

TEXTS = [
    "",
    "Hello world",
    "  the cat, the dog.  ",
    "it's we're I'LL don't",
    "naïve É ÜBER ＤＯＧ ｘ \u0065\u0301",
    "東京 a東b、東京",
    "a\x00b\tc\u200bd\x07e\r\n\n f",
    "👩\u200d👩\u200d👧 ☃the",
    "<s>the <mask> cat</s> <mask>dog [CLS] a [SEP]b [MASK] <unk> <pad>",
    "x" * 120 + " " + "the cat " * 40,
    "   ",
    "\u00a0the\u3000cat\u2028dog",
    "नमस्ते 123,456.78 مرحبا",
    "``the'' cat'' \"dog\"",
    "<s>NOTUSED the <unk>NOTUSED",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(autouse=True)
def any_model_type(monkeypatch):
    """Which models run is not the question here."""
    monkeypatch.setattr(kinds, "check_type", lambda *_: None)


def byte_level():
    """A tokenizer.json of byte pairs that differs in all else from what RobertaTokenizer makes of it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, min_frequency=2
        ),
    )
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B:1", special_tokens=ends)
    return json.loads(made.to_str())


def of_roberta(names):
    made = byte_level()
    merges = [item if isinstance(item, str) else " ".join(item) for item in made["model"]["merges"]]
    files = {
        "tokenizer.json": made,
        "old tokenizer.json": made | {"model": made["model"] | {"merges": merges}},
        "vocab.json": made["model"]["vocab"],
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
    }
    return {name.removeprefix("old "): files[name] for name in names}


ROBERTA_FILES = [
    ("tokenizer.json",),
    ("old tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("tokenizer.json", "vocab.json", "merges.txt"),
]
MASK = {"__type": "AddedToken", **added("<mask>", lstrip=True, normalized=False)}
ROBERTA_KEYS = {
    "equal": [
        {},
        {"add_prefix_space": True},
        {"add_prefix_space": False, "trim_offsets": False},
        {"add_prefix_space": True, "trim_offsets": True, "errors": "strict"},
        {"do_lower_case": True},
        {"mask_token": MASK},
        {"cls_token": "<pad>", "sep_token": "<unk>"},
        {"bos_token": "<pad>", "eos_token": "<unk>"},
        {"extra_special_tokens": ["the", "cat"]},
        {"added_tokens_decoder": {"4": MASK | {"special": True}}},
        {"added_tokens_decoder": {"NEW": added("the dog")}},
        {"truncation_side": "left"},
        {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
        {"split_special_tokens": True},
        {"add_bos_token": True, "add_eos_token": False},
    ],
    "refused": [
        {"add_prefix_space": None},
        {"add_prefix_space": "yes"},
        {"sep_token": None},
        {"added_tokens_decoder": {"3": added("dog")}},
        {"vocab": {"a": 0}},
        {"merges": []},
    ],
}


def check_keys(tmp_path, keys, kind, files, size):
    """`size`: of the vocabulary; NEW among the keys is the id that follows."""
    wrong = []
    for number, (verdict, settings) in enumerate((v, s) for v, rows in keys.items() for s in rows):
        tagged = {"tokenizer_class": kind} if isinstance(kind, str) else {}
        settings = json.loads(json.dumps(settings).replace("NEW", str(size)))
        config = {"vocab_size": size + 5} | (kind if isinstance(kind, dict) else {})
        folder = write(tmp_path / str(number), files | {"tokenizer_config.json": settings | tagged}, config)
        try:
            found = outcome(folder, next(iter(settings), ""), TEXTS)
            assert found == verdict, f"is {found}"
        except AssertionError as error:
            wrong.append(f"{settings}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("names", ROBERTA_FILES, ids="+".join)
@pytest.mark.parametrize("kind", ["RobertaTokenizer", "RobertaTokenizerFast", {"model_type": "roberta"}], ids=str)
def test_roberta(tmp_path, kind, names):
    check_keys(tmp_path, ROBERTA_KEYS, kind, of_roberta(names), len(byte_level()["model"]["vocab"]))


@pytest.mark.parametrize("kind", ["RobertaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("added_tokens", [[], ["lstrip"]])
def test_what_tokenizer_json_holds(tmp_path, kind, added_tokens):
    made = byte_level()
    for token in made["added_tokens"]:
        token |= {flag: token["content"] == "<mask>" for flag in added_tokens}
    settings = {"tokenizer_class": kind}
    folder = write(tmp_path / "m", {"tokenizer.json": made, "tokenizer_config.json": settings}, {"vocab_size": 520})
    assert outcome(folder, "", TEXTS) == "equal"


def pieces(special):
    words = ["▁the", "▁cat", "dog", "▁York", ".", ",", "'", '"', "▁", "▁Hello", "é", "É", "u", "<s>NOTUSED"]
    return [*special, *words, *"abcdefghijklmnoprstvwxyzTHDOG[]<>/", "<unk>NOTUSED", "</s>NOTUSED"]


OF_ALBERT = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
OF_CAMEMBERT = ["<pad>", "</s>", "<unk>", "<s>", "<mask>"]  # the class looks for <unk>


def of_unigram(special, normalizer="Precompiled", ends=True):
    made = unigram(normalizer)
    vocab = [[piece, -float(number) / 4] for number, piece in enumerate(pieces(special))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    made["added_tokens"] = [{"id": number, "content": token, **flags} for number, token in enumerate(special)]
    made["model"] = {"type": "Unigram", "unk_id": 2, "vocab": vocab}
    first, last = sorted(token for token in special if token in ("<s>", "</s>", "[CLS]", "[SEP]"))
    known = {token: {"id": token, "ids": [special.index(token)], "tokens": [token]} for token in (first, last)}
    pair = [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair += [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": last, "type_id": 1}}]
    made["post_processor"] = {"type": "TemplateProcessing", "single": pair[:2], "pair": pair, "special_tokens": known}
    return made | ({} if ends else {"post_processor": None})


UNIGRAM_KEYS = {
    "equal": [
        {},
        {"add_prefix_space": False},
        {"do_lower_case": False},
        {"do_lower_case": False, "keep_accents": True},
        {"keep_accents": True, "remove_space": True, "sp_model_kwargs": {}, "trim_offsets": False},
        {"mask_token": "dog"},
        {"mask_token": {"__type": "AddedToken", **added("dog", lstrip=True)}},
        {"extra_special_tokens": ["cat"]},
        {"additional_special_tokens": []},
        {"additional_special_tokens": ["cat", "<s>NOTUSED"]},
        {"unk_token": "▁"},
        {"truncation_side": "left"},
        {"split_special_tokens": True},
        {"model_input_names": ["input_ids", "token_type_ids"]},
        {"added_tokens_decoder": {}},
    ],
    "refused": [{"add_prefix_space": "no"}, {"extra_special_tokens": "cat"}, {"_spm_precompiled_charsmap": "AAAA"}],
}
UNIGRAMS = {  # class -> its special tokens, its model_type
    "AlbertTokenizer": (OF_ALBERT, "albert"),
    "CamembertTokenizer": (OF_CAMEMBERT, "camembert"),
    "XLMRobertaTokenizer": (["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "xlm-roberta"),
}


@pytest.mark.parametrize("of_type", [False, True], ids=["class", "model_type"])
@pytest.mark.parametrize("normalizer", ["Precompiled", "Sequence", ""])
@pytest.mark.parametrize("name", UNIGRAMS)
def test_unigram_classes(tmp_path, name, normalizer, of_type):
    special, model_type = UNIGRAMS[name]
    files = {"tokenizer.json": of_unigram(special, normalizer, ends=normalizer != "Sequence")}
    check_keys(tmp_path, UNIGRAM_KEYS, {"model_type": model_type} if of_type else name, files, 80)


@pytest.mark.parametrize("file", ["tokenizer.json", "spiece.model"])
def test_an_albert_that_lacks_its_ends(tmp_path, file):
    special = ["<pad>", "<unk>", "[CLS]", "<s>"]
    model = sentencepiece_model([(piece, 0.0, 1) for piece in pieces(special)])
    files = {file: model if file.endswith("model") else of_unigram(special)}
    folder = write(tmp_path / "m", files | {"tokenizer_config.json": {"tokenizer_class": "AlbertTokenizer"}})
    assert outcome(folder, '"[SEP]" (sep_token)', TEXTS) == "refused"


def spm(name, characters):
    special = {"AlbertTokenizer": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]}.get(name, ["<unk>", "<s>", "</s>"])
    kinds = {"<unk>": 2, "[CLS]": 3, "[SEP]": 3, "<s>": 3, "</s>": 3, "<pad>": 3, "[MASK]": 4, "dog": 4}
    listed = [(piece, -number / 4, kinds.get(piece, 1)) for number, piece in enumerate(pieces(special))]
    return sentencepiece_model(listed, character_map() if characters else b"")


SPM_KEYS = {
    "equal": [
        *(settings for settings in UNIGRAM_KEYS["equal"] if not isinstance(settings.get("mask_token"), dict)),
        {"bos_token": "<s>", "sp_model_kwargs": {"enable_sampling": True}},
        {"extra_special_tokens": []},
    ],
    "refused": UNIGRAM_KEYS["refused"],
}


@pytest.mark.parametrize("characters", [True, False])
@pytest.mark.parametrize("name", UNIGRAMS)
def test_sentencepiece_files(tmp_path, name, characters):
    pytest.importorskip("sentencepiece", reason="transformers reads these files with it")
    pytest.importorskip("google.protobuf", reason="transformers reads these files with it")
    file = "spiece.model" if name == "AlbertTokenizer" else "sentencepiece.bpe.model"
    check_keys(tmp_path, SPM_KEYS, name, {file: spm(name, characters)}, 80)


SCRIPTS = "the of cat naïve ÉTÉ straße мир Ελλάς שלום مرحبا नमस्ते ไทย 東京 かな 한국 👍🏽 ½ 12,5 don't #x @y".split()


@pytest.mark.parametrize("name", ["RobertaTokenizer", "BertTokenizer", *UNIGRAMS])
def test_five_thousand_lines(tmp_path, name):
    """Of many scripts, joined at random, cut on either side."""
    rng = random.Random(name)
    lines = [
        "".join(rng.choice(SCRIPTS) + rng.choice(["", " ", " ", "  ", ".", "\n", "\u0301", "-"]) for _ in range(9))
        for _ in range(5000)
    ]
    if name == "BertTokenizer":
        letters = sorted({*"".join(SCRIPTS)})
        vocab = [*("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), *letters, *("##" + c for c in letters)]
        files, size = {"vocab.txt": "\n".join(vocab) + "\n"}, len(vocab)
    elif name == "RobertaTokenizer":
        files, size = of_roberta(("tokenizer.json",)), 520
    else:
        files, size = {"tokenizer.json": of_unigram(UNIGRAMS[name][0])}, 80
    folder = write(tmp_path / "m", files | {"tokenizer_config.json": {"tokenizer_class": name}}, {"vocab_size": size})
    loaded, tokenizer = (
        transformers.AutoTokenizer.from_pretrained(str(folder)),
        Tokenizer(Checkpoint.open(folder, False)),
    )
    for side in ("right", "left"):
        loaded.truncation_side = side
        right = loaded(lines, truncation=True, max_length=24)["input_ids"]
        encoded = tokenizer.encode(lines, 24, side)
        assert [encoded.ids[a:b].tolist() for a, b in itertools.pairwise(encoded.offsets)] == right


def test_special_tokens_as_plain_text(tmp_path):
    """As transformers splits them where it is asked to; no merges lead to them."""
    files = of_roberta(("tokenizer.json",)) | {"tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"}}
    folder = write(tmp_path / "m", files, {"vocab_size": 520})
    right = transformers.AutoTokenizer.from_pretrained(str(folder))(TEXTS, split_special_tokens=True)["input_ids"]
    encoded = Tokenizer(Checkpoint.open(folder, weights=False)).encode(TEXTS, 512)
    assert [encoded.ids[a:b].tolist() for a, b in itertools.pairwise(encoded.offsets)] == right


def test_special_pieces_as_plain_text(tmp_path):
    """As SentencePiece has it, which never gives a control piece for a text."""
    sentencepiece = pytest.importorskip("sentencepiece")
    listed = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        *((p, -3.0, 1) for p in "▁ a b the < > / s".split()),
    ]
    model = sentencepiece_model([*listed, ("▁the", -1.0, 1)])
    folder = write(tmp_path / "m", {"sentencepiece.bpe.model": model}, {"model_type": "xlm-roberta", "vocab_size": 15})
    reader = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = ["a</s>b", "</s>", "<s> the", "a <s></s>the", "<unk>", "the q a", "a<s", "b"]
    encoded = Tokenizer(Checkpoint.open(folder, weights=False)).encode(texts, 512)
    found = [encoded.ids[a + 1 : b - 1].tolist() for a, b in itertools.pairwise(encoded.offsets)]
    assert found == [[3 if number == 0 else number + 1 for number in row] for row in reader.encode(texts)]
