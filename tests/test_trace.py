"""Golden traces: the ops that a batch runs, from the measure backend, compared line by line with tests/golden/*.trace.

A change here is a change of what the engine computes or of how it is fused. When it is meant, store the new trace:

    python tests/test_trace.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LENGTHS = [5, 1, 3]
MODELS = sorted(path.stem for path in (HERE / "models" / "tiny").glob("*.json"))


def trace(model: str) -> str:
    from firesteel import _core

    return _core.trace(json.loads((HERE / "models" / "tiny" / f"{model}.json").read_text()), LENGTHS)


def golden(model: str) -> Path:
    return HERE / "golden" / f"{model}_tiny.trace"


@pytest.mark.parametrize("model", MODELS)
def test_ops_of_a_batch(model):
    assert trace(model).splitlines() == golden(model).read_text().splitlines()


def test_every_architecture_has_a_tiny_model():
    from firesteel import _core

    assert MODELS == sorted(known["model_type"] for known in _core.architectures())


def test_lengths_change_shapes_alone():
    from firesteel import _core

    config = json.loads((HERE / "models" / "tiny" / "bert.json").read_text())
    short, long = (_core.trace(config, lengths).splitlines() for lengths in ([1], [7, 7]))
    assert [line.split()[0] for line in short] == [line.split()[0] for line in long]
    assert short != long


def main() -> None:
    for model in MODELS:
        golden(model).write_text(trace(model))
        print(golden(model))


if __name__ == "__main__":
    main()
