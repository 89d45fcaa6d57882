//! Text of a file on its way to a terminal: nothing in it may steer the terminal, or look like a line of ours.

/// Whether a character does not show as itself: controls, line ends, and the marks of Unicode that turn, hide or tag
/// what stands beside them (its categories Cc, Cf, Zl, Zp).
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text with what does not show written as escapes: one line, whatever is in it.
pub fn shown(text: &str) -> String {
    escaped(text, |_, _| false)
}

/// A report, in which each text of a file is [`shown`] already: line ends, tabs and colours (`ESC [ digits ; ... m`) stay.
pub fn report(text: &str) -> String {
    escaped(text, |c, rest| match c {
        '\n' | '\t' => true,
        '\u{1b}' => is_colour(rest),
        _ => false,
    })
}

fn is_colour(rest: &str) -> bool {
    let digits = |c: char| c.is_ascii_digit() || c == ';';
    let code = rest.strip_prefix('[').map(|rest| rest.trim_start_matches(digits));
    code.is_some_and(|rest| rest.starts_with('m'))
}

/// What does not show as escapes, but for what `keep` is true for: a character and what follows it.
fn escaped(text: &str, keep: impl Fn(char, &str) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        if is_hidden(c) && !keep(c, &text[at + c.len_utf8()..]) {
            shown.extend(escape(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// `\n`, `\t`, `\u{202e}`.
fn escape(c: char) -> impl Iterator<Item = char> {
    let short = matches!(c, '\n' | '\r' | '\t').then(|| c.escape_default());
    let long = short.is_none().then(|| c.escape_unicode());
    short.into_iter().flatten().chain(long.into_iter().flatten())
}

/// JSON in which whatever does not show stands as an escape of JSON.
pub fn shown_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if is_hidden(c) && c != '\n' {
            let mut units = [0; 2];
            shown.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_show_is_escaped() {
        let text = "a\u{1b}[1mb\u{9b}2J\r\nc\td\u{202e}e\u{2066}\u{200b}\u{e0041}\u{2028}हिन्दी ▁the";
        let expected = r"a\u{1b}[1mb\u{9b}2J\r\nc\td\u{202e}e\u{2066}\u{200b}\u{e0041}\u{2028}हिन्दी ▁the";
        assert_eq!(shown(text), expected);
    }

    #[test]
    fn a_report_keeps_its_colours_and_nothing_else() {
        let text = "\u{1b}[1;32mok\u{1b}[0m\tname\u{1b}]0;title\u{7}\u{9b}2J\r\n";
        let shown = "\u{1b}[1;32mok\u{1b}[0m\tname\\u{1b}]0;title\\u{7}\\u{9b}2J\\r\n";
        assert_eq!(report(text), shown);
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"a\u{202e}": ["b\u{e0041}\n\u{7f}", "ü"]});
        let shown = shown_json(&format!("{value:#}"));
        assert!(!shown.contains(|c| is_hidden(c) && c != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
