"""What encoders compute has the bits that golden/bits.json remembers, on every path and in every call.

A hash is the SHA-256 of a call's float32 results. golden/bits.json says which commit and machine they were made with;
`python tests/make_golden.py --bits` adds those of new cases and refuses to change one unless it is told why.

What they depend on, beside our code:

    cpu portable   IEEE 754 and x86-64 without FMA: the same on every such machine
    cpu avx2       the same on every machine with FMA. avx512 is held to the same hashes: both promise the same bits
    gpu            the software device, whose exp2, erf and tanh are those of the C library; where that computes them
                   otherwise (see `libm`), these tests are skipped

Square roots are exact everywhere, exp2, tanh and GELU on CPUs are polynomials of our own. Weights and rows are made by
tiny.py and tiny_torch.py, which need no libm either; their hashes are stored as well, so that other inputs are not
taken for other results.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
from pathlib import Path

import firesteel
import numpy as np
import pytest
import tiny
import tiny_torch

GOLDEN = Path(__file__).parent / "golden"
STORED = GOLDEN / "bits.json"
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PATHS = {"avx512": "avx2", "avx2": "avx2", "portable": "portable"}  # path -> the stored hashes it is held to
DTYPES = ("fp32", "fp16", "bf16")

# Below, at and beyond the widths that tiles and panels work in, and the most positions there are.
LENGTHS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 64)
TARGETS = (33, 1, 16, 64, 2, 17, 8, 5, 1, 31, 3, 9, 7, 32, 12, 1, 25, 4)
GPU_LENGTHS, GPU_TARGETS = (1, 2, 7, 16, 17, 33), (17, 1, 33, 2, 8, 5)  # in software it takes its time
BERTS = {
    **tiny.GOLDEN,
    "wide": {"seed": 9, "hidden": 264, "heads": 12, "inner": 700, "layers": 1},
    "cls, normalised": {"sentence": {"pooling": {"pooling_mode_cls_token": True}}},
}
MODULES = {
    **tiny_torch.GOLDEN,
    "encoder layer": ("encoder_layer", {"d_model": 36, "nhead": 3, "activation": "gelu"}),
    "decoder layer": ("decoder_layer", {"norm_first": True}),
}
# The other encoders, each a classifier of three labels: tests/models/tiny.
ARCHITECTURES = sorted(
    path.stem for path in tiny.MODELS.glob("*.json") if path.stem not in ("bert", "torch_transformer")
)
TEXTS = ["", "a", "parses a date string", "first, (last) row? of 2 tables!", "中 é [SEP] unknown: Ω", "word " * 100]


def sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def features(rows: list | None) -> list | None:
    """Token ids as they are; in place of normally distributed features, whose bits libm has a part in, even ones."""
    if rows is None or rows[0].ndim == 1:
        return rows
    random = np.random.RandomState(sum(map(len, rows)))  # other rows have others
    return [(4 * random.random_sample(row.shape) - 2).astype(np.float32) for row in rows]


def make(name: str, folder: Path) -> Path:
    """The folder of a model of these tables."""
    if name in BERTS:
        return tiny.write(folder, **BERTS[name])
    if name in ARCHITECTURES:
        return tiny.write_architecture(folder, name, labels=3, seed=23)
    part, options = MODULES[name]
    return tiny_torch.write(folder, part, **options)


def rows_of(name: str, gpu: bool = False) -> tuple[list, list | None]:
    lengths, targets = (GPU_LENGTHS, GPU_TARGETS) if gpu else (LENGTHS, TARGETS)
    if name in [*BERTS, *ARCHITECTURES]:
        return tiny.rows(17, lengths), None
    part, options = MODULES[name]
    settings = tiny_torch.config(part, **{k: v for k, v in options.items() if k in tiny_torch.CONFIG})
    return tuple(features(rows) for rows in tiny_torch.rows(settings, 17, lengths, targets))


def inputs(name: str, folder: Path) -> str:
    """The hash of what a tiny model is made of and given: weights and rows."""
    weights = [np.fromfile(path, np.uint8) for path in sorted(folder.glob("*.safetensors"))]
    rows = [row for gpu in (False, True) for side in rows_of(name, gpu) if side is not None for row in side]
    return sha256(*weights, *rows)


def tiny_bits(name: str, folder: Path, gpu: bool = False, **options: object) -> dict[str, str]:
    """{call: hash} of a tiny model, opened with `options`; a GPU gets fewer rows and no texts."""
    rows, targets = rows_of(name, gpu)
    with firesteel.Engine(folder, **options) as engine:
        found = {"hidden_states": sha256(*engine.hidden_states(rows, targets))}
        if targets is None:
            found |= each_pooling(engine, rows)
            found["embed, normalised"] = sha256(engine.embed(rows, normalize=True))
        if engine.settings["labels"]:
            found["classify"] = sha256(engine.classify(rows, raw=True))
        if name in BERTS and not gpu:
            tiny.take_special_tokens(engine)
            found["embed, texts as the folder says"] = sha256(engine.embed(TEXTS))
    return found


def each_pooling(engine: firesteel.Engine, rows: list) -> dict[str, str]:
    pooled = np.split(engine.embed(rows, pooling=list(POOLINGS), normalize=False), len(POOLINGS), axis=1)
    return {f"embed, {pooling}": sha256(array) for pooling, array in zip(POOLINGS, pooled, strict=True)}


def minilm_texts() -> list[str]:
    """Those of golden/minilm.json, one that fills all 256 positions among them, without others as long as it."""
    texts = json.loads((GOLDEN / "minilm.json").read_text())
    return [text for text in texts if len(text) < 400 or text == "word " * 254]


def minilm_bits(folder: str, **options: object) -> dict[str, str]:
    texts = minilm_texts()
    with firesteel.Engine(folder, **options) as engine:
        tiny.take_special_tokens(engine)
        return {
            "embed, as the folder says": sha256(engine.embed(texts)),
            **each_pooling(engine, texts),
            "hidden_states": sha256(*engine.hidden_states(texts[:8])),
        }


def on_gpu(place: str, dtype: str) -> None:
    """In a process with a GPU in software: prints {model: {call: hash}} of the tiny models in the folder `place`."""
    options = {"gpu": True, "devices": "cuda:0", "dtype": dtype}
    print(json.dumps({name: tiny_bits(name, Path(place) / name, **options) for name in ON_GPUS}))


NAMES = [*BERTS, *ARCHITECTURES, *MODULES]
ON_GPUS = [name for name in NAMES if name not in ("wide", "cls, normalised")]
ON_GPU = "import sys, test_bits; test_bits.on_gpu(*sys.argv[1:])"


def libm() -> str:
    """A hash of what this machine's C library makes of the functions that GPUs in software take from it."""
    library = ctypes.CDLL("libm.so.6")
    points = np.linspace(-6, 6, 2001, dtype=np.float64).astype(np.float32)
    values = []
    for name in ("exp2f", "erff", "tanhf"):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
        values += [function(point) for point in points.tolist()]
    return sha256(np.array(values, np.float32))


# --- the tests


@pytest.fixture(scope="module")
def stored() -> dict:
    return json.loads(STORED.read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """All tiny models, each in the folder of its name."""
    made = tmp_path_factory.mktemp("bits")
    for name in NAMES:
        make(name, made / name)
    return made


def held_to(path: str) -> str:
    """Whose hashes a path is held to; the test is skipped where it cannot run."""
    if why := dict(firesteel._core.host()["paths"]).get(path, "not compiled for this architecture"):
        pytest.skip(f"cpu_path={path}: {why}")
    if platform.machine() != "x86_64":
        pytest.skip(f"the hashes are those of x86_64, and {platform.machine()} fuses what portable code does not there")
    return f"cpu {PATHS[path]}"


def same(found: dict[str, str], expected: dict[str, str], what: str) -> None:
    assert found.keys() == expected.keys(), "other calls than stored: run make_golden.py --bits"
    other = [call for call, value in found.items() if value != expected[call]]
    assert not other, f"{what} has other bits than golden/bits.json in {', '.join(other)}"


def test_every_model_type_has_stored_bits():
    covered = {tiny.config()["model_type"], tiny_torch.CONFIG["model_type"], *ARCHITECTURES}
    assert covered == {json.loads(path.read_text())["model_type"] for path in tiny.MODELS.glob("*.json")}


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_rows_are_those_of_the_stored_bits(stored, place, name):
    """If this fails the other tests of the model mean nothing: its inputs were made in another way."""
    assert inputs(name, place / name) == stored["inputs"][name]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", NAMES)
def test_tiny_models_on_cpus(stored, place, name, path):
    expected = stored["bits"][name][held_to(path)]
    same(tiny_bits(name, place / name, cpu_path=path), expected, f"{name} on {path}")


@pytest.mark.parametrize("path", PATHS)
def test_minilm_on_cpus(stored, minilm, path):
    expected = stored["bits"]["minilm"][held_to(path)]
    weights = np.fromfile(Path(minilm) / "model.safetensors", np.uint8)
    assert sha256(weights) == stored["inputs"]["minilm"], f"{minilm} holds another checkpoint"
    same(minilm_bits(minilm, cpu_path=path), expected, f"MiniLM on {path}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_models_on_a_gpu_in_software(stored, place, on_gpus, dtype):
    if libm() != stored["libm"]:
        pytest.skip("this C library computes exp2f, erff or tanhf otherwise than the one of the stored hashes")
    found = json.loads(on_gpus(ON_GPU, str(place), dtype, FIRESTEEL_LIBCUBLASLT="off"))
    assert list(found) == ON_GPUS
    for name, bits in found.items():
        same(bits, stored["bits"][name][f"gpu {dtype}"], f"{name} on a GPU in software in {dtype}")


def test_a_row_alone_has_the_bits_of_its_batch(stored, place):
    """So the hashes of a batch are those of its rows, in any order."""
    expected = stored["bits"]["plain"][held_to("portable")]["embed, mean"]
    rows, _ = rows_of("plain")
    with firesteel.Engine(place / "plain", cpu_path="portable") as engine:
        alone = [engine.embed([row], pooling="mean") for row in rows[::-1]]
    assert sha256(*alone[::-1]) == expected


@pytest.mark.parametrize("changed", [None, "tanh of another degree"])
def test_a_stored_hash_changes_only_with_a_reason(tmp_path, monkeypatch, capsys, changed):
    import make_golden

    file = tmp_path / "bits.json"
    monkeypatch.setattr("test_bits.STORED", file)
    for bits in ({"plain": {"cpu avx2": {"a": "1"}}}, {"plain": {"cpu avx2": {"a": "1", "b": "2"}}}):  # a new case
        monkeypatch.setattr(make_golden, "computed_bits", lambda bits=bits: {"inputs": {}, "bits": bits})
        make_golden.bits(None)
    before = json.loads(file.read_text())
    assert before["bits"] == bits and before["changes"] == []
    other = {"plain": {"cpu avx2": {"a": "1", "b": "3"}}}
    monkeypatch.setattr(make_golden, "computed_bits", lambda: {"inputs": {}, "bits": other})
    if changed is None:
        with pytest.raises(SystemExit, match="bits / plain / cpu avx2 / b"):
            make_golden.bits(changed)
        assert json.loads(file.read_text()) == before
    else:
        make_golden.bits(changed)
        after = json.loads(file.read_text())
        assert after["bits"] == other and after["changes"][0].endswith(changed)
