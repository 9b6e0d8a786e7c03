"""Where a long text can be cut before it is tokenised, so that the tokens of what is kept stay what they are.

A cut is made only where a proof is short. A pre-tokenizer that splits at whitespace makes words that do not know of
each other, and no normalizer named below looks across a blank that stands behind something else; so tokens before such
a blank are the same whatever comes behind, and tokens from it on whatever was before. BERT also splits between two
Chinese characters. An added token must not reach over the cut: none may hold whitespace, and between Chinese characters
all have to be ASCII. For any other tokenizer, and in a text without such a place, there is no cut.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from .tokenizer_classes import steps_of
from .tokenizer_plain import json_tokens_of

if TYPE_CHECKING:
    import tokenizers

_WORDS = (["BertPreTokenizer"], ["WhitespaceSplit", "Metaspace"], ["WhitespaceSplit"], ["Whitespace"])
_COMPOSING = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
_BY_CHARACTER = _COMPOSING | {"BertNormalizer", "StripAccents", "Precompiled"}
# Before the blank: no whitespace, and nothing that joins the next character, which maps of characters see as one.
_JOINING = "\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\U00011000-\U00011fff"
_CHINESE = "\u4e00-\u9fff"
_STEP = 1 << 12  # characters that are looked through at a time, from the end


class Cuts:
    """The places of one tokenizer."""

    def __init__(self, built: tokenizers.Tokenizer) -> None:
        self._right, self._left = _places(built)

    def kept(self, text: str, count: int, side: str) -> str:
        """At least `count` characters of the text's begin, or of its end for "left"; all where there is no cut."""
        if side == "right":
            found = self._right and self._right.search(text, count)
            return text[: found.start()] if found else text
        end = len(text) - count
        while self._left and end > 0:
            begin = max(0, end - _STEP)
            found = [match.start() for match in self._left.finditer(text, begin, end)]
            if found:
                return text[found[-1] :]
            end = begin
        return text


def _places(built: tokenizers.Tokenizer) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """What stands at a cut on the right, and on the left."""
    normalizer, splitter = (
        steps_of(json.loads(part.__getstate__()), name) if part is not None else []
        for part, name in ((built.normalizer, "normalizers"), (built.pre_tokenizer, "pretokenizers"))
    )
    names = [step["type"] for step in splitter]
    steps = {step["type"] for step in normalizer if not _replaces_no_blank(step)}
    bytes_of = names == ["ByteLevel"] and splitter[0].get("use_regex", True)
    if not ((names in _WORDS and steps <= _BY_CHARACTER) or (bytes_of and not steps - _COMPOSING)):
        return None, None
    normal = str if built.normalizer is None else built.normalizer.normalize_str
    tokens = [token for _, token in json_tokens_of(built)]
    contents = [token["content"] for token in tokens]
    contents += [normal(token["content"]) for token in tokens if token["normalized"]]
    if any(char.isspace() for content in contents for char in content):
        return None, None
    blanks = "".join(blank for blank in " \n\t" if re.fullmatch(r"a\s+b", normal(f"a{blank}b")))
    before = " " if bytes_of else blanks  # a text that begins with another one would get a blank before it
    chinese = names == ["BertPreTokenizer"] and steps <= {"BertNormalizer", "Lowercase"} and "".join(contents).isascii()
    chinese = chinese and any(step.get("handle_chinese_chars") for step in normalizer)
    right, left = _place(blanks, chinese), _place("".join(blank for blank in blanks if blank in before), chinese)
    if any(token["rstrip"] for token in tokens):  # it takes the blank that the cut leaves behind
        left = None
    return right, left


def _place(blanks: str, chinese: bool) -> re.Pattern[str] | None:
    """The character that a cut stands before; what is behind it is looked at where that one is found."""
    pairs = [f"[^\\s{_JOINING}][{blanks}]"] * bool(blanks) + [f"[{_CHINESE}][{_CHINESE}]"] * chinese
    return re.compile(f"[{blanks}{_CHINESE * chinese}](?<={'|'.join(pairs)})") if pairs else None


def _replaces_no_blank(step: dict[str, object]) -> bool:
    pattern = step.get("pattern")
    text = pattern.get("String") if isinstance(pattern, dict) else None
    return step["type"] == "Replace" and isinstance(text, str) and not any(map(str.isspace, text))
