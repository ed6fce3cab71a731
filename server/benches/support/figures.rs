//! From samples to what is printed.

use std::io::Write;

/// A copy of `samples` in order.
fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// The sample that `share` of all samples do not exceed; NaN of none.
pub(crate) fn quantile(samples: &[f64], share: f64) -> f64 {
    let sorted = sorted(samples);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// The middle sample, or the mean of the two in the middle; NaN of none.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let sorted = sorted(samples);
    match (sorted.get(sorted.len() / 2), sorted.len() % 2) {
        (Some(&upper), 0) => f64::midpoint(sorted[sorted.len() / 2 - 1], upper),
        (Some(&middle), _) => middle,
        (None, _) => f64::NAN,
    }
}

/// The median of what `ours` is to `theirs` round by round: a machine that was slow
/// for a while was so for both.
pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    median(&ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
}

/// Three digits that count, or all before the point.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        a if !a.is_finite() => "–".to_owned(),
        a if a < 9.995 => format!("{value:.2}"),
        a if a < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The median, and the range in brackets.
pub(crate) fn spread(samples: &[f64]) -> String {
    format!(
        "{} ({}–{})",
        number(median(samples)),
        number(quantile(samples, 0.0)),
        number(quantile(samples, 1.0))
    )
}

/// A ratio, as `2.81×`.
pub(crate) fn times(ratio: f64) -> String {
    if ratio.is_finite() { format!("{ratio:.2}×") } else { "–".to_owned() }
}

/// A share, as `47 %`.
pub(crate) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.0} %", share * 100.0) } else { "–".to_owned() }
}

/// The smallest cosine between vectors of the same texts.
pub(crate) fn min_cosine(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    if ours.len() != theirs.len() || ours.is_empty() {
        return f64::NAN;
    }
    ours.iter().zip(theirs).map(cosine).fold(f64::INFINITY, f64::min)
}

/// A cosine with the digits that matter near one.
pub(crate) fn cosine(value: f64) -> String {
    if value.is_finite() { format!("{value:.5}") } else { "–".to_owned() }
}

/// Writes a table in Markdown, its columns aligned: names left, figures right.
pub(crate) fn table(out: &mut impl Write, head: &[&str], rows: &[Vec<String>]) -> std::io::Result<()> {
    let chars = |text: &str| text.chars().count();
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(column, name)| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| chars(cell));
            cells.chain([chars(name), 3]).max().unwrap_or(3)
        })
        .collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, &width))| {
                    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        writeln!(out, "| {} |", cells.join(" | "))
    };
    line(&mut head.iter().copied())?;
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(
            |(column, &width)| {
                if column == 0 { "-".repeat(width) } else { format!("{}:", "-".repeat(width - 1)) }
            },
        )
        .collect();
    line(&mut rule.iter().map(String::as_str))?;
    for row in rows {
        line(&mut row.iter().map(String::as_str))?;
    }
    Ok(())
}
