//! Commands as one would type them in a shell.

use std::ffi::{OsStr, OsString};

use super::text::is_hidden;

/// A command line of these words.
pub fn command<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<_> = words.into_iter().map(|word| quoted(word.as_ref())).collect();
    quoted.join(" ")
}

/// An option and its value: one word where the value would be taken for an option.
pub fn option(flag: &str, value: impl Into<OsString>) -> Vec<OsString> {
    let value = value.into();
    if value.as_encoded_bytes().starts_with(b"-") {
        let mut word = OsString::from(format!("{flag}="));
        word.push(value);
        return vec![word];
    }
    vec![flag.into(), value]
}

/// A word that the system's shell takes as it is: quoted where it must be, with escapes for what cannot be shown. Windows
/// has two shells: both take plain words and those in double quotes; the rest is written for PowerShell 7.
pub fn quoted(word: &OsStr) -> String {
    match cfg!(windows) {
        true => windows(&word.to_string_lossy()),
        false => posix(word),
    }
}

fn posix(word: &OsStr) -> String {
    let shows = word.to_str().filter(|text| !text.contains(is_hidden));
    match shows.map(shlex::try_quote) {
        Some(Ok(quoted)) => quoted.into_owned(),
        _ => escaped(word.as_encoded_bytes()),
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

fn windows(word: &str) -> String {
    // PowerShell takes typographic quotes for plain ones.
    let is_special = |c: char| matches!(c, '"' | '$' | '`' | '\u{2018}'..='\u{201e}');
    let is_plain = |c: char| c.is_alphanumeric() || "_-./\\:=+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.into();
    }
    let mut quoted = String::from("\"");
    for c in word.chars() {
        match c {
            _ if is_hidden(c) => quoted += &format!("`u{{{:x}}}", u32::from(c)),
            _ if is_special(c) => quoted.extend(['`', c]),
            _ => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: PowerShell's documentation, about_Quoting_Rules and about_Special_Characters.
    #[test]
    fn a_shell_of_windows_reads_each_word_as_it_was() {
        for (word, expected) in [
            (r"C:\models\a-1.gguf", r"C:\models\a-1.gguf"),
            ("", "\"\""),
            ("it's a b", "\"it's a b\""),
            ("a&b", "\"a&b\""),
            ("$x`y", "\"`$x``y\""),
            ("a\"b", "\"a`\"b\""),
            ("\u{201c}a\u{201d}", "\"`\u{201c}a`\u{201d}\""),
            ("\u{202e}x\n", "\"`u{202e}x`u{a}\""),
        ] {
            assert_eq!(windows(word), expected);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_each_word_as_it_was() {
        use std::os::unix::ffi::OsStrExt;
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
