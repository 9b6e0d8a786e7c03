"""Only as much of a text is tokenised as is kept, and the ids are those of tokenising all of it."""

import json
import random

import pytest
import tiny
from firesteel.model import kinds, tokenizer
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.tokenizer import Tokenizer
from tokenizer_kit import added, character_map, sentencepiece_model, write

SCRIPTS = (
    "the of table a ab naïve ÉTÉ ẞ мир Ελλάς שלום مرحبا नमस्ते ไทย 東京 中 文字 かな 한국 👍🏽 ½ 1,5 don't [SEP] </s> xy"
).split()
JOINTS = [
    "",
    "",
    " ",
    " ",
    " ",
    "  ",
    ".",
    "\n",
    "\t",
    "\r\n",
    "\u0301",
    " \u0301",
    "-",
    "\u3000",
    "\u200b",
    "\u0600",
    "\u0600 ",
    "\x00 ",
    "\u00a0",
    "¨ ",
]
PIECES = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    *((p, -3.0, 1) for p in "▁ a b t h e , . </ s > dog ▁of".split()),
]


class Whole:
    """No cuts."""

    def kept(self, text, count, side):
        return text


@pytest.fixture(autouse=True)
def any_model_type(monkeypatch):
    """Which models run is not the question here."""
    monkeypatch.setattr(kinds, "check_type", lambda *_: None)


def bert(folder, **settings):
    tiny.write(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 200}))
    return folder


def roberta(folder, **settings):
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "th", "Ġt", "Ġo", "Ġth", "ĠĠ", "ab"]
    merges = "t h\nĠ t\nĠ o\nĠ th\nĠ Ġ\na b\n"
    files = {"vocab.json": {word: number for number, word in enumerate(words)}, "merges.txt": merges}
    return write(folder, files | {"tokenizer_config.json": settings}, {"model_type": "roberta", "vocab_size": 300})


def xlm_roberta(folder, **settings):
    files = {"sentencepiece.bpe.model": sentencepiece_model(PIECES, character_map())}
    return write(folder, files | {"tokenizer_config.json": settings}, {"model_type": "xlm-roberta", "vocab_size": 20})


NEW = {"__type": "AddedToken", **added("of", lstrip=True, rstrip=True, normalized=False)}
FOLDERS = {  # how it is written, its settings, and whether it may be cut on the right and on the left
    "bert": (bert, {}, (True, True)),
    "bert, cased": (bert, {"do_lower_case": False}, (True, True)),
    "bert, chinese words": (bert, {"tokenize_chinese_chars": False}, (True, True)),
    "bert, tokens": (bert, {"extra_special_tokens": ["東京", "xy"], "special": True}, (True, True)),
    "bert, tokens with blanks": (bert, {"extra_special_tokens": ["the of"]}, (False, False)),
    "bert, tokens that take blanks": (bert, {"extra_special_tokens": [NEW], "special": True}, (True, False)),
    "roberta": (roberta, {}, (True, True)),
    "roberta, prefix": (roberta, {"add_prefix_space": True}, (True, True)),
    "roberta, tokens that take blanks": (roberta, {"extra_special_tokens": [NEW], "special": True}, (True, False)),
    "xlm-roberta": (xlm_roberta, {}, (True, True)),
    "xlm-roberta, no prefix": (xlm_roberta, {"add_prefix_space": False}, (True, True)),
}


def opened(folder, case):
    make, settings, _ = case
    special = settings.get("special", False)
    made = make(folder, **{key: value for key, value in settings.items() if key != "special"})
    cut, whole = (Tokenizer(Checkpoint.open(made, weights=False), special_tokens=special) for _ in range(2))
    whole._cuts = Whole()
    return cut, whole


def rows(encoded):
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)]


def lines(rng, count, words):
    return [
        "".join(rng.choice(SCRIPTS) + rng.choice(JOINTS) for _ in range(rng.randint(0, words))) for _ in range(count)
    ]


@pytest.mark.parametrize("case", FOLDERS.values(), ids=FOLDERS)
def test_ids_are_those_of_the_whole_text(tmp_path, monkeypatch, case):
    """Of some thousand lines of all scripts; with a character a token at first, so that most of them are cut."""
    monkeypatch.setattr(tokenizer, "_CHARACTERS", 1)
    cut, whole = opened(tmp_path / "m", case)
    rng = random.Random(1)
    for limit in (5, 12, 17):
        texts, seconds = lines(rng, 150, 40), lines(rng, 150, 40)
        for side in ("right", "left"):
            found, right = (rows(made.encode(texts, limit, side)) for made in (cut, whole))
            for text, a, b in zip(texts, found, right, strict=True):
                assert a == b, (side, limit, text)
            if limit == 5:  # with so little room the library takes minutes: it pairs all that it cuts off
                continue
            found, right = (rows(made.encode(texts, limit, side, pairs=seconds)) for made in (cut, whole))
            for text, second, a, b in zip(texts, seconds, found, right, strict=True):
                assert a == b, (side, limit, text, second)


def given_to(made, monkeypatch):
    """Characters that the library is given, counted from here on."""
    characters = []
    run = Tokenizer._run

    def counted(library, inputs, *more):
        for item in inputs:
            characters.extend(map(len, [item] if isinstance(item, str) else item))
        return run(library, inputs, *more)

    monkeypatch.setattr(made, "_run", counted)
    return characters


TEN_MEGABYTES = "the table, of " * 750_000


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", FOLDERS.values(), ids=FOLDERS)
def test_what_is_not_kept_is_not_tokenised(tmp_path, monkeypatch, case, side):
    made, _ = opened(tmp_path / "m", case)
    if not case[2][side == "left"]:
        assert made._cuts.kept(TEN_MEGABYTES, 100, side) is TEN_MEGABYTES
        return
    characters = given_to(made, monkeypatch)
    encoded = made.encode(["a", TEN_MEGABYTES, "b"], 256, side)
    assert len(rows(encoded)[1]) == 256 and sum(characters) < 10_000
    characters.clear()
    encoded = made.encode(["a " * 100, TEN_MEGABYTES, "a"], 256, side, pairs=[TEN_MEGABYTES, "the", "b"])
    assert [len(row) for row in rows(encoded)[:2]] == [256, 256] and sum(characters) < 20_000


def test_two_long_texts_and_an_odd_room(tmp_path, monkeypatch):
    """Which of them is longer is found out, no more: the shorter one is tokenised."""
    made, whole = opened(tmp_path / "m", FOLDERS["bert"])
    characters = given_to(made, monkeypatch)
    short, long = "the table " * 2_000, TEN_MEGABYTES
    for texts in ((short, long), (long, short)):
        characters.clear()
        found = rows(made.encode([texts[0]], 256, pairs=[texts[1]]))
        assert sum(characters) < 1_000_000
        ends = [token & (1 << 24) - 1 for token in found[0]].index(3)
        assert ends - 1 == (127 if texts[0] is long else 126)
    assert rows(made.encode([short], 257, pairs=[long])) == rows(whole.encode([short], 257, pairs=[long[:100_000]]))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "text",
    ["x" * 10_000_000, "中" * 3_000_000, "the,of\n" * 1_000_000, " " * 5_000_000, "x" * 5_000_000 + " the" * 300],
    ids=["one word", "chinese", "lines", "blanks", "a word and others"],
)
def test_texts_without_a_place_to_cut(tmp_path, text, side):
    cut, whole = opened(tmp_path / "m", FOLDERS["bert"])
    found = cut.encode([text, "a"], 64, side)
    short = whole.encode([text[:2000] + text[-3000:] if len(set(text)) == 1 else text, "a"], 64, side)
    assert rows(found) == rows(short)


def test_what_is_wrong_behind_a_cut_is_found(tmp_path):
    made, _ = opened(tmp_path / "m", FOLDERS["bert"])
    encoded = made.encode([TEN_MEGABYTES + "\ud800", "a"], 64)
    assert [error[:2] for error in encoded.errors] == [(0, "BAD_UTF8")]
    assert f"U+D800 at character {len(TEN_MEGABYTES)}" in encoded.errors[0][2]


def test_prompts_stand_before_long_texts(tmp_path):
    made, whole = opened(tmp_path / "m", FOLDERS["bert"])
    text = "the table of " * 3000
    for side in ("right", "left"):
        found, right = (rows(each.encode([text], 64, side, prompt="date: ")) for each in (made, whole))
        assert found == right


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "x"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "x"}},
        {"normalizer": {"type": "Prepend", "prepend": "a"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
    ],
    ids=str,
)
def test_tokenizers_that_nothing_is_known_of_are_not_cut(tmp_path, changes):
    folder = bert(tmp_path / "m", tokenizer_class="PreTrainedTokenizerFast")
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(whole | changes))
    made = Tokenizer(Checkpoint.open(folder))
    text = "the table " * 1000
    assert all(made._cuts.kept(text, 10, side) is text for side in ("left", "right"))
