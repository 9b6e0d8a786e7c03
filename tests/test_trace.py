"""Golden traces: the ops that a batch runs, from the measure backend, compared line by line with tests/golden/*.trace.

A change here is a change of what the engine computes or of how it is fused. When it is meant, store the new trace:

    python tests/test_trace.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LENGTHS, TARGETS = [5, 1, 3], [2, 4, 1]
MODELS = sorted(path.stem for path in (HERE / "models" / "tiny").glob("*.json"))
# What else a model may be: changes of its config.
VARIANTS = {
    "torch_transformer_encoder": ("torch_transformer", {"part": "encoder", "vocab_size": 60, "norm_first": True}),
    "torch_transformer_decoder": (
        "torch_transformer",
        {"part": "decoder", "bias": False, "causal_targets": True, "activation": "gelu"},
    ),
}
CASES = {model: (model, {}) for model in MODELS} | VARIANTS


def trace(case: str) -> str:
    from firesteel import _core

    model, changes = CASES[case]
    config = json.loads((HERE / "models" / "tiny" / f"{model}.json").read_text())
    return _core.trace(config | changes, LENGTHS, TARGETS)


def golden(case: str) -> Path:
    return HERE / "golden" / f"{case}_tiny.trace"


@pytest.mark.parametrize("case", CASES)
def test_ops_of_a_batch(case):
    assert trace(case).splitlines() == golden(case).read_text().splitlines()


def test_every_architecture_has_a_tiny_model():
    from firesteel import _core

    assert MODELS == sorted(known["model_type"] for known in _core.architectures())


def test_lengths_change_shapes_alone():
    from firesteel import _core

    config = json.loads((HERE / "models" / "tiny" / "bert.json").read_text())
    short, long = (_core.trace(config, lengths).splitlines() for lengths in ([1], [7, 7]))
    assert [line.split()[0] for line in short] == [line.split()[0] for line in long]
    assert short != long


def test_each_row_has_one_target():
    from firesteel import _core

    config = json.loads((HERE / "models" / "tiny" / "torch_transformer.json").read_text())
    assert _core.trace(config, LENGTHS) == _core.trace(config, LENGTHS, LENGTHS)
    with pytest.raises(ValueError, match="there are 2 targets and 3 rows"):
        _core.trace(config, LENGTHS, [1, 2])


def main() -> None:
    for case in CASES:
        golden(case).write_text(trace(case))
        print(golden(case))


if __name__ == "__main__":
    main()
