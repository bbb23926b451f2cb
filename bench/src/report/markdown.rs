//! `results.md`: targets and ratios first, then the absolute numbers, then how and where they were measured.

use std::fmt::Write;

use super::{Check, Measurement, Results, Run, median, thousands};
use crate::languages::CONNECTIONS;
use crate::plan::{COUNTERS, Load};

pub fn render(results: &Results) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = sections(results, &mut text);
    text
}

fn sections(results: &Results, out: &mut String) -> std::fmt::Result {
    let checks = results.checks();
    let met = checks.iter().filter(|check| check.met).count();
    writeln!(out, "# Quipu beside a bare hyper server\n")?;
    writeln!(out, "{} · commit {} · {met} of {} targets met\n", results.date, results.version, checks.len())?;
    writeln!(out, "![ratios and rates](results.svg)\n")?;
    warnings(results, out)?;

    targets(&checks, out)?;
    ratios(results, out)?;
    rates(results, out)?;
    journal(results, out)?;
    languages(results, out)?;
    policy(results, out)?;
    profiles(results, out)?;
    conditions(results, out)
}

pub fn targets(checks: &[Check], out: &mut String) -> std::fmt::Result {
    writeln!(out, "## Targets\n\n| | what | needed | median (lowest to highest) |\n|---|---|---|---|")?;
    for check in checks {
        let verdict = if check.met { "met" } else { "**short**" };
        writeln!(out, "| {verdict} | {} | {} | {} |", check.what, check.needed, check.found)?;
    }
    Ok(())
}

fn warnings(results: &Results, out: &mut String) -> std::fmt::Result {
    let busy = results.machine.busy_before;
    if busy > 0.1 {
        writeln!(
            out,
            "> **The machine was not idle**: others used {:.0} % of its CPU before the start. Ratios still tell \
             something, absolute numbers do not.\n",
            busy * 100.0
        )?;
    }
    if results.settings.quick {
        writeln!(out, "> A quick run: a rough look, no proof.\n")?;
    }
    for note in &results.notes {
        writeln!(out, "> {note}\n")?;
    }
    Ok(())
}

fn ratios(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n## Ratios\n")?;
    writeln!(
        out,
        "Requests per second of one server over those of the other, measured beside it in the same round. The last \
         column compares what one operation costs: CPU time of the first server over that of the other, without the \
         load generator's.\n"
    )?;
    writeln!(out, "| load | connections | of | over | median | lowest | highest | CPU per operation |")?;
    writeln!(out, "|---|--:|---|---|--:|--:|--:|--:|")?;
    for ratio in results.ratios() {
        writeln!(
            out,
            "| {} | {} | {} | {} | **{:.2}** | {:.2} | {:.2} | {:.2} |",
            ratio.load.name(),
            ratio.connections,
            ratio.of.name(),
            ratio.over.name(),
            ratio.found.median,
            ratio.found.low,
            ratio.found.high,
            ratio.cpu.median
        )?;
    }
    Ok(())
}

fn rates(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n## Absolute numbers\n")?;
    writeln!(out, "Medians of the rounds. Operations are additions or reads; CPU is the server's alone.\n")?;
    writeln!(out, "| load | connections | server | operations/s | p50 ms | p99 ms | CPU µs per operation |")?;
    writeln!(out, "|---|--:|---|--:|--:|--:|--:|")?;
    for m in &results.measurements {
        let cpu = m.spread_of(|run| run.cpu_us_per_request() / f64::from(m.load.operations()));
        writeln!(
            out,
            "| {} | {} | {} | {} | {:.2} | {:.2} | {:.2} |",
            m.load.name(),
            m.connections,
            m.server.name(),
            thousands(m.operations_per_second().median),
            m.spread_of(|run| run.answers.p50_us).median / 1e3,
            m.spread_of(|run| run.answers.p99_us).median / 1e3,
            cpu.median
        )?;
    }
    Ok(())
}

fn journal(results: &Results, out: &mut String) -> std::fmt::Result {
    let written: Vec<&Measurement> =
        results.measurements.iter().filter(|m| m.runs.iter().all(|run| run.journal.is_some())).collect();
    if written.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n## The share of the sync\n")?;
    writeln!(
        out,
        "One durable write at a time takes what has come in since the last. Its share is the part of the run during \
         which one was under way; with it near 100 % the disk sets the pace.\n"
    )?;
    writeln!(out, "| load | connections | server | writes/s | adds per write | ms per write | share of the time |")?;
    writeln!(out, "|---|--:|---|--:|--:|--:|--:|")?;
    for m in written {
        let of = |value: &dyn Fn(f64, f64, &super::Run) -> f64| {
            m.spread_of(|run| run.journal.map_or(0.0, |journal| value(journal.groups, journal.write_seconds, run)))
                .median
        };
        let operations = f64::from(m.load.operations());
        writeln!(
            out,
            "| {} | {} | {} | {} | {:.1} | {:.3} | {:.0} % |",
            m.load.name(),
            m.connections,
            m.server.name(),
            thousands(of(&|groups, _, run| groups / run.answers.seconds)),
            of(&|groups, _, run| run.answers.good as f64 * operations / groups.max(1.0)),
            of(&|groups, seconds, _| seconds * 1e3 / groups.max(1.0)),
            of(&|_, seconds, run| seconds / run.answers.seconds * 100.0)
        )?;
    }
    Ok(())
}

fn languages(results: &Results, out: &mut String) -> std::fmt::Result {
    let Some(native) = results.languages.first() else { return Ok(()) };
    writeln!(out, "\n## Policies by language\n")?;
    writeln!(
        out,
        "Durable additions to one hot counter at {CONNECTIONS} connections, each policy under a rule of its own. *Over \
         native*: requests per second over those without policies, measured in the same round. *Itself*: the share of \
         requests that the policy answered and not the native choice in its place. With its breaker open a policy that \
         always fails is not asked; *breaker closed* is the same component where it does not fail.\n"
    )?;
    writeln!(
        out,
        "| policy | runs | requests/s | over native | lowest | highest | p50 ms | p99 ms | CPU µs | itself |"
    )?;
    writeln!(out, "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")?;
    for language in &results.languages {
        let of = |value: fn(&Run) -> f64| median(&language.runs.iter().map(value).collect::<Vec<_>>());
        let ratio = language.over(native);
        let policy = !language.place.is_empty();
        writeln!(
            out,
            "| {} | {} | {} | **{:.2}** | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {} |",
            language.name,
            language.place,
            thousands(of(|run| run.answers.per_second())),
            ratio.median,
            ratio.low,
            ratio.high,
            of(|run| run.answers.p50_us) / 1e3,
            of(|run| run.answers.p99_us) / 1e3,
            of(Run::cpu_us_per_request),
            if policy { format!("{:.1} %", median(&language.answered) * 100.0) } else { String::new() }
        )?;
    }
    Ok(())
}

fn policy(results: &Results, out: &mut String) -> std::fmt::Result {
    if results.policy.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n## The policy call alone\n\nFrom one thread, with its way to the pool and back where it runs there.\n"
    )?;
    writeln!(out, "| benchmark | median ns | 95 % interval | calls/s |\n|---|--:|--:|--:|")?;
    for estimate in &results.policy {
        writeln!(
            out,
            "| {} | {:.0} | {:.0} to {:.0} | {} |",
            estimate.name,
            estimate.median_ns,
            estimate.low_ns,
            estimate.high_ns,
            thousands(1e9 / estimate.median_ns)
        )?;
    }
    Ok(())
}

fn profiles(results: &Results, out: &mut String) -> std::fmt::Result {
    if results.profiles.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n## Profiles of what fell short\n")?;
    writeln!(out, "Shares of the server's CPU time: by thread, then by function over all threads.")?;
    for profile in &results.profiles {
        writeln!(
            out,
            "\n### {}: {} at {} connections\n\n```\n{}\n\n{}\n```",
            profile.server.name(),
            profile.load.name(),
            profile.connections,
            profile.threads,
            profile.functions
        )?;
    }
    Ok(())
}

fn conditions(results: &Results, out: &mut String) -> std::fmt::Result {
    let (machine, settings) = (&results.machine, &results.settings);
    writeln!(out, "\n## Machine and settings\n")?;
    writeln!(
        out,
        "- {} · {} cores, shared by server and load · {} MiB · Linux {} · busy before the start: {:.0} %",
        machine.cpu,
        machine.cores,
        thousands(machine.memory_mib as f64),
        machine.kernel,
        machine.busy_before * 100.0
    )?;
    let disk = &results.file_system;
    writeln!(out, "- data directories on {} ({})", disk.device, disk.kind)?;
    writeln!(
        out,
        "- wrk with {} threads, {} s per measurement, {} rounds, servers in turn within each load",
        settings.wrk_threads, settings.seconds, settings.rounds
    )?;
    writeln!(out, "- {} counters, all in memory before the first measurement", thousands(f64::from(COUNTERS)))?;
    if let Some(calibration) = &results.calibration {
        writeln!(
            out,
            "- bare hyper: the {} layout, the faster at 64 connections: per-core {}/s, multi-thread {}/s",
            calibration.kept.name(),
            thousands(calibration.per_core_per_second),
            thousands(calibration.multi_thread_per_second)
        )?;
    }
    if results.measurements.iter().any(|m| m.load == Load::Add) {
        writeln!(out, "- after the run the hot counter of every Quipu held every acknowledged addition")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn ratios_come_before_absolute_numbers() {
        let text = render(&sample());
        let at = |heading: &str| text.find(heading).unwrap_or_else(|| panic!("no {heading} in {text}"));
        assert!(at("## Targets") < at("## Ratios") && at("## Ratios") < at("## Absolute numbers"));
        assert!(
            text.contains("| adds, one hot counter | 256 | durable | bare hyper | **0.70** | 0.70 | 0.80 | 1.43 |")
        );
        assert!(text.contains("| select/64 shards | 275 | 270 to 284 | 3,636,364 |"));
        assert!(text.contains("| native |  | 80,080 | **1.00** | 1.00 | 1.00 | 0.60 | 2.00 |"), "{text}");
        assert!(text.contains("| Python | pooled | 20,020 | **0.25** |") && text.contains("| 100.0 % |"), "{text}");
        assert!(text.contains("| adds, one hot counter | 16 | durable | 2,000 | 35.0 | 0.200 | 40 % |"));
        assert!(text.contains("data directories on /dev/vda (ext4)"));
    }

    #[test]
    fn a_busy_machine_is_said_first() {
        let mut results = sample();
        assert!(!render(&results).contains("not idle"));
        results.machine.busy_before = 0.8;
        assert!(render(&results).find("not idle").expect("said") < 500);
    }
}
