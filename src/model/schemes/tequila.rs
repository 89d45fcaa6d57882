//! Tequila: the methods ultraquantv2 and ultraquantv3 of AngelSlim, and absmean, which is the same without biases.

use formats::gguf::Value;
use formats::safetensors::Dtype;

use super::{Contradiction, Granularity, Scheme, Settings, Training, TrainingFacts};
use crate::model::ModelError;

/// The method whose lambda is one number, `eps`.
pub(super) const FIXED: &str = "ultraquantv2";
/// The method whose lambda is learned.
pub(super) const LEARNED: &str = "ultraquantv3";
/// The method whose zeros are zeros.
pub(super) const ABSMEAN: &str = "absmean";

/// The last name of the tensor of learned lambdas: one a weight, or one a row.
pub const LAMBADA: &str = "Lambada";

pub(super) const MISSING_LAMBADA: &str =
    "ultraquantv3 has a learned lambda for every weight, ultraquantv2 one number: --trained-as ultraquantv2";
pub(super) const SURPLUS_LAMBADA: &str = "a learned lambda belongs to ultraquantv3: --trained-as ultraquantv3";

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
    /// The dead zone adds nothing.
    None,
}

impl Lambda {
    /// The fixed factor as training used it: rounded to the dtype of the weights.
    pub fn fixed(self, dtype: Dtype) -> Option<f32> {
        match self {
            Lambda::Fixed(lambda) => Some(dtype.round(lambda)),
            Lambda::Learned => None,
            Lambda::None => Some(0.0),
        }
    }
}

/// # Errors
/// Keys that are missing, or a value that cannot be.
pub(super) fn read(settings: &Settings) -> Result<Scheme, ModelError> {
    let (mut missing, lambda) = (vec![], settings.lambda()?);
    let granularity = settings.granularity(&mut missing)?;
    let method = settings.method.as_str();
    missing.extend((method == FIXED && lambda.is_none()).then_some("eps"));
    let (Some(granularity), true) = (granularity, missing.is_empty()) else {
        return Err(settings.missing(missing));
    };
    settings.check_bits(method)?;
    let lambda = match (method, lambda) {
        (LEARNED, _) => Lambda::Learned,
        (ABSMEAN, _) => Lambda::None,
        (_, Some(lambda)) if lambda.is_finite() && lambda >= 0.0 => Lambda::Fixed(lambda),
        (_, lambda) => {
            let found = lambda.map_or("missing".into(), |lambda| lambda.to_string());
            let expected = "a finite number that is not negative (the lambda of the dead zone)";
            return Err(settings.wrong("eps", found, expected));
        }
    };
    Ok(Scheme::Tequila(Tequila { granularity, lambda }))
}

impl Tequila {
    fn method(&self) -> &'static str {
        match self.lambda {
            Lambda::Fixed(_) => FIXED,
            Lambda::Learned => LEARNED,
            Lambda::None => ABSMEAN,
        }
    }
}

impl Training for Tequila {
    fn text(&self) -> String {
        let lambda = match self.lambda {
            Lambda::Fixed(lambda) => format!(", lambda {lambda}"),
            Lambda::Learned => ", learned lambda".into(),
            Lambda::None => String::new(),
        };
        format!("{}, {}{lambda}", self.method(), self.granularity)
    }

    fn facts(&self) -> TrainingFacts {
        let lambda = match self.lambda {
            Lambda::Fixed(lambda) => Some(lambda),
            Lambda::Learned | Lambda::None => None,
        };
        TrainingFacts {
            lambda,
            ..self.granularity.facts(self.method())
        }
    }

    fn keys(&self, dtype: Dtype) -> Vec<(&'static str, Value)> {
        let mut keys = self.granularity.keys(self.method());
        let lambda = self.lambda.fixed(dtype).filter(|_| self.has_biases());
        keys.extend(lambda.map(|lambda| ("lambda", Value::F32(lambda))));
        keys
    }

    fn tensors(&self, rows: usize, columns: usize) -> Vec<(&'static str, Vec<Vec<usize>>)> {
        match self.lambda {
            Lambda::Fixed(_) | Lambda::None => vec![],
            Lambda::Learned => vec![(LAMBADA, vec![vec![rows, columns], vec![rows, 1]])],
        }
    }

    fn has_biases(&self) -> bool {
        self.lambda != Lambda::None
    }

    /// Training rounds lambda to the dtype.
    fn check(&self, name: &str, shape: (usize, usize), dtype: Dtype) -> Result<(), Contradiction> {
        self.granularity.check(name, shape)?;
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
