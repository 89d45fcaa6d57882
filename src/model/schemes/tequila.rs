//! Tequila: the methods ultraquantv2 and ultraquantv3 of AngelSlim.

use formats::gguf::Value;
use formats::safetensors::Dtype;
use serde_json::json;

use super::{Contradiction, Granularity, Scheme, Settings, Training};
use crate::model::ModelError;

/// The method whose lambda is one number, `eps`.
pub(super) const FIXED: &str = "ultraquantv2";
/// The method whose lambda is learned.
pub(super) const LEARNED: &str = "ultraquantv3";

/// The last name of the tensor of learned lambdas: one a weight, or one a row.
pub const LAMBADA: &str = "Lambada";

pub(super) const MISSING_LAMBADA: &str =
    "ultraquantv3 has a learned lambda for every weight, ultraquantv2 one number: --quant-method ultraquantv2";
pub(super) const SURPLUS_LAMBADA: &str = "a learned lambda belongs to ultraquantv3: --quant-method ultraquantv3";

/// How the latent weights become ternary.
#[derive(Clone, Debug, PartialEq)]
pub struct Tequila {
    /// Over how many weights a scale is taken.
    pub granularity: Granularity,
    /// The factor of the dead zone.
    pub lambda: Lambda,
}

/// Where the factor of the dead zone comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lambda {
    /// `eps`, before it is rounded to the checkpoint's dtype.
    Fixed(f64),
    /// The tensor [`LAMBADA`] beside each weight.
    Learned,
}

impl Lambda {
    /// The fixed factor as training used it: rounded to the dtype of the weights.
    pub fn fixed(self, dtype: Dtype) -> Option<f32> {
        match self {
            Lambda::Fixed(lambda) => Some(dtype.round(lambda)),
            Lambda::Learned => None,
        }
    }
}

/// # Errors
/// Keys that are missing, or a value that cannot be.
pub(super) fn read(settings: &Settings) -> Result<Scheme, ModelError> {
    let (method, granularity) = (settings.method()?, settings.granularity()?);
    let (group_size, lambda) = (settings.group_size()?, settings.lambda()?);
    let learned = method.as_deref() == Some(LEARNED);
    let grouped = !matches!(granularity.as_deref(), Some("per_channel" | "per_tensor"));
    let mut missing = vec![];
    missing.extend(method.is_none().then_some("quant_method"));
    missing.extend(granularity.is_none().then_some("granularity"));
    missing.extend((grouped && group_size.is_none()).then_some("group_size"));
    missing.extend((!learned && lambda.is_none()).then_some("eps"));
    let (Some(granularity), true) = (granularity, missing.is_empty()) else {
        return Err(ModelError::NotTequila {
            path: settings.file.path.clone(),
            missing,
        });
    };
    check_bits(settings)?;
    Ok(Scheme::Tequila(Tequila {
        granularity: read_granularity(settings, &granularity, group_size)?,
        lambda: match lambda {
            _ if learned => Lambda::Learned,
            Some(lambda) if lambda.is_finite() && lambda >= 0.0 => Lambda::Fixed(lambda),
            lambda => {
                let expected = "a finite number that is not negative (the lambda of the dead zone)";
                return Err(settings.wrong("eps", shown(lambda), expected));
            }
        },
    }))
}

fn check_bits(settings: &Settings) -> Result<(), ModelError> {
    match settings.file.value("w_bits") {
        Some(bits) if bits.as_f64() != Some(0.0) => {
            let expected = "0, which is what ternary training sets".into();
            Err(settings.file.key_error("w_bits", Some(bits), expected))
        }
        _ => Ok(()),
    }
}

fn read_granularity(settings: &Settings, name: &str, group_size: Option<usize>) -> Result<Granularity, ModelError> {
    match (name, group_size) {
        ("per_channel", _) => Ok(Granularity::Channel),
        ("per_tensor", _) => Ok(Granularity::Tensor),
        ("per_group", Some(size)) if size > 0 => Ok(Granularity::Group(size)),
        ("per_group", size) => Err(settings.wrong("group_size", shown(size), "a positive number of weights")),
        (found, _) => {
            let found = format!("{found:?}");
            Err(settings.wrong("granularity", found, "per_group, per_channel or per_tensor"))
        }
    }
}

fn shown(value: Option<impl ToString>) -> String {
    value.map_or("missing".into(), |value| value.to_string())
}

impl Tequila {
    fn method(&self) -> &'static str {
        match self.lambda {
            Lambda::Fixed(_) => FIXED,
            Lambda::Learned => LEARNED,
        }
    }
}

impl Training for Tequila {
    fn text(&self) -> String {
        let lambda = match self.lambda {
            Lambda::Fixed(lambda) => format!("lambda {lambda}"),
            Lambda::Learned => "learned lambda".into(),
        };
        format!("{}, {}, {lambda}", self.method(), self.granularity)
    }

    fn json(&self) -> serde_json::Value {
        let lambda = match self.lambda {
            Lambda::Fixed(lambda) => Some(lambda),
            Lambda::Learned => None,
        };
        json!({
            "quant_method": self.method(), "granularity": self.granularity.to_string(), "lambda": lambda,
        })
    }

    fn keys(&self, dtype: Dtype) -> Vec<(&'static str, Value)> {
        let mut keys = vec![
            ("quant_method", Value::String(self.method().into())),
            ("granularity", Value::String(self.granularity.name().into())),
        ];
        if let Granularity::Group(size) = self.granularity {
            keys.push(("group_size", Value::U64(size as u64)));
        }
        keys.extend(self.lambda.fixed(dtype).map(|lambda| ("lambda", Value::F32(lambda))));
        keys
    }

    fn tensors(&self, rows: usize, columns: usize) -> Vec<(&'static str, Vec<Vec<usize>>)> {
        match self.lambda {
            Lambda::Fixed(_) => vec![],
            Lambda::Learned => vec![(LAMBADA, vec![vec![rows, columns], vec![rows, 1]])],
        }
    }

    fn has_biases(&self) -> bool {
        true
    }

    /// Training reshapes a matrix into groups, which leaves no remainder, and rounds lambda to the dtype.
    fn check(&self, name: &str, (rows, columns): (usize, usize), dtype: Dtype) -> Result<(), Contradiction> {
        if let Granularity::Group(size) = self.granularity
            && !(rows * columns).is_multiple_of(size)
        {
            return Err(Contradiction {
                key: "group_size",
                found: size.to_string(),
                expected: format!("a divisor of the {rows} x {columns} weights of {name}"),
            });
        }
        match (self.lambda, self.lambda.fixed(dtype)) {
            (Lambda::Fixed(lambda), Some(rounded)) if !rounded.is_finite() => Err(Contradiction {
                key: "eps",
                found: format!("{lambda:e}"),
                expected: format!("a number that fits {dtype}"),
            }),
            _ => Ok(()),
        }
    }

    fn notes(&self) -> Vec<String> {
        let none = self.lambda == Lambda::Fixed(0.0);
        none.then(|| "eps is 0: every offline bias is 0".into())
            .into_iter()
            .collect()
    }
}
