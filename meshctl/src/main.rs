//! `meshctl`: the command line of meshd. Every verb is a call to the daemon's socket; what it prints
//! is in `views`, how it looks in `table` and `text`.

mod cli;
mod commands;
mod connection;
mod failure;
mod output;
mod shown;
mod table;
mod text;
mod views;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Verb};
use failure::Failure;
use output::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::local("cannot start", error, "try again")),
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let socket = cli.socket_path();
    let output = Output::new(cli.output);
    match cli.verb {
        Verb::Init(arguments) => commands::membership::init(&socket, output, arguments).await,
        Verb::Join(arguments) => commands::membership::join(&socket, output, arguments).await,
        Verb::Leave(arguments) => commands::membership::leave(&socket, output, arguments).await,
        Verb::Token(verb) => commands::tokens::run(&socket, output, verb).await,
        Verb::Node(verb) => commands::nodes::run(&socket, output, verb).await,
        Verb::Signer(verb) => commands::signers::run(&socket, output, verb).await,
        Verb::Cert(verb) => commands::certificate::run(&socket, output, verb).await,
        Verb::Status(arguments) => commands::status::run(&socket, output, arguments).await,
        Verb::Peers(verb) => commands::peers::run(&socket, output, verb).await,
        Verb::Ping(arguments) => commands::ping::run(&socket, output, arguments).await,
        Verb::Mtu => commands::mtu::run(&socket, output).await,
        Verb::Events(arguments) => commands::events::run(&socket, output, arguments).await,
        Verb::Reload(arguments) => commands::reload::reload(&socket, output, arguments).await,
        Verb::Confirm => commands::reload::confirm(&socket, output).await,
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut script);
            Ok(io::stdout().write_all(&script)?)
        }
    }
}

fn report(failure: &Failure) -> ExitCode {
    if !failure.is_silent() {
        // Nobody is left to be told when this fails.
        let _ = writeln!(io::stderr(), "{failure}");
    }
    ExitCode::from(failure.exit)
}
