//! `meshd`: the daemon of the mesh, one per host.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use meshd::{check, cleanup, config::Sources, daemon, guard, logging};

/// The daemon of an encrypted mesh of Kubernetes nodes and plain VMs.
#[derive(Parser)]
#[command(name = "meshd", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    files: Files,
}

/// The default may be absent, a file that is named may not.
const DEFAULT_FILE: &str = "/etc/meshd/meshd.toml";
const CONFIG_HELP: &str = "Configuration file; FILE's directory also holds conf.d/*.toml [default: /etc/meshd/meshd.toml]";

#[derive(Args)]
struct Files {
    #[arg(long, global = true, value_name = "FILE", help = CONFIG_HELP)]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon in the foreground (the default).
    Run,
    /// Validates the configuration and this host, changes nothing, and exits.
    Check,
    /// Removes everything that meshd made in the kernel.
    Cleanup,
    /// Sets up strict leak protection as it was last; for the start of the host, before the network.
    Guard,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(file) = &cli.files.config
        && !file.exists()
    {
        eprintln!(
            "error: cannot read the configuration; {} does not exist; correct --config, or leave it away \
             for {DEFAULT_FILE}",
            file.display()
        );
        return ExitCode::FAILURE;
    }
    let sources = Sources::of(cli.files.config.unwrap_or_else(|| DEFAULT_FILE.into()));
    let result = match cli.command.unwrap_or(Command::Run) {
        Command::Run => {
            logging::start();
            daemon::run(&sources)
        }
        Command::Check => check::run(&sources),
        Command::Cleanup => cleanup::run(&sources),
        Command::Guard => guard::run(&sources),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
