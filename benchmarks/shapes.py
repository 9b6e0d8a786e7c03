"""Models of well-known shapes with seeded random weights: where none can be downloaded, speed needs the shape alone.

    python benchmarks/encoder.py --shape roberta-base --shape distilbert --shape mpnet-base --rows 100 --save

A folder of sentence-transformers (mean pooling, normalised) with the tokenizer of all-MiniLM-L6-v2, so that corpus and
tokens are the same for every shape; made once, under the system's temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
# name -> (config class of transformers, what its config says)
SHAPES = {
    "bert-base": ("BertConfig", BASE),
    "roberta-base": (
        "RobertaConfig",
        BASE
        | {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
        | {"position_embedding_type": "absolute"},
    ),  # CTranslate2's converter asks for it
    "distilbert": ("DistilBertConfig", {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}),
    "mpnet-base": ("MPNetConfig", BASE | {"max_position_embeddings": 514}),
}
VOCABULARY = 30522  # of the tokenizer


def made(name: str, tokenizer_of: str) -> str:
    """The folder of the shape, with the tokenizer of the folder `tokenizer_of`."""
    folder = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"firesteel-benchmarks-{os.getuid()}", "shapes", name)
    if os.path.isdir(folder):
        return folder
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as scratch:
        work = os.path.join(scratch, name)
        _make(name, tokenizer_of, work)
        os.rename(work, folder)
    return folder


def _make(name: str, tokenizer_of: str, folder: str) -> None:
    import torch
    import transformers

    kind, settings = SHAPES[name]
    config = getattr(transformers, kind)(vocab_size=VOCABULARY, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    for parameter in model.parameters():  # transformers' own start is so small that all rows come out alike
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if os.path.exists(os.path.join(tokenizer_of, file)):
            shutil.copy(os.path.join(tokenizer_of, file), folder)
    types = ("sentence_transformers.models." + kind for kind in ("Transformer", "Pooling", "Normalize"))
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(zip(paths, types, strict=True))
    ]
    written = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": 768, "pooling_mode_mean_tokens": True},
    }
    for path in paths[1:]:
        os.mkdir(os.path.join(folder, path))
    for path, content in written.items():
        with open(os.path.join(folder, path), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
