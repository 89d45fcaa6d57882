//! `--cache-type-k`, `--cache-type-v`: what our engine keeps keys and values in, by llama.cpp's names.

use anyhow::bail;
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::engine::native::{CacheType, CacheTypes};

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct CacheArgs {
    /// What our engine keeps the keys of the context in
    ///
    /// What the types cost, and what they gain: docs/benchmarks.md.
    #[arg(long, value_name = "TYPE", default_value = CacheType::default().name(), value_parser = parser())]
    cache_type_k: CacheType,
    /// What it keeps the values in
    #[arg(long, value_name = "TYPE", default_value = CacheType::default().name(), value_parser = parser())]
    cache_type_v: CacheType,
}

fn parser() -> impl TypedValueParser<Value = CacheType> {
    let values = CacheType::ALL.map(|ty| PossibleValue::new(ty.name()).help(help(ty)));
    PossibleValuesParser::new(values).map(|name| {
        let named = CacheType::ALL.into_iter().find(|ty| ty.name() == name);
        named.expect("one of the possible values")
    })
}

fn help(ty: CacheType) -> &'static str {
    match ty {
        CacheType::F32 => "As they are computed",
        CacheType::F16 => "Half the memory: llama.cpp's own default",
        CacheType::Bf16 => "Half the memory; keys and values both in it make long prompts faster on AMX",
        CacheType::Q8_0 => "A quarter and a bit: 32 numbers to a scale, for heads of a multiple of 32",
    }
}

impl CacheArgs {
    pub fn types(self) -> CacheTypes {
        CacheTypes {
            keys: self.cache_type_k,
            values: self.cache_type_v,
        }
    }

    /// # Errors
    /// Something else than the default was asked for `what`, which has no cache of ours.
    pub fn unused(self, what: &str, remedy: &str) -> anyhow::Result<()> {
        if self.types() == CacheTypes::default() {
            return Ok(());
        }
        let [k, v] = [self.cache_type_k, self.cache_type_v].map(CacheType::name);
        bail!("--cache-type-k {k} --cache-type-v {v} is for our engine, and {what}: leave it out, or {remedy}")
    }
}
