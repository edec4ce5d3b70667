//! The table in words: Markdown for a README, and a sentence for each comparison.

use super::{Comparison, Row, Table};
use crate::job::compare::Size;
use std::fmt::Write;

/// A p below this, after Holm's correction, is called a difference.
const SIGNIFICANT: f64 = 0.05;

impl Table {
    /// The table for a README, with what may be said about it.
    pub fn markdown(&self) -> String {
        // Comparisons of before it was measured have no such column.
        let inference = self.rows.iter().any(|row| row.extra_inference.is_some());
        let mut columns =
            vec!["method", "cases", "mDice", "95 % over cases", "mIoU", "trained values", "of the encoder"];
        columns.extend(["of all", "patch KiB"]);
        columns.extend(inference.then_some("at inference"));
        columns.extend(["s a step", "peak MiB", "twice the steps"]);
        let mut text = format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
        // Writing to a string cannot fail.
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.fields(inference).join(" | "));
        }
        for comparison in &self.comparisons {
            let _ = write!(text, "\n{}.\n", comparison.sentence());
        }
        let _ = write!(text, "\n{}\n", self.notes().join(" "));
        text
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.missing.is_empty() {
            let shown = self.missing.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let more = if self.missing.len() > 5 { ", …" } else { "" };
            notes.push(format!("**{} of {} cells are missing** ({shown}{more}).", self.missing.len(), self.n_cells));
        }
        let (Some(steps), Some(trials)) = (self.steps, self.trials) else { return notes };
        notes.push(format!(
            "{steps} steps a training. mDice and mIoU: mean over seeds, ± standard deviation; the test set is read once \
             for each training. The interval is a bootstrap over cases of each case's mean over seeds. The learning \
             rate of every method{} was chosen by {trials} {}{} on validation cases. Twice the steps: whether \
             doubling them moves the {} by less than 0.01; numbers in brackets do not count. {}Seconds include validation; the peak is that of the seed with the lowest, since memory kept from earlier \
             trainings only adds.",
            match self.tuned_at {
                Some(size) => format!(", with {size} cases for all sizes,"),
                None => " and size".into(),
            },
            if trials == 1 { "trial" } else { "trials" },
            match self.trial_seeds {
                Some(seeds) if seeds > 1 => format!(" ({} rates, the mean of {seeds} seeds each)", trials / seeds),
                _ => String::new(),
            },
            self.what_moves(),
            match self.rows.iter().any(|row| row.extra_inference.is_some()) {
                true => "At inference: what encoding a picture takes more than with the base; 0 where the fine-tune merges. ",
                false => "",
            }
        ));
        if self.comparisons.iter().any(|c| c.paired.is_some()) {
            notes.push(
                "p: sign-flip permutation test over cases, two-sided, corrected by Holm over all comparisons of this \
                 table; intervals of differences: bootstrap over cases, not corrected."
                    .into(),
            );
        }
        notes
    }

    /// What is looked at after twice the steps.
    fn what_moves(&self) -> String {
        let seeds = match self.doubled_seeds {
            Some(seeds) if seeds > 1 => format!("mean over {seeds} seeds of the"),
            _ => "first seed's".to_string(),
        };
        match self.left_out {
            0 => format!("{seeds} validation mDice"),
            n if self.all_left_out => {
                format!("{seeds} mDice of {n} cases of the training set that the size leaves out")
            }
            n => format!(
                "{seeds} mDice of {n} cases of the training set that the size leaves out, of validation where it leaves none out,"
            ),
        }
    }
}

impl Row {
    pub(super) fn fields(&self, inference: bool) -> Vec<String> {
        let or_hole = |text: Option<String>| text.unwrap_or_else(|| "–".into());
        let present = match self.seeds.len() {
            n if n > 0 && n < self.seeds_wanted => format!(" ({n} of {} seeds)", self.seeds_wanted),
            _ => String::new(),
        };
        let sd = self.mdice_sd.map(|sd| format!(" ± {sd:.3}")).unwrap_or_default();
        let score = |text: Option<String>| match (text, self.converged) {
            (Some(text), Some(false)) => format!("({text})"),
            (text, _) => or_hole(text),
        };
        let share = |part: Option<usize>, all: Option<usize>| {
            part.zip(all).map(|(part, all)| format!("{:.2} %", 100.0 * part as f64 / all as f64))
        };
        let more = |part: f64| if part == 0.0 { "0".to_string() } else { format!("{:+.0} %", 100.0 * part) };
        let mut fields = vec![
            self.method.clone(),
            self.size.to_string(),
            format!("{}{present}", score(self.mdice.map(|m| format!("{m:.3}{sd}")))),
            score(self.mdice_ci95.map(|[low, high]| format!("{low:.3} to {high:.3}"))),
            score(self.miou.map(|m| format!("{m:.3}"))),
            or_hole(self.trained_parameters.map(thousands)),
            or_hole(share(self.trained_encoder_parameters, self.encoder_parameters)),
            or_hole(share(self.trained_parameters, self.parameters)),
            or_hole(self.patch_bytes.map(|bytes| thousands(bytes.div_ceil(1024) as usize))),
        ];
        if inference {
            fields.push(or_hole(self.extra_inference.map(more)));
        }
        fields.extend([
            or_hole(self.seconds_per_step.map(|s| format!("{s:.2}"))),
            or_hole(self.peak_rss_mib.map(|mib| mib.to_string())),
            or_hole(self.converged.map(|yes| if yes { "converged" } else { "not converged" }.into())),
        ]);
        fields
    }
}

impl Comparison {
    /// What may be said, in words.
    pub(super) fn sentence(&self) -> String {
        let Comparison { size, first, other, .. } = self;
        let at = match size {
            Size::All => "all cases".to_string(),
            Size::Cases(n) => format!("{n} cases"),
        };
        let (Some(paired), Some(p)) = (self.paired, self.p_holm) else {
            let reason = self.reason.as_deref().unwrap_or("nothing is there");
            return format!("Trained on {at}, {first} and {other} are not compared: {reason}");
        };
        let verdict = match (p < SIGNIFICANT, paired.difference > 0.0) {
            (false, _) => format!("{first} and {other} do not differ"),
            (true, true) => format!("{other} is better than {first}"),
            (true, false) => format!("{other} is worse than {first}"),
        };
        let interval =
            paired.ci95.map(|[l, h]| format!(", 95 % {} to {}", signed(l, ""), signed(h, ""))).unwrap_or_default();
        let p = if p < 0.001 { "p < 0.001".to_string() } else { format!("p = {}", two_digits(p)) };
        let left_out = match self.n_left_out {
            0 => String::new(),
            n => format!("; {n} without a Dice left out"),
        };
        format!(
            "Trained on {at}, {verdict} on these {} test cases (difference {}{interval}, {p}; {} seeds{left_out})",
            paired.n_cases,
            signed(paired.difference, "+"),
            self.seeds.len()
        )
    }
}

/// Three decimals with a real minus sign, and `plus` before what is not negative.
fn signed(value: f64, plus: &str) -> String {
    let digits = format!("{:.3}", value.abs());
    let sign = if value < 0.0 && digits != "0.000" { "−" } else { plus };
    format!("{sign}{digits}")
}

/// Two significant digits of a number in 0.001..1.
fn two_digits(p: f64) -> String {
    let decimals = if p < 0.01 {
        4
    } else if p < 0.1 {
        3
    } else {
        2
    };
    format!("{p:.decimals$}")
}

/// 1,234,567.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::sd;
    use super::*;

    #[test]
    fn numbers_in_words() {
        assert_eq!(
            (signed(-0.0101, "+"), signed(0.0039, "+"), signed(0.018, "")),
            ("−0.010".into(), "+0.004".into(), "0.018".into())
        );
        assert_eq!(signed(-0.0001, "+"), "+0.000");
        assert_eq!([0.5999, 0.04211, 0.00123].map(two_digits), ["0.60", "0.042", "0.0012"]);
        assert_eq!([7, 999, 1000, 84_224].map(thousands), ["7", "999", "1,000", "84,224"]);
        assert_eq!((sd(&[1.0]), sd(&[1.0, 3.0])), (None, Some(2.0f64.sqrt())));
    }
}
