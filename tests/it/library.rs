//! A llama.cpp of the user's: `TQCONV_TEST_LLAMA` names one (scripts/test_llama.sh). Those that cannot be used are cases of
//! `hostile`.

use serde_json::Value as Json;

use crate::data;
use crate::pack::Bench;

#[test]
fn a_library_of_the_users_proves_a_file() {
    let Ok(library) = std::env::var("TQCONV_TEST_LLAMA") else {
        println!("skipped: TQCONV_TEST_LLAMA names no llama.cpp");
        return;
    };
    let bench = Bench::new();
    for ty in ["q2_k", "q4_0", "tq2_0"] {
        bench.pack(&data::fixture("kjv"), &format!("--type {ty} --max-nmse 1"));
        let (file, against) = (bench.path("out.gguf"), data::fixture("kjv"));
        let ran = bench.run(&[
            "verify",
            file.to_str().unwrap(),
            "--against",
            against.to_str().unwrap(),
            "--max-nmse",
            "1",
            "--max-kld",
            "1",
            "--levels",
            "1-5",
            "--threads",
            "2",
            "--json",
            "--llama",
            &library,
        ]);
        let error = String::from_utf8_lossy(&ran.stderr);
        let report: Json = serde_json::from_slice(&ran.stdout).unwrap_or_else(|_| panic!("{error}"));
        assert_eq!(ran.status.code(), Some(0), "{ty}: {}", report["levels"]);
        let build = &report["llama_cpp"];
        println!("{ty}: {build}");
        assert!(build["path"].as_str().unwrap().starts_with('/'), "{build}");
        let levels = report["levels"].as_array().unwrap();
        assert_eq!(levels.len(), 5);
        for level in levels {
            let missing = level["not_checked"].as_array().unwrap();
            assert!(missing.is_empty(), "{ty}: {missing:?}");
        }
        let engines = report["speed"]["engines"].as_array().unwrap();
        assert_eq!(engines.len(), 2, "{engines:?}");
    }
}
