#!/usr/bin/env python3
"""Write fixtures/tiny: the smallest checkpoint that packs, for tests that break it and fuzzers that mutate it.

One layer, hidden 32, 16 tokens, bf16, groups of 32. Needs nothing but Python. Usage: scripts/make_tiny.py fixtures/tiny
"""
import json
import random
import struct
import sys
from pathlib import Path

HIDDEN, QUERY, KEY, FFN = 32, 32, 16, 32
TOKENS = ["<|begin|>", "<|end|>", *"abcdefghi", "Ġ", "ab", "cd", "Ġa", "abcd"]
MERGES = [["a", "b"], ["c", "d"], ["Ġ", "a"], ["ab", "cd"]]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": len(TOKENS), "hidden_size": HIDDEN,
    "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1, "w_bits": 0, "quant_method": "ultraquantv2",
    "granularity": "per_group", "group_size": 32, "eps": 0.001,
}

TOKENIZER = {
    "version": "1.0",
    "added_tokens": [{"id": i, "content": TOKENS[i], "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True} for i in (0, 1)],
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]},
    "post_processor": None,
    "model": {"type": "BPE", "ignore_merges": True, "vocab": {text: i for i, text in enumerate(TOKENS)},
              "merges": MERGES},
}


def shapes():
    layer = "model.layers.0"
    yield "model.embed_tokens.weight", [len(TOKENS), HIDDEN]
    yield f"{layer}.input_layernorm.weight", [HIDDEN]
    for part, rows in ("q", QUERY), ("k", KEY), ("v", KEY):
        yield f"{layer}.self_attn.{part}_proj.weight", [rows, HIDDEN]
    yield f"{layer}.self_attn.o_proj.weight", [HIDDEN, QUERY]
    yield f"{layer}.post_attention_layernorm.weight", [HIDDEN]
    yield f"{layer}.mlp.gate_proj.weight", [FFN, HIDDEN]
    yield f"{layer}.mlp.up_proj.weight", [FFN, HIDDEN]
    yield f"{layer}.mlp.down_proj.weight", [HIDDEN, FFN]
    yield "model.norm.weight", [HIDDEN]


def bf16(value):
    """The bytes of `value` as bf16, cut off."""
    return struct.pack("<f", value)[2:]


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    header, data = {}, b""
    for name, shape in shapes():
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        norm = len(shape) == 1
        numbers = b"".join(bf16(rng.gauss(1.0 if norm else 0.0, 0.05)) for _ in range(count))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER, ensure_ascii=False, separators=(",", ":")) + "\n")


main(Path(sys.argv[1]))
