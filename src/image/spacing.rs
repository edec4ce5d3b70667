//! At which physical scale slices of volumes are shown to the network.

use crate::error::{Error, Result, nearest};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Rule for the scale of volumes; written as `auto`, `off` or millimetres.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Spacing {
    /// The finest scale at which every training slice fits into the square.
    #[default]
    Auto,
    /// Every slice fills the square, whatever its size in millimetres.
    Off,
    /// Millimetres along one pixel of the square.
    Mm(f32),
}

impl Spacing {
    /// What a configuration meant that was written before there was a scale.
    pub fn off() -> Spacing {
        Spacing::Off
    }
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spacing::Auto => f.write_str("auto"),
            Spacing::Off => f.write_str("off"),
            Spacing::Mm(mm) => write!(f, "{mm}"),
        }
    }
}

impl FromStr for Spacing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Spacing> {
        match (text, text.parse::<f32>()) {
            ("auto", _) => Ok(Spacing::Auto),
            ("off", _) => Ok(Spacing::Off),
            (_, Ok(mm)) if mm > 0.0 && mm.is_finite() => Ok(Spacing::Mm(mm)),
            (_, Ok(_)) => Err(Error::usage(format!("spacing `{text}` is not above 0"))
                .hint("give the millimetres along one pixel of the network's square")),
            (_, Err(_)) => {
                let hint = match nearest(text, ["auto", "off"]) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => "known are auto, off, or a number of millimetres".to_string(),
                };
                Err(Error::usage(format!("unknown spacing `{text}`")).hint(hint))
            }
        }
    }
}

impl TryFrom<String> for Spacing {
    type Error = Error;
    fn try_from(text: String) -> Result<Spacing> {
        text.parse()
    }
}

impl From<Spacing> for String {
    fn from(spacing: Spacing) -> String {
        spacing.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacings_are_written_as_they_are_read() {
        for (text, spacing) in [("auto", Spacing::Auto), ("off", Spacing::Off), ("1.5", Spacing::Mm(1.5))] {
            assert_eq!(text.parse::<Spacing>().unwrap(), spacing);
            assert_eq!(spacing.to_string(), text);
        }
        assert_eq!("atuo".parse::<Spacing>().unwrap_err().hint.unwrap(), "did you mean `auto`?");
        for wrong in ["0", "-1", "inf", "NaN"] {
            assert_eq!(wrong.parse::<Spacing>().unwrap_err().kind.exit_code(), 2, "{wrong}");
        }
    }
}
