//! How the weights were trained to be ternary.

use formats::safetensors::Dtype;

use super::file::ConfigFile;
use crate::model::ModelError;
use crate::tequila::Granularity;

/// How the latent weights become ternary.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Over how many weights a scale is taken.
    pub granularity: Granularity,
    /// The factor of the dead zone.
    pub lambda: LambdaSource,
}

/// Where the factor of the dead zone comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LambdaSource {
    /// `eps`, before it is rounded to the checkpoint's dtype (ultraquantv2).
    Fixed(f64),
    /// The tensor `Lambada` beside each weight (ultraquantv3).
    Learned,
}

impl LambdaSource {
    /// The name of the method in config.json.
    pub fn method(self) -> &'static str {
        match self {
            LambdaSource::Fixed(_) => "ultraquantv2",
            LambdaSource::Learned => "ultraquantv3",
        }
    }

    /// The fixed factor as training used it: rounded to the dtype of the weights.
    pub fn fixed(self, dtype: Dtype) -> Option<f32> {
        match self {
            LambdaSource::Fixed(lambda) => Some(dtype.round(lambda)),
            LambdaSource::Learned => None,
        }
    }
}

/// What the command line says of the training, over what config.json says.
#[derive(Clone, Debug, Default)]
pub struct TrainingOverrides {
    /// `quant_method`
    pub method: Option<String>,
    /// `granularity`
    pub granularity: Option<String>,
    /// `group_size`
    pub group_size: Option<usize>,
    /// `eps`
    pub lambda: Option<f64>,
}

impl ConfigFile {
    /// How the weights become ternary: config.json, with what the command line says over it.
    ///
    /// # Errors
    /// No sign of Tequila, a method that cannot be folded, a value that cannot be.
    pub fn training(&self, overrides: &TrainingOverrides) -> Result<Training, ModelError> {
        let method = self.setting("quant_method", overrides.method.as_deref())?;
        let granularity = self.setting("granularity", overrides.granularity.as_deref())?;
        let group_size = match overrides.group_size {
            Some(size) => Some(size),
            None => self.count("group_size")?,
        };
        let lambda = match overrides.lambda {
            Some(lambda) => Some(lambda),
            None => self.number("eps")?,
        };
        let mut missing = Vec::new();
        let learned = method.as_deref() == Some("ultraquantv3");
        let grouped = !matches!(granularity.as_deref(), Some("per_channel" | "per_tensor"));
        missing.extend(method.is_none().then_some("quant_method"));
        missing.extend(granularity.is_none().then_some("granularity"));
        missing.extend((grouped && group_size.is_none()).then_some("group_size"));
        missing.extend((!learned && lambda.is_none()).then_some("eps"));
        let (Some(method), Some(granularity), true) = (method, granularity, missing.is_empty()) else {
            return Err(ModelError::NotTequila {
                path: self.path.clone(),
                missing,
            });
        };
        self.check_bits()?;
        Ok(Training {
            granularity: self.granularity(&granularity, group_size)?,
            lambda: self.lambda(&method, lambda)?,
        })
    }
    fn check_bits(&self) -> Result<(), ModelError> {
        match self.value("w_bits") {
            None => Ok(()),
            Some(bits) if bits.as_f64() == Some(0.0) => Ok(()),
            bits => Err(self.key_error("w_bits", bits, "0, which is what ternary training sets".into())),
        }
    }

    fn granularity(&self, name: &str, group_size: Option<usize>) -> Result<Granularity, ModelError> {
        match (name, group_size) {
            ("per_channel", _) => Ok(Granularity::Channel),
            ("per_tensor", _) => Ok(Granularity::Tensor),
            ("per_group", Some(size)) if size > 0 => Ok(Granularity::Group(size)),
            ("per_group", size) => Err(ModelError::Key {
                path: self.path.clone(),
                key: "group_size".into(),
                found: size.map_or("missing".into(), |size| size.to_string()),
                expected: "a positive number of weights".into(),
            }),
            (found, _) => Err(ModelError::Key {
                path: self.path.clone(),
                key: "granularity".into(),
                found: format!("{found:?}"),
                expected: "per_group, per_channel or per_tensor".into(),
            }),
        }
    }

    fn lambda(&self, method: &str, lambda: Option<f64>) -> Result<LambdaSource, ModelError> {
        let why = match (method, lambda) {
            ("ultraquantv3", _) => return Ok(LambdaSource::Learned),
            ("ultraquantv2", Some(lambda)) if lambda.is_finite() && lambda >= 0.0 => {
                return Ok(LambdaSource::Fixed(lambda));
            }
            ("ultraquantv2", lambda) => {
                return Err(ModelError::Key {
                    path: self.path.clone(),
                    key: "eps".into(),
                    found: lambda.map_or("missing".into(), |lambda| lambda.to_string()),
                    expected: "a finite number that is not negative (the lambda of the dead zone)".into(),
                });
            }
            ("ultraquant", _) => {
                "it multiplies the dead zone by the sign of each activation, which no constant bias can stand for; \
                 train with ultraquantv2 or ultraquantv3"
            }
            ("ultraquantv4", _) => {
                "its forward pass is not a matrix and a constant; supported: ultraquantv2, ultraquantv3"
            }
            ("sherry", _) => {
                "Sherry keeps the three largest of every four weights and has no biases, which is another formula; \
                 supported: ultraquantv2, ultraquantv3"
            }
            ("absmean", _) => "it is ultraquantv2 without biases; set that with --quant-method ultraquantv2 --lambda 0",
            ("twn", _) => "its threshold and scale are another formula; supported: ultraquantv2, ultraquantv3",
            ("lsq" | "seq" | "dlt", _) => {
                "its scales are learned, which is another formula; supported: ultraquantv2, ultraquantv3"
            }
            _ => "unknown; supported: ultraquantv2, ultraquantv3",
        };
        Err(ModelError::Method {
            path: self.path.clone(),
            found: method.into(),
            why,
        })
    }

    fn setting(&self, key: &str, over: Option<&str>) -> Result<Option<String>, ModelError> {
        match over {
            Some(text) => Ok(Some(text.into())),
            None => Ok(self.text(key)?.map(String::from)),
        }
    }
}
