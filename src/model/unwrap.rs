//! The names of tensors, where whatever a model was wrapped in for training left its own name in them.

use std::collections::{BTreeMap, BTreeSet};

use crate::blueprint::HEAD;

/// Parts of names that wrappers add, at any depth, and who they are.
const WRAPPERS: [(&str, &str); 4] = [
    ("module", "DistributedDataParallel or DeepSpeed"),
    ("_orig_mod", "torch.compile"),
    ("_fsdp_wrapped_module", "FSDP"),
    ("_checkpoint_wrapped_module", "activation checkpointing"),
];

/// The part of every name of a Llama but the head's.
const MODEL: &str = "model.";

/// Names that end so stand for the whole set: where they begin is where all names do.
const ANCHORS: [&str; 2] = ["embed_tokens.weight", "layers.0.input_layernorm.weight"];

/// How to read the names of a wrapped model.
pub struct Unwrapped {
    /// The plain name of each.
    pub names: BTreeMap<String, String>,
    /// What was found in them, for messages: `'module.' (left by ...)`.
    pub found: String,
    /// Whether `model.` was missing.
    pub bare: bool,
}

/// The plain names of `names`, where they are other ones; `None` where two would become one.
pub fn unwrap<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<Unwrapped> {
    let without: Vec<_> = names.clone().map(without_wrappers).collect();
    let anchor = |anchor: &str| {
        let starts = without.iter().filter_map(|name| name.strip_suffix(anchor));
        starts
            .filter(|start| start.is_empty() || start.ends_with('.'))
            .min_by_key(|start| start.len())
    };
    let start = ANCHORS.into_iter().find_map(anchor)?;
    let outer = start.strip_suffix(MODEL).unwrap_or(start);
    let plain = |name: &str| {
        let inner = name.strip_prefix(outer).unwrap_or(name);
        match name.strip_prefix(start) {
            _ if inner == HEAD => inner.to_owned(),
            Some(rest) => format!("{MODEL}{rest}"),
            None => inner.to_owned(),
        }
    };
    let names: BTreeMap<_, _> = names
        .map(String::from)
        .zip(without.iter().map(|name| plain(name)))
        .collect();
    let distinct: BTreeSet<_> = names.values().collect();
    let changes = names.iter().any(|(name, plain)| name != plain);
    (changes && distinct.len() == names.len()).then(|| Unwrapped {
        found: found(names.keys(), outer),
        bare: !start.ends_with(MODEL),
        names,
    })
}

fn without_wrappers(name: &str) -> String {
    let is_wrapper = |part: &&str| WRAPPERS.iter().all(|(wrapper, _)| wrapper != part);
    name.split('.').filter(is_wrapper).collect::<Vec<_>>().join(".")
}

fn found<'a>(names: impl Iterator<Item = &'a String> + Clone, outer: &str) -> String {
    let used = |wrapper: &str| names.clone().any(|name| name.split('.').any(|part| part == wrapper));
    let wrappers = WRAPPERS.iter().filter(|(wrapper, _)| used(wrapper));
    let mut found: Vec<_> = wrappers
        .map(|(wrapper, who)| format!("'{wrapper}.' (left by {who})"))
        .collect();
    match outer {
        "" => {}
        "base_model.model." | "base_model." => found.push(format!("'{outer}' (left by peft)")),
        outer => found.push(format!("'{outer}'")),
    }
    found.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: [&str; 4] = [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
    ];

    /// `PLAIN` as `wrap` leaves it, unwrapped.
    fn unwrapped(wrap: impl Fn(&str) -> String) -> Option<Unwrapped> {
        let names: Vec<_> = PLAIN.iter().map(|name| wrap(name)).collect();
        let unwrapped = unwrap(names.iter().map(String::as_str))?;
        for (name, plain) in names.iter().zip(PLAIN) {
            assert_eq!(unwrapped.names[name], plain, "{name}");
        }
        Some(unwrapped)
    }

    #[test]
    fn names_are_what_transformers_calls_them() {
        let before = |prefix: &'static str| move |name: &str| format!("{prefix}{name}");
        for (prefix, found) in [
            ("module.", "'module.' (left by DistributedDataParallel or DeepSpeed)"),
            ("_orig_mod.", "'_orig_mod.' (left by torch.compile)"),
            ("base_model.model.", "'base_model.model.' (left by peft)"),
            ("model.", "'model.'"),
            ("student.", "'student.'"),
        ] {
            let unwrapped = unwrapped(before(prefix)).unwrap();
            assert_eq!(unwrapped.found, found);
            assert!(!unwrapped.bare);
        }
        for prefix in ["module._orig_mod.", "_orig_mod.module.", "_forward_module.model."] {
            unwrapped(before(prefix)).unwrap();
        }
        // Layers that are wrapped one by one.
        let inner = |name: &str| {
            let name = name.replace("layers.0.", "layers.0._checkpoint_wrapped_module.");
            name.replace("model.", "model._fsdp_wrapped_module.")
        };
        unwrapped(inner).unwrap();
        let bare = |name: &str| name.trim_start_matches("model.").to_owned();
        assert!(unwrapped(bare).unwrap().bare);
        let bare_wrapped = |name: &str| format!("module.{}", bare(name));
        assert!(unwrapped(bare_wrapped).unwrap().bare);
    }

    #[test]
    fn what_is_plain_or_would_collide_is_left_as_it_is() {
        assert!(unwrap(PLAIN.into_iter()).is_none());
        assert!(unwrap(["wte.weight", "h.0.attn.weight"].into_iter()).is_none());
        let twice = ["model.embed_tokens.weight", "module.model.embed_tokens.weight"];
        assert!(unwrap(twice.into_iter()).is_none());
    }
}
