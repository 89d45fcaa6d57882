//! Commands as one would type them in a shell.

use std::ffi::{OsStr, OsString};
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
    let shows = word.to_str().filter(|text| !text.contains(super::text::is_hidden));
    match shows.map(shlex::try_quote) {
        Some(Ok(quoted)) => quoted.into_owned(),
        _ => escaped(word.as_bytes()),
    }
}

/// `$'...'`, with escapes for what does not show.
fn escaped(word: &[u8]) -> String {
    let mut escaped = String::from("$'");
    for &byte in word {
        match byte {
            b'\'' | b'\\' => escaped.extend(['\\', byte.into()]),
            b' '..=b'~' => escaped.push(byte.into()),
            _ => escaped += &format!("\\x{byte:02x}"),
        }
    }
    escaped + "'"
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
