//! What `bench` prints for people.

use super::*;
use crate::engine::EngineName;
use crate::kernels::KernelName;

const SYSTEM: &str = "CPU : SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX_VNNI = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | \
                      AVX512 = 0 | LLAMAFILE = 1 | REPACK = 1 | ";

fn outcome(rows: usize, micro: f64, disturbed: usize) -> Outcome {
    let seconds = |median| Seconds {
        p10: median,
        median,
        p90: median,
    };
    let layout = KernelName {
        isa: "avx2",
        weights: "2-bit".into(),
        rows: 16,
        weights_per_scale: Some(256),
        activations_per_scale: Some(256),
    };
    Outcome {
        ty: "TQ2_0".into(),
        rows,
        columns: 2048,
        tokens: 1,
        threads: 1,
        hot: false,
        kernel: layout.to_string(),
        layout,
        turns: 20,
        disturbed: Some(disturbed),
        ours: seconds(micro * 1e-6),
        ggml: Some(seconds(2e-6 * micro)),
        ratio: Some(2.0),
        bytes: rows * 2048 * 66 / 256,
        read: 20.0,
        machine_read: 20.0,
        macs: 40.0,
        machine_macs: Some(100.0),
    }
}

fn assert_fits(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{line}");
    }
}

#[test]
fn costs_and_disturbances_are_told() {
    let outcomes = [outcome(2048, 60.0, 2), outcome(4096, 110.0, 3)];
    let costs = costs_text(&TokenCost::of(&outcomes));
    let row: Vec<_> = costs.lines().last().unwrap().split_whitespace().collect();
    // 50 us for 2048 * 528 bytes are 21.6 GB/s; ggml takes twice as long for the same bytes.
    assert_eq!(row, ["TQ2_0", "1", "10.0", "21.6", "20.0", "10.8"]);
    assert_eq!(costs_text(&TokenCost::of(&outcomes[..1])), "");
    let disturbed = disturbed_text(&outcomes);
    assert!(
        disturbed.ends_with("  3 of 20 turns of TQ2_0 4096x2048, 1 token, 1 thread\n") && !disturbed.contains("  2 of"),
        "{disturbed}"
    );
    let ggml = ggml_text(Some(Isa::Avx512Vnni), SYSTEM);
    assert!(
        ggml.contains("REPACK. --isa avx512vnni binds") && !ggml.contains("AVX512,"),
        "{ggml}"
    );
    for text in [costs, disturbed, ggml, table(&outcomes, false)] {
        assert_fits(&text);
    }
}

#[test]
fn speed_fits_a_terminal() {
    let rate = |median| Rate {
        median,
        min: median - 1.0,
        max: median + 1.0,
    };
    let engine = |short, prefill, decode| EngineSpeed {
        name: EngineName {
            short,
            cache_type_k: Some("q8_0"),
            cache_type_v: Some("f16"),
            ..EngineName::default()
        },
        prefill: rate(prefill),
        decode: rate(decode),
        bytes_per_token: 700_000_000,
        cache_bytes_per_token: 100_000_000,
        weights_rate: decode * 0.7,
        read_rate: decode * 0.8,
    };
    let speed = SpeedFacts {
        bandwidth: 20.0,
        threads: 16,
        prefill_tokens: 65536,
        decode_tokens: 65536,
        runs: 1000,
        cache_bytes: 9_999_999_999,
        load: LoadFacts {
            threads: 16,
            first_seconds: 100.0,
            seconds: 10.0,
            stored_bytes: 999_999_999,
            stored_rate: 10.0,
            packed_bytes: 999_999_999,
        },
        engines: vec![engine("native", 20_000.0, 20.0), engine("llama.cpp", 1000.0, 12.5)],
    };
    let text = speed_text(&speed, false);
    assert!(
        text.contains("native 40.0 + 10.0 ms, llama.cpp 40.0 + 40.0 ms"),
        "{text}"
    );
    assert!(text.contains("native: Q8_0 keys, F16 values; llama.cpp: "), "{text}");
    assert_fits(&text);
}
