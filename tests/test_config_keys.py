"""Config keys: what saved configs carry is read, and what changes the mathematics is refused by name."""

from __future__ import annotations

import pytest
import tiny
from firesteel import ConfigError, _core


def read(**changes: object) -> str:
    return _core.trace(tiny.config() | changes, [3])


@pytest.mark.parametrize(
    "changes",
    [
        {"torch_dtype": "float16", "transformers_version": "4.8.2", "_name_or_path": "x", "use_cache": True},
        {"id2label": {"0": "a"}, "label2id": {"a": 0}, "problem_type": "regression", "classifier_dropout": None},
        {"directionality": "bidi", "pooler_fc_size": 768, "pooler_type": "first_token_transform"},
        {"pruned_heads": {}, "is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"},
        {"max_length": 20, "num_beams": 1, "do_sample": False, "temperature": 1.0, "bad_words_ids": None},
        {"_attn_implementation_autoset": True, "_attn_implementation": "sdpa", "tie_word_embeddings": True},
        {"architectures": ["BertForMaskedLM"], "gradient_checkpointing": False, "output_past": True},
        {"architectures": None, "chunk_size_feed_forward": 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_harmless_keys_change_nothing(changes):
    assert read(**changes) == read()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "gpt2"}, ('model_type "gpt2" is not known', "bert")),
        ({"is_decoder": True}, ("is_decoder = true (only false)", "FIRESTEEL_IGNORE_KEYS")),
        ({"position_embedding_type": "relative_key"}, ('position_embedding_type = "relative_key" (only absolute)',)),
        ({"quantization_config": {"bits": 4}, "alibi": True}, ('quantization_config = {"bits": 4}', "alibi = true")),
        ({"auto_map": {"AutoModel": "x.Y"}}, ("auto_map",)),
        ({"architectures": ["BertLMHeadModel"]}, ("BertLMHeadModel",)),
        ({"hidden_act": "quick_gelu"}, ('hidden_act = "quick_gelu"', "gelu_new")),
        ({"num_attention_heads": 5}, ("hidden_size = 48", "num_attention_heads = 5")),
        ({"hidden_size": 10**30}, ("hidden_size = 9223372036854775807", "from 1 to")),
        ({"layer_norm_eps": 0.0}, ("layer_norm_eps = 0",)),
        ({"vocab_size": None}, ("lacks vocab_size",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_other_mathematics_is_refused(changes, parts):
    with pytest.raises(ConfigError) as raised:
        read(**changes)
    assert all(part in str(raised.value) for part in parts), str(raised.value)


def test_keys_known_to_be_harmless_can_pass(monkeypatch):
    monkeypatch.setenv("FIRESTEEL_IGNORE_KEYS", "alibi, is_decoder")
    assert read(alibi=True, is_decoder=True) == read()
    with pytest.raises(ConfigError, match="more_alibi"):
        read(alibi=True, more_alibi=True)


@pytest.mark.reference
def test_configs_that_transformers_writes_are_read():
    from transformers import BertConfig

    shape = {key: value for key, value in tiny.config().items() if key not in ("architectures", "model_type")}
    for config in (BertConfig(**shape), BertConfig(**shape, num_labels=5, problem_type="regression")):
        assert _core.trace(config.to_dict(), [3]) == read()
        assert _core.trace(config.to_diff_dict(), [3]) == read()
