"""The Tequila forward pass in PyTorch: the witness that the Rust code is held against.

    pip install torch safetensors
    python scripts/reference.py CHECKPOINT OUT.safetensors [--tokens 1,2,3]

Written from the paper (arXiv 2509.23809) and the layer's own arithmetic: scale, delta and the comparison in the dtype
of the weights, the offline bias in float64. OUT holds, for each linear, codes (int8), scale (float32, one a group of
the flattened matrix) and bias (float64); and the tokens with their float32 logits.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PARTS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def load_checkpoint(folder):
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    return config, tensors


def group_size(config, shape):
    return {"per_group": config["group_size"], "per_channel": shape[1], "per_tensor": shape[0] * shape[1]}[
        config["granularity"]
    ]


def split(weight, size):
    """codes, scale per group and the dead zone of a latent weight."""
    groups = weight.reshape(-1, size)
    # The mean is exact before it is rounded once to the dtype of the weights.
    scale = groups.abs().double().mean(dim=1, keepdim=True).to(weight.dtype)
    delta = scale / 2
    codes = (groups >= delta).to(torch.int8) - (groups <= -delta).to(torch.int8)
    codes = torch.where(scale == 0, torch.zeros_like(codes), codes)
    return codes.reshape(weight.shape), scale.flatten()


def linear(config, tensors, name):
    """(codes, scales, offline bias with the layer's own added, A in float32)"""
    weight = tensors[f"{name}.weight"]
    size = group_size(config, weight.shape)
    codes, scale = split(weight, size)
    dead = torch.where(codes == 0, weight, torch.zeros_like(weight)).double()
    if config["quant_method"] == "ultraquantv3":
        factor = tensors[f"{name}.Lambada"].double()
    else:
        factor = torch.tensor(config["eps"], dtype=torch.float64).to(weight.dtype).double()
    bias = (factor * dead).sum(dim=1)
    if f"{name}.bias" in tensors:
        bias = bias + tensors[f"{name}.bias"].double()
    a = (codes.float().reshape(-1, size) * scale.float()[:, None]).reshape(weight.shape)
    return codes, scale.float(), bias, a


def rope_frequencies(config):
    head_dim = config["head_dim"]
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = settings.get("rope_theta", config.get("rope_theta", 10000.0))
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if settings.get("rope_type", settings.get("type", "default")) != "llama3":
        return frequencies
    factor, old = settings["factor"], settings["original_max_position_embeddings"]
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    out = []
    for frequency in frequencies.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < old / high:
            out.append(frequency)
        elif wavelength > old / low:
            out.append(frequency / factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            out.append((1 - smooth) * frequency / factor + smooth * frequency)
    return torch.tensor(out, dtype=torch.float64)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def forward(config, tensors, linears, tokens):
    """float32 logits of every position, from an empty context."""
    heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    eps, count = config["rms_norm_eps"], len(tokens)
    f32 = {name: tensor.float() for name, tensor in tensors.items() if "proj" not in name}
    angles = torch.arange(count, dtype=torch.float64)[:, None] * rope_frequencies(config)[None]
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = angles.cos().float(), angles.sin().float()
    mask = torch.full((count, count), -math.inf).triu(1)

    def apply(name, x):
        _, _, bias, a = linears[name]
        return x @ a.T + bias.float()

    x = f32["model.embed_tokens.weight"][torch.tensor(tokens)]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = norm(x, f32[at + "input_layernorm.weight"], eps)
        q = apply(at + "self_attn.q_proj", h).reshape(count, heads, head_dim).transpose(0, 1)
        k = apply(at + "self_attn.k_proj", h).reshape(count, kv_heads, head_dim).transpose(0, 1)
        v = apply(at + "self_attn.v_proj", h).reshape(count, kv_heads, head_dim).transpose(0, 1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(head_dim) + mask
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(count, heads * head_dim)
        x = x + apply(at + "self_attn.o_proj", mixed)
        h = norm(x, f32[at + "post_attention_layernorm.weight"], eps)
        gate, up = apply(at + "mlp.gate_proj", h), apply(at + "mlp.up_proj", h)
        x = x + apply(at + "mlp.down_proj", torch.nn.functional.silu(gate) * up)
    x = norm(x, f32["model.norm.weight"], eps)
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return x @ f32[head].T


def golden(config, tensors, tokens):
    names = [f"model.layers.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in PARTS]
    linears = {name: linear(config, tensors, name) for name in names}
    out = {"tokens": torch.tensor(tokens, dtype=torch.int32), "logits": forward(config, tensors, linears, tokens)}
    for name, (codes, scale, bias, _) in linears.items():
        out |= {f"{name}.codes": codes, f"{name}.scale": scale, f"{name}.bias": bias}
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--tokens", default=",".join(str(token) for token in range(2, 50)))
    arguments = parser.parse_args()
    tokens = [int(token) for token in arguments.tokens.split(",")]
    save_file(golden(*load_checkpoint(arguments.checkpoint), tokens), arguments.out)


if __name__ == "__main__":
    main()
