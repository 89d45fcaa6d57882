//! `tqconv pack` against PyTorch's codes, scales and biases, against llama.cpp's logits, and against bad requests.

use std::path::{Path, PathBuf};
use std::process::Output;

use formats::gguf::{File, Layout, TensorInfo, Value};
use serde_json::Value as Json;
use tempfile::TempDir;

use crate::data::{self, Tensors};

/// A folder for outputs, and the binary.
pub struct Bench(TempDir);

impl Bench {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        let binary = assert_cmd::cargo::cargo_bin!("tqconv");
        std::process::Command::new(binary).args(arguments).output().unwrap()
    }

    /// Pack `input` with `options`: the file and the report.
    pub fn pack(&self, input: &Path, options: &str) -> (Vec<u8>, Json) {
        let output = self.path("out.gguf");
        let mut arguments = vec![
            "pack",
            input.to_str().unwrap(),
            output.to_str().unwrap(),
            "--json",
            "--force",
        ];
        arguments.extend(options.split_whitespace());
        let ran = self.run(&arguments);
        assert!(ran.status.success(), "{options}: {}", text(&ran.stderr));
        (
            std::fs::read(output).unwrap(),
            serde_json::from_slice(&ran.stdout).unwrap(),
        )
    }

    /// Run what must be refused: exit code 2, one line, nothing left behind. Gives the line.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let before = self.files();
        let ran = self.run(arguments);
        let error = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{arguments:?}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        assert!(error.starts_with("error: "), "{error}");
        assert_eq!(self.files(), before, "{arguments:?} left a file behind");
        error
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All checkpoints with golden codes: the fixtures, and the larger data where it is at hand.
fn with_golden_codes() -> Vec<PathBuf> {
    let mut folders: Vec<_> = std::fs::read_dir(data::fixture("corners"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    folders.extend(data::find("kjv-tequila"));
    if let Some(golden) = data::find("golden") {
        folders.extend(std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()));
    }
    folders.sort();
    folders
}

fn config(folder: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// Where row `row` of the checkpoint stands in the file, written from the other side than the packer's map:
/// dimension i of a head goes to 2i, its partner i + D/2 to 2i + 1.
pub fn file_row(linear: &str, row: usize, head_dim: usize) -> usize {
    if !linear.ends_with("q_proj") && !linear.ends_with("k_proj") {
        return row;
    }
    let (head, i) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + if i < half { 2 * i } else { 2 * (i - half) + 1 }
}

pub fn gguf_name(linear: &str) -> String {
    if linear == "model.embed_tokens" {
        return "token_embd".into();
    }
    let (layer, part) = linear.trim_start_matches("model.layers.").split_once('.').unwrap();
    let part = match part {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        part => panic!("{part}"),
    };
    format!("blk.{layer}.{part}")
}

/// Every code, scale and bias of every linear against PyTorch's.
pub fn assert_golden(folder: &Path, bytes: &[u8]) {
    let linears = assert_golden_linears(folder, bytes, file_row);
    assert_eq!(linears, 7 * config(folder)["num_hidden_layers"].as_u64().unwrap());
}

/// The same for all that there are golden codes of; gives how many that are. `file_row`: where a row of a linear stands
/// in the file, by the length of a head.
pub fn assert_golden_linears(folder: &Path, bytes: &[u8], file_row: fn(&str, usize, usize) -> usize) -> u64 {
    let file = File::parse(bytes).unwrap();
    let golden = Tensors::read(folder, "golden");
    let golden = golden.by_name();
    let settings = config(folder);
    let head_dim = settings["head_dim"].as_u64().unwrap() as usize;
    let float32 = settings["torch_dtype"] == "float32";
    let mut linears = 0;
    for (name, golden_codes) in &golden {
        let Some(linear) = name.strip_suffix(".codes") else {
            continue;
        };
        let [rows, columns] = golden_codes.shape[..] else {
            panic!("{linear}")
        };
        let golden_scales = data::floats(&golden[&*format!("{linear}.scale")]);
        let group_size = rows * columns / golden_scales.len();
        let golden_biases = golden.get(&*format!("{linear}.bias")).map(data::exact_doubles);
        let (info, weights) = file.tensor(&format!("{}.weight", gguf_name(linear))).unwrap();
        let biases = file.tensor(&format!("{}.bias", gguf_name(linear)));
        assert_eq!(biases.is_some(), golden_biases.is_some(), "{linear}");
        assert_eq!(info.shape, [columns as u64, rows as u64]);
        let run = info.ty.scale_run().unwrap();
        let (mut codes, mut scales) = (vec![0; columns], vec![0.0; columns / run]);
        let row_bytes = info.ty.row_bytes(columns).unwrap();
        for row in 0..rows {
            let at = file_row(linear, row, head_dim);
            info.ty
                .unpack_ternary_row(&weights[at * row_bytes..][..row_bytes], &mut codes, &mut scales)
                .unwrap();
            for column in 0..columns {
                let index = row * columns + column;
                let place = format!("{linear} row {row} column {column} as {}", info.ty);
                assert_eq!(codes[column], golden_codes.bytes[index] as i8, "{place}");
                if codes[column] == 0 && golden_biases.is_none() {
                    continue; // of weights that were ternary before, zeros have no scale
                }
                let scale = half::f16::from_f32(golden_scales[index / group_size]).to_f32();
                let found = scales[column / run];
                // PyTorch's mean of float32 weights can differ in its last bit, and that turn a rounding to f16.
                let tolerance = if float32 { scale * 2f32.powi(-10) } else { 0.0 };
                assert!(
                    (found - scale).abs() <= tolerance,
                    "{place}: scale {found}, expected {scale}"
                );
            }
        }
        for (row, golden_bias) in golden_biases.iter().flatten().enumerate() {
            let at = file_row(linear, row, head_dim);
            let largest = golden_biases
                .iter()
                .flatten()
                .fold(0.0f64, |largest, bias| largest.max(bias.abs()));
            let bias = f64::from(f32::from_le_bytes(biases.unwrap().1.as_chunks().0[at]));
            assert!(
                (bias - golden_bias).abs() <= 1e-6 * largest,
                "{linear} row {row}: bias {bias}"
            );
        }
        linears += 1;
    }
    linears
}

#[test]
fn every_code_scale_and_bias_is_pytorch_s() {
    let bench = Bench::new();
    for folder in with_golden_codes() {
        // One corner has scales so small that f16 rounds them: nothing else is lost there either.
        let exact = if folder.ends_with("mistral-extremes") {
            "--max-nmse 1e-12"
        } else {
            "--exact"
        };
        for options in [format!("{exact} --for gpu"), exact.into()] {
            let options = &options;
            assert_golden(&folder, &bench.pack(&folder, options).0);
        }
        let coarse = ["per_channel", "per_tensor"].contains(&config(&folder)["granularity"].as_str().unwrap());
        let wide = config(&folder)["hidden_size"] == 256 && config(&folder)["num_attention_heads"] == 4;
        if coarse && wide {
            for options in ["--type tq2_0 --exact", "--type tq1_0 --exact", "--type q2_k --exact"] {
                assert_golden(&folder, &bench.pack(&folder, options).0);
            }
        }
        println!("{}: codes, scales and biases equal", folder.display());
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let bench = Bench::new();
    for folder in ["kjv", "corners/across-rows", "corners/lambada-biases-shards"].map(data::fixture) {
        let one = bench.pack(&folder, "--threads 1").0;
        assert!(one == bench.pack(&folder, "--threads 2").0);
        assert!(one == bench.pack(&folder, "--threads 7").0);
    }
}

fn linears(report: &Json) -> String {
    report["linears"].to_string()
}

#[test]
fn the_smallest_type_within_the_error_is_taken() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let (_, report) = bench.pack(&kjv, "");
    assert_eq!(linears(&report), r#"{"Q2_K":28}"#);
    let nmse = report["nmse"].as_f64().unwrap();
    assert!((5.1e-5..5.3e-5).contains(&nmse), "{nmse}");
    assert_eq!(linears(&bench.pack(&kjv, "--exact").1), r#"{"Q4_0":28}"#);
    assert_eq!(linears(&bench.pack(&kjv, "--exact --for gpu").1), r#"{"Q2_0":28}"#);
    assert_eq!(
        linears(&bench.pack(&kjv, "--for cpu --max-nmse 1e-2").1),
        r#"{"TQ2_0":28}"#
    );

    let channel = data::fixture("corners/channel-f32-llama3-untied");
    let (_, report) = bench.pack(&channel, "--for cpu");
    assert_eq!(
        (linears(&report), report["nmse"].as_f64()),
        (r#"{"TQ2_0":7}"#.into(), Some(0.0))
    );
    let (_, report) = bench.pack(&data::fixture("corners/group128"), "--exact");
    assert_eq!(linears(&report), r#"{"Q4_0":7}"#);
    let (_, report) = bench.pack(&kjv, "--tensor-type ffn_down=q8_0 --tensor-type blk.0.=f16");
    assert_eq!(linears(&report), r#"{"F16":6,"Q2_K":18,"Q8_0":4}"#);
}

#[test]
fn a_type_that_loses_too_much_is_refused_with_the_number_it_needs() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let output = bench.path("tq2.gguf");
    let arguments = [
        "pack",
        kjv.to_str().unwrap(),
        output.to_str().unwrap(),
        "--type",
        "tq2_0",
    ];
    let error = bench.refused(&arguments);
    assert!(
        error.contains("2.6e-3 over all") && error.contains("9.1e-3 in the worst"),
        "{error}"
    );
    let needed = error
        .split("allow it with --max-nmse ")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap();
    let (_, report) = bench.pack(&kjv, &format!("--type tq2_0 --max-nmse {needed}"));
    assert_eq!(linears(&report), r#"{"TQ2_0":28}"#);
    let nmse = report["nmse"].as_f64().unwrap();
    assert!((2.5e-3..2.7e-3).contains(&nmse), "{nmse}");
}

#[test]
fn what_nothing_says_of_is_refused_and_so_are_widths_that_no_block_fits() {
    let Some(stories) = data::find("stories260K/hf") else {
        return;
    };
    let bench = Bench::new();
    let output = bench.path("stories.gguf");
    let plain = ["pack", stories.to_str().unwrap(), output.to_str().unwrap()];
    let error = bench.refused(&plain);
    for part in [
        "nothing says that it was trained to be ternary",
        "'quant_method'",
        "--trained-as",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let settings = "--quant-method ultraquantv2 --granularity per_group --group-size 64 --lambda 1e-3";
    let explicit: Vec<_> = plain.into_iter().chain(settings.split(' ')).collect();
    let error = bench.refused(&explicit);
    for part in [
        "5 of the linears",
        "ffn_down (172 columns)",
        "--tensor-type ffn_down=f16",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let (_, report) = bench.pack(&stories, &format!("{settings} --exact --tensor-type ffn_down=f16"));
    assert_eq!(linears(&report), r#"{"F16":5,"Q4_0":30}"#);
}

#[test]
fn bad_requests_name_the_remedy_and_leave_nothing_behind() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let input = kjv.join("model.safetensors");
    let [kjv, input] = [&kjv, &input].map(|path| path.to_str().unwrap());
    let there = bench.path("there.gguf");
    std::fs::write(&there, "an old output").unwrap();
    let there = there.to_str().unwrap();
    let new = bench.path("new.gguf");
    let new = new.to_str().unwrap();
    let nowhere = bench.path("no/such/folder/new.gguf");
    let nowhere = nowhere.to_str().unwrap();
    let folder = bench.path("");
    let missing = bench.path("missing");
    let cases: &[(&[&str], &str)] = &[
        (&[kjv, there], "--force"),
        (&[kjv, input], "one of the input's files"),
        (&[kjv, input, "--force"], "one of the input's files"),
        (&[kjv, nowhere], "mkdir -p"),
        (&[kjv, "/dev/null", "--force"], "a device"),
        (&[missing.to_str().unwrap(), new], "missing"),
        (&[folder.to_str().unwrap(), new], "model.safetensors"),
        (&["/dev/zero", new], "not a regular file"),
        (&[kjv, new, "--group-size", "100"], "a divisor of"),
        (
            &[kjv, new, "--granularity", "per_head"],
            "per_group, per_channel or per_tensor",
        ),
        (&[kjv, new, "--quant-method", "ultraquant"], "sign of each activation"),
        (&[kjv, new, "--quant-method", "ultraquantv3"], "Lambada"),
        (
            &[kjv, new, "--for", "ollama", "--type", "q2_0", "--exact"],
            "Ollama does not read",
        ),
        (&[kjv, new, "--metadata", "llama.context_length=x"], "a whole number"),
        (
            &[kjv, new, "--embedding", "q6_k", "--tokenizer", "/dev/null"],
            "/dev/null",
        ),
    ];
    for (arguments, remedy) in cases {
        let arguments: Vec<_> = ["pack"].iter().chain(*arguments).copied().collect();
        let error = bench.refused(&arguments);
        assert!(error.contains(remedy), "{arguments:?}: {error}");
    }
    assert_eq!(std::fs::read(there).unwrap(), b"an old output");
    for usage in [
        &["--type", "q9"][..],
        &["--max-nmse", "-1"],
        &["--for", "toaster"],
        &["--threads", "0"],
    ] {
        let arguments: Vec<_> = ["pack", kjv, new].iter().chain(usage).copied().collect();
        assert_eq!(bench.run(&arguments).status.code(), Some(2), "{usage:?}");
    }
}

#[test]
fn a_dry_run_shows_everything_and_writes_nothing() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let output = bench.path("dry.gguf");
    let ran = bench.run(&["pack", kjv.to_str().unwrap(), output.to_str().unwrap(), "--dry-run"]);
    assert!(ran.status.success() && !output.exists());
    let shown = text(&ran.stdout);
    for part in [
        "blk.3.ffn_down.weight",
        "Q2_K",
        "256 x 768",
        "token_embd.weight",
        "would be written",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn parts_of_a_checkpoint_can_be_named_one_by_one() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let whole = bench.pack(&kjv, "--metadata general.name=x").0;
    let alone = bench.path("weights.safetensors");
    std::fs::copy(kjv.join("model.safetensors"), &alone).unwrap();
    let parts = format!(
        "--metadata general.name=x --config {} --tokenizer {}",
        kjv.join("config.json").display(),
        kjv.join("tokenizer.json").display()
    );
    let named = bench.pack(&alone, &parts).0;
    let without = |bytes: &[u8]| {
        let file = File::parse(bytes).unwrap();
        let keys: Vec<_> = file
            .metadata()
            .iter()
            .filter(|(key, _)| !key.starts_with("tqconv.source"))
            .cloned()
            .collect();
        (keys, bytes[file.data_start() as usize..].to_vec())
    };
    assert!(without(&whole) == without(&named));
    let shards = data::fixture("corners/lambada-biases-shards");
    let folder = bench.pack(&shards, "").0;
    assert!(folder == bench.pack(&shards.join("model.safetensors.index.json"), "").0);
}

#[test]
fn for_ollama_a_modelfile_is_written() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let (bytes, report) = bench.pack(&kjv, "--for ollama");
    let modelfile = std::fs::read_to_string(report["modelfile"].as_str().unwrap()).unwrap();
    assert!(modelfile.starts_with("FROM ./out.gguf\n"), "{modelfile}");
    let file = File::parse(&bytes).unwrap();
    assert!(file.tensors().iter().all(|tensor| tensor.ty.ollama_reads()));
    assert_eq!(file.get("general.alignment"), None);
}

#[test]
fn a_nan_is_refused_with_its_place() {
    let bench = Bench::new();
    let folder = bench.path("broken");
    data::copy_folder(&data::fixture("kjv"), &folder);
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let entries = formats::safetensors::parse(&bytes).unwrap();
    let name = "model.layers.2.mlp.up_proj.weight";
    let start = entries.iter().find(|entry| entry.name == name).unwrap().range.start;
    bytes[start + 2 * (7 * 256 + 3)..][..2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let output = bench.path("new.gguf");
    let error = bench.refused(&["pack", folder.to_str().unwrap(), output.to_str().unwrap()]);
    assert!(error.contains(name) && error.contains("row 7, column 3"), "{error}");
}

#[test]
fn two_other_readers_agree_on_what_was_written() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    for options in ["", "--exact", "--exact --for gpu", "--for cpu --max-nmse 1e-2"] {
        let (bytes, report) = bench.pack(&kjv, options);
        let file = File::parse(&bytes).unwrap();
        let mut reader = gguf_rs_lib::reader::GGUFFileReader::new(std::io::Cursor::new(&bytes)).unwrap();
        reader.validate_integrity().unwrap();
        assert_eq!(reader.tensor_infos().len(), file.tensors().len());
        for (theirs, ours) in reader.tensor_infos().iter().zip(file.tensors()) {
            assert_eq!(theirs.name(), ours.name);
            assert_eq!(theirs.shape().dims(), ours.shape);
            assert_eq!(theirs.tensor_type() as u32, ours.ty.id());
        }
        if linears(&report).contains("Q2_0") {
            continue; // gguf-rs 0.1.8 knows no Q2_0
        }
        let path = bench.path("out.gguf");
        let mut container = gguf_rs::get_gguf_container(path.to_str().unwrap()).unwrap();
        let model = container.decode().unwrap();
        assert_eq!(model.tensors().len(), file.tensors().len());
        assert_eq!(model.metadata()["general.architecture"], "llama");
    }
}

/// A copy of the file with `edit` applied to one tensor's bytes.
#[cfg(feature = "llama")]
fn edited(bytes: &[u8], tensor: &str, edit: impl FnOnce(&TensorInfo, &mut [u8])) -> Vec<u8> {
    let file = File::parse(bytes).unwrap();
    let (info, data) = file.tensor(tensor).unwrap();
    let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
    let mut copy = bytes.to_vec();
    edit(info, &mut copy[start..start + data.len()]);
    copy
}

#[cfg(feature = "llama")]
mod llama_cpp {
    use super::*;
    use tqconv::engine::Engine;
    use tqconv::engine::llamacpp::{Model, Settings};
    use tqconv::metrics;

    struct Agreement {
        nmse: f64,
        kld: f64,
    }

    /// llama.cpp's logits on `bytes` against the golden ones.
    fn agreement(bench: &Bench, folder: &Path, bytes: &[u8]) -> Agreement {
        let path = bench.path("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        let golden = Tensors::read(folder, "golden");
        let golden = golden.by_name();
        let (tokens, reference) = (data::tokens(&golden["tokens"]), data::floats(&golden["logits"]));
        let model = Model::load(&crate::witness::program(), &path, &File::parse(bytes).unwrap()).unwrap();
        let settings = Settings {
            context: tokens.len(),
            threads: 1,
            exact_cache: false,
        };
        let logits = model.session(settings).unwrap().logits(&tokens).unwrap();
        let kld = metrics::kld_per_token(&reference, &logits, reference.len() / tokens.len());
        Agreement {
            nmse: metrics::nmse(&reference, &logits),
            kld: metrics::mean(&kld),
        }
    }

    const EXACT_NMSE: f64 = 1e-3; // the noise of 8-bit activations is 0.5e-4 to 1.9e-4
    const EXACT_KLD: f64 = 5e-4; // nats/token; that noise is 2e-5 to 1.7e-4

    fn all_with_logits() -> Vec<PathBuf> {
        let mut folders = with_golden_codes();
        folders.push(data::fixture("kjv"));
        folders.extend(crate::stored::FAMILIES.map(data::fixture));
        folders
    }

    #[test]
    fn logits_agree_with_the_golden_ones() {
        let bench = Bench::new();
        for folder in all_with_logits() {
            for options in ["", "--for gpu", "--for cpu", "--type f16"] {
                let options = &format!("{options} --max-nmse 1e-12");
                let (bytes, report) = bench.pack(&folder, options);
                let Agreement { nmse, kld } = agreement(&bench, &folder, &bytes);
                println!(
                    "{} {}: NMSE {nmse:.1e}, KLD {kld:.1e}",
                    folder.display(),
                    report["linears"]
                );
                assert!(nmse < EXACT_NMSE && kld < EXACT_KLD, "{} {options}", folder.display());
            }
        }
    }

    #[test]
    fn logits_of_q2_k_are_within_its_own_limit() {
        let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
        let Agreement { nmse, kld } = agreement(&bench, &kjv, &bench.pack(&kjv, "").0);
        println!("Q2_K: NMSE {nmse:.1e}, KLD {kld:.1e} nats/token");
        assert!(nmse < 2e-3 && kld < 1.2e-3, "{nmse} {kld}");
    }

    #[test]
    fn a_bias_that_is_not_permuted_is_noticed() {
        let (bench, folder) = (Bench::new(), data::fixture("corners/lambada-biases-shards"));
        let (bytes, _) = bench.pack(&folder, "--exact");
        let unpermuted = |bytes: &[u8], part: &str| {
            edited(bytes, &format!("blk.0.attn_{part}.bias"), |_, biases| {
                let permuted: Vec<_> = biases.as_chunks::<4>().0.to_vec();
                for (row, bias) in biases.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *bias = permuted[file_row(&format!("{part}_proj"), row, 48)];
                }
            })
        };
        let wrong = unpermuted(&unpermuted(&bytes, "q"), "k");
        let Agreement { nmse, kld } = agreement(&bench, &folder, &wrong);
        println!("q and k bias not permuted: NMSE {nmse:.1e}, KLD {kld:.1e} nats/token");
        assert!(nmse > EXACT_NMSE && kld > EXACT_KLD, "{nmse} {kld}");
    }

    #[test]
    fn embedding_and_head_in_every_type_load() {
        let (bench, folder) = (Bench::new(), data::fixture("corners/channel-f32-llama3-untied"));
        // Each with the noise that its bits per weight bring.
        for (ty, limit) in [
            ("f32", 1e-3),
            ("f16", 1e-3),
            ("bf16", 1e-3),
            ("q8_0", 1e-3),
            ("q6_k", 3e-3),
            ("q4_k", 3e-2),
        ] {
            let (bytes, _) = bench.pack(&folder, &format!("--exact --embedding {ty}"));
            let Agreement { nmse, .. } = agreement(&bench, &folder, &bytes);
            println!("embedding and head as {ty}: NMSE {nmse:.1e}");
            assert!(nmse < limit, "{ty}: {nmse}");
        }
    }
}

#[test]
fn a_layout_that_holds_no_sound_names_is_refused() {
    let info = |name: &str| TensorInfo {
        name: name.into(),
        ty: formats::block::BlockType::F32,
        shape: vec![1],
    };
    let twice = Layout::new(&[], &[info("a"), info("a")]).unwrap_err();
    assert!(twice.to_string().starts_with("tensor 'a' is duplicated"));
    let key = ("k".to_string(), Value::U32(1));
    let twice = Layout::new(&[key.clone(), key], &[]).unwrap_err();
    assert!(twice.to_string().starts_with("key 'k' is duplicated"));
    assert!(Layout::new(&[], &[info(&"x".repeat(64))]).is_err());
}
