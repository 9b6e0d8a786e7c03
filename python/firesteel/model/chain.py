"""The modules behind Pooling, which work on vectors: their settings and weights -> the steps that the C side runs.

    Dense      config.json: in_features, out_features, bias, activation_function    linear.weight, linear.bias
    LayerNorm  config.json: dimension                                               norm.weight, norm.bias
    Normalize  between them a step; behind the last of them the setting `normalize`, which a caller may turn off
    Dropout    nothing

Each folder has its own model.safetensors. A step's tensors stand in the model's table as modules.<its place in the
chain>.weight and .bias. What sentence-transformers would not load is refused here, and so is what it would drop with a
warning: an activation it does not trust, a key it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._core import CheckpointError, ConfigError, RequestError
from . import kinds
from .files import optional_json, read_json, some, there
from .safetensors import Tensor, read_header
from .sentence import SIZED, Module, expect_known, flag, last_sized

MOST_STEPS = 8  # csrc/models/arch.h

# What ("dense", activation) may say -> torch's classes, by their last name; of GELU and SiLU there is one without
# arguments, and a config has no arguments.
_ACTIVATIONS = {"Tanh": "tanh", "Identity": "linear", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
_EPS = 1e-5  # nn.LayerNorm's; the module has no key for it
_READ = ("F32", "F16", "BF16")
_VECTORS = dict.fromkeys(("module_input_name", "module_output_name"), (None, "sentence_embedding"))


@dataclass(frozen=True)
class Chain:
    """The steps behind pooling, as _core.Engine takes them; none: `takes` and `makes` are 0."""

    steps: tuple[tuple[object, ...], ...] = ()  # ("dense", activation), ("norm", eps), ("unit",)
    tensors: tuple[Tensor, ...] = ()  # a file is an index into `files`
    files: tuple[str, ...] = ()  # absolute paths
    takes: int = 0  # floats of a pooled vector
    makes: int = 0  # floats of the last step's

    def width(self, pooled: int) -> int:
        """Floats of a vector that is made of a pooled one. Raises RequestError where the first module takes others."""
        if self.steps and pooled != self.takes:
            raise RequestError(
                f"pooling makes vectors of {pooled}, and the folder's module behind it takes {self.takes}; use "
                f'pooling="auto"'
            )
        return self.makes or pooled


def weight_files(modules: Sequence[Module]) -> list[str]:
    """The files of weights that the modules should have; whether they are there is not asked."""
    return [os.path.join(module.folder, "model.safetensors") for module in modules if module.kind in SIZED]


def check_weights(modules: Sequence[Module]) -> None:
    """Raises CheckpointError, which says what lies there instead, where a module has no model.safetensors."""
    for path in weight_files(modules):
        if not there(path):
            raise CheckpointError(kinds.module_without_weights(os.path.dirname(path)))


def read_chain(modules: list[Module], pooled: int | None, weights: bool = True) -> Chain:
    """The steps of `modules`, which are all of modules.json.

    pooled    floats of a pooled vector; None: as many as the first module takes
    weights   False: they need not be there; tensors then have the shapes that config.json means, and no place

    Raises CheckpointError and ConfigError: a module that is damaged, or is more than is known here, or does not fit
    the one before it.
    """
    made = _Made(pooled, weights)
    last = last_sized(modules)
    for place, module in enumerate(modules[2:], 2):
        path = os.path.join(module.folder, "config.json")
        if module.kind == "Dropout":
            expect_known(path, optional_json(path), ("dropout",), {})
        elif module.kind == "Normalize":
            expect_known(path, optional_json(path), (), _VECTORS)
            if place < last and made.steps[-1:] != [("unit",)]:
                made.steps.append(("unit",))
        elif not there(path):
            raise CheckpointError(f"{path}: is missing, but modules.json names its folder as a {module.kind} module")
        elif module.kind == "Dense":
            made.dense(module, path, read_json(path))
        else:
            made.norm(module, path, read_json(path))
    if len(made.steps) > MOST_STEPS:
        raise ConfigError(
            f"{os.path.dirname(modules[1].folder)}: has {len(made.steps)} modules behind Pooling that compute "
            f"something; at most {MOST_STEPS} run"
        )
    return Chain(tuple(made.steps), tuple(made.tensors), tuple(made.files), made.takes, made.makes)


class _Made:
    """What the modules so far have come to."""

    def __init__(self, pooled: int | None, weights: bool) -> None:
        self.steps: list[tuple[object, ...]] = []
        self.tensors: list[Tensor] = []
        self.files: list[str] = []
        self.takes = self.makes = 0
        self._width = pooled  # of what the next module gets
        self._before = "Pooling"
        self._weights = weights

    def dense(self, module: Module, path: str, settings: Mapping[str, object]) -> None:
        known = ("in_features", "out_features", "bias", "activation_function")
        expect_known(path, settings, known, {**_VECTORS, "use_residual": (None, False)})
        named = settings.get("activation_function", "torch.nn.Tanh")
        package, _, name = str(named).rpartition(".")
        if not f"{package}.".startswith("torch.nn.") or name not in _ACTIVATIONS:
            raise ConfigError(
                f"{path}: activation_function is {str(named)[:100]!r}; torch.nn's {', '.join(_ACTIVATIONS)} run"
            )
        inputs, outputs = (_size(path, settings, key) for key in known[:2])
        shapes = {"linear.weight": (outputs, inputs)}
        if flag(path, settings, "bias", True):
            shapes["linear.bias"] = (outputs,)
        self._add(module, path, "in_features", inputs, outputs, ("dense", _ACTIVATIONS[name]), shapes)

    def norm(self, module: Module, path: str, settings: Mapping[str, object]) -> None:
        expect_known(path, settings, ("dimension",), {})
        width = _size(path, settings, "dimension")
        shapes = dict.fromkeys(("norm.weight", "norm.bias"), (width,))
        self._add(module, path, "dimension", width, width, ("norm", _EPS), shapes)

    def _add(
        self,
        module: Module,
        path: str,
        key: str,
        inputs: int,
        outputs: int,
        step: tuple[object, ...],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        if self._width is not None and self._width != inputs:
            raise ConfigError(f"{path}: {key} is {inputs}, but {self._before} before it makes vectors of {self._width}")
        self.takes = self.takes or inputs
        self.makes = self._width = outputs
        self._before = os.path.basename(module.folder)
        place = len(self.steps)
        self.steps.append(step)
        file = os.path.join(module.folder, "model.safetensors")
        found = self._tensors(file, module.kind, shapes)
        for name, (dtype, offset, size) in found.items():
            ours = f"modules.{place}.{name.rpartition('.')[2]}"
            self.tensors.append((ours, dtype, shapes[name], len(self.files), offset, size))
        self.files.append(file)

    def _tensors(self, file: str, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, int, int]]:
        """Of each tensor: dtype, offset and bytes, where the file holds just those that the config means."""
        if not self._weights:
            sizes = {name: shape[0] * (*shape[1:], 1)[0] for name, shape in shapes.items()}
            return {name: ("F32", 0, 4 * size) for name, size in sizes.items()}
        if not there(file):
            raise CheckpointError(kinds.module_without_weights(os.path.dirname(file)))
        header = {tensor[0]: tensor for tensor in read_header(file)}
        if header.keys() != shapes.keys():
            raise CheckpointError(
                f"{file}: holds {some(sorted(header)) or 'no tensors'}, but its config.json means a {kind} of "
                f"{' and '.join(shapes)}"
            )
        for name, dtype, shape, _, _, _ in header.values():
            if shape != shapes[name]:
                raise CheckpointError(
                    f"{file}: {name} is {list(shape)}, but its config.json means {list(shapes[name])}"
                )
            if dtype not in _READ:
                raise CheckpointError(f"{file}: {name} is {dtype}; {', '.join(_READ)} are read")
        return {name: (dtype, offset, size) for name, dtype, _, _, offset, size in header.values()}


def _size(path: str, settings: Mapping[str, object], key: str) -> int:
    value = settings.get(key)
    if type(value) is int and 0 < value < 2**24:
        return value
    raise ConfigError(f"{path}: {key} is {value!r}; a whole number from 1 to {2**24 - 1} belongs there")
