//! A mixture of experts, whose architecture nothing here knows: packed, then run by llama.cpp with the source's logits.

use formats::block::BlockType;
use formats::gguf::{TensorInfo, Value};
use tqconv::metrics;
use tqconv::witness::{ModelSize, Settings, Witness};

use crate::hostile::input::Gguf;
use crate::pack::Bench;
use crate::pack_gguf::{codes, random, stored, tensor};
use crate::witness::program;

const WIDTH: u64 = 512;
const HEAD: u64 = 64;
const EXPERTS: u64 = 4;
const LAYERS: u64 = 2;
const SETTINGS: Settings = Settings {
    context: 128,
    threads: 2,
    exact_cache: true,
};

/// A qwen3moe (src/models/qwen3moe.cpp of llama.cpp) of random ternary matrices of this type, with the tokenizer of a tiny
/// model.
fn mixture(ty: BlockType) -> Gguf {
    let tiny = Gguf::sound();
    let is_embedding = |(info, _): &&(TensorInfo, Vec<u8>)| info.name == "token_embd.weight";
    let vocab = tiny.tensors.iter().find(is_embedding).unwrap().0.shape[1];
    let mut file = Gguf {
        keys: vec![],
        tensors: vec![],
    };
    file.set("general.architecture", Value::String("qwen3moe".into()));
    for (key, number) in [
        ("block_count", LAYERS),
        ("context_length", 128),
        ("embedding_length", WIDTH),
        ("feed_forward_length", WIDTH),
        ("attention.head_count", WIDTH / HEAD),
        ("attention.head_count_kv", 2),
        ("attention.key_length", HEAD),
        ("attention.value_length", HEAD),
        ("expert_count", EXPERTS),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", WIDTH),
    ] {
        file.set(&format!("qwen3moe.{key}"), Value::U32(number as u32));
    }
    file.set("qwen3moe.attention.layer_norm_rms_epsilon", Value::F32(1e-6));
    file.set("qwen3moe.rope.freq_base", Value::F32(1e6));
    file.keys
        .extend(tiny.keys.into_iter().filter(|(key, _)| key.starts_with("tokenizer.")));

    let mut seed = 0;
    let mut add = |name: &str, ty: BlockType, shape: &[u64]| {
        seed += 1;
        let weights = shape.iter().product::<u64>() as usize;
        // -1 to 1
        let numbers = || random(seed, weights).map(|number| (number >> 40) as f32 / (1 << 23) as f32 - 1.0);
        let bytes = match (ty, shape.len()) {
            (BlockType::F32, 1) => numbers().flat_map(|w| (1.0 + w / 2.0).to_le_bytes()).collect(),
            (BlockType::F32, _) => numbers().flat_map(f32::to_le_bytes).collect(),
            (ty, _) => stored(ty, &codes(seed, weights)),
        };
        file.tensors.push(tensor(name, ty, shape, bytes));
    };
    add("token_embd.weight", BlockType::F32, &[WIDTH, vocab]);
    add("output.weight", BlockType::F32, &[WIDTH, vocab]);
    add("output_norm.weight", BlockType::F32, &[WIDTH]);
    for layer in 0..LAYERS {
        let mut add = |name: &str, ty, shape: &[u64]| add(&format!("blk.{layer}.{name}.weight"), ty, shape);
        for (name, width) in [
            ("attn_norm", WIDTH),
            ("attn_q_norm", HEAD),
            ("attn_k_norm", HEAD),
            ("ffn_norm", WIDTH),
        ] {
            add(name, BlockType::F32, &[width]);
        }
        for (name, rows) in [
            ("attn_q", WIDTH),
            ("attn_k", 2 * HEAD),
            ("attn_v", 2 * HEAD),
            ("attn_output", WIDTH),
        ] {
            add(name, ty, &[WIDTH, rows]);
        }
        add("ffn_gate_inp", BlockType::F32, &[WIDTH, EXPERTS]);
        for name in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
            add(name, ty, &[WIDTH, WIDTH, EXPERTS]);
        }
    }
    file
}

/// What llama.cpp computes of the file, logits (tokens, vocab) of a text and the tokens that it goes on with.
fn run(path: &std::path::Path) -> (Vec<f32>, Vec<u32>) {
    const ENOUGH: u64 = 1 << 26;
    let size = ModelSize {
        file: ENOUGH,
        header: 1 << 16,
        weights: ENOUGH,
        attention: ENOUGH,
        cache: 1 << 12,
        heads: WIDTH / HEAD,
        activations: 1 << 16,
        vocab: 1 << 10,
    };
    let mut witness = Witness::start(&program()).unwrap();
    witness.load(path, size).unwrap();
    let session = witness.session(SETTINGS).unwrap();
    let mut text: Vec<u32> = (1..13).collect();
    let logits = witness.logits(session, &text).unwrap();
    let mut last = witness.feed(session, &text, 0).unwrap();
    for _ in 0..8 {
        let most = |(best, max), (token, &logit): (usize, &f32)| if logit > max { (token, logit) } else { (best, max) };
        let (token, _) = last.iter().enumerate().fold((0, f32::NEG_INFINITY), most);
        last = witness.feed(session, &[token as u32], text.len()).unwrap();
        text.push(token as u32);
    }
    (logits, text)
}

/// Q8_0, Q4_0 and Q2_0 are multiplied with activations that are rounded alike: what remains is the order of sums.
#[test]
fn experts_are_packed_and_compute_what_the_source_does() {
    let bench = Bench::new();
    let input = bench.path("in.gguf");
    std::fs::write(&input, mixture(BlockType::Q8_0).bytes()).unwrap();
    let (expected, text) = run(&input);
    for options in ["--exact --type q4_0", "--exact --for gpu"] {
        let (_, report) = bench.pack(&input, options);
        assert_eq!(report["nmse"], 0.0);
        let (found, again) = run(&bench.path("out.gguf"));
        let nmse = metrics::nmse(&expected, &found);
        println!("{options}: NMSE {nmse:.1e}, {again:?}");
        assert!(nmse < 1e-10, "{options}: {nmse:e}");
        assert_eq!(again, text, "{options}");
        assert_verified(&bench, &input);
    }
}

/// Our engine does not know the architecture: llama.cpp runs both files.
fn assert_verified(bench: &Bench, source: &std::path::Path) {
    let (file, source) = (bench.path("out.gguf"), source.to_str().unwrap());
    let arguments = ["verify", file.to_str().unwrap(), "--against", source, "--json"];
    let ran = bench.run(&arguments);
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(report["verdict"], "agrees", "{:#}", report["levels"]);
    let checks = report["levels"][3]["checks"].as_array().unwrap();
    let kld = checks.iter().find(|check| check["id"] == "mean_kld").unwrap();
    assert_eq!(kld["engine"], "llama.cpp");
    // Sums in another order may choose another expert.
    assert!(kld["found"].as_f64().unwrap() < 1e-4, "{kld:#}");
}
