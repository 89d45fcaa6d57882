//! What an output is called where nobody names it, by the convention of GGUF files: `Name-1B-Q2_K.gguf`
//! (ggml's docs/gguf.md, "GGUF Naming Convention").

use formats::block::BlockType;

/// The number of weights as in model names: `3.7M`, `1.2B`, `70B`.
pub(super) fn size_label(weights: u64) -> String {
    let (value, unit) = match weights {
        0..1_000_000 => (weights as f64 / 1e3, "K"),
        1_000_000..1_000_000_000 => (weights as f64 / 1e6, "M"),
        _ => (weights as f64 / 1e9, "B"),
    };
    if value < 10.0 {
        format!("{value:.1}{unit}")
    } else {
        format!("{value:.0}{unit}")
    }
}

/// The file of the model called `name`, of so many weights, most linears of which are of type `ty`.
pub(super) fn file_name(name: &str, weights: u64, ty: BlockType) -> String {
    let legal = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let name: String = name.chars().map(|c| if legal(c) { c } else { '-' }).collect();
    let name = match name.trim_matches(['-', '.']) {
        "" => "model",
        name => name,
    };
    match name.split(['-', '_']).any(is_size) {
        true => format!("{name}-{ty}.gguf"),
        false => format!("{name}-{}-{ty}.gguf", size_label(weights)),
    }
}

/// `1B`, `0.5b`, `350M`
fn is_size(part: &str) -> bool {
    let number = part.strip_suffix(['K', 'M', 'B', 'T', 'k', 'm', 'b', 't']);
    number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()) && number.parse::<f64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_convention() {
        let name = |name| file_name(name, 1_235_814_400, BlockType::Q2_K);
        assert_eq!(name("Llama-3.2-Instruct"), "Llama-3.2-Instruct-1.2B-Q2_K.gguf");
        assert_eq!(name("Llama-3.2-1B-Tequila"), "Llama-3.2-1B-Tequila-Q2_K.gguf");
        assert_eq!(name("my model/../x"), "my-model-..-x-1.2B-Q2_K.gguf");
        assert_eq!(name(".."), "model-1.2B-Q2_K.gguf");
        assert_eq!(name("nanB"), "nanB-1.2B-Q2_K.gguf");
    }

    #[test]
    fn sizes_have_two_digits_where_they_are_small() {
        let sizes = [999, 3_700_000, 1_235_814_400, 70_000_000_000];
        assert_eq!(sizes.map(size_label), ["1.0K", "3.7M", "1.2B", "70B"]);
    }
}
