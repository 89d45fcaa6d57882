//! llama.cpp's own list of malformed GGUF files: the same verdict as llama.cpp's list says, and as ggml itself gives.

use formats::block::BlockType;
use formats::gguf::{File, Value};

use super::raw::{Handcrafted, Raw, handcrafted};

#[test]
fn llama_cpp_s_handcrafted_files_get_llama_cpp_s_verdict() {
    let cases = handcrafted();
    assert_eq!(cases.len(), 33);
    for Handcrafted { name, bytes, refusal } in &cases {
        match (File::parse(bytes), refusal) {
            (Ok(_), None) => {}
            (Err(error), Some(text)) => {
                let message = error.to_string();
                assert!(message.contains(text), "{name}: no {text:?} in {message}");
            }
            (Ok(_), Some(_)) => panic!("{name} is accepted"),
            (Err(error), None) => panic!("{name} is refused: {error}"),
        }
    }
}

/// Versions 2 and 3 have one form.
#[test]
fn version_2_is_read_as_version_3_is() {
    let sound = std::fs::read(crate::data::fixture("broken/sound.gguf")).unwrap();
    let mut second = sound.clone();
    second[4] = 2;
    let (sound, second) = (File::parse(&sound).unwrap(), File::parse(&second).unwrap());
    assert_eq!(second.metadata(), sound.metadata());
    assert_eq!(second.tensors(), sound.tensors());
}

#[test]
fn what_is_accepted_is_read_as_written() {
    let bytes = handcrafted().pop().unwrap().bytes;
    let file = File::parse(&bytes).unwrap();
    assert_eq!(file.alignment(), 1);
    assert_eq!(file.get("my_key_8"), Some(&Value::U32(0x0403_0201)));
    let types: Vec<_> = BlockType::ALL.iter().filter(|ty| !ty.is_prism()).collect();
    assert_eq!(file.tensors().len(), types.len());
    for (info, &ty) in file.tensors().iter().zip(types) {
        let (_, data) = file.tensor(&info.name).unwrap();
        assert_eq!((info.ty, Some(data.len() as u64)), (ty, info.bytes()));
    }
}

/// A width that needs no memory as long as there is no row.
#[test]
fn a_tensor_without_weights_costs_nothing() {
    let wide = [1 << 40, 0, 1 << 40];
    let bytes = Raw::default()
        .tensor(b"wide", &wide, BlockType::F32.id(), 0)
        .tensor(b"ternary", &wide, BlockType::TQ2_0.id(), 0)
        .tensor(b"none", &[0, 1 << 62, 1 << 62], BlockType::F16.id(), 0)
        .bytes();
    let file = File::parse(&bytes).unwrap();
    assert!(
        file.tensors()
            .iter()
            .all(|info| (info.weights(), info.rows()) == (0, 0))
    );
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("wide.gguf");
    std::fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap().to_owned();
    for (arguments, code) in [
        (vec!["inspect".into(), "--all".into(), path.clone()], 0),
        (vec!["inspect".into(), "--json".into(), path.clone()], 0),
        (vec!["diff".into(), path.clone(), path.clone()], 0),
        (vec!["verify".into(), path.clone()], 1),
        (vec!["run".into(), path.clone()], 2),
    ] {
        let ran = super::bounded(&arguments, "");
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(code), "{arguments:?}: {stderr}");
    }
}

/// A small file that promises much: refused by its length, before anything is allocated.
#[test]
fn promises_are_held_against_the_length_of_the_file() {
    let huge = 1u64 << 40;
    let mut string_of_a_gibibyte = 4u64.to_le_bytes().to_vec();
    string_of_a_gibibyte.extend(b"name");
    string_of_a_gibibyte.extend(8u32.to_le_bytes());
    string_of_a_gibibyte.extend((1u64 << 30).to_le_bytes());
    let array = |ty: u32, count: u64| [&ty.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let files = [
        Raw {
            key_count: Some(huge),
            ..Raw::default()
        },
        Raw {
            tensor_count: Some(huge),
            ..Raw::default()
        },
        Raw::default().raw_key(string_of_a_gibibyte),
        Raw::default().key("numbers", 9, &array(12, 1 << 30)),
        Raw::default().key("texts", 9, &array(8, 1 << 30)),
        Raw::default().key("too many", 9, &array(0, (1 << 30) + 1)),
        Raw::default()
            .key("general.alignment", 4, &(1u32 << 30).to_le_bytes())
            .tensor(b"far", &[8], 0, 0),
    ];
    for file in files {
        let bytes = file.bytes();
        assert!(bytes.len() < 200);
        let message = File::parse(&bytes).err().expect("refused").to_string();
        assert!(message.contains("the file") && !message.contains('\n'), "{message}");
    }
}

/// Lists that are really there: what is shown of them does not multiply their memory.
#[test]
fn a_long_list_costs_its_bytes() {
    const VALUES: usize = 64 << 20;
    let mut key = super::raw::string(b"general.alignment");
    key.extend(9u32.to_le_bytes());
    key.extend(0u32.to_le_bytes());
    key.extend((VALUES as u64).to_le_bytes());
    key.resize(key.len() + VALUES, 0);
    let wrong = Raw::default().raw_key(key.clone());
    let message = File::parse(&wrong.bytes()).err().unwrap().to_string();
    assert!(message.len() < 200 && message.contains("is a list of 67108864, expected"));

    key[8..25].copy_from_slice(b"general_alignment");
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("long.gguf");
    std::fs::write(&path, Raw::default().raw_key(key).bytes()).unwrap();
    let path = path.to_str().unwrap().to_owned();
    for arguments in [&["inspect", "--all"][..], &["inspect", "--json"], &["diff", &path]] {
        let arguments: Vec<_> = arguments
            .iter()
            .map(|&text| text.into())
            .chain([path.clone()])
            .collect();
        let ran = super::bounded(&arguments, "ulimit -v 1000000;");
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(0), "{arguments:?}: {stderr}");
        assert!(ran.stdout.len() < 10_000, "{arguments:?}");
    }
}

#[cfg(feature = "llama")]
mod ggml {
    use super::*;
    use llama_cpp_sys_2 as sys;
    use std::ffi::CString;
    use std::path::Path;

    /// Whether ggml's reader accepts the file; with `data`, read into memory as well.
    fn accepts(path: &Path, data: bool) -> bool {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        let mut tensors = std::ptr::null_mut();
        let params = sys::gguf_init_params {
            no_alloc: false,
            ctx: if data { &mut tensors } else { std::ptr::null_mut() },
        };
        // SAFETY: the path is a C string; `ctx` is null or points to a pointer that outlives the call. What is returned
        // is freed once, and `tensors` is set only where it is not null.
        unsafe {
            let context = sys::gguf_init_from_file(path.as_ptr(), params);
            if !context.is_null() {
                sys::gguf_free(context);
            }
            if !tensors.is_null() {
                sys::ggml_free(tensors);
            }
            !context.is_null()
        }
    }

    #[test]
    fn ggml_gives_the_same_verdict_on_every_handcrafted_file() {
        let folder = tempfile::TempDir::new().unwrap();
        for case in handcrafted() {
            let path = folder.path().join(case.name);
            std::fs::write(&path, &case.bytes).unwrap();
            let theirs = accepts(&path, case.has_data());
            assert_eq!(theirs, case.refusal.is_none(), "{}", case.name);
            assert_eq!(theirs, File::parse(&case.bytes).is_ok(), "{}", case.name);
        }
    }

    /// The first 4 KiB of a sound file with one bit flipped: wherever ggml refuses, we do; wherever we refuse what ggml
    /// accepts, it is for text that is not UTF-8, or for data that the file does not hold, which llama.cpp's model
    /// loader looks at later (llama-model-loader.h:47).
    #[test]
    fn ggml_gives_the_same_verdict_on_flipped_bits() {
        let sound = std::fs::read(crate::data::fixture("broken/sound.gguf")).unwrap();
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("flipped.gguf");
        let header = File::parse(&sound).unwrap().data_start() as usize;
        let (mut same, mut stricter) = (0, 0);
        for at in 0..header {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bytes).unwrap();
            let theirs = accepts(&path, false);
            match (File::parse(&bytes), theirs) {
                (Ok(_), false) => panic!("byte {at}: we accept what ggml refuses"),
                (Err(error), true) => {
                    use formats::FormatError::{Limit, Truncated, Utf8};
                    let known = matches!(error, Utf8 { .. } | Truncated { .. } | Limit { .. });
                    assert!(known, "byte {at}: ggml accepts, we do not: {error}");
                    stricter += 1;
                }
                _ => same += 1,
            }
        }
        println!("{same} verdicts equal, {stricter} files refused that ggml's reader accepts");
        assert!(same > 10 * stricter, "{same} {stricter}");
    }
}

/// Files that can be read and are wrong: `verify` tells the place, and ends with exit code 1.
#[test]
fn verify_disagrees_with_what_is_read_and_wrong() {
    use super::input::Gguf;
    const QUERY: &str = "blk.0.attn_q.weight";
    const BIAS: &str = "blk.0.attn_q.bias";
    let broken = |change: fn(&mut Gguf)| {
        let mut file = Gguf::sound();
        change(&mut file);
        file.bytes()
    };
    let scale = |bytes: &mut Vec<u8>, bits: u16| bytes[..2].copy_from_slice(&bits.to_le_bytes());
    let tail = [broken(|_| ()), vec![0; 64]].concat();
    let cases: [(&str, Vec<u8>); 9] = [
        (
            QUERY,
            broken(|file| file.tensor(QUERY).1[..2].copy_from_slice(&[0, 0x7e])),
        ),
        (
            QUERY,
            broken(|file| file.tensor(QUERY).1[..2].copy_from_slice(&[0, 0xfc])),
        ),
        (QUERY, broken(|file| file.tensor(QUERY).1[2] ^= 0xf0)),
        (
            BIAS,
            broken(|file| file.tensor(BIAS).1[..4].copy_from_slice(&f32::NAN.to_le_bytes())),
        ),
        (BIAS, broken(|file| file.tensor(BIAS).0.shape = vec![31])),
        (BIAS, broken(|file| file.tensors.retain(|(info, _)| info.name != BIAS))),
        (
            "llama.vocab_size",
            broken(|file| file.set("llama.vocab_size", Value::U32(17))),
        ),
        ("64 bytes follow the last tensor", tail),
        (
            "key 'general.file_type' is 37, which is TQ2_0, and no tensor is",
            broken(|file| file.set("general.file_type", Value::U32(37))),
        ),
    ];
    let mut negative = Gguf::sound();
    scale(&mut negative.tensor(QUERY).1, 0xa800);
    let cases = cases.into_iter().chain([(QUERY, negative.bytes())]);
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("wrong.gguf").to_str().unwrap().to_owned();
    let against = crate::data::fixture("tiny").to_str().unwrap().to_owned();
    for (place, bytes) in cases {
        std::fs::write(&path, bytes).unwrap();
        let arguments = ["verify", &path, "--against", &against, "--levels", "1,2"];
        let ran = super::bounded(&arguments.map(String::from), "");
        let (stdout, stderr) = (
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr),
        );
        assert_eq!(ran.status.code(), Some(1), "{place}: {stdout}{stderr}");
        assert!(stdout.contains(place), "{place}: {stdout}");
    }
}

/// A file larger than is allowed to grow: an error, and nothing left behind.
#[test]
fn a_write_that_fails_is_an_error() {
    let folder = tempfile::TempDir::new().unwrap();
    let input = crate::data::fixture("kjv").to_str().unwrap().to_owned();
    let output = folder.path().join("out.gguf").to_str().unwrap().to_owned();
    let ran = super::bounded(&["pack".into(), input, output], "ulimit -f 1;");
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("out.gguf.tqconv.partial: File too large"), "{stderr}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}
