//! `results.svg`: six panels of bars, ratios first, with the targets as red lines across their bars.

use std::fmt::Write;

use super::{Results, Spread, thousands};
use crate::plan::{CONNECTIONS, Load, Server};
use crate::policy::Estimate;

const WIDTH: f64 = 1_200.0;
const HEADER: f64 = 104.0;
const PANEL_WIDTH: f64 = 400.0;
const PANEL_HEIGHT: f64 = 320.0;
const ROWS: f64 = 2.0;
/// From a panel's edge to its plot: left, top, right, bottom.
const MARGINS: (f64, f64, f64, f64) = (58.0, 40.0, 16.0, 50.0);
/// The benchmarks that the policy panel shows, and how many at most: more would not be readable.
const SELECT: &str = "select/";
const POLICY_BARS_MAX: usize = 9;

const NATIVE: &str = "#94a1ae";
const RELAXED: &str = "#57a06a";
const DURABLE: &str = "#20639b";
const DURABLE_MANY: &str = "#86b0d8";
const TARGET: &str = "#c8322b";
const INK: &str = "#1f2328";
const FAINT: &str = "#6a737d";
const GRID: &str = "#e4e7eb";

struct Bar {
    found: Spread,
    target: Option<f64>,
    colour: &'static str,
}

struct Panel {
    title: String,
    /// Below the groups.
    axis: &'static str,
    /// Least upper end of the axis.
    top: f64,
    groups: Vec<(String, Vec<Bar>)>,
    label: fn(f64) -> String,
}

pub fn render(results: &Results) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = page(results, &mut out);
    out
}

fn page(results: &Results, out: &mut String) -> std::fmt::Result {
    let height = HEADER + ROWS * PANEL_HEIGHT + 10.0;
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" font-size="12" fill="{INK}">"#
    )?;
    writeln!(out, r##"<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>"##)?;
    header(results, out)?;
    let ratios = [
        Some(over_bare(results, Load::Add, "Adds to one hot counter, over bare hyper")),
        Some(over_bare(results, Load::AddMany, "Adds to 100,000 counters, over bare hyper")),
        Some(over_bare(results, Load::Read, "Reads of a hot counter, over bare hyper")),
        Some(over_native(results)),
        Some(batches(results)),
        None,
    ];
    for (at, panel) in ratios.iter().enumerate() {
        let x = (at % 3) as f64 * PANEL_WIDTH;
        let y = HEADER + (at / 3) as f64 * PANEL_HEIGHT;
        writeln!(out, r#"<g transform="translate({x},{y})">"#)?;
        match panel {
            Some(panel) => vertical(panel, out)?,
            None => policy(&results.policy, out)?,
        }
        writeln!(out, "</g>")?;
    }
    writeln!(out, "</svg>")
}

fn header(results: &Results, out: &mut String) -> std::fmt::Result {
    let (machine, settings) = (&results.machine, &results.settings);
    writeln!(out, r#"<text x="20" y="34" font-size="20" font-weight="bold">Quipu beside a bare hyper server</text>"#)?;
    let line = format!(
        "{} · {} · {} cores shared with the load · {} · medians of {} rounds of {} s",
        results.date, machine.cpu, machine.cores, results.file_system.kind, settings.rounds, settings.seconds
    );
    writeln!(out, r#"<text x="20" y="56" fill="{FAINT}">{}</text>"#, escape(&line))?;
    let keys = [
        (NATIVE, "native selection"),
        (RELAXED, "relaxed"),
        (DURABLE, "durable, default policy"),
        (DURABLE_MANY, "the same on 100,000 counters"),
    ];
    let mut x = 20.0;
    for (colour, name) in keys {
        writeln!(out, r#"<rect x="{x}" y="72" width="14" height="14" fill="{colour}"/>"#)?;
        writeln!(out, r#"<text x="{}" y="84">{name}</text>"#, x + 20.0)?;
        x += 44.0 + name.len() as f64 * 6.4;
    }
    line_of(out, (x, 79.0), (x + 20.0, 79.0), TARGET, 2.5)?;
    writeln!(out, r#"<text x="{}" y="84">target</text>"#, x + 26.0)?;
    x += 92.0;
    line_of(out, (x, 72.0), (x, 86.0), INK, 1.0)?;
    writeln!(out, r#"<text x="{}" y="84">lowest to highest round</text>"#, x + 8.0)
}

fn line_of(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) -> std::fmt::Result {
    writeln!(
        out,
        r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{colour}" stroke-width="{width}"/>"#,
        from.0, from.1, to.0, to.1
    )
}

fn two_digits(value: f64) -> String {
    format!("{value:.2}")
}

fn in_thousands(value: f64) -> String {
    format!("{} k", thousands(value / 1e3))
}

fn colour(server: Server) -> &'static str {
    match server {
        Server::Bare => FAINT,
        Server::Native => NATIVE,
        Server::Relaxed => RELAXED,
        Server::Durable => DURABLE,
    }
}

fn bar(results: &Results, load: Load, connections: u32, of: Server, over: Server) -> Option<Bar> {
    let found = results
        .ratios()
        .into_iter()
        .find(|ratio| (ratio.load, ratio.connections, ratio.of, ratio.over) == (load, connections, of, over))?;
    Some(Bar { found: found.found, target: found.target, colour: colour(of) })
}

fn over_bare(results: &Results, load: Load, title: &str) -> Panel {
    let group = |connections: u32| {
        let bars = Server::QUIPU.iter().filter_map(|&of| bar(results, load, connections, of, Server::Bare));
        (connections.to_string(), bars.collect())
    };
    let groups = CONNECTIONS.map(group).into();
    Panel { title: title.into(), axis: "connections", top: 1.1, groups, label: two_digits }
}

fn over_native(results: &Results) -> Panel {
    let group = |connections: u32| {
        let of = |load| bar(results, load, connections, Server::Durable, Server::Native);
        let many = of(Load::AddMany).map(|bar| Bar { colour: DURABLE_MANY, ..bar });
        (connections.to_string(), of(Load::Add).into_iter().chain(many).collect())
    };
    Panel {
        title: "Adds: default policy over native selection".into(),
        axis: "connections",
        top: 1.1,
        groups: CONNECTIONS.map(group).into(),
        label: two_digits,
    }
}

fn batches(results: &Results) -> Panel {
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    for m in results.batches() {
        let name = thousands(f64::from(m.load.operations()));
        let target = (m.server == Server::Durable).then_some(crate::plan::BATCH_TARGET_PER_SECOND);
        let bar = Bar { found: m.operations_per_second(), target, colour: colour(m.server) };
        match groups.iter_mut().find(|(group, _)| *group == name) {
            Some((_, bars)) => bars.push(bar),
            None => groups.push((name, vec![bar])),
        }
    }
    Panel {
        title: "/v1/batch, adds per second".into(),
        axis: "adds in one batch",
        top: crate::plan::BATCH_TARGET_PER_SECOND * 1.1,
        groups,
        label: in_thousands,
    }
}

/// Five or six steps of 1, 2 or 5 times a power of ten.
fn step(top: f64) -> f64 {
    let power = 10f64.powf((top / 6.0).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= top / 6.0).unwrap_or(10.0);
    factor * power
}

fn title(text: &str, out: &mut String) -> std::fmt::Result {
    writeln!(out, r#"<text x="20" y="24" font-size="13.5" font-weight="bold">{}</text>"#, escape(text))
}

fn empty(out: &mut String) -> std::fmt::Result {
    writeln!(out, r#"<text x="20" y="60" fill="{FAINT}">not measured in this run</text>"#)
}

fn vertical(panel: &Panel, out: &mut String) -> std::fmt::Result {
    title(&panel.title, out)?;
    let bars = || panel.groups.iter().flat_map(|(_, bars)| bars);
    if bars().next().is_none() {
        return empty(out);
    }
    let (left, top, right, bottom) = MARGINS;
    let (width, height) = (PANEL_WIDTH - left - right, PANEL_HEIGHT - top - bottom);
    let highest = bars().map(|bar| bar.found.high * 1.08).fold(panel.top, f64::max);
    let step = step(highest);
    let y = |value: f64| top + height * (1.0 - value / highest);
    for at in 0..=(highest / step) as u32 {
        let value = f64::from(at) * step;
        // In panels of ratios the line of 1 is the server compared with.
        let colour = if value == 1.0 { FAINT } else { GRID };
        line_of(out, (left, y(value)), (left + width, y(value)), colour, 1.0)?;
        let text = if panel.top < 2.0 { format!("{value:.1}") } else { (panel.label)(value) };
        let below = y(value) + 4.0;
        writeln!(out, r#"<text x="{}" y="{below:.1}" text-anchor="end" fill="{FAINT}">{text}</text>"#, left - 8.0)?;
    }
    let group_width = width / panel.groups.len() as f64;
    for (at, (name, bars)) in panel.groups.iter().enumerate() {
        let middle = left + group_width * (at as f64 + 0.5);
        let each = (group_width * 0.84 / bars.len().max(1) as f64).min(44.0);
        let first = middle - each * bars.len() as f64 / 2.0;
        for (at, bar) in bars.iter().enumerate() {
            upright(bar, (first + each * at as f64, each), &y, panel.label, out)?;
        }
        let below = top + height + 18.0;
        writeln!(out, r#"<text x="{middle:.1}" y="{below}" text-anchor="middle">{name}</text>"#)?;
    }
    line_of(out, (left, y(0.0)), (left + width, y(0.0)), FAINT, 1.0)?;
    let (middle, below) = (left + width / 2.0, top + height + 36.0);
    writeln!(out, r#"<text x="{middle:.1}" y="{below}" text-anchor="middle" fill="{FAINT}">{}</text>"#, panel.axis)
}

/// One bar from `x` on, `each` wide, with its whisker, target and value.
fn upright(
    bar: &Bar,
    (x, each): (f64, f64),
    y: &impl Fn(f64) -> f64,
    label: fn(f64) -> String,
    out: &mut String,
) -> std::fmt::Result {
    let (width, middle) = (each - 4.0, x + each / 2.0);
    let (top, zero) = (y(bar.found.median), y(0.0));
    writeln!(
        out,
        r#"<rect x="{:.1}" y="{top:.1}" width="{width:.1}" height="{:.1}" fill="{}"/>"#,
        x + 2.0,
        zero - top,
        bar.colour
    )?;
    line_of(out, (middle, y(bar.found.low)), (middle, y(bar.found.high)), INK, 1.0)?;
    let mut highest = y(bar.found.high);
    if let Some(target) = bar.target {
        line_of(out, (x, y(target)), (x + each, y(target)), TARGET, 2.5)?;
        // The value keeps clear of a target just above the bar.
        if (highest - 16.0..highest + 2.0).contains(&y(target)) {
            highest = y(target);
        }
    }
    let (above, text) = (highest - 5.0, label(bar.found.median));
    writeln!(out, r#"<text x="{middle:.1}" y="{above:.1}" text-anchor="middle" font-size="11">{text}</text>"#)
}

/// Lying bars with their names above: names of benchmarks are long.
fn policy(estimates: &[Estimate], out: &mut String) -> std::fmt::Result {
    title("Choosing a shard alone, median in nanoseconds", out)?;
    if estimates.is_empty() {
        return empty(out);
    }
    let mut shown: Vec<&Estimate> = estimates.iter().filter(|estimate| estimate.name.starts_with(SELECT)).collect();
    shown.sort_by_key(|estimate| estimate.target_ns.is_none());
    shown.truncate(POLICY_BARS_MAX);
    let (left, top, width) = (20.0, MARGINS.1, PANEL_WIDTH - 20.0 - 70.0);
    let highest =
        shown.iter().map(|estimate| estimate.high_ns.max(estimate.target_ns.unwrap_or(0.0))).fold(1.0, f64::max);
    let row = ((PANEL_HEIGHT - top - 10.0) / shown.len() as f64).min(42.0);
    for (at, estimate) in shown.iter().enumerate() {
        let y = top + row * at as f64;
        let length = |ns: f64| width * ns / highest;
        let (bar_top, bar_height) = (y + 14.0, (row - 20.0).max(5.0));
        writeln!(
            out,
            r#"<text x="{left}" y="{:.1}" font-size="11">{}</text>"#,
            y + 10.0,
            escape(&estimate.name[SELECT.len()..])
        )?;
        writeln!(
            out,
            r#"<rect x="{left}" y="{bar_top:.1}" width="{:.1}" height="{bar_height:.1}" fill="{}"/>"#,
            length(estimate.median_ns),
            if estimate.target_ns.is_some() { DURABLE } else { NATIVE }
        )?;
        let mut end = left + length(estimate.median_ns);
        if let Some(target) = estimate.target_ns {
            let x = left + length(target);
            line_of(out, (x, bar_top - 2.0), (x, bar_top + bar_height + 2.0), TARGET, 2.5)?;
            if (end - 2.0..end + 44.0).contains(&x) {
                end = x;
            }
        }
        let text = format!("{:.0}", estimate.median_ns);
        let base = bar_top + bar_height / 2.0 + 4.0;
        writeln!(out, r#"<text x="{:.1}" y="{base:.1}" font-size="11">{text}</text>"#, end + 6.0)?;
    }
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn every_measured_ratio_has_its_bar_and_target() {
        let results = sample();
        let svg = render(&results);
        // Two loads of nine additions, three reads, six policy ratios, four batches, three policy calls, four keys, the page.
        assert_eq!(svg.matches("<rect").count(), 18 + 3 + 6 + 4 + 3 + 4 + 1);
        let bare = results.ratios().iter().filter(|r| r.target.is_some()).count();
        assert_eq!(svg.matches(TARGET).count(), bare + 2 + 2 + 1);
        assert!(svg.contains("Some CPU &lt;fast&gt;"));
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
    }

    #[test]
    fn what_was_not_measured_says_so() {
        let mut results = sample();
        results.measurements.clear();
        results.policy.clear();
        assert_eq!(render(&results).matches("not measured").count(), 6);
    }

    #[test]
    fn axes_have_round_steps() {
        assert_eq!([1.1, 440_000.0].map(step), [0.2, 100_000.0]);
    }
}
