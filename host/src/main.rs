//! The `quipu` program: logging, settings, run, exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use quipu::cli::{Cli, Command, StoreCommand};
use quipu::settings::{EXIT_USAGE, Environment, Settings};
use quipu::store::{cassandra, embedded};
use quipu::{app, client};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::from_process() {
        Ok(cli) => cli,
        Err(code) => return ExitCode::from(code),
    };
    match cli.command {
        Command::Client(command) => ExitCode::from(client::run(&command)),
        Command::Store { command: StoreCommand::Init(args) } => {
            match Settings::resolve_for_store(&args, &Environment::of_process()) {
                Ok(settings) => init_store(&settings),
                Err(invalid) => {
                    eprintln!("quipu: {invalid}");
                    ExitCode::from(EXIT_USAGE)
                }
            }
        }
        Command::Serve(args) => match Settings::resolve(&args, &Environment::of_process()) {
            Ok(settings) => serve(settings),
            Err(invalid) => {
                eprintln!("quipu: {invalid}");
                ExitCode::from(EXIT_USAGE)
            }
        },
    }
}

fn init_store(settings: &Settings) -> ExitCode {
    start_logging("error");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(app::init_store(settings)));
    match done {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("quipu: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: Settings) -> ExitCode {
    start_logging(&settings.log);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(app::run(settings)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("quipu: {why:#}");
            ExitCode::FAILURE
        }
    }
}

/// Lines go to stderr, coloured on a terminal. The storage engine's own news are left out unless they are asked for.
fn start_logging(filter: &str) {
    let filter = tracing_subscriber::EnvFilter::new(format!(
        "{},{},{filter}",
        embedded::ENGINE_LOG_FILTER,
        cassandra::DRIVER_LOG_FILTER
    ));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
