//! The page itself. What comes from files is escaped by `maud`; nothing is loaded from elsewhere and nothing runs.

use super::outline::{BOTH, PREDICTION, REFERENCE};
use super::{Picture, Row};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

/// What the page is made of.
pub(super) struct Parts<'a> {
    pub name: String,
    /// metrics.json.
    pub metrics: &'a Value,
    /// run.json.
    pub record: &'a Value,
    /// config.toml.
    pub config: &'a str,
    /// SVG.
    pub curves: Vec<String>,
    /// The lowest Dice first.
    pub rows: &'a [Row],
    pub pictures: &'a [Picture<'a>],
}

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #1b1f24; background: #fff }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccd; padding-bottom: .2em }
.sub { color: #57606a; margin-top: .2em } .big { font-size: 2em; font-weight: 600 }
.cards { display: flex; flex-wrap: wrap; gap: 2.5em; margin: 1.2em 0 } .cards div span { display: block; color: #57606a; font-size: .85em }
.warn { background: #fff4d6; border-left: 4px solid #d9a400; padding: .5em .8em }
.figures { display: flex; flex-wrap: wrap; gap: 14px } figure { margin: 0; width: 270px } figure img { width: 100%; height: auto; display: block }
figcaption { font-size: .8em; overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th, td { text-align: right; padding: .15em .8em; border-bottom: 1px solid #e4e7ec }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere }
.bar { width: 130px; padding: 0 } .bar i { display: block; height: .7em; background: #3b6fb6 }
.key { display: inline-block; width: 1.4em; height: .35em; vertical-align: middle; border: 1px solid #888; margin: 0 .3em 0 1em }
pre { background: #f4f6f8; padding: 1em; overflow-x: auto; font-size: .85em } svg { max-width: 100%; height: auto }
@media print { body { max-width: none } figure { break-inside: avoid } }
";

/// Thirds of the cases, by how much foreground their reference holds.
const SIZES: [&str; 3] = ["small", "middle", "large"];

pub(super) fn html(parts: &Parts<'_>) -> String {
    let m = parts.metrics;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "segft: " (parts.name) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (parts.name) }
                p.sub {
                    (word(&m["method"])) " on " (word(&m["model"])) ", trained on " (word(&m["dataset"]))
                    ", seed " (word(&m["seed"])) "; masks are found without a prompt"
                }
                (scores(parts))
                (training(parts))
                (pictures(parts))
                (sizes(parts.rows))
                (cases(parts))
                h2 { "Configuration" }
                pre { (parts.config) }
                p.sub {
                    "Made by segft " (word(&parts.record["segft"])) ". For research only, not a medical device. This page holds pictures of "
                    "the data set: it is as confidential as they are."
                }
            }
        }
    };
    page.into_string()
}

fn scores(parts: &Parts<'_>) -> Markup {
    let (m, unit) = (parts.metrics, word(&parts.metrics["distance_unit"]));
    let mean = &m["mean"]["1"];
    let added = m["added_parameters"].as_u64().is_some_and(|n| n > 0);
    let with = |value: &Value, interval: &Value| {
        let bounds = [&interval[0], &interval[1]].map(|v| v.as_f64());
        html! {
            div.big { (decimal(value, 3)) }
            @if let [Some(low), Some(high)] = bounds { "95 %: " (format!("{low:.3} to {high:.3}")) }
        }
    };
    html! {
        div.cards {
            div { span { "mDice" } (with(&m["mDice"], &m["mDice_ci95"])) }
            div { span { "mIoU" } (with(&m["mIoU"], &m["mIoU_ci95"])) }
            div { span { (judges(parts)) " cases" } div.big { (word(&m["n_cases"])) } "median Dice " (decimal(&m["median"]["1"]["Dice"], 3)) }
            div { span { "values trained in the encoder" @if added { " and beside it" } } div.big { (share(&m["trained_encoder_parameters"], &m["encoder_parameters"])) }
                (word(&m["trained_encoder_parameters"])) " of " (word(&m["encoder_parameters"])) @if added { ", " (word(&m["added_parameters"])) " of them added" } }
        }
        @if parts.config.lines().any(|line| line == "allow_leak = true") {
            p.warn { "Trained with --allow-leak: what judges may have been seen in training (log.txt says more)." }
        }
        @if m["frozen_weights_unchanged"] == true {
            p { "Every one of the " (word(&m["frozen_weights"])) " weights that do not train is as it was, byte by byte." }
        } @else if m["frozen_weights_unchanged"] == false {
            p.warn { "Weights moved that must not: do not use this run." }
        }
        p.sub {
            "Means over the " (judges(parts)) " cases"
            @if judges(parts) == "test" { ", which had no part in choosing weights, epoch or threshold" }
            "; intervals by bootstrap over cases. Sensitivity "
            (decimal(&mean["sensitivity"], 3)) ", precision " (decimal(&mean["precision"], 3)) ", HD95 " (decimal(&mean["HD95_mm"], 1))
            " " (unit) ", ASSD " (decimal(&mean["ASSD_mm"], 1)) " " (unit) "."
            @for (key, name) in [("Dice", "Dice"), ("HD95_mm", "the distance")] {
                @let undefined = &m["n_undefined"]["1"][key];
                @if undefined.as_u64().is_some_and(|n| n > 0) { " In " (word(undefined)) " cases " (name) " is undefined and left out." }
            }
            @if m["n_empty_reference"].as_u64().is_some_and(|n| n > 0) {
                " " (word(&m["n_empty_reference"])) " references are empty."
            }
        }
    }
}

/// Which cases judge: those of the test, or of validation in a trial of `compare`.
fn judges(parts: &Parts<'_>) -> &'static str {
    match parts.record["splits"]["test"].as_array().is_some_and(Vec::is_empty) {
        true => "validation",
        false => "test",
    }
}

fn training(parts: &Parts<'_>) -> Markup {
    let (m, splits) = (parts.metrics, &parts.record["splits"]);
    let n = |side: &str| splits[side].as_array().map_or(0, Vec::len);
    html! {
        h2 { "Training" }
        p {
            (n("train")) " training, " (n("validation")) " validation and " (n("test")) " test cases (" (word(&parts.record["split_rule"])) "). "
            (word(&m["steps"])) " steps in " (duration(&m["seconds"])) " on " (word(&m["device"])) ", " (decimal(&m["seconds_per_step"], 3))
            " s a step, at most " (word(&m["peak_rss_mib"])) " MiB. "
            @if let Some(networks) = parts.record["networks"].as_array() {
                "This is the best of " (networks.len()) " networks on validation; all were trained. "
            }
            @if m["validation_mDice"].as_f64().is_some_and(|dice| dice > 0.0) {
                "Epoch " (word(&m["best_epoch"])) " was the best on validation (mDice " (decimal(&m["validation_mDice"], 3)) ")"
            } @else {
                "On validation no epoch found anything"
            }
            "; threshold " (decimal(&m["threshold"], 2)) "."
        }
        @for curve in &parts.curves { (PreEscaped(curve)) }
    }
}

fn pictures(parts: &Parts<'_>) -> Markup {
    let key = |[r, g, b]: [u8; 3], name: &str| {
        html! { span.key style=(format!("background: rgb({r},{g},{b})")) {} (name) }
    };
    let missing: Vec<&String> = parts.pictures.iter().filter_map(|picture| picture.shown.as_ref().err()).collect();
    html! {
        h2 { "Pictures" }
        p {
            @if parts.pictures.len() < parts.rows.len() { "The worst cases, some from the middle, and the best. " }
            "Outlines:" (key(REFERENCE, "reference")) (key(PREDICTION, "prediction")) (key(BOTH, "both"))
        }
        @if !missing.is_empty() {
            p.warn { (missing.len()) " pictures cannot be shown. The first: " (missing[0]) }
        }
        div.figures {
            @for picture in parts.pictures {
                @if let Ok(shown) = &picture.shown {
                    figure {
                        img width=(shown.size[0]) height=(shown.size[1]) alt=(format!("case {} with both outlines", picture.row.id))
                            src=(format!("data:image/jpeg;base64,{}", STANDARD.encode(&shown.jpeg)));
                        figcaption {
                            b { (picture.row.dice.map_or("undefined".into(), |dice| format!("{dice:.3}"))) } " " (picture.row.id)
                            @if let Some(slice) = &shown.slice { br; (slice) }
                        }
                    }
                }
            }
        }
    }
}

/// Mean Dice of thirds of the cases by the size of their reference: small lesions are what is missed.
fn sizes(rows: &[Row]) -> Markup {
    let mut sized: Vec<(u64, f64)> =
        rows.iter().filter_map(|row| Some((row.metrics["n_ref"].as_u64().filter(|n| *n > 0)?, row.dice?))).collect();
    sized.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    // Fewer than two a third say nothing.
    if sized.len() < 2 * SIZES.len() {
        return html! {};
    }
    let part = |i: usize| &sized[i * sized.len() / SIZES.len()..(i + 1) * sized.len() / SIZES.len()];
    html! {
        h2 { "By the size of the reference" }
        table {
            tr { th { "reference" } th { "foreground, voxels or pixels" } th { "cases" } th { "mean Dice" } th { "Dice below ½" } }
            @for (i, name) in SIZES.iter().enumerate() {
                @let cases = part(i);
                @let mean = cases.iter().map(|(_, dice)| dice).sum::<f64>() / cases.len() as f64;
                tr {
                    td { (name) }
                    td { (cases[0].0) " to " (cases[cases.len() - 1].0) }
                    td { (cases.len()) }
                    td { (format!("{mean:.3}")) }
                    td { (cases.iter().filter(|(_, dice)| *dice < 0.5).count()) }
                }
            }
        }
    }
}

fn cases(parts: &Parts<'_>) -> Markup {
    let unit = word(&parts.metrics["distance_unit"]);
    html! {
        h2 { "Every case" }
        table {
            tr { th { "case" } th { "Dice" } th.bar {} th { "IoU" } th { "sensitivity" } th { "precision" } th { "HD95, " (unit) } th { "ASSD, " (unit) } }
            @for row in parts.rows {
                tr {
                    td { (row.id) }
                    td { (row.dice.map_or("undefined".into(), |dice| format!("{dice:.4}"))) }
                    td.bar { i style=(format!("width: {:.0}%", 100.0 * row.dice.unwrap_or(0.0))) {} }
                    @for (key, digits) in [("IoU", 4), ("sensitivity", 3), ("precision", 3), ("HD95_mm", 1), ("ASSD_mm", 1)] {
                        td { (decimal(&row.metrics[key], digits)) }
                    }
                }
            }
        }
    }
}

/// A text or a whole number as people read it.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "unknown".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn decimal(value: &Value, digits: usize) -> String {
    value.as_f64().map_or_else(|| "undefined".into(), |v| format!("{v:.digits$}"))
}

fn share(part: &Value, whole: &Value) -> String {
    match (part.as_f64(), whole.as_f64()) {
        (Some(part), Some(whole)) if whole > 0.0 => format!("{:.2} %", 100.0 * part / whole),
        _ => "unknown".into(),
    }
}

fn duration(seconds: &Value) -> String {
    match seconds.as_f64() {
        Some(s) if s >= 120.0 => format!("{:.0} min", s / 60.0),
        Some(s) => format!("{s:.0} s"),
        None => "an unknown time".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(id: &str, dice: Option<f64>, n_ref: u64) -> Row {
        Row { id: id.into(), dice, metrics: json!({ "n_ref": n_ref, "Dice": dice }), files: Default::default() }
    }

    #[test]
    fn names_are_escaped_and_undefined_is_said() {
        let rows = [row("<script>alert(1)</script>", Some(0.25), 9), row("b", None, 0)];
        let metrics = json!({ "mDice": 0.25, "mDice_ci95": null, "method": "gps", "frozen_weights_unchanged": false });
        let pictures = [Picture { row: &rows[0], shown: Err("case <b>: gone".into()) }];
        let parts = Parts {
            name: "a & b".into(),
            metrics: &metrics,
            record: &Value::Null,
            config: "out = \"<x>\"",
            curves: vec![],
            rows: &rows,
            pictures: &pictures,
        };
        let html = html(&parts);
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;"));
        assert!(html.contains("a &amp; b") && html.contains("&lt;x&gt;") && html.contains("case &lt;b&gt;: gone"));
        assert!(html.contains("Weights moved that must not") && html.contains("width: 25%"));
        assert!(html.contains("<td>undefined</td>"), "a case without foreground anywhere");
    }

    #[test]
    fn thirds_hold_every_case_once() {
        // Larger references are found better.
        let rows: Vec<Row> = (0..7).map(|i| row(&format!("c{i}"), Some(0.1 * i as f64), 10 + i)).collect();
        let text = sizes(&rows).into_string();
        for line in [
            "<td>small</td><td>10 to 11</td><td>2</td><td>0.050</td><td>2</td>",
            "<td>middle</td><td>12 to 13</td><td>2</td><td>0.250</td><td>2</td>",
            "<td>large</td><td>14 to 16</td><td>3</td><td>0.500</td><td>1</td>",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(sizes(&rows[..5]).into_string().is_empty());
    }
}
