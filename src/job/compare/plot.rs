//! A table as a picture: mDice over the values that a row trains in the image encoder. Rows that differ in how many
//! entries are chosen lie on one line.

use super::table::{Row, Table};
use crate::config::BUDGETS;
use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::collections::BTreeMap;

const SIZE: (u32, u32) = (900, 560);
/// Of the y axis beyond the outermost interval.
const MARGIN: f64 = 0.02;

/// A row as a point.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    /// Values that train in the encoder, of what is shown at least 1: the axis is logarithmic.
    x: f64,
    low: f64,
    y: f64,
    high: f64,
    converged: bool,
}

/// The table as SVG: a line for each method, base and number of cases. Bars are the 95 % intervals over cases; rings have
/// not converged.
///
/// # Errors
/// A data error when no row has a score and a number of encoder values.
pub(super) fn svg(table: &Table) -> Result<String> {
    let lines = lines(table.rows());
    if lines.is_empty() {
        return Err(Error::data("nothing to plot: no cell with a score is there").hint("fill the table first"));
    }
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    let drawn = draw(&lines, &area);
    drop(area);
    drawn.map_err(|e| Error::job(format!("cannot draw the plot: {e}")))?;
    Ok(text)
}

/// A row's name without its number of entries, and its size.
fn lines(rows: &[Row]) -> BTreeMap<String, Vec<Point>> {
    let mut lines: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    for row in rows {
        let (Some(y), Some(x)) = (row.mdice, row.trained_encoder_parameters) else { continue };
        let (left, model) = row.method.split_once('@').unwrap_or((&row.method, ""));
        let says_how_many = |word: &&str| BUDGETS.iter().any(|key| word.starts_with(&format!("{key}=")));
        let name: Vec<&str> = left.split(':').filter(|word| !says_how_many(word)).collect();
        let at = if model.is_empty() { String::new() } else { format!("@{model}") };
        let [low, high] = row.mdice_ci95.unwrap_or([y, y]);
        let point = Point { x: x.max(1) as f64, low, y, high, converged: row.converged == Some(true) };
        lines.entry(format!("{}{at}, {} cases", name.join(":"), row.size)).or_default().push(point);
    }
    lines.values_mut().for_each(|points| points.sort_by(|a, b| a.x.total_cmp(&b.x)));
    lines
}

type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn draw(lines: &BTreeMap<String, Vec<Point>>, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Drawn<()> {
    let all = || lines.values().flatten();
    let least = all().map(|p| p.low).fold(1.0, f64::min) - MARGIN;
    let most = all().map(|p| p.high).fold(0.0, f64::max) + MARGIN;
    let (left, right) = (all().map(|p| p.x).fold(f64::MAX, f64::min), all().map(|p| p.x).fold(1.0, f64::max));
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(60)
        .build_cartesian_2d((left / 1.5..right * 1.5).log_scale(), least.max(0.0)..most.min(1.0))?;
    let whole = |x: &f64| format!("{x:.0}");
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("values that train in the image encoder")
        .y_desc("mDice")
        .x_label_formatter(&whole)
        .draw()?;
    for (i, (name, points)) in lines.iter().enumerate() {
        let colour = Palette99::pick(i).to_rgba();
        let path = points.iter().map(|p| (p.x, p.y));
        let key = move |(x, y): (i32, i32)| Circle::new((x + 10, y), 4, colour.filled());
        chart.draw_series(LineSeries::new(path, colour))?.label(name).legend(key);
        chart
            .draw_series(points.iter().map(|p| ErrorBar::new_vertical(p.x, p.low, p.y, p.high, colour.filled(), 8)))?;
        let dot = |p: &Point| Circle::new((p.x, p.y), 4, if p.converged { colour.filled() } else { colour.into() });
        chart.draw_series(points.iter().map(dot))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    fn row(method: &str, encoder: Option<usize>, mdice: Option<f64>) -> Row {
        Row::of(method, 50, encoder, mdice.map(|m| [m - 0.1, m, m + 0.1]))
    }

    #[test]
    fn rows_that_differ_in_number_share_a_line() {
        let rows = [
            row("gps:k=16", Some(1600), Some(0.7)),
            row("gps", Some(100), Some(0.6)),
            row("gps:group=global:ratio=0.1", Some(900), Some(0.5)),
            row("gps:k=4@tiny-random", Some(400), Some(0.3)),
            row("decoder", Some(0), Some(0.4)),
            row("full", Some(5000), None),
            row("norm", None, Some(0.4)),
        ];
        let lines = lines(&rows);
        let names: Vec<&str> = lines.keys().map(String::as_str).collect();
        let expected =
            ["decoder, 50 cases", "gps, 50 cases", "gps:group=global, 50 cases", "gps@tiny-random, 50 cases"];
        assert_eq!(names, expected);
        let gps: Vec<(f64, f64)> = lines["gps, 50 cases"].iter().map(|p| (p.x, p.y)).collect();
        assert_eq!(gps, [(100.0, 0.6), (1600.0, 0.7)]);
        // Nothing in the encoder lies at the left edge of a logarithmic axis.
        assert_eq!(lines["decoder, 50 cases"][0].x, 1.0);
        let table = Table::of(rows.to_vec());
        let picture = svg(&table).unwrap();
        assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
        assert!(expected.iter().all(|name| picture.contains(name)) && !picture.contains("full"));
        assert!(svg(&Table::of(vec![row("full", Some(5000), None)])).is_err());
    }
}
