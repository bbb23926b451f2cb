//! Checks the model within larger bounds than the tests do, which takes minutes; or shows how a broken variant fails.
//!
//! `quipu-model` checks the protocol, `quipu-model NAME` prints the shortest history that breaks the variant NAME, and
//! `quipu-model OWNERS EPOCHS OPS ROTATIONS READS` checks the protocol within these bounds.

use std::process::ExitCode;

use quipu_model::check::{Report, check};
use quipu_model::system::Bounds;
use quipu_model::variants::Variant;

/// Six to eight million states each for the first two; together three to five minutes and 2 GiB on two cores.
const LARGE: [Bounds; 3] = [Bounds::new(2, 2, 2, 1), Bounds::new(3, 2, 1, 1), Bounds::new(3, 3, 1, 0)];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [] => run_all(&LARGE),
        [name] => match Variant::BROKEN.iter().find(|variant| format!("{variant:?}") == *name) {
            Some(variant) => show(*variant),
            None => usage(&format!("there is no variant {name}")),
        },
        [owners, epochs, ops, rotations, reads] => match numbers([owners, epochs, ops, rotations, reads]) {
            Some([owners, epochs, ops, rotations, reads]) => {
                run_all(&[Bounds { owners, epochs, ops, rotations, reads }])
            }
            None => usage("bounds are numbers from 0 to 255"),
        },
        _ => usage("one argument, or five, or none"),
    }
}

fn numbers(args: [&String; 5]) -> Option<[u8; 5]> {
    let mut numbers = [0; 5];
    for (number, arg) in numbers.iter_mut().zip(args) {
        *number = arg.parse().ok()?;
    }
    Some(numbers)
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("quipu-model: {problem}");
    eprintln!("usage: quipu-model [VARIANT | OWNERS EPOCHS OPS ROTATIONS READS]");
    let names: Vec<String> = Variant::BROKEN.iter().map(|variant| format!("{variant:?}")).collect();
    eprintln!("variants: {}", names.join(", "));
    ExitCode::from(2)
}

fn run_all(all: &[Bounds]) -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let reports = all.iter().map(|bounds| {
        let report = check(Variant::Right, *bounds, threads);
        print(&report);
        report
    });
    match reports.filter(|report| !report.broken.is_empty()).count() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn show(variant: Variant) -> ExitCode {
    let report = check(variant, Bounds::new(2, 2, 2, 1), 1);
    print(&report);
    match report.broken.is_empty() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn print(report: &Report) {
    let Bounds { owners, epochs, ops, rotations, reads } = report.bounds;
    println!(
        "{owners} owners, {epochs} takeovers, {ops} operations, {rotations} rotations, {reads} exact reads: {} states in {:.1} s",
        report.states,
        report.took.as_secs_f64()
    );
    for name in &report.not_reached {
        println!("  not reached within these bounds: {name}");
    }
    for (name, history) in &report.broken {
        println!("  BROKEN: {name}");
        for step in history {
            println!("    {step}");
        }
    }
}
