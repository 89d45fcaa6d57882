"""Write fixtures/decoders: tiny random models of the architectures beside Llama, with transformers' logits of them.

    pip install torch transformers
    python scripts/make_decoders.py

Seeded: the same files every time. Weights are bf16 numbers, and the forward pass runs in float64 as far as transformers
lets it (its norms and its rotation are in float32). MiniCPM's own code is not in transformers; GraniteForCausalLM
multiplies in the same four places.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

FIXTURES = Path(__file__).parent.parent / "fixtures" / "decoders"
TOKENS = 12
BASE = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
MINICPM = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 4}

# name -> transformers' class, its configuration beside BASE
DECODERS = {
    "qwen2": ("Qwen2", ROPE),
    "qwen3": ("Qwen3", ROPE | {"head_dim": 6, "tie_word_embeddings": True}),
    "hunyuan-dense": ("HunYuanDenseV1", {
        "head_dim": 8, "rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 100.0},
    }),
    "bitnet": ("BitNet", ROPE | {"tie_word_embeddings": True}),
    "minicpm": ("Granite", ROPE | {
        "embedding_multiplier": float(MINICPM["scale_emb"]),
        "residual_multiplier": MINICPM["scale_depth"] / BASE["num_hidden_layers"] ** 0.5,
        "logits_scaling": BASE["hidden_size"] / MINICPM["dim_model_base"],
        "attention_multiplier": (BASE["hidden_size"] / BASE["num_attention_heads"]) ** -0.5,
    }),
}


def randomize(model, generator):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            noise = 0.3 * noise
        elif "norm" in name:
            noise = 1 + 0.3 * noise
        elif "embed_tokens" not in name:
            noise = noise * parameter.shape[1] ** -0.5
        parameter.data = noise.to(torch.bfloat16).to(torch.float64)


def make(name, family, changes, generator):
    config = getattr(transformers, family + "Config")(**(BASE | changes), attn_implementation="eager")
    model = getattr(transformers, family + "ForCausalLM")(config).double().eval()
    randomize(model, generator)
    model.tie_weights()
    tokens = torch.randint(0, BASE["vocab_size"], (1, TOKENS), generator=generator)
    with torch.no_grad():
        logits = model(tokens).logits[0]
    folder = FIXTURES / name
    folder.mkdir(parents=True, exist_ok=True)
    stated = MINICPM | ROPE if name == "minicpm" else changes
    (folder / "config.json").write_text(json.dumps(BASE | stated, indent=1) + "\n")
    tensors = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    golden = {"tokens": tokens[0].to(torch.int32), "logits": logits.to(torch.float32)}
    save_file(golden, folder / "golden.safetensors")
    print(name, len(tensors), "tensors, logits", logits.std().item())


if __name__ == "__main__":
    for seed, (name, (family, changes)) in enumerate(DECODERS.items()):
        make(name, family, changes, torch.Generator().manual_seed(seed))
