//! `meshd`: the daemon of the mesh, one per host.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use meshd::{
    check, cleanup,
    daemon::{self, Sources},
    logging,
};

/// The daemon of an encrypted mesh of Kubernetes nodes and plain VMs.
#[derive(Parser)]
#[command(name = "meshd", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    files: Files,
}

#[derive(Args)]
struct Files {
    /// Configuration file; FILE's directory also holds conf.d/*.toml.
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/meshd/meshd.toml")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon in the foreground (the default).
    Run,
    /// Validates the configuration and this host, changes nothing, and exits.
    Check,
    /// Removes everything that meshd made in the kernel.
    Cleanup,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let sources = Sources::of(cli.files.config);
    let result = match cli.command.unwrap_or(Command::Run) {
        Command::Run => {
            logging::start();
            daemon::run(sources)
        }
        Command::Check => check::run(&sources),
        Command::Cleanup => cleanup::run(&sources),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
