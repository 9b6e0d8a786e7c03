"""PyTorch's nn.Transformer modules, computed live by torch in fp32 on the CPU, row by row, beside ours.

Run with `make test-reference`. Every part, norm_first both ways, relu and gelu, with and without biases, last norms and
an embedding table, causal targets and not.
"""

import os

import firesteel
import pytest
import tiny
import tiny_torch

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.reference
LIMIT = 1e-5  # relative, by the norm of a token's state
LENGTHS = (1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 48, 63, 64)
TARGETS = (7, 64, 1, 33, 2, 13, 5, 21, 64, 1, 16, 40, 17)

CASES = {
    f"{part}, norm {'first' if first else 'last'}, {act}": (part, {"norm_first": first, "activation": act})
    for part in ("encoder_layer", "encoder", "decoder_layer", "decoder", "transformer")
    for first in (False, True)
    for act in ("relu", "gelu")
} | {
    "encoder with a norm": ("encoder", {"norm": True}),
    "encoder with a norm, norm first, no bias": ("encoder", {"norm": True, "norm_first": True, "bias": False}),
    "encoder layer without bias": ("encoder_layer", {"bias": False}),
    "encoder of ids": ("encoder", {"vocab_size": 70, "norm": True, "num_encoder_layers": 3}),
    "encoder of ids under a prefix": ("encoder", {"vocab_size": 70, "prefix": "a.b.", "embedding_prefix": "a."}),
    "encoder, heads of 5": ("encoder", {"d_model": 35, "nhead": 7, "dim_feedforward": 33}),
    "encoder layer, one wide head": ("encoder_layer", {"d_model": 80, "nhead": 1}),
    "decoder with a norm": ("decoder", {"norm": True, "layer_norm_eps": 1e-3}),
    "decoder, causal": ("decoder", {"causal_targets": True}),
    "decoder, causal, norm first, no bias": ("decoder", {"causal_targets": True, "norm_first": True, "bias": False}),
    "decoder of ids, causal": ("decoder", {"vocab_size": 70, "causal_targets": True, "norm": True}),
    "decoder layer, causal": ("decoder_layer", {"causal_targets": True, "activation": "gelu"}),
    "transformer, causal": ("transformer", {"causal_targets": True}),
    "transformer of ids": ("transformer", {"vocab_size": 70, "causal_targets": True, "activation": "gelu"}),
    "transformer without bias": ("transformer", {"bias": False, "norm_first": True, "vocab_size": 70}),
    "transformer, uneven": ("transformer", {"num_encoder_layers": 1, "num_decoder_layers": 3, "prefix": "model."}),
}
WRITER = ("norm", "prefix", "embedding_prefix")


def module(settings, norm):
    """The nn module that the settings describe, in eval mode, its weights not set."""
    D, bias, eps = settings["d_model"], settings["bias"], settings["layer_norm_eps"]
    layer = {
        "d_model": D,
        "nhead": settings["nhead"],
        "dim_feedforward": settings["dim_feedforward"],
        "dropout": 0.0,
        "activation": settings["activation"],
        "layer_norm_eps": eps,
        "batch_first": True,
        "norm_first": settings["norm_first"],
        "bias": bias,
    }
    last = torch.nn.LayerNorm(D, eps=eps, bias=bias) if norm else None
    part, encoders, decoders = (settings[key] for key in ("part", "num_encoder_layers", "num_decoder_layers"))
    if part == "encoder_layer":
        return torch.nn.TransformerEncoderLayer(**layer)
    if part == "decoder_layer":
        return torch.nn.TransformerDecoderLayer(**layer)
    if part == "encoder":
        one = torch.nn.TransformerEncoderLayer(**layer)
        return torch.nn.TransformerEncoder(one, encoders, last, enable_nested_tensor=False)
    if part == "decoder":
        return torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(**layer), decoders, last)
    return torch.nn.Transformer(num_encoder_layers=encoders, num_decoder_layers=decoders, **layer)


class Reference:
    """The module with the folder's weights; the state dict's names and order must be the folder's."""

    def __init__(self, settings, seed=0, norm=False, **_):
        made = tiny_torch.tensors(settings, seed, norm)
        self.table = torch.from_numpy(made.pop("embedding.weight")) if settings["vocab_size"] else None
        self.module = module(settings, norm).eval()
        assert list(self.module.state_dict()) == list(made)
        self.module.load_state_dict({name: torch.from_numpy(array) for name, array in made.items()})
        self.settings = settings

    def _input(self, row):
        row = torch.from_numpy(row)
        return (row if row.is_floating_point() else self.table[row.long()])[None]

    def __call__(self, row, target=None):
        part, mask = self.settings["part"], None
        with torch.inference_mode():
            if target is None:
                return self.module(self._input(row))[0].numpy()
            if self.settings["causal_targets"]:
                mask = torch.nn.Transformer.generate_square_subsequent_mask(len(target))
            first, second = (row, target) if part == "transformer" else (target, row)
            return self.module(self._input(first), self._input(second), tgt_mask=mask)[0].numpy()


def expected(settings, rows, targets, **options):
    reference = Reference(settings, **options)
    return [reference(row, *([] if targets is None else [targets[i]])) for i, row in enumerate(rows)]


def split(changes):
    options = {key: changes[key] for key in WRITER if key in changes}
    return options, {key: value for key, value in changes.items() if key not in WRITER}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def worst(folder, settings, options, **engine):
    rows, targets = tiny_torch.rows(settings, 5, LENGTHS, TARGETS)
    with firesteel.Engine(folder, **engine) as opened:
        found = opened.hidden_states(rows, targets)
    wanted = expected(settings, rows, targets, norm=options.get("norm", False))
    return max(tiny.error_per_row(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_torch(tmp_path, case):
    part, changes = CASES[case]
    options, changes = split(changes)
    folder = tiny_torch.write(tmp_path / "model", part, **options, **changes)
    error = worst(folder, tiny_torch.config(part, **changes), options, devices="cpu")
    print(f"{case}: {error:.1e}")
    assert error < LIMIT


@pytest.mark.parametrize(
    "case", ["encoder with a norm", "decoder, causal", "transformer, uneven", "transformer of ids"]
)
def test_agrees_with_torch_on_a_gpu(tmp_path, case, request, monkeypatch):
    """On the software device, or with FIRESTEEL_TEST_GPU=1 on a real one."""
    if os.environ.get("FIRESTEEL_TEST_GPU") != "1":
        monkeypatch.setenv("FIRESTEEL_LIBCUDA", request.getfixturevalue("software_driver"))
    part, changes = CASES[case]
    options, changes = split(changes)
    folder = tiny_torch.write(tmp_path / "model", part, **options, **changes)
    assert worst(folder, tiny_torch.config(part, **changes), options, devices="cuda", dtype="fp32") < LIMIT
