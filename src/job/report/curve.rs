//! A training's history as two small plots.

use crate::error::{Error, Result};
use plotters::prelude::*;

const SIZE: (u32, u32) = (460, 240);
/// Of the y axis beyond the curve, as a part of what it spans.
const MARGIN: f64 = 0.08;

/// SVG of the loss and of the validation mDice over epochs; none without an epoch.
///
/// # Errors
/// A data error when a row lacks a number.
pub(super) fn of(history: &str) -> Result<Vec<String>> {
    let mut csv = csv::Reader::from_reader(history.as_bytes());
    let broken = |e: csv::Error| Error::data(format!("not a history: {e}"));
    let header = csv.headers().map_err(broken)?.clone();
    let place = |name: &str| {
        header.iter().position(|column| column == name).ok_or_else(|| Error::data(format!("no column `{name}`")))
    };
    let [epoch, loss, dice] = [place("epoch")?, place("loss")?, place("val_mdice")?];
    let (mut losses, mut dices) = (Vec::new(), Vec::new());
    for (n, row) in csv.records().enumerate() {
        let row = row.map_err(broken)?;
        let number = |place: usize| row.get(place).and_then(|text| text.parse::<f64>().ok()).filter(|v| v.is_finite());
        let x = number(epoch).ok_or_else(|| Error::data(format!("row {}: `epoch` is no number", n + 1)))?;
        losses.extend(number(loss).map(|y| (x, y)));
        dices.extend(number(dice).map(|y| (x, y)));
    }
    [(losses, "training loss", &RED), (dices, "validation mDice", &BLUE)]
        .into_iter()
        .filter(|(points, ..)| !points.is_empty())
        .map(|(points, name, colour)| draw(&points, name, colour))
        .collect()
}

fn draw(points: &[(f64, f64)], name: &str, colour: &RGBColor) -> Result<String> {
    let mut text = String::new();
    plot(points, name, colour, &mut text).map_err(|e| Error::job(format!("cannot draw the curve: {e}")))?;
    Ok(text)
}

fn plot(
    points: &[(f64, f64)],
    name: &str,
    colour: &RGBColor,
    to: &mut String,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let span = |of: fn(&(f64, f64)) -> f64| {
        let values = || points.iter().map(of);
        (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max))
    };
    let ((left, right), (low, high)) = (span(|p| p.0), span(|p| p.1));
    let edge = (MARGIN * (high - low)).max(1e-3);
    let area = SVGBackend::with_string(to, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .x_label_area_size(32)
        .y_label_area_size(48)
        .build_cartesian_2d(left - 0.5..right + 0.5, low - edge..high + edge)?;
    let whole = |x: &f64| format!("{x:.0}");
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(format!("epoch: {name}"))
        .x_labels(8)
        .x_label_formatter(&whole)
        .y_labels(6)
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 2, colour.filled())))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_gives_two_curves() {
        let text = "epoch,step,lr,loss,val_mdice\n1,9,0.1,0.5,0.7\n2,18,0.1,0.4,0.8\n";
        let curves = of(text).unwrap();
        assert_eq!(curves.len(), 2);
        assert!(curves.iter().all(|svg| svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>")));
        assert!(curves[0].contains("training loss") && curves[1].contains("validation mDice"));
        // Without validation cases that have foreground, there is no Dice to show.
        assert_eq!(of("epoch,step,lr,loss,val_mdice\n1,9,0.1,0.5,\n").unwrap().len(), 1);
        assert_eq!(of("epoch,step,lr,loss,val_mdice\n").unwrap().len(), 0);
        assert!(of("epoch,step\n").unwrap_err().message.contains("`loss`"));
        assert!(of("epoch,loss,val_mdice\nx,1,1\n").unwrap_err().message.contains("row 1"));
    }
}
