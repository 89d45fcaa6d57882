#!/usr/bin/env python3
"""Train a Tequila checkpoint from an ordinary one, by the paper's forward pass (arXiv 2509.23809).

    pip install torch safetensors tokenizers
    python3 scripts/train_tequila.py MODEL TEXT OUT --steps 2000 --tqconv target/release/tqconv
    python3 scripts/train_tequila.py MODEL TEXT OUT --steps 2000 --resume          # goes on where it was stopped

MODEL is a folder as Hugging Face has it: a Llama or Mistral with config.json, safetensors, tokenizer.json. OUT becomes
one that `tqconv pack` takes: bf16 latent weights and `quant_method`, `granularity`, `group_size`, `eps` in config.json;
with `ultraquantv3` also a learned lambda for each weight (`Lambada`).

Each linear computes y = A x + sum over the dead zone of lambda w, with A, scale and dead zone made of the weights
rounded to bf16, as they are saved: what is trained is what is packed. Gradients pass the rounding and A as if they were
not there, and reach the dead zone through the bias, too. Embedding and head stay as they are.

The loss is that of the next token and, in the share --distill, the KLD from the predictions of MODEL itself, which says
more about each token than the token does. AdamW, warm-up, then half a cosine. --resume needs OUT/training.safetensors.
The last part of TEXT (--held-out) is not trained on; perplexity is of that, in windows as `tqconv verify` cuts them: of
MODEL, of MODEL made ternary without training, of OUT, and with --tqconv of the packed file.

Tried on CPUs alone. A GPU is used where PyTorch has one.
"""

import argparse
import json
import math
import pathlib
import shutil
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from reference import PARTS, load_checkpoint, norm, rope_frequencies, rotate, split

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STATE = "training.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Ternary(torch.autograd.Function):
    """A and dead zone of latent weights; the gradient of A is that of the weights."""

    @staticmethod
    def forward(ctx, weight, group):
        codes, scale = split(weight.to(torch.bfloat16), group)
        a = (codes.float().reshape(-1, group) * scale.float()[:, None]).reshape(weight.shape)
        dead = codes == 0
        ctx.mark_non_differentiable(dead)
        return a, dead

    @staticmethod
    def backward(ctx, gradient, _):
        return gradient, None


class Rounded(torch.autograd.Function):
    """Rounded to bf16; the gradient does not see it."""

    @staticmethod
    def forward(ctx, x):
        return x.to(torch.bfloat16).float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Model:
    """A decoder whose linears are as in MODEL, or ternary."""

    def __init__(self, config, tensors, settings=None):
        self.config, self.settings = config, settings
        self.weights = {name: tensor.float().to(DEVICE) for name, tensor in tensors.items()}
        self.frequencies = rope_frequencies(config).to(DEVICE)

    def weight(self, name):
        """As it is saved."""
        return self.weights[name] if self.settings is None else Rounded.apply(self.weights[name])

    def linear(self, name, x):
        weight = self.weights[f"{name}.weight"]
        bias = self.weight(f"{name}.bias") if f"{name}.bias" in self.weights else None
        if self.settings is None:
            return F.linear(x, weight, bias)
        a, dead = Ternary.apply(weight, self.settings["group_size"])
        if f"{name}.Lambada" in self.weights:
            factor = self.weight(f"{name}.Lambada")
        else:
            factor = torch.tensor(self.settings["eps"]).to(torch.bfloat16).float().to(DEVICE)
        offline = (factor * self.weight(f"{name}.weight") * dead).sum(dim=1)
        return F.linear(x, a, offline if bias is None else offline + bias)

    def logits(self, tokens):
        """tokens: (texts, length); logits of every position, each text from an empty context"""
        config, weight = self.config, self.weight
        texts, length = tokens.shape
        heads, kv_heads, head_dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        eps = config["rms_norm_eps"]
        angles = torch.arange(length, device=DEVICE)[:, None] * self.frequencies[None]
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos().float(), angles.sin().float()
        future = torch.full((length, length), -math.inf, device=DEVICE).triu(1)
        of_heads = lambda x, count: x.reshape(texts, length, count, head_dim).transpose(1, 2)
        x = weight("model.embed_tokens.weight")[tokens]
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            h = norm(x, weight(at + "input_layernorm.weight"), eps)
            q = rotate(of_heads(self.linear(at + "self_attn.q_proj", h), heads), cos, sin)
            k = rotate(of_heads(self.linear(at + "self_attn.k_proj", h), kv_heads), cos, sin)
            v = of_heads(self.linear(at + "self_attn.v_proj", h), kv_heads)
            k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
            mixed = (q @ k.transpose(2, 3) / math.sqrt(head_dim) + future).softmax(-1) @ v
            x = x + self.linear(at + "self_attn.o_proj", mixed.transpose(1, 2).reshape(texts, length, heads * head_dim))
            h = norm(x, weight(at + "post_attention_layernorm.weight"), eps)
            gate, up = self.linear(at + "mlp.gate_proj", h), self.linear(at + "mlp.up_proj", h)
            x = x + self.linear(at + "mlp.down_proj", F.silu(gate) * up)
        head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
        return norm(x, weight("model.norm.weight"), eps) @ weight(head).T


def perplexity(model, tokens, lead, window):
    """exp of the mean surprisal; windows and what stands before each as `tqconv verify` has them"""
    step, total = max(window - len(lead), 1), 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, step):
            text = lead + tokens[start : min(start + step, len(tokens) - 1) + 1]
            text = torch.tensor([text], device=DEVICE)
            predictions = model.logits(text[:, :-1]).log_softmax(-1).flatten(0, 1)
            surprisal = F.nll_loss(predictions, text[0, 1:], reduction="none")
            # Of the tokens that lead, only the last predicts one of the text.
            total += surprisal[max(len(lead) - 1, 0) :].double().sum().item()
    return math.exp(total / (len(tokens) - 1 + (len(range(0, len(tokens) - 1, step)) if lead else 0)))


def prepare(arguments):
    config, tensors = load_checkpoint(arguments.model)
    known = {"LlamaForCausalLM", "MistralForCausalLM"}
    if not known & set(config.get("architectures", [])):
        sys.exit(f"{arguments.model}: {config.get('architectures')} cannot be trained here, only {sorted(known)}")
    if "quant_method" in config or "quantization_config" in config:
        print(f"note: {arguments.model} is quantized already; its weights are taken for ordinary ones")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config.setdefault("tie_word_embeddings", False)
    settings = {"quant_method": arguments.method, "granularity": "per_group", "group_size": arguments.group,
                "eps": arguments.eps, "w_bits": 0}
    names = [f"model.layers.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in PARTS]
    for name in names:
        count = tensors[f"{name}.weight"].numel()
        if count % arguments.group:
            sys.exit(f"{name}: {count} weights are no whole number of groups: pass another --group")
    return config, tensors, settings, names


def texts(arguments, config):
    """(tokens to train on, tokens held out as text and as ids, what every text begins with)"""
    tokenizer = Tokenizer.from_file(str(pathlib.Path(arguments.model) / "tokenizer.json"))
    text = pathlib.Path(arguments.text).read_text(encoding="utf-8")
    cut = max(int(len(text) * (1 - arguments.held_out)), 1)
    ids = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    train, held = ids(text[:cut]), ids(text[cut:])[: arguments.held_out_tokens + 1]
    if len(train) <= arguments.window or len(held) < 2:
        sys.exit(f"{arguments.text} has {len(train)} tokens to train on and {len(held)} held out: more than "
                 f"{arguments.window} and at least 2 are needed")
    lead = [token for token in tokenizer.encode("").ids if token == config.get("bos_token_id")]
    return torch.tensor(train), text[cut:], held, lead


def loss_of(student, teacher, batch, arguments):
    logits = student.logits(batch[:, :-1]).flatten(0, 1)
    loss = F.cross_entropy(logits, batch[:, 1:].flatten())
    if arguments.distill:
        with torch.no_grad():
            wanted = teacher.logits(batch[:, :-1]).flatten(0, 1).log_softmax(-1)
        kld = F.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="batchmean")
        loss = (1 - arguments.distill) * loss + arguments.distill * kld
    return loss


def rate(step, arguments):
    """warm-up, then half a cosine"""
    if step < arguments.warm_up:
        return arguments.rate * (step + 1) / arguments.warm_up
    share = (step - arguments.warm_up) / max(arguments.steps - arguments.warm_up, 1)
    return arguments.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


def save(out, student, config, settings, model):
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in student.weights.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    (out / "config.json").write_text(json.dumps(config | settings | {"dtype": "bfloat16"}, indent=1) + "\n")
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        if (pathlib.Path(model) / file).exists():
            shutil.copy(pathlib.Path(model) / file, out / file)


def save_state(out, step, student, trained, optimizer, generator):
    tensors = {"generator": generator.get_state()}
    for name in trained:
        weight = student.weights[name]
        state = optimizer.state[weight]
        tensors |= {f"{name} weight": weight.detach().cpu()}
        tensors |= {f"{name} {key}": state[key].cpu() for key in MOMENTS}
    save_file(tensors, out / (STATE + ".partial"), metadata={"step": str(step)})
    (out / (STATE + ".partial")).replace(out / STATE)


def load_state(out, student, trained, optimizer, generator):
    """The step after which it was saved."""
    with safe_open(out / STATE, framework="pt") as file, torch.no_grad():
        step = int(file.metadata()["step"])
        generator.set_state(file.get_tensor("generator"))
        for name in trained:
            weight = student.weights[name]
            weight.copy_(file.get_tensor(f"{name} weight"))
            moments = {key: file.get_tensor(f"{name} {key}").to(DEVICE) for key in MOMENTS}
            optimizer.state[weight] = {"step": torch.tensor(float(step))} | moments
    return step


def train(student, teacher, trained, tokens, out, arguments, keep):
    """Trains; `keep` writes the checkpoint. Returns how many steps are done."""
    for name in trained:
        student.weights[name].requires_grad_(True)
    decay = [student.weights[name] for name in trained if name.endswith("proj.weight")]
    others = [student.weights[name] for name in trained if not name.endswith("proj.weight")]
    groups = [{"params": decay, "weight_decay": arguments.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.95))
    generator, first = torch.Generator().manual_seed(arguments.seed), 0
    if arguments.resume:
        first = load_state(out, student, trained, optimizer, generator)
        print(f"resumed after step {first}")
    begin, last = time.time(), min(arguments.stop_at or arguments.steps, arguments.steps)
    for step in range(first, last):
        starts = torch.randint(len(tokens) - arguments.window, (arguments.batch,), generator=generator)
        batch = torch.stack([tokens[start : start + arguments.window + 1] for start in starts]).to(DEVICE)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, arguments)
        loss = loss_of(student, teacher, batch, arguments)
        if not torch.isfinite(loss):
            sys.exit(f"the loss is {loss.item()} at step {step}: pass a smaller --rate; {out / STATE} is from before")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decay + others, 1.0)
        optimizer.step()
        done = step + 1
        if done % arguments.every == 0 or done == last:
            seconds = (time.time() - begin) / (done - first)
            left = seconds * (last - done) / 60
            print(f"step {done} of {arguments.steps}: loss {loss.item():.4f}, {seconds:.2f} s a step, "
                  f"{left:.0f} min left", flush=True)
            save_state(out, done, student, trained, optimizer, generator)
            keep()
    for name in trained:
        student.weights[name].requires_grad_(False)
    return last


def packed(arguments, out, held):
    """perplexity of the packed file, by our engine"""
    file, text = out / "model.gguf", out / "held-out.txt"
    text.write_text(held, encoding="utf-8")
    run = lambda *rest: subprocess.run([arguments.tqconv, *map(str, rest)], check=False, capture_output=True, text=True)
    pack = run("pack", out, file, "--force", "--quiet")
    if pack.returncode:
        sys.exit(f"tqconv pack: {pack.stderr.strip()}")
    verify = run("verify", file, "--against", out, "--levels", 4, "--json", "--text", text,
                 "--window", arguments.window, "--tokens", arguments.held_out_tokens)
    report = json.loads(verify.stdout)
    native = next(engine for engine in report["text"]["tested"] if engine["engine"]["name"] == "native")
    return native["perplexity"], report["text"]["reference"]["perplexity"], report["verdict"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", help="UTF-8")
    parser.add_argument("out")
    parser.add_argument("--method", choices=["ultraquantv2", "ultraquantv3"], default="ultraquantv2")
    parser.add_argument("--group", type=int, default=128, help="weights that share a scale")
    parser.add_argument("--eps", type=float, default=1e-3, help="lambda; where it is learned, its beginning")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3, help="the largest learning rate")
    parser.add_argument("--warm-up", type=int, default=50)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--distill", type=float, default=0.5, help="the share of the loss that is MODEL's KLD")
    parser.add_argument("--held-out", type=float, default=0.05, help="the last share of TEXT is not trained on")
    parser.add_argument("--held-out-tokens", type=int, default=4096)
    parser.add_argument("--every", type=int, default=100, help="steps between two saves")
    parser.add_argument("--stop-at", type=int, help="stop after this step of --steps; --resume goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--tqconv", help="the program that packs and measures what comes of it")
    arguments = parser.parse_args()
    config, tensors, settings, names = prepare(arguments)
    tokens, held_text, held, lead = texts(arguments, config)
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    if out.resolve() == pathlib.Path(arguments.model).resolve():
        sys.exit("OUT is MODEL: name another folder")
    if (out / STATE).exists() and not arguments.resume:
        sys.exit(f"{out / STATE} exists: pass --resume to go on, or name another folder")
    of = lambda model: f"{perplexity(model, held, lead, arguments.window):.3f}"
    teacher, student = Model(config, tensors), Model(config, tensors, settings)
    if arguments.method == "ultraquantv3":
        for name in names:
            student.weights[f"{name}.Lambada"] = torch.full_like(student.weights[f"{name}.weight"], arguments.eps)
    print(f"{len(tokens)} tokens to train on, {len(held)} held out, {DEVICE}")
    print(f"perplexity before: {of(teacher)}; ternary without training: {of(student)}", flush=True)
    stays = {"model.embed_tokens.weight", "lm_head.weight"}
    trained = [name for name in student.weights if name not in stays]
    keep = lambda: save(out, student, config, settings, arguments.model)
    done = train(student, teacher, trained, tokens, out, arguments, keep)
    print(f"perplexity after {done} steps: {of(student)}")
    if arguments.tqconv:
        native, oracle, verdict = packed(arguments, out, held_text)
        print(f"perplexity packed: {native:.3f}; of the checkpoint by tqconv: {oracle:.3f}; {verdict}")


if __name__ == "__main__":
    main()
