//! Verbs and flags: the definitions from which parsing, help and completion come.

mod certificates;
mod devices;
mod reload;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::certificates::{
    Ca, CaExport, CaRotate, CaUnlock, Cert, CertIssue, Passphrase,
};
pub(crate) use self::devices::{DeviceAdd, DeviceConfig};
pub(crate) use self::reload::Reload;
use crate::output::Format;

/// Where the daemon listens unless told otherwise.
const DEFAULT_SOCKET: &str = "/run/meshd/meshd.sock";

/// Look at and change the mesh of this host.
#[derive(Debug, Parser)]
#[command(
    name = "meshctl",
    version,
    about,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the daemon cannot be reached."
)]
pub(crate) struct Cli {
    /// The daemon's socket [default: $MESHD_SOCKET, or /run/meshd/meshd.sock]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    socket: Option<PathBuf>,
    /// table and wide are for people, json (stable) and yaml for programs
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

impl Cli {
    pub(crate) fn socket_path(&self) -> PathBuf {
        let variable = || std::env::var_os("MESHD_SOCKET").filter(|path| !path.is_empty());
        self.socket
            .clone()
            .or_else(|| variable().map(PathBuf::from))
            .unwrap_or_else(|| DEFAULT_SOCKET.into())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a new mesh with this host as its first member and signer
    Init(Init),
    /// Tokens with which other hosts join
    #[command(subcommand)]
    Token(Token),
    /// The hosts that belong to the mesh
    #[command(subcommand)]
    Node(Node),
    /// The hosts that may admit, renew and revoke
    #[command(subcommand)]
    Signer(Signer),
    /// Certificates: of this host, and such as are issued as files
    #[command(subcommand)]
    Cert(Cert),
    /// Join this host to a mesh; returns when it is running and has synced once
    Join(Join),
    /// This host: state, addresses, keys, peers, health
    Status(Status),
    /// The other hosts of the mesh, and devices behind this one that cannot run meshd
    #[command(subcommand)]
    Peers(Peers),
    /// Probe a peer through the tunnel: path, round trip, MTU
    Ping(Ping),
    /// How large a packet the path to each peer carries, and how that is known
    Mtu,
    /// What happened since the daemon's start: who did what to whom, and why
    Events(Events),
    /// Read the daemon's configuration again, for good or on trial
    Reload(Reload),
    /// Keep the configuration that is on trial
    Confirm,
    /// Leave the mesh and remove everything meshd made on this host
    Leave(Leave),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Name of the mesh: lower-case letters, digits, '-' and '.'
    #[arg(long, value_name = "NAME")]
    pub(crate) mesh: String,
    /// A prefix that this host claims, such as its pod CIDR
    #[arg(long = "prefix", value_name = "CIDR")]
    pub(crate) prefixes: Vec<String>,
    /// Claim what is found on this host inside these limits
    #[arg(long = "allow", value_name = "CIDR")]
    pub(crate) allow: Vec<String>,
    /// Announce single addresses inside this range: workloads of this host (route_source = "workloads")
    #[arg(long = "workloads", value_name = "CIDR")]
    pub(crate) workloads: Vec<String>,
    /// Pool of the mesh's IPv4 addresses [default: 100.112.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub(crate) ipv4_pool: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Print a join token: one line on stdout, nothing else
    Create(TokenCreate),
    /// The tokens that this host has signed
    List,
    /// End what is left of a token's uses
    Revoke {
        /// Its id, or the beginning of it
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Everybody who belongs to the mesh, who left, and who was revoked
    List,
    /// End a node's membership: every member cuts it off at once
    Revoke(NodeRevoke),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Signer {
    /// The signers of the mesh
    List,
    /// Make a member a signer too; on the host that holds the mesh's root key
    Add {
        /// The member's name
        node: String,
    },
    /// End that a host is a signer: its nodes get certificates from another first
    Revoke(SignerRevoke),
}

#[derive(Debug, Args)]
pub(crate) struct SignerRevoke {
    /// The signer's name, or its key
    pub(crate) signer: String,
    /// It was stolen: do not wait until its nodes have other certificates
    #[arg(long)]
    pub(crate) now: bool,
    /// What it revoked is void: a thief may have revoked good nodes
    #[arg(long)]
    pub(crate) drop_revocations: bool,
    /// Why, in your words: for this host's events and journal
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NodeRevoke {
    /// The node's name, or its id
    pub(crate) node: String,
    /// Why, in your words: for this host's events and journal
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TokenCreate {
    /// The name that the joiner gets, whatever its host is called
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Grant exactly this prefix to the joiner
    #[arg(long = "prefix", value_name = "CIDR")]
    pub(crate) prefixes: Vec<String>,
    /// Grant what the joiner finds on itself inside these limits
    #[arg(long = "allow", value_name = "CIDR")]
    pub(crate) allow: Vec<String>,
    /// Let the joiner announce single addresses inside this range: its workloads (route_source = "workloads")
    #[arg(long = "workloads", value_name = "CIDR")]
    pub(crate) workloads: Vec<String>,
    /// Put the joiner into a group
    #[arg(long = "group", value_name = "NAME")]
    pub(crate) groups: Vec<String>,
    /// Where the joiner asks to be let in: a member's HOST:PORT [default: this host's addresses]
    #[arg(long = "seed", value_name = "ADDR")]
    pub(crate) seeds: Vec<String>,
    /// How long the token can be used, such as 30m, 1h or 7d [default: 1h; with --identity 365d]
    #[arg(long, value_parser = crate::text::parse_duration, value_name = "TIME")]
    pub(crate) ttl: Option<Duration>,
    /// How many hosts may join with it [default: 1; with --identity 10000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub(crate) uses: Option<u32>,
    /// Admit by identity documents of this issuer only (issuers.d/ISSUER.toml); the token is no secret then
    #[arg(long, value_name = "ISSUER", conflicts_with_all = ["prefixes", "allow", "workloads", "groups"])]
    pub(crate) identity: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The token, or '-' to read it from stdin: every user of a host can read command lines
    pub(crate) token: String,
    /// Join under this name [default: the configured name, or the host's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// A file with an identity document (JWT), for a token that wants one; '-' reads it from stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Do not join: print the audience for which the identity document must be made
    #[arg(long, conflicts_with_all = ["identity", "name"])]
    pub(crate) identity_audience: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Print nothing, exit 0 when the daemon answers (live) or the mesh can be used (ready), else 1
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) check: Option<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// The daemon answers
    Live,
    /// The daemon is in a mesh and its data plane is programmed
    Ready,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Peers {
    /// A line per peer
    List(PeersList),
    /// Everything about one peer
    Show {
        /// The peer's name
        name: String,
    },
    /// Take a device that cannot run meshd (a phone, a router) behind this host
    Add(DeviceAdd),
    /// Print the WireGuard configuration of a device of this host; it is secret
    Config(DeviceConfig),
    /// Take a device of this host away
    Remove {
        /// The device's name
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PeersList {
    /// Only peers in this state
    #[arg(long, value_enum)]
    pub(crate) state: Option<State>,
    /// Only peers of this zone; '*' stands for anything
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Only peers of this name; '*' stands for anything
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Print again whenever something changes (with -o json: an array per line)
    #[arg(long, short)]
    pub(crate) watch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    Alive,
    Suspect,
    Down,
    Left,
    Up,
    Stale,
    Never,
    Blocked,
    Device,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
            Self::Up => "up",
            Self::Stale => "stale",
            Self::Never => "never",
            Self::Blocked => "blocked",
            Self::Device => "device",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// The peer's name
    pub(crate) name: String,
    /// Probes to send
    #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    pub(crate) count: u32,
    /// Time between probes in milliseconds
    #[arg(short, long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=3_600_000), value_name = "MS")]
    pub(crate) interval: u32,
    /// Time to wait for an answer in milliseconds
    #[arg(short = 'W', long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(10..=60_000), value_name = "MS")]
    pub(crate) timeout: u32,
    /// Bytes of payload
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=65_000), value_name = "BYTES")]
    pub(crate) size: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on with what happens (with -o json: an object per line)
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only events with this code or reason, such as node_admitted or token_expired; may be given again
    #[arg(long = "code", value_name = "CODE")]
    pub(crate) codes: Vec<String>,
    /// Only what is no older than this: an age such as 10m or 2h, or a time as in -o json
    #[arg(long, value_parser = crate::text::parse_since, value_name = "AGE")]
    pub(crate) since: Option<Duration>,
    /// Only the newest N [default: 100, with --follow 10, with --since all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub(crate) limit: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Leave {
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }
}
