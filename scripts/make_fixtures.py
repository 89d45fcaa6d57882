"""Write fixtures/corners: small Tequila checkpoints, each turning one corner, with what PyTorch makes of them.

    pip install torch safetensors
    python scripts/make_fixtures.py

Seeded: the same files every time. Weights are heavy-tailed noise, so their text is noise too.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from reference import PARTS, golden

FIXTURES = Path(__file__).parent.parent / "fixtures"
VOCAB = 320
BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 256,
    "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 64, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16", "w_bits": 0, "quant_method": "ultraquantv2",
    "granularity": "per_group", "group_size": 128, "eps": 0.05,
}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 256}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# name -> what differs from BASE
CORNERS = {
    "group128": {},
    "across-rows": {"hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 3, "num_key_value_heads": 3},
    "channel-f32-llama3-untied": {
        "granularity": "per_channel", "torch_dtype": "float32", "tie_word_embeddings": False, "eps": 0.02,
        "rope_theta": 500000.0, "rope_scaling": LLAMA3, "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "tensor-f16": {"granularity": "per_tensor", "torch_dtype": "float16"},
    "lambada-biases-shards": {
        "quant_method": "ultraquantv3", "group_size": 64, "attention_bias": True, "mlp_bias": True, "head_dim": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "shards": 2,
    },
    "mistral-extremes": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64, "eps": 1.0,
        "num_hidden_layers": 2, "intermediate_size": 128, "extremes": True,
    },
}


def shapes(config):
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    return dict(zip(PARTS, [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (ffn, hidden), (ffn, hidden),
                            (hidden, ffn)]))


def heavy_tailed(generator, shape, width):
    """Student-t with 4 degrees of freedom, rows of differing width, as trained latent weights have."""
    normal = torch.randn(shape, generator=generator)
    chi = torch.randn((4, *shape), generator=generator).pow(2).mean(0)
    rows = torch.exp(0.3 * torch.randn((shape[0], 1), generator=generator))
    return width * rows * normal / chi.sqrt()


def extremes(weight):
    """Groups of zeros, of equal magnitudes (all on one side of delta), of weights exactly at delta, of subnormals."""
    flat = weight.reshape(-1)
    flat[:128] = 0.0
    flat[128:256] = 0.03125 * torch.where(torch.arange(128) % 2 == 0, 1.0, -1.0)
    # mean |w| = 0.5: half of the weights at 0.75, half exactly at delta = 0.25
    flat[256:384] = torch.where(torch.arange(128) % 2 == 0, 0.75, -0.25)
    flat[384:512] = 1e-6 * torch.sign(flat[384:512])
    flat[512:640] = -0.0


def make(name, changes, generator):
    shards, has_extremes = changes.pop("shards", 1), changes.pop("extremes", False)
    config = BASE | changes
    dtype = DTYPES[config["torch_dtype"]]
    hidden = config["hidden_size"]
    tensors = {"model.embed_tokens.weight": torch.randn((VOCAB, hidden), generator=generator) / hidden**0.5}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = torch.randn((VOCAB, hidden), generator=generator) / hidden**0.5
    tensors["model.norm.weight"] = 1 + 0.2 * torch.randn(hidden, generator=generator)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            tensors[f"{at}{norm}.weight"] = 1 + 0.2 * torch.randn(hidden, generator=generator)
        for part, shape in shapes(config).items():
            weight = heavy_tailed(generator, shape, shape[1] ** -0.5)
            if has_extremes:
                extremes(weight)
            tensors[f"{at}{part}.weight"] = weight
            if config["quant_method"] == "ultraquantv3":
                tensors[f"{at}{part}.Lambada"] = 0.1 * torch.randn(shape, generator=generator)
            if config["attention_bias"]:
                tensors[f"{at}{part}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    tensors = {key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}
    write(FIXTURES / "corners" / name, config, tensors, shards)
    tokens = torch.randint(2, VOCAB, (32,), generator=generator).tolist()
    save_file(golden(config, tensors, tokens), FIXTURES / "corners" / name / "golden.safetensors")


def write(folder, config, tensors, shards):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        (folder / file).write_text(json.dumps(TOKENIZER[file], indent=None, ensure_ascii=False) + "\n")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensor for index, (key, tensor) in enumerate(sorted(tensors.items())) if index % shards == shard}
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def small_tokenizer():
    """The first VOCAB tokens of the tokenizer of fixtures/kjv: specials, bytes and the first merges."""
    full = json.loads((FIXTURES / "kjv" / "tokenizer.json").read_text())
    vocab = {token: id for token, id in full["model"]["vocab"].items() if id < VOCAB}
    join = lambda merge: merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
    full["model"] |= {"vocab": vocab, "merges": [merge for merge in full["model"]["merges"] if join(merge) in vocab]}
    settings = json.loads((FIXTURES / "kjv" / "tokenizer_config.json").read_text())
    return {"tokenizer.json": full, "tokenizer_config.json": settings}


TOKENIZER = small_tokenizer()

if __name__ == "__main__":
    for seed, (name, changes) in enumerate(CORNERS.items()):
        make(name, dict(changes), torch.Generator().manual_seed(seed))
