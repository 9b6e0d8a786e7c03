"""The corpus of every benchmark: seeded English-like rows, the same on every machine.

Row lengths are lognormal with a median of about 40 tokens (WordPiece, [CLS] and [SEP] counted) and end at 256, so no
peer truncates anything. Words come from a small list with Zipf's weights; rarer words and numbers fall into several
word pieces, as they do in real text. ``python benchmarks/corpus.py [--rows N]`` prints what a tokenizer makes of it.
"""

from __future__ import annotations

import argparse
import random

MEDIAN_TOKENS = 40
SIGMA = 0.7
MAX_TOKENS = 256
LONGEST = 226  # aimed at, so that chance does not carry a row over MAX_TOKENS
PIECES_PER_WORD = 1.178  # of text(), measured with MiniLM's tokenizer (run this file)

COMMON = """
the of and to a in is that it for was on are as with they be at one have this from by hot word but what some we can
out other were all there when up use your how said each she which do their time if will way about many then them write
would like so these her long make thing see him two has look more day could go come did number sound no most people my
over know water than call first who may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just form sentence great
think say help low line differ turn cause much mean before move right boy old too same tell does set three want air
well also play small end put home read hand port large spell add even land here must big high such follow act why ask
men change went light kind off need house picture try us again animal point mother world near build self earth father
head stand own page should country found answer school grow study still learn plant cover food sun four between state
keep eye never last let thought city tree cross farm hard start might story saw far sea draw left late run while press
close night real life few north open seem together next white children begin got walk example ease paper group always
music those both mark often letter until mile river car feet care second book carry took science eat room friend began
idea fish mountain stop once base hear horse cut sure watch color face wood main enough plain girl usual young ready
above ever red list though feel talk bird soon body dog family direct pose leave song measure door product black short
class wind question happen complete ship area half rock order fire south problem
""".split()
RARE = """
spreadsheet reproducible tokenizer quarterly throughput checkpoint refrigerator unhelpfully photosynthesis
Wolverhampton misconfigured archaeologist embeddings kilowatt overcooked bioinformatics cardiologist marmalade
whitepaper touchscreen firmware teleconference unsubscribe rheumatism thermostat dehydrated semiconductors footbridge
kindergarten postcode backpacking hyperlink microscopy Saskatchewan parallelism granularity dishwasher snowboarding
misaligned overbooked
""".split()


def text(rng: random.Random, tokens: int) -> str:
    """One row of about `tokens` tokens: sentences of common words, now and then a rare word or a number."""
    weights = ZIPF
    out: list[str] = []
    left = max(1, round((tokens - 2) / PIECES_PER_WORD))
    while left > 0:
        words = rng.choices(COMMON, cum_weights=weights, k=min(left, rng.randint(5, 22)))
        for i in range(len(words)):
            draw = rng.random()
            if draw < 0.04:
                words[i] = rng.choice(RARE)
            elif draw < 0.055:
                words[i] = str(rng.randint(2, 90_000))
        out.append(" ".join(words).capitalize() + ".")
        left -= len(words)
    return " ".join(out)


def _zipf(n: int) -> list[float]:
    """Cumulative weights 1/1 + 1/2 + ... for random.choices."""
    total, out = 0.0, []
    for rank in range(1, n + 1):
        total += 1 / rank
        out.append(total)
    return out


ZIPF = _zipf(len(COMMON))


def rows(n: int = 2000, seed: int = 20) -> list[str]:
    """`n` texts, no two alike (an engine may compute equal rows once), in no order of length.

    >>> rows(2) == rows(2)
    True
    """
    rng = random.Random(seed)
    out: dict[str, None] = {}
    while len(out) < n:
        out[text(rng, min(LONGEST, max(3, round(MEDIAN_TOKENS * rng.lognormvariate(0, SIGMA)))))] = None
    return list(out)


def token_counts(texts: list[str], model: str) -> list[int]:
    """Tokens of each text by the model's own tokenizer, nothing cut or padded. Refuses rows over MAX_TOKENS."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    counts = [len(e.ids) for e in tokenizer.encode_batch_fast(texts)]
    if max(counts) > MAX_TOKENS:
        raise SystemExit(f"corpus: a row has {max(counts)} tokens, the limit is {MAX_TOKENS}: use another seed")
    return counts


if __name__ == "__main__":
    from peers import minilm

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--model", default=None)
    args = parser.parse_args()
    texts = rows(args.rows)
    counts = sorted(token_counts(texts, args.model or minilm()))
    words = sum(len(t.split()) for t in texts)
    n, total = len(counts), sum(counts)
    print(
        f"rows {n}, tokens {total}, median {counts[n // 2]}, mean {total / n:.1f}, p90 {counts[n * 9 // 10]}, "
        f"max {counts[-1]}, pieces a word {(total - 2 * n) / words:.3f}"
    )
    print("\n".join(texts[:3]))
