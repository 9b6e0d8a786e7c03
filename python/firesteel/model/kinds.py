"""What a folder is that does not run here: in one sentence, with what does and what is nearest to it.

People give ONNX exports, adapters, decoders, the folder above, and names with a typo. Nothing here is needed to read a
model; it is asked once something is missing, or once config.json names a type that the registry in C does not have.

    of_file, without_config, without_weights    -> a sentence
    check_adapter, check_type                   raise one
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from .. import _core
from .._core import CheckpointError, ConfigError
from .files import listing, names_in, some, there

_GIVE = "give the folder that holds config.json and *.safetensors"
_RUNS = {
    "bert": "bert (encoders such as all-MiniLM-L6-v2)",
    "torch_transformer": "torch_transformer (PyTorch's nn.Transformer modules)",
}
_MOST_ENTRIES = 1000  # that are looked at below a folder without a model

# --- files ------------------------------------------------------------------------------------------------------------

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TRAINING = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "trainer_state", "training_args")
_TOKENIZER = ("tokenizer", "vocab", "special_tokens_map", "added_tokens", "merges", "spiece", "sentencepiece")


class _Format(NamedTuple):
    what: str
    patterns: tuple[str, ...]
    needs: str = ""  # a file that tells it from another format with the same patterns


_FORMATS = (
    _Format("GGUF, llama.cpp's format", ("*.gguf", "ggml-*.bin")),
    _Format("an ONNX export", ("*.onnx", "*.onnx_data", "*.onnx.data", "*.ort")),
    _Format("an OpenVINO export", ("openvino*.xml", "openvino*.bin")),
    _Format("a CTranslate2 model", ("model.bin",), "*vocabulary.*"),
    _Format("TensorFlow weights", ("*.h5", "*.keras", "*.tflite", "saved_model.pb", "*.ckpt*.index")),
    _Format("Flax weights", ("*.msgpack",)),
    _Format("a Core ML export", ("*.mlpackage", "*.mlmodel")),
    _Format("a TensorRT engine", ("*.engine", "*.plan", "*.trt")),
    _Format("rust-bert weights", ("rust_model.ot",)),
)
_EXPORTS = ("onnx", "openvino")  # folders that exports lie in, beside the model


def of_file(given: str, path: str) -> str:
    """`path`, which was given as a model, is a file."""
    name = os.path.basename(path)
    above = os.path.dirname(path)
    what = _format_of([name])
    if what:
        return f"{given}: is {what[0]}, which does not run here; {_GIVE} of the same model"
    if name.endswith(_PICKLES):
        return f"{given}: is a pickle, which can run code when it is read, and is refused; {_GIVE} of the same model"
    if name.endswith((".safetensors", ".json")):
        return f"{given}: is a file; give the folder it lies in, {above}"
    return f"{given}: is a file; {_GIVE}"


def without_config(folder: str) -> str:
    """There is no config.json in `folder`."""
    names = names_in(folder)
    what = f"{folder}: not a model folder, config.json is missing"
    below = list(_models_below(folder))
    if "model_index.json" in names:
        return f"{folder}: is a pipeline of diffusers, which makes images; supported are {supported()}"
    if below:
        return f"{what}; {_lies_in(below)}"
    if found := _format_of(_with_exports(folder, names)):
        return f"{what}; it holds {found[0]} ({some(found[1], 4)}), which does not run here; {_GIVE} of the same model"
    if training := [name for name in names if _stem(name) in _TRAINING]:
        return f"{what}; it holds the state of a training ({some(training, 4)}) and no model; found {listing(folder)}"
    if names and all(name.startswith(_TOKENIZER) for name in names):
        return f"{what}; it holds a tokenizer ({some(names, 4)}) and no model; {_GIVE}"
    return f"{what}; found {listing(folder)}"


def without_weights(folder: str, config: Mapping[str, object]) -> str:
    """There is neither model.safetensors nor an index of shards in `folder`."""
    names = names_in(folder)
    pickles = [name for name in names if name.endswith(_PICKLES) and _stem(name) not in _TRAINING]
    ours = [name for name in pickles if re.fullmatch(r"pytorch_model(-.*)?\.bin", name)]
    found = _format_of(_with_exports(folder, names))
    if ours:
        return (
            f"{folder}: has only {some(ours)}; pickles can run code when they are read and are refused; convert once: "
            f"{_conversion(folder, config)}"
        )
    if found:
        return (
            f"{folder}: model.safetensors is missing; it holds {found[0]} ({some(found[1], 4)}), which does not run "
            f"here: copy model.safetensors from where the model came from"
        )
    if pickles:
        return (
            f"{folder}: has only {some(pickles)}; pickles can run code when they are read and are refused; load it "
            f"where it was made and save it there with save_pretrained, which writes model.safetensors"
        )
    shards = [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    if shards:
        return f"{folder}: model.safetensors.index.json is missing, which says what lies in {some(shards)}"
    other = [name for name in names if name.endswith(".safetensors")]
    if other:
        return f"{folder}: model.safetensors is missing; found {some(other)}: name the one that holds the model so"
    what = f"{folder}: model.safetensors is missing"
    if below := list(_models_below(folder)):
        return f"{what}; {_lies_in(below)}"
    if training := [name for name in names if _stem(name) in _TRAINING]:
        return f"{what}; it holds the state of a training ({some(training, 4)}) and no model; found {listing(folder)}"
    return f"{what}; found {listing(folder)}"


def module_without_weights(folder: str) -> str:
    """There is no model.safetensors in the folder of a sentence-transformers module, which may not be there either."""
    pickle = "pytorch_model.bin"
    if not there(os.path.join(folder, pickle)):
        return f"{folder}: model.safetensors is missing, this module's weights; copy it from where the model came from"
    code = (
        "import sys, torch; from safetensors.torch import save_file; p = sys.argv[1]; t = torch.load(p + "
        f"'/{pickle}', map_location='cpu', weights_only=True); save_file({{n: t[n].contiguous() for n in t}}, p + "
        "'/model.safetensors')"
    )
    return (
        f"{folder}: has only {pickle}; pickles can run code when they are read and are refused; convert once: "
        f'python -c "{code}" {shlex.quote(folder)}'
    )


def check_adapter(folder: str) -> None:
    """Raises CheckpointError for an adapter, also where weights lie beside it: they are not what it was trained for."""
    if there(os.path.join(folder, "adapter_config.json")):
        raise CheckpointError(
            f"{folder}: has an adapter (adapter_config.json: LoRA or another of peft's), which is not applied here; "
            f"merge it into its model with peft's merge_and_unload(), save that and give its folder"
        )


def _conversion(folder: str, config: Mapping[str, object]) -> str:
    """The command that writes model.safetensors beside the pickle, the head that it has included."""
    made = next(iter(classes_of(config)), "")
    made = made if re.fullmatch(r"[A-Z]\w*", made, re.ASCII) else "AutoModel"
    code = f"import sys; from transformers import {made} as M; p = sys.argv[1]; M.from_pretrained(p).save_pretrained(p)"
    return f'python -c "{code}" {shlex.quote(folder)}'


def _stem(name: str) -> str:
    """`rng_state` of rng_state_0.pth."""
    return re.sub(r"(_\d+)?(\.\w+)+$", "", name)


def _with_exports(folder: str, names: Iterable[str]) -> list[str]:
    found = list(names)
    for export in _EXPORTS:
        with suppress(OSError):
            found += [f"{export}/{name}" for name in sorted(os.listdir(os.path.join(folder, export)))]
    return found


def _format_of(names: Sequence[str]) -> tuple[str, list[str]] | None:
    """What format the files are of, and which of them."""
    for what, patterns, needs in _FORMATS:
        found = [name for name in names if any(fnmatchcase(os.path.basename(name), p) for p in patterns)]
        if found and (not needs or any(fnmatchcase(name, needs) for name in names)):
            return what, found
    return None


def _models_below(folder: str) -> Iterator[str]:
    """Folders below that look like models: checkpoints of a training, snapshots of the hub's cache, somebody's zoo."""
    level, seen = [folder], 0
    for _ in range(3):
        below = []
        for at in level:
            entries: list[os.DirEntry[str]] = []
            with suppress(OSError):
                entries = sorted((entry for entry in os.scandir(at) if entry.is_dir()), key=lambda entry: entry.name)
            seen += len(entries)
            if seen > _MOST_ENTRIES:
                return
            for entry in entries:
                with suppress(OSError):
                    names = set(os.listdir(entry.path))
                    if "modules.json" in names or ("config.json" in names and _holds_weights(names)):
                        yield os.path.relpath(entry.path, folder)
                    elif not entry.name.startswith("."):
                        below.append(entry.path)
        level = below


def _holds_weights(names: Iterable[str]) -> bool:
    return any(name.endswith((".safetensors", *_PICKLES)) for name in names)


def _lies_in(below: list[str]) -> str:
    if len(below) == 1:
        return f"a model lies in {below[0]}: give that folder"
    return f"models lie in {some(below)}: give the folder of one of them"


# --- types ------------------------------------------------------------------------------------------------------------

_RELATIVE = "its attention weighs relative positions"
# Where that is not bert.
_NEAREST = {
    **dict.fromkeys(("data2vec-text", "ibert", "longformer", "luke", "roberta-prelayernorm"), "roberta"),
    **dict.fromkeys(("xlm-roberta-xl", "xmod"), "xlm-roberta"),
    "rembert": "albert",
}
_ROTARY = "its positions are rotary, and its inner layers are gated"
# Encoders: what they have that the nearest has not.
_ENCODERS = {
    "big_bird": "its attention is sparse",
    "canine": "it reads characters instead of tokens",
    "convbert": "some of its heads are convolutions",
    "data2vec-text": "its tensors have other names",
    "deberta": _RELATIVE,
    "deberta-v2": _RELATIVE,
    "ernie": "it has embeddings of tasks, and its tensors have other names",
    "esm": "its tokens are amino acids, and its positions are rotary",
    "eurobert": _ROTARY,
    "flaubert": "its layers and tensors follow XLM",
    "fnet": "it has Fourier transforms instead of attention",
    "funnel": "its layers get shorter",
    "gte": _ROTARY,
    "ibert": "its layers compute in whole numbers",
    "jina_bert": _RELATIVE,
    "layoutlm": "it reads where words lie on a page, too",
    "longformer": "its attention is a window",
    "luke": "it reads entities, too",
    "megatron-bert": "it normalises before each layer",
    "mobilebert": "its layers have bottlenecks",
    "modernbert": f"{_ROTARY}, and most of its attention is a window",
    "new": _ROTARY,
    "nomic_bert": _ROTARY,
    "nystromformer": "its attention is an approximation",
    "reformer": "its attention goes by hashes, and its layers can be run backwards",
    "rembert": "its token embeddings are narrower",
    "roberta-prelayernorm": "it normalises before each layer",
    "roformer": "its positions are rotary",
    "splinter": "its head picks spans",
    "squeezebert": "its linear layers are convolutions in groups",
    "xlm": "its layers and tensors have another order",
    "xlm-roberta-xl": "it normalises before each layer",
    "xlnet": f"{_RELATIVE}, and it is trained over permutations",
    "xmod": "each language has an adapter",
}
_DECODER = "a decoder, which generates text"
_ENCODER_DECODER = "an encoder-decoder, which generates text"
_VISION = "a model of images"
_SPEECH = "a model of sound"
_SEVERAL = "a model of images and text"
_OTHERS = {
    _DECODER: "biogpt bloom codegen cohere cohere2 ctrl deepseek_v2 deepseek_v3 falcon gemma gemma2 gemma3_text glm "
    "glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite jamba llama mamba mamba2 minicpm mistral mixtral mpt "
    "olmo olmo2 openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next rwkv smollm3 "
    "stablelm starcoder2 xglm bert-generation modernbert-decoder",
    _ENCODER_DECODER: "t5 mt5 umt5 byt5 longt5 switch_transformers t5gemma bart mbart pegasus pegasus_x marian m2m_100 "
    "nllb-moe led bigbird_pegasus blenderbot blenderbot-small fsmt plbart prophetnet encoder-decoder",
    _VISION: "vit vit_mae deit beit swin swinv2 resnet convnext convnextv2 dinov2 dinov3_vit efficientnet mobilenet_v2 "
    "segformer detr yolos sam timm_wrapper depth_anything",
    _SPEECH: "whisper wav2vec2 wav2vec2-bert hubert wavlm speecht5 speech_to_text seamless_m4t clap encodec",
    _SEVERAL: "clip siglip siglip2 chinese_clip align blip blip-2 llava llava_next qwen2_vl qwen2_5_vl qwen3_vl gemma3 "
    "idefics3 paligemma vision-encoder-decoder layoutlmv2 layoutlmv3 mllama pix2struct git",
}
_WORDS = ("align", "git", "led", "new")  # types whose names say nothing at the start of another
_WHAT = {kind: what for what, kinds in _OTHERS.items() for kind in kinds.split()}


def supported() -> str:
    """The types that run here, each with a word on what it is."""
    return ", ".join(_RUNS.get(kind, kind) for kind in _known())


def check_type(path: str, config: Mapping[str, object]) -> None:
    """Raises CheckpointError where config.json, at `path`, has no model_type, and ConfigError for one we do not run."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise CheckpointError(f"{path}: has no model_type{_untyped(path, config)}")
    if kind in _known():
        return
    classes, spelt = classes_of(config), _spelt(kind)
    named = f"{path}: model_type {kind[:60]!r}"
    if what := _of_type(kind) or _by_shape(classes, config):
        raise ConfigError(f"{named} is {what}; supported are {supported()}")
    if ours := _ours(classes):
        raise ConfigError(
            f"{named} is not known; did you mean {ours}, whose architectures ({some(classes, 3)}) it names? Supported "
            f"are {supported()}"
        )
    if spelt in _known():
        raise ConfigError(f"{named} is not known; did you mean {spelt}? Supported are {supported()}")
    if spelt:
        raise ConfigError(
            f"{named} is not known; {spelt}, the nearest name, is {_of_type(spelt)}; supported are {supported()}"
        )
    told = f" (architectures: {some(classes, 3)})" if classes else ""
    own = "; it comes with Python code of its own, which is never run here" if config.get("auto_map") else ""
    raise ConfigError(
        f"{named}{told} is not known{own}; supported are {supported()}: for texts take a model of type bert"
    )


def _untyped(path: str, config: Mapping[str, object]) -> str:
    """What a config.json without model_type may be."""
    above = os.path.dirname(os.path.dirname(path))
    if any(str(key).startswith("pooling_mode") for key in config):
        return f", because it is that of a sentence-transformers module; give the folder above, {above}"
    if "pretrained_cfg" in config or ("architecture" in config and "num_features" in config):
        return f", because it is that of a timm model, {_VISION}; supported are {supported()}"
    kind = _ours(classes_of(config)) or ("torch_transformer" if {"d_model", "nhead"} <= config.keys() else None)
    if kind:
        return f', so the architecture is unknown; its other keys are those of {kind}: add "model_type": "{kind}"'
    return f', so the architecture is unknown; add it ("bert", ...); supported are {supported()}'


def _of_type(kind: str) -> str | None:
    """What a type is that does not run here, by its name."""
    if kind in _ENCODERS:
        return f"an encoder that does not run here yet, the nearest is {_nearest(kind)} ({_ENCODERS[kind]})"
    return _far(_WHAT[kind]) if kind in _WHAT else None


def _nearest(kind: str) -> str:
    """The type that runs here and differs least from an encoder that does not."""
    return _NEAREST.get(kind, "bert")


def _far(what: str) -> str:
    if what in (_DECODER, _ENCODER_DECODER):
        return f"{what}, and does not run here yet; for vectors the nearest is an embedding model of type bert"
    return f"{what}, which does not run here, and none that does is near it"


def _by_shape(classes: list[str], config: Mapping[str, object]) -> str | None:
    """What a type is whose name says nothing, by the rest of its config.json."""
    names = " ".join(classes)
    if _ours(classes):
        return None
    if "vision_config" in config or "VisionEncoderDecoder" in names:
        return _far(_SEVERAL)
    if "audio_config" in config or re.search(r"For(CTC|Speech|Audio)", names):
        return _far(_SPEECH)
    if {"image_size", "patch_size"} <= config.keys() or re.search(r"For(Image|Object|Semantic|Depth|Video)", names):
        return _far(_VISION)
    if config.get("is_encoder_decoder") is True or "ForConditionalGeneration" in names:
        return _far(_ENCODER_DECODER)
    if config.get("is_decoder") is True or re.search(r"ForCausalLM|LMHeadModel", names):
        return _far(_DECODER)
    return None


def _spelt(kind: str) -> str | None:
    """The type that is meant by one with another spelling, a typo, or more words. Short names are near to anything."""
    plain = {re.sub(r"[-_ ]", "", known.lower()): known for known in (*_WHAT, *_ENCODERS, *_known())}
    given = re.sub(r"[-_ ]", "", kind.lower())
    if given in plain:
        return plain[given]
    if close := get_close_matches(given, [name for name in plain if len(name) > 3], 1, 0.85):
        return plain[close[0]]
    first = re.split(r"[-_ ]", kind.lower())[0]  # of "t5-small"
    return plain.get(first) if first not in _WORDS else None


def _known() -> list[str]:
    return [str(kind["model_type"]) for kind in _core.architectures()]


def classes_of(config: Mapping[str, object]) -> list[str]:
    """Names of the classes in config.json's `architectures`; what can be no such name is left out."""
    listed = config.get("architectures")
    if not isinstance(listed, list):
        return []
    return [name for name in listed if isinstance(name, str) and name.isidentifier() and len(name) <= 100]


def _ours(classes: Iterable[str]) -> str | None:
    """The type that runs here whose class names these are."""
    for kind in _core.architectures():
        if any(fnmatchcase(name, pattern) for name in classes for pattern in kind["architectures"]):
            return str(kind["model_type"])
    return None
