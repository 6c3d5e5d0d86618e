//! `adversary`: a legitimate member that lies. Each call tells one lie to one victim and prints, as JSON, what it did. See
//! `meshd_tests::adversary`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use meshd_proto::NodeKey;
use meshd_tests::adversary::{self, Attack, SeedPlan, Target};
use serde::Serialize;

#[derive(Parser)]
#[command(about = "A legitimate member that lies, for tests of those who must not believe it")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tells one lie.
    Attack {
        /// Which.
        attack: Attack,
        /// State directory of the host whose identity is used; its daemon must not run.
        #[arg(long, default_value = "/var/lib/meshd")]
        state: PathBuf,
        /// QUIC port of the victim.
        #[arg(long)]
        victim: SocketAddr,
        /// Identity of the member about whom lies are told.
        #[arg(long)]
        other: NodeKey,
        /// A file with a token that admits more identities.
        #[arg(long)]
        token: Option<PathBuf>,
        /// A file with a token that admits one identity.
        #[arg(long)]
        single: Option<PathBuf>,
        /// A file with a token whose time is over.
        #[arg(long)]
        expired: Option<PathBuf>,
        /// Where `enrol` has put an identity that was revoked since.
        #[arg(long)]
        revoked: Option<PathBuf>,
        /// Where certificate and key of a signer lie.
        #[arg(long)]
        stolen: Option<PathBuf>,
        /// Where those of one lie that is none any more.
        #[arg(long)]
        former: Option<PathBuf>,
    },
    /// Joins and keeps identity and certificate.
    Enrol {
        /// A file with a token.
        #[arg(long)]
        token: PathBuf,
        /// The name of the new member.
        #[arg(long)]
        name: String,
        /// QUIC port of a member.
        #[arg(long)]
        seed: SocketAddr,
        /// Where to put them.
        #[arg(long)]
        to: PathBuf,
    },
    /// Lets others join through it, and tries to use what it reads.
    Seed {
        /// State directory of the host whose identity is used; its daemon must not run.
        #[arg(long, default_value = "/var/lib/meshd")]
        state: PathBuf,
        /// Where joiners come.
        #[arg(long)]
        listen: SocketAddr,
        /// QUIC port of the signer.
        #[arg(long)]
        signer: SocketAddr,
        /// Answer the first joiner with another's certificate.
        #[arg(long)]
        lie_first: bool,
    },
    /// Names every attack and how it ends.
    List,
    /// The same as a table for people.
    Table,
}

#[derive(Serialize)]
struct Listed {
    attack: Attack,
    outcome: adversary::Outcome,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(Arguments::parse().command))
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Attack {
            attack,
            state,
            victim,
            other,
            token,
            single,
            expired,
            revoked,
            stolen,
            former,
        } => {
            let [token, single, expired] =
                [token, single, expired].map(|path| path.as_deref().map(read).transpose());
            let (token, single, expired) = (token?, single?, expired?);
            let target =
                Target { state, victim, other, token, single, expired, revoked, stolen, former };
            print(&adversary::attack(attack, &target).await?)
        }
        Command::Enrol { token, name, seed, to } => {
            adversary::enrol_and_keep(&read(&token)?, &name, seed, &to).await
        }
        Command::Seed { state, listen, signer, lie_first } => {
            let plan = SeedPlan { state, listen, signer, lie_first };
            print(&adversary::serve_as_seed(&plan, || eprintln!("listening on {listen}")).await?)
        }
        Command::List => {
            let all = Attack::all()
                .iter()
                .map(|attack| Listed { attack: *attack, outcome: attack.outcome() });
            print(&all.collect::<Vec<_>>())
        }
        Command::Table => {
            print!("{}", adversary::table());
            Ok(())
        }
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn print(what: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(what)?);
    Ok(())
}
