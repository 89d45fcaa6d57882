#!/usr/bin/env python3
"""Make a Tequila checkpoint of a real model's shape, with made-up weights: for benchmarks and for tests at scale.

    pip install numpy
    python3 scripts/make_checkpoint.py --shape llama-3.2-1b OUT_DIR
    python3 scripts/make_checkpoint.py --shape llama-3.1-8b --shard-size 4.9G OUT_DIR
    python3 scripts/make_checkpoint.py --shape tiny --layers 2 --dtype f16 OUT_DIR

Tensor names, shapes and config.json are those of the real model. The latent weights of a linear are drawn from
Student's t with 5 degrees of freedom, times a factor for the tensor and one for the row, so that neighbouring groups
differ in scale by some percent, as trained ones do. The same seed gives the same bytes. Memory stays below 200 MB
whatever the shape: tensors are made a piece at a time.

The tokenizer is a byte-level BPE with as many tokens as the embedding has rows: bytes, made-up merges of letters, and
special tokens.
"""

import argparse
import itertools
import json
import math
import pathlib
import zlib

import numpy as np

# hidden, intermediate, layers, heads, kv heads, head dim, vocabulary, tied head, factor of the rotary scaling
SHAPES = {
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 64, 128256, True, 32.0),
    "llama-3.2-3b": (3072, 8192, 28, 24, 8, 128, 128256, True, 32.0),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128, 128256, False, 8.0),
    "tiny": (256, 768, 4, 4, 2, 64, 1024, True, 8.0),
}
DTYPES = {"bf16": ("BF16", "bfloat16", 2), "f16": ("F16", "float16", 2), "f32": ("F32", "float32", 4)}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = 256
POOL = 2_000_003  # random numbers that every tensor draws from; a prime, so that rows do not repeat in step
PIECE = 1 << 22  # numbers made at a time


def tensors(shape):
    """(name, shape) of every tensor, in the order of the real checkpoints."""
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary, tied, _ = shape
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "mlp.down_proj.weight", (hidden, intermediate)
        yield prefix + "mlp.gate_proj.weight", (intermediate, hidden)
        yield prefix + "mlp.up_proj.weight", (intermediate, hidden)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "self_attn.k_proj.weight", (kv_heads * head_dim, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, heads * head_dim)
        yield prefix + "self_attn.q_proj.weight", (heads * head_dim, hidden)
        yield prefix + "self_attn.v_proj.weight", (kv_heads * head_dim, hidden)
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocabulary, hidden)


def config(shape, args):
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary, tied, factor = shape
    granularity = {"granularity": args.granularity}
    if args.granularity == "per_group":
        granularity["group_size"] = args.group_size
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": vocabulary - SPECIALS,
        "eos_token_id": vocabulary - SPECIALS + 1,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": DTYPES[args.dtype][1],
        "vocab_size": vocabulary,
        "w_bits": 0,
        "quant_method": "ultraquantv2",
        **granularity,
        "eps": 0.001,
    }


def encode(numbers, dtype):
    """f32 to the bytes of `dtype`, rounded to nearest even."""
    if dtype == "f32":
        return numbers.astype("<f4").tobytes()
    if dtype == "f16":
        return numbers.astype("<f2").tobytes()
    bits = numbers.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


class Weights:
    """Numbers for any tensor, made from one pool."""

    def __init__(self, seed):
        self.seed = seed
        generator = np.random.default_rng(seed)
        pool = generator.standard_t(5, POOL).astype(np.float32)
        self.pool = np.concatenate([pool, pool[: POOL // 2]])

    def pieces(self, name, shape):
        """The tensor called `name`, a piece of whole rows at a time."""
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        if len(shape) == 1:
            yield (1 + 0.2 * generator.standard_normal(shape)).astype(np.float32)
            return
        rows, columns = shape
        spread = 0.02 * math.exp(0.3 * generator.standard_normal())
        row_factors = spread * np.exp(0.2 * generator.standard_normal((rows, 1))).astype(np.float32)
        step = max(1, PIECE // columns)
        for start in range(0, rows, step):
            factors = row_factors[start : start + step]
            count = len(factors) * columns
            yield self.draw(int(generator.integers(POOL)), count).reshape(-1, columns) * factors.astype(np.float32)

    def draw(self, offset, count):
        """`count` numbers of the pool from `offset` on, going round."""
        parts, left = [], count
        while left > 0:
            part = self.pool[offset : offset + min(left, POOL // 2)]
            parts.append(part)
            left -= len(part)
            offset = (offset + len(part)) % POOL
        return np.concatenate(parts)


def shards(entries, item, limit):
    """The tensors in runs of at most `limit` bytes."""
    run, size = [], 0
    for name, shape in entries:
        bytes = math.prod(shape) * item
        if run and size + bytes > limit:
            yield run
            run, size = [], 0
        run.append((name, shape))
        size += bytes
    yield run


def write_shard(path, entries, weights, dtype):
    name, _, item = DTYPES[dtype]
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor, shape in entries:
        end = offset + math.prod(shape) * item
        header[tensor] = {"dtype": name, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor, shape in entries:
            for piece in weights.pieces(tensor, shape):
                file.write(encode(np.ascontiguousarray(piece), dtype))
    return offset


def byte_letters():
    """The 256 letters that stand for bytes in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = itertools.count(256)
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def tokenizer(vocabulary):
    """tokenizer.json with `vocabulary` tokens: bytes, words of two, three, ... letters, special tokens."""
    tokens, merges = byte_letters(), []
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words, wanted = letters, vocabulary - SPECIALS
    while len(tokens) < wanted:
        longer = [(word, letter) for word in words for letter in letters][: wanted - len(tokens)]
        merges += [f"{word} {letter}" for word, letter in longer]
        words = [word + letter for word, letter in longer]
        tokens += words
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    names += [f"<|reserved_special_token_{i}|>" for i in range(SPECIALS - len(names))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": wanted + i, "content": name, **flags} for i, name in enumerate(names)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
        "vocab": {token: id for id, token in enumerate(tokens)}, "merges": merges,
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level, "decoder": byte_level, "model": model,
    }  # fmt: skip


def size(text):
    """`4.9G`, `300M`, `65536` as bytes."""
    units = {"K": 10**3, "M": 10**6, "G": 10**9}
    return int(float(text[:-1]) * units[text[-1]]) if text[-1] in units else int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--layers", type=int, help="another number of layers")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--granularity", choices=["per_group", "per_channel", "per_tensor"], default="per_group")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--shard-size", type=size, default=size("5G"), help="for example 4.9G or 100M")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("output", type=pathlib.Path, help="the folder to make")
    args = parser.parse_args()

    shape = list(SHAPES[args.shape])
    shape[2] = args.layers or shape[2]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "config.json").write_text(json.dumps(config(shape, args), indent=2) + "\n")
    (args.output / "tokenizer.json").write_text(json.dumps(tokenizer(shape[6]), ensure_ascii=False))
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    settings = {**names, "model_max_length": 131072, "tokenizer_class": "PreTrainedTokenizerFast"}
    (args.output / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    weights = Weights(args.seed)
    runs = list(shards(tensors(shape), DTYPES[args.dtype][2], args.shard_size))
    total, weight_map = 0, {}
    for index, run in enumerate(runs, 1):
        name = "model.safetensors" if len(runs) == 1 else f"model-{index:05}-of-{len(runs):05}.safetensors"
        total += write_shard(args.output / name, run, weights, args.dtype)
        weight_map.update({tensor: name for tensor, _ in run})
    if len(runs) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (args.output / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"{args.output}: {total / 1e9:.2f} GB of weights in {len(runs)} file{'s' * (len(runs) > 1)}")


if __name__ == "__main__":
    main()
