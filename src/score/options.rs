//! What is scored, and by which rule: the flags of `score` that decide a number.

use super::counts::Counts;
use crate::error::{Error, Result, nearest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::str::FromStr;

/// The rule by which one mDice and one mIoU are made of many masks.
///
/// Published numbers follow several; they are not comparable with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Mean over cases, then over foreground classes: the headline.
    #[default]
    Plain,
    /// Polyp papers (PraNet's evaluation): probability maps, mean over 256 thresholds and over pictures.
    Pranet,
    /// mmsegmentation's mDice and mIoU: counts added over the set, mean over classes with background among them.
    Mmseg,
    /// The GPS reference script: counts added over the set, false positives ignored.
    GpsReference,
}

impl Protocol {
    /// All, in the order of the help text.
    pub const ALL: [Protocol; 4] = [Protocol::Plain, Protocol::Pranet, Protocol::Mmseg, Protocol::GpsReference];

    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Plain => "plain",
            Protocol::Pranet => "pranet",
            Protocol::Mmseg => "mmseg",
            Protocol::GpsReference => "gps-reference",
        }
    }

    /// The averaging rule, to be printed beside the number.
    pub fn averaging(self) -> &'static str {
        match self {
            Protocol::Plain => "mean over cases, then over foreground classes",
            Protocol::Pranet => {
                "mean over 256 thresholds of each stretched map, then over pictures; counts, pooled values and distances at 0.5 of the map as stored"
            }
            Protocol::Mmseg => {
                "counts added over all cases, then mean over classes, background included; per-case values and means as in plain"
            }
            Protocol::GpsReference => {
                "not comparable: false positives ignored, IoU = TP/(TP+FN), Dice = 2TP/(2TP+FN), counts added over all cases; all foreground scores 1"
            }
        }
    }

    /// Whether the number may stand beside plain Dice and IoU.
    pub fn comparable(self) -> bool {
        self == Protocol::Plain
    }

    /// The counts that Dice and IoU are made of.
    pub(super) fn counts(self, counts: &Counts) -> Counts {
        match self {
            Protocol::GpsReference => counts.without_false_positives(),
            _ => *counts,
        }
    }
}

/// What a class in neither mask of a case counts as (`--empty`). In one mask only it is always 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Empty {
    /// Undefined: `null`, left out of means, and counted.
    #[default]
    Nan,
    /// 1: nothing was there and nothing was found.
    One,
    /// 0.
    Zero,
}

impl Empty {
    /// All, in the order of the help text.
    pub const ALL: [Empty; 3] = [Empty::Nan, Empty::One, Empty::Zero];

    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Empty::Nan => "nan",
            Empty::One => "one",
            Empty::Zero => "zero",
        }
    }

    /// The value of a ratio under this rule.
    pub(super) fn fill(self, ratio: Option<f64>) -> Option<f64> {
        match self {
            Empty::Nan => ratio,
            Empty::One => ratio.or(Some(1.0)),
            Empty::Zero => ratio.or(Some(0.0)),
        }
    }
}

/// The value among `all` that is called `given`.
fn parse<T: Copy>(what: &str, given: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Result<T> {
    all.iter().copied().find(|value| name(*value) == given).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|value| name(*value)).collect();
        // In the message, not in the hint: the argument parser shows the message alone.
        let offer = nearest(given, names.iter().copied()).map(|n| format!(": did you mean `{n}`?")).unwrap_or_default();
        Error::usage(format!("no {what} is called `{given}`{offer}")).hint(format!("known: {}", names.join(", ")))
    })
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(given: &str) -> Result<Protocol> {
        parse("protocol", given, &Protocol::ALL, Protocol::name)
    }
}

impl FromStr for Empty {
    type Err = Error;

    fn from_str(given: &str) -> Result<Empty> {
        parse("rule for empty masks", given, &Empty::ALL, Empty::name)
    }
}

/// Whether surface distances are measured; they cost more than everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Surfaces {
    /// HD95, ASSD and NSD.
    #[default]
    Measured,
    /// `null`: for validation during training.
    Skipped,
}

/// What becomes of labels before anything is counted (`--merge`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LabelUse {
    /// Each is a class.
    #[default]
    Classes,
    /// These, or every one but 0 when none is named, are class 1, as `train` merges them.
    Merged(Vec<u16>),
}

/// What is scored, and by which rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How one number is made of many masks.
    pub protocol: Protocol,
    /// What a class in neither mask counts as.
    pub empty: Empty,
    /// Whether surface distances are measured.
    pub surfaces: Surfaces,
    /// Tolerance of the normalised surface Dice, in millimetres (pixels for pictures).
    pub nsd_tolerance_mm: f64,
    /// The foreground classes; without, those found in any reference or prediction.
    pub classes: Option<BTreeSet<u16>>,
    /// Whether labels are classes of their own, or one foreground.
    pub labels: LabelUse,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Resamples of the bootstrap.
    pub resamples: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            protocol: Protocol::default(),
            empty: Empty::default(),
            surfaces: Surfaces::default(),
            nsd_tolerance_mm: 1.0,
            classes: None,
            labels: LabelUse::default(),
            seed: 0,
            resamples: 2000,
        }
    }
}

impl Options {
    /// Refuses values that make no sense, before anything is read.
    ///
    /// # Errors
    /// A usage error for a tolerance that is negative or no number, or an empty or background-only list of classes.
    pub fn check(&self) -> Result<()> {
        if !(self.nsd_tolerance_mm.is_finite() && self.nsd_tolerance_mm >= 0.0) {
            return Err(Error::usage(format!("the tolerance is `{}` mm: expected 0 or more", self.nsd_tolerance_mm))
                .hint("--nsd-tolerance 1.0"));
        }
        if self.classes.as_ref().is_some_and(|classes| classes.iter().all(|class| *class == 0)) {
            return Err(Error::usage("no foreground class to score: 0 is background").hint("--labels 1,2"));
        }
        if self.protocol == Protocol::Pranet && self.classes.as_ref().is_some_and(|c| c.iter().any(|c| *c > 1)) {
            return Err(Error::usage("protocol `pranet` knows one class, 1").hint("leave --labels out"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_near_misses_are_offered() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.name().parse::<Protocol>().unwrap(), protocol);
            assert_eq!(serde_json::to_value(protocol).unwrap(), protocol.name());
        }
        for empty in Empty::ALL {
            assert_eq!(empty.name().parse::<Empty>().unwrap(), empty);
            assert_eq!(serde_json::to_value(empty).unwrap(), empty.name());
        }
        let error = "pranett".parse::<Protocol>().unwrap_err();
        assert_eq!(error.kind.exit_code(), 2);
        assert_eq!(error.message, "no protocol is called `pranett`: did you mean `pranet`?");
        assert_eq!(error.hint.unwrap(), "known: plain, pranet, mmseg, gps-reference");
    }

    #[test]
    fn senseless_options_are_refused() {
        for tolerance in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Options { nsd_tolerance_mm: tolerance, ..Options::default() }.check().is_err());
        }
        assert!(Options { classes: Some(BTreeSet::from([0])), ..Options::default() }.check().is_err());
        assert!(Options::default().check().is_ok());
    }
}
