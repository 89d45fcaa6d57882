//! Commands as one would type them in a shell.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// A command line of these words.
pub fn command<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<_> = words.into_iter().map(|word| quoted(word.as_ref())).collect();
    quoted.join(" ")
}

/// An option and its value: one word where the value would be taken for an option.
pub fn option(flag: &str, value: impl Into<OsString>) -> Vec<OsString> {
    let value = value.into();
    if value.as_bytes().starts_with(b"-") {
        let mut word = OsString::from(format!("{flag}="));
        word.push(value);
        return vec![word];
    }
    vec![flag.into(), value]
}

/// A word that a shell takes as it is: quoted where it must be, as `$'...'` where it cannot be shown.
pub fn quoted(word: &OsStr) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    match word.to_str() {
        Some(text) if !text.is_empty() && text.chars().all(plain) => text.into(),
        Some(text) if !text.contains(super::text::is_hidden) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        _ => {
            let mut quoted = String::from("$'");
            for &byte in word.as_bytes() {
                match byte {
                    b'\'' | b'\\' => quoted.extend(['\\', byte.into()]),
                    b' '..=b'~' => quoted.push(byte.into()),
                    _ => write!(quoted, "\\x{byte:02x}").expect("a text can be written to"),
                }
            }
            quoted + "'"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_each_word_as_it_was() {
        let words: [&[u8]; 9] = [
            b"a.gguf",
            b"",
            b"it's",
            b"a b",
            b"$x`y`",
            b"\xff\\'9",
            "\u{202e}x".as_bytes(),
            b"a\n\tb",
            b"\x1b[1m",
        ];
        let words = words.map(OsStr::from_bytes);
        let script = command([OsStr::new("printf"), OsStr::new("%s|")].into_iter().chain(words));
        assert!(!script.contains(super::super::text::is_hidden));
        let ran = std::process::Command::new("bash")
            .arg("-c")
            .arg(script)
            .output()
            .unwrap();
        let expected: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"|"].concat()).collect();
        assert_eq!(ran.stdout, expected);
    }
}
