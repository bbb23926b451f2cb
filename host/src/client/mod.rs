//! The commands that talk to a running server: `quipu counter`, `cluster`, `plugin` and `rule`.
//!
//! They use nothing but the HTTP API of `--url`; `author` needs no server. Text is for people and may change; with `--json` the server's answers
//! are printed as they came, one a line. `api` speaks HTTP, `error` holds what can go wrong and its exit code, `output`
//! prints; the other modules are one group of commands each.

mod admin;
mod api;
mod author;
mod counter;
mod error;
mod output;
mod pace;
mod plugin;
mod recording;
mod vectors;
mod watch;

use std::io::IsTerminal;

use crate::cli::{ClientCommand, ClusterCommand};
use api::Api;
pub use error::Error;
use output::Output;

/// Carries out one command on the streams of this process and returns its exit code: 0 done, 1 refused or failed,
/// 64 wrong usage, 69 the server cannot be reached.
pub fn run(command: &ClientCommand) -> u8 {
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let style = output::Style {
        json: command.server().json,
        terminal: stdout.is_terminal(),
        colour: stdout.is_terminal() && !plain,
        colour_errors: stderr.is_terminal() && !plain,
    };
    let mut output = Output::new(style, Box::new(stdout), Box::new(stderr));
    run_with(command, &mut output, pace::Limits::default())
}

/// As [`run`], with streams and waiting times of the caller's choice.
fn run_with(command: &ClientCommand, output: &mut Output<'_>, limits: pace::Limits) -> u8 {
    match carry_out(command, output, limits) {
        Ok(()) => 0,
        Err(error) => {
            output.error(&error);
            error.exit_code()
        }
    }
}

fn carry_out(command: &ClientCommand, output: &mut Output<'_>, limits: pace::Limits) -> Result<(), Error> {
    let api = || Api::new(command.server());
    match command {
        ClientCommand::Counter { command, .. } => counter::run(&api()?, command, output, limits),
        ClientCommand::Cluster { command: None, .. } => admin::cluster(&api()?, output),
        ClientCommand::Cluster { command: Some(ClusterCommand::Verify), .. } => admin::verify(&api()?, output),
        ClientCommand::Cluster { command: Some(ClusterCommand::Finalize), .. } => admin::finalize(&api()?, output),
        ClientCommand::Plugin { command, .. } => plugin::run(api, command, output),
        ClientCommand::Rule { command, .. } => admin::rule(&api()?, command, output),
    }
}

#[cfg(test)]
mod tests;
