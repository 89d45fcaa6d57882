//! What `tqconv pack` promises whatever happens: the same bytes with any threads and instructions, and never half a file.

use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use formats::block::BlockType;
use formats::gguf::File;
use half::bf16;
use tqconv::model::{Checkpoint, Source, TrainingOverrides};
use tqconv::output::{Inputs, OutputError};
use tqconv::pack::{Embedding, Options, Output, PackError, Packed, Plan, Rule, Target};
use tqconv::simd::Level;

use crate::data;
use crate::pack::Bench;

fn open(folder: &Path) -> Checkpoint {
    let source = Source::find(folder, None, None).unwrap();
    Checkpoint::open(source, &TrainingOverrides::default()).unwrap()
}

fn options(target: Target, level: Level) -> Options {
    Options {
        rule: Rule {
            target,
            max_nmse: 1e-4,
            measured: false,
            ty: None,
            tensor_types: vec![],
        },
        embedding: Embedding::Keep,
        drop_biases: false,
        name: None,
        organization: None,
        card: Default::default(),
        metadata: vec![],
        hash: true,
        split_max_size: None,
        level,
    }
}

/// Pack with so many threads.
fn pack<'a>(
    checkpoint: &'a Checkpoint,
    options: &'a Options,
    path: &Path,
    threads: usize,
) -> Result<Packed<'a>, PackError> {
    let output = Output {
        path,
        replace: true,
        inputs: &Inputs::default(),
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| Plan::new(checkpoint, options)?.run(vec![], Some(&output), &|_| ControlFlow::Continue(())))
}

fn folders() -> Vec<PathBuf> {
    let corners = std::fs::read_dir(data::fixture("corners")).unwrap();
    let mut folders: Vec<_> = corners.map(|entry| entry.unwrap().path()).collect();
    folders.push(data::fixture("kjv"));
    folders
}

#[test]
fn threads_and_instructions_do_not_change_a_byte() {
    let bench = Bench::new();
    let path = bench.path("out.gguf");
    for folder in folders() {
        let checkpoint = open(&folder);
        for target in [Target::Any, Target::Cpu, Target::Gpu] {
            let mut first: Option<Vec<u8>> = None;
            for level in Level::available() {
                for threads in [1, 2, 5] {
                    pack(&checkpoint, &options(target, level), &path, threads).unwrap();
                    let bytes = std::fs::read(&path).unwrap();
                    assert!(
                        first.get_or_insert_with(|| bytes.clone()) == &bytes,
                        "{} for {} with {} and {threads} threads",
                        folder.display(),
                        target.name(),
                        level.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_dry_run_tells_what_is_written() {
    let bench = Bench::new();
    let path = bench.path("out.gguf");
    for folder in folders() {
        let checkpoint = open(&folder);
        let options = options(Target::Cpu, Level::widest());
        let written = pack(&checkpoint, &options, &path, 2).unwrap();
        let dry = Plan::new(&checkpoint, &options)
            .unwrap()
            .run(vec![], None, &|_| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(dry.metadata, written.metadata);
        assert_eq!(dry.summary.bytes, std::fs::metadata(&path).unwrap().len());
        let infos = |packed: &Packed| {
            let items = packed.items.iter();
            items
                .map(|item| (item.info.clone(), item.loss, item.offset))
                .collect::<Vec<_>>()
        };
        assert_eq!(infos(&dry), infos(&written));
    }
}

/// Replace the weights of a tensor by `weight(row, column)`, in bf16.
fn rewrite(folder: &Path, tensor: &str, weight: impl Fn(usize, usize) -> f32) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let entries = formats::safetensors::parse(&bytes).unwrap();
    let entry = entries.iter().find(|entry| entry.name == tensor).unwrap();
    let columns = *entry.shape.last().unwrap();
    let numbers = bytes[entry.range.clone()].as_chunks_mut().0.iter_mut();
    for (index, number) in numbers.enumerate() {
        *number = bf16::from_f32(weight(index / columns, index % columns)).to_le_bytes();
    }
    std::fs::write(path, bytes).unwrap();
}

/// Only ratios of a norm's weights count, and those of huge ones have squares that no f32 holds.
#[test]
fn norms_of_any_size_are_packed() {
    let bench = Bench::new();
    let folder = bench.path("norms");
    data::copy_folder(&data::fixture("kjv"), &folder);
    let packed = |size: f32| {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            for layer in 0..open(&folder).config.dims.layers {
                let name = format!("model.layers.{layer}.{norm}.weight");
                rewrite(&folder, &name, |_, column| [size, size / 2.0][column % 2]);
            }
        }
        let (bytes, _) = bench.pack(&folder, "--type q2_k --max-nmse 1");
        let file = File::parse(&bytes).unwrap();
        file.tensor("blk.0.attn_q.weight").unwrap().1.to_vec()
    };
    let usual = packed(1.0);
    for size in [1e-4, 1e30, 3e38] {
        assert!(packed(size) == usual, "{size}");
    }
}

#[test]
fn a_linear_whose_first_rows_deceive_gets_the_type_that_all_need() {
    let bench = Bench::new();
    let folder = bench.path("deceiving");
    data::copy_folder(&data::fixture("kjv"), &folder);
    // One scale in the rows that are looked at first; further on two that no pair of multipliers meets well.
    rewrite(&folder, "model.layers.1.mlp.gate_proj.weight", |row, column| {
        let size = match (row < 512, column < 128) {
            (true, _) => 1.0,
            (false, true) => 4.0,
            (false, false) => 3.875,
        };
        // All active, and of two magnitudes, as latent weights are not of one.
        let size = size * if column / 2 % 2 == 0 { 0.75 } else { 1.25 };
        if (row + column) % 2 == 0 { size } else { -size }
    });
    let checkpoint = open(&folder);
    let guessed = options(Target::Any, Level::widest());
    let mut told = guessed.clone();
    told.rule.tensor_types = vec![("blk.1.ffn_gate".into(), BlockType::Q4_0)];

    let (path, told_path) = (bench.path("guessed.gguf"), bench.path("told.gguf"));
    let packed = pack(&checkpoint, &guessed, &path, 2).unwrap();
    pack(&checkpoint, &told, &told_path, 2).unwrap();
    assert_eq!(packed.summary.linears[&BlockType::Q4_0], 1);
    assert_eq!(packed.summary.linears[&BlockType::Q2_K], 27);
    assert!(std::fs::read(path).unwrap() == std::fs::read(told_path).unwrap());

    let mut forced = guessed;
    forced.rule.ty = Some(BlockType::Q2_K);
    let refused = pack(&checkpoint, &forced, &bench.path("forced.gguf"), 2);
    assert!(
        matches!(&refused, Err(PackError::Lossy { tensors, .. }) if tensors.len() == 1 && tensors[0].0.contains("blk.1")),
        "{:?}",
        refused.err()
    );
    assert!(!bench.path("forced.gguf").exists());
    assert!(!bench.path("forced.gguf.tqconv.partial").exists());
}

#[test]
fn an_input_that_changes_is_an_error() {
    let bench = Bench::new();
    let (path, output) = (bench.path("changing/model.safetensors"), bench.path("out.gguf"));
    let options = options(Target::Any, Level::widest());
    let change: [fn(&Path); 2] = [
        |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        },
        |path| {
            std::thread::sleep(Duration::from_millis(20)); // file systems count time in steps
            std::fs::write(path, std::fs::read(path).unwrap()).unwrap();
        },
    ];
    for change in change {
        data::copy_folder(&data::fixture("kjv"), path.parent().unwrap());
        let checkpoint = open(path.parent().unwrap());
        let plan = Plan::new(&checkpoint, &options).unwrap();
        let written = Output {
            path: &output,
            replace: false,
            inputs: &Inputs::default(),
        };
        let once = std::sync::Once::new();
        let changed = plan.run(vec![], Some(&written), &|_| {
            once.call_once(|| change(&path));
            ControlFlow::Continue(())
        });
        assert!(matches!(changed, Err(PackError::Changed { .. })), "{:?}", changed.err());
        assert!(!output.exists() && !bench.path("out.gguf.tqconv.partial").exists());
    }
}

#[test]
fn an_interrupted_pack_leaves_what_was_there() {
    let bench = Bench::new();
    let path = bench.path("out.gguf");
    std::fs::write(&path, "old").unwrap();
    let checkpoint = open(&data::fixture("kjv"));
    let options = options(Target::Any, Level::widest());
    let output = Output {
        path: &path,
        replace: true,
        inputs: &Inputs::default(),
    };
    let plan = Plan::new(&checkpoint, &options).unwrap();
    let stopped = plan.run(vec![], Some(&output), &|_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(PackError::Interrupted)));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert!(!bench.path("out.gguf.tqconv.partial").exists());
}

fn start(output: &Path, options: &[&str]) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin!("tqconv"))
        .args(["pack", "--force", "--quiet"])
        .args(options)
        .args([&data::fixture("kjv"), output])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The output of an undisturbed pack, and how long it takes.
fn undisturbed(path: &Path) -> (Vec<u8>, Duration) {
    let begin = Instant::now();
    assert!(start(path, &[]).wait().unwrap().success());
    (std::fs::read(path).unwrap(), begin.elapsed())
}

#[test]
fn killed_at_any_moment_the_output_is_the_old_or_the_new_file() {
    const KILLS: u32 = 40;
    let bench = Bench::new();
    let path = bench.path("out.gguf");
    let (whole, time) = undisturbed(&path);
    let mut killed = 0;
    for kill in 0..KILLS {
        let old = (kill % 2 == 0).then_some(b"old".as_slice());
        let _ = std::fs::remove_file(&path);
        if let Some(old) = old {
            std::fs::write(&path, old).unwrap();
        }
        let mut child = start(&path, &[]);
        std::thread::sleep(time * kill / KILLS);
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().signal().is_some());
        let found = std::fs::read(&path).ok();
        assert!(
            found.as_deref() == old || found.as_ref() == Some(&whole),
            "kill {kill}: {:?} bytes",
            found.map(|bytes| bytes.len())
        );
    }
    assert!(killed > KILLS / 4, "only {killed} were still running");
    assert!(undisturbed(&path).0 == whole);
    assert!(!bench.path("out.gguf.tqconv.partial").exists());
}

#[test]
fn killed_at_any_moment_a_split_output_is_never_a_mixture() {
    const KILLS: u32 = 40;
    let bench = Bench::new();
    let path = bench.path("out.gguf");
    let pack = || start(&path, &["--split-max-size", "700000"]);
    let begin = Instant::now();
    assert!(pack().wait().unwrap().success());
    let time = begin.elapsed();
    let paths = tqconv::pack::paths(&path, 3);
    let read = || paths.iter().map(|path| std::fs::read(path).ok());
    let new: Vec<_> = read().collect();
    let old = vec![Some(b"old".to_vec()); paths.len()];
    assert!(new.iter().all(Option::is_some));
    let mut killed = 0;
    for kill in 0..KILLS {
        for path in &paths {
            std::fs::write(path, "old").unwrap();
        }
        let mut child = pack();
        std::thread::sleep(time * kill / KILLS);
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().signal().is_some());
        let found: Vec<_> = read().collect();
        // Models are opened by their first file.
        assert!(found[0].is_none() || found == old || found == new, "kill {kill}");
    }
    assert!(killed > KILLS / 4, "only {killed} were still running");
    assert!(pack().wait().unwrap().success());
    assert!(read().eq(new));
    let folder = std::fs::read_dir(path.parent().unwrap()).unwrap();
    assert_eq!(folder.count(), paths.len(), "partial files are left");
}

#[test]
fn asked_to_end_it_removes_what_it_began() {
    const ROUNDS: u32 = 32;
    let bench = Bench::new();
    let path = bench.path("out.gguf");
    let (whole, time) = undisturbed(&path);
    let mut interrupted = 0;
    for round in 0..ROUNDS {
        let _ = std::fs::remove_file(&path);
        let mut child = start(&path, &[]);
        std::thread::sleep(time * round / ROUNDS);
        let signals: &[&str] = [&["-INT"][..], &["-TERM"], &["-HUP"], &["-TERM", "-TERM"]][round as usize % 4];
        for signal in signals {
            let _ = Command::new("kill").args([signal, &*child.id().to_string()]).status();
        }
        let status = child.wait().unwrap();
        assert!(!bench.path("out.gguf.tqconv.partial").exists(), "{signals:?}");
        let found = std::fs::read(&path).ok();
        assert!(found.is_none_or(|bytes| bytes == whole), "{signals:?}");
        interrupted += u32::from(status.code() == Some(130));
        // Before it listens the signal ends it.
        assert!(matches!(status.code(), None | Some(0 | 130)), "{signals:?}: {status}");
    }
    assert!(interrupted > 0, "no pack was interrupted");
}

/// A small file system, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir(folder).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder)
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(folder.to_owned()));
        }
        println!("skipped: mounting a small file system needs root");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_too_small_is_said_before_the_work() {
    let bench = Bench::new();
    let Some(disk) = SmallDisk::mount(&bench.path("disk"), "1m") else {
        return;
    };
    let path = disk.0.join("out.gguf");
    std::fs::write(&path, "old").unwrap();
    let checkpoint = open(&data::fixture("kjv"));
    let mut options = options(Target::Any, Level::widest());
    options.hash = false;
    let output = Output {
        path: &path,
        replace: true,
        inputs: &Inputs::default(),
    };
    let plan = Plan::new(&checkpoint, &options).unwrap();
    let error = plan
        .run(vec![], Some(&output), &|_| panic!("there is work"))
        .err()
        .unwrap();
    assert!(
        matches!(error, PackError::Output(OutputError::NoSpace { needed, free: Some(free), .. }) if needed > 2_000_000 && free <= 1 << 20),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(&disk.0).unwrap().count(), 1);
}

#[test]
fn a_split_output_is_the_same_model_in_several_files() {
    let bench = Bench::new();
    let kjv = data::fixture("kjv");
    let (whole, _) = bench.pack(&kjv, "");
    let (_, report) = {
        let output = bench.path("split.gguf");
        let arguments = ["pack", kjv.to_str().unwrap(), output.to_str().unwrap()];
        let ran = bench.run(&[&arguments[..], &["--split-max-size", "700000", "--json"]].concat());
        assert!(ran.status.success());
        (
            output,
            serde_json::from_slice::<serde_json::Value>(&ran.stdout).unwrap(),
        )
    };
    let files: Vec<PathBuf> = serde_json::from_value(report["files"].clone()).unwrap();
    assert!(files.len() > 2, "{files:?}");
    assert!(!bench.path("split.gguf").exists());
    let whole = File::parse(&whole).unwrap();
    let mut names = vec![];
    for path in &files {
        let bytes = std::fs::read(path).unwrap();
        let file = File::parse(&bytes).unwrap();
        for info in file.tensors() {
            assert_eq!(file.tensor(&info.name), whole.tensor(&info.name));
            names.push(info.name.clone());
        }
    }
    let expected = whole.tensors().iter().map(|info| info.name.clone());
    assert_eq!(names, expected.collect::<Vec<_>>());

    #[cfg(feature = "llama")]
    {
        use tqconv::engine::Engine;
        use tqconv::engine::llamacpp::{Model, Settings};
        let logits = |path: &Path| {
            let settings = Settings {
                context: 16,
                threads: 1,
                exact_cache: false,
            };
            let model = Model::load(&crate::witness::program(), path, &whole).unwrap();
            model.session(settings).unwrap().logits(&[5, 99, 1000, 7]).unwrap()
        };
        assert_eq!(logits(&files[0]), logits(&bench.path("out.gguf")));
    }
}
