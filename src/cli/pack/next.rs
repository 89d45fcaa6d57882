//! What to do with the file that was packed: commands that work as they are printed.

use std::ffi::OsString;
use std::path::Path;

use super::{PackArgs, choose};
use crate::choose::Chosen;
use crate::cli::{ollama, shell};
use crate::pack::Packed;

/// What the commands depend on.
pub(super) struct Next<'a> {
    pub args: &'a PackArgs,
    /// As it was named, or called after the model.
    pub output: &'a Path,
    pub packed: &'a Packed<'a>,
    /// Where the types were chosen by their KLD.
    pub chosen: Option<&'a Chosen>,
    /// The file that the model is opened by.
    pub first: &'a Path,
    /// Whether the model has a chat template.
    pub has_template: bool,
    /// For Ollama, if it was written.
    pub modelfile: Option<&'a Path>,
}

impl Next<'_> {
    /// Lines for a person.
    pub fn text(&self) -> String {
        let mut lines = vec![];
        if let Some(modelfile) = self.modelfile {
            let (name, file) = (ollama::name(self.output), path_word(modelfile));
            let create = ["ollama".into(), "create".into(), name.clone().into(), "-f".into(), file];
            lines.push(format!("{} && ollama run {name}", shell::command(create)));
        }
        let file = shell::quoted(&path_word(self.first));
        lines.push(format!("tqconv run {file} -p \"...\""));
        lines.push(match self.has_template {
            true => format!("llama-cli -m {file}"),
            false => format!("llama-completion -m {file} -p \"...\""),
        });
        if self.has_template {
            lines.push(format!("llama-server -m {file}"));
        }
        let mut text = String::new();
        for (line, label) in lines.iter().zip(["run it:", "or:", "or:", "or:"]) {
            text += &format!("{label:<8} {line}\n");
        }
        text + &format!("prove it:  {}\n", self.verify())
    }

    /// What storing a linear was allowed to lose, or did lose where nothing was asked for.
    fn max_nmse(&self) -> f64 {
        let worst = self.packed.summary.worst.as_ref().map_or(0.0, |(_, worst)| *worst);
        match self.chosen {
            Some(_) if worst > self.args.limit() => choose::rounded_up(worst),
            _ => self.args.limit(),
        }
    }

    /// The verification of what was written against what was asked for: all that `pack` was told and that the checkpoint
    /// does not say.
    pub fn verify(&self) -> String {
        let args = self.args;
        let mut words: Vec<OsString> = vec!["tqconv".into(), "verify".into()];
        words.extend([path_word(self.first), "--against".into(), path_word(&args.input)]);
        if self.modelfile.is_some() {
            words.extend(["--for".into(), "ollama".into()]);
        }
        if self.max_nmse() != super::MAX_NMSE {
            words.extend(["--max-nmse".into(), format!("{:e}", self.max_nmse()).into()]);
        }
        if let Some(chosen) = self.chosen {
            words.extend(choose::words(args, chosen));
        }
        words.extend(args.checkpoint.words());
        for (key, value) in &args.metadata {
            words.extend(shell::option("--metadata", format!("{key}={value}")));
        }
        shell::command(words)
    }
}

/// A path that no program takes for an option.
fn path_word(path: &Path) -> OsString {
    let is_option = path.as_os_str().as_encoded_bytes().starts_with(b"-");
    match is_option {
        true => Path::new(".").join(path).into(),
        false => path.into(),
    }
}
