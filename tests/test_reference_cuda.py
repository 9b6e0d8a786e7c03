"""16-bit types on the CUDA backend against transformers in the same type, both measured against transformers in fp32.

On the software device, or with FIRESTEEL_TEST_GPU=1 on a real one."""

import os

import firesteel
import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference
SHAPES = {
    "6 layers": {"layers": 6, "hidden": 96, "heads": 3, "inner": 384},
    "12 layers, heads of 64": {"layers": 12, "hidden": 128, "heads": 2, "inner": 256},
}


@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    torch.set_num_threads(1)
    if os.environ.get("FIRESTEEL_TEST_GPU") != "1":
        monkeypatch.setenv("FIRESTEEL_LIBCUDA", request.getfixturevalue("software_driver"))


def states(folder, rows, dtype):
    """transformers' last_hidden_state as float32 [tokens, hidden], the rows one after the other."""
    model = transformers.BertModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        found = [model(torch.from_numpy(row.astype(np.int64))[None]).last_hidden_state[0] for row in rows]
    return torch.cat(found).float().numpy()


def errors(found, exact):
    """|found - exact| / |exact| of each token."""
    return np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_further_from_fp32_than_transformers_is(tmp_path, shape, name):
    folder = tiny.write(tmp_path / "model", seed=11, **SHAPES[shape])
    rows = tiny.rows(12, (1, 2, 7, 16, 33, 50, 64))
    exact = states(folder, rows, torch.float32)
    with firesteel.Engine(folder, devices="cuda", dtype=name) as engine:
        found = np.concatenate(engine.hidden_states(rows))
    ours = errors(found, exact)
    theirs = errors(states(folder, rows, torch.bfloat16 if name == "bf16" else torch.float16), exact)
    assert ours.mean() <= theirs.mean()
    assert ours.max() <= theirs.max()
    cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosines.min() >= 0.9995
    assert name == "bf16" or ours.max() < 5e-3
    print(f"{name}, {shape}: ours {ours.max():.2e}, transformers {theirs.max():.2e}")
