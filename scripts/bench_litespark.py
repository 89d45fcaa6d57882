#!/usr/bin/env python3
"""How fast Litespark-Inference is on a network of Llama-3.2-1B's shape, with made-up ternary weights.

    pip install numpy tokenizers safetensors huggingface_hub ninja
    pip install --no-deps litespark-inference==1.0.3
    OMP_NUM_THREADS=2 python3 scripts/bench_litespark.py [--prefill 128] [--decode 24] [--rounds 3]

Its runtime without PyTorch, of 1.0.3: the graph of BitNet, the only one that it gives many tokens at once to (Falcon's takes a
prompt token by token). That has two norms more in a layer than Llama's, and relu squared in the place of SwiGLU's silu. The
embedding, which is the head, is int8, a scale a row.
"""

import argparse
import os
import statistics
import time

import numpy as np
from litespark_inference.torchless import kernel
from litespark_inference.torchless.loader import _quantize_embedding_int8
from litespark_inference.torchless.model import BitNetConfig, PackedBitNetModel, PackedLayer, PackedProjection
from litespark_inference.torchless.pack import pack_ternary_4_per_byte
from litespark_inference.torchless.runtime import forward_one, forward_prefill, init_state

# Its product of many tokens returns at once for more than that, without computing anything.
MOST_TOKENS = 64
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, LAYERS, VOCABULARY = 2048, 8192, 32, 8, 16, 128256


def projection(random, rows, columns):
    codes = random.integers(-1, 2, (rows, columns), dtype=np.int8)
    return PackedProjection(
        w_packed=pack_ternary_4_per_byte(codes),
        w_sum=codes.sum(axis=1, dtype=np.int32),
        scale=0.02,
        in_features=columns,
        out_features=rows,
    )


def layer(random):
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = dict(q=(HIDDEN, HIDDEN), k=(kv, HIDDEN), v=(kv, HIDDEN), o=(HIDDEN, HIDDEN))
    shapes |= dict(gate=(INTERMEDIATE, HIDDEN), up=(INTERMEDIATE, HIDDEN), down=(HIDDEN, INTERMEDIATE))
    return PackedLayer(
        **{f"{name}_proj": projection(random, *shape) for name, shape in shapes.items()},
        input_norm=np.ones(HIDDEN, dtype=np.float32),
        post_attn_norm=np.ones(HIDDEN, dtype=np.float32),
        attn_sub_norm=np.ones(HIDDEN, dtype=np.float32),
        ffn_sub_norm=np.ones(INTERMEDIATE, dtype=np.float32),
    )


def made_up():
    random = np.random.default_rng(1)
    embedding = (random.standard_normal((VOCABULARY, HIDDEN), dtype=np.float32) * 0.02).view(np.uint32) >> 16
    codes, scales = _quantize_embedding_int8(embedding.astype(np.uint16))
    return PackedBitNetModel(
        config=BitNetConfig(
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            intermediate_size=INTERMEDIATE,
            vocab_size=VOCABULARY,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
        ),
        embed_tokens=None,
        final_norm=np.ones(HIDDEN, dtype=np.float32),
        projection_backend="neon",  # its name of the packed kernels, on x86-64 too
        layers=[layer(random) for _ in range(LAYERS)],
        embed_int8=codes,
        embed_int4=None,
        embed_scale=scales,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefill", type=int, default=128)
    parser.add_argument("--decode", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, rates = made_up(), ([], [])
    prompt = [(7919 * i) % VOCABULARY for i in range(args.prefill)]
    for turn in range(args.rounds + 1):
        state = init_state(model, t_max=args.prefill + args.decode + 1)
        start = time.perf_counter()
        for at in range(0, args.prefill, MOST_TOKENS):
            logits = forward_prefill(model, state, prompt[at : at + MOST_TOKENS])
        middle = time.perf_counter()
        for token in range(args.decode):
            forward_one(model, state, token)
        end = time.perf_counter()
        assert np.isfinite(logits).all()
        if turn > 0:
            rates[0].append(args.prefill / (middle - start))
            rates[1].append(args.decode / (end - middle))
    threads = os.environ.get("OMP_NUM_THREADS", kernel.max_threads())
    for what, rate in zip(("prefill", "decode"), rates):
        print(f"{what}, {threads} threads: {statistics.median(rate):.1f} ({min(rate):.1f} to {max(rate):.1f}) tok/s")


if __name__ == "__main__":
    main()
