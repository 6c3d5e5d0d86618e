//! `cert` and what is below it.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Cert {
    /// Ask a signer for the next certificate now: meshd does so by itself at two thirds of its life
    Renew,
    /// The mesh's root, which stands behind all certificates
    #[command(subcommand)]
    Ca(Ca),
    /// On a signer: issue a certificate for a host that gets it as files instead of joining with a token
    Issue(CertIssue),
    /// What certificates say, grants included: this host's and those above it, or those in a file
    Show {
        /// PEM (one or several) or DER, or '-' for stdin [default: this host's, from its daemon]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CertIssue {
    /// The node's name
    #[arg(long, value_name = "NAME", required_unless_present = "certificate")]
    pub(crate) name: Option<String>,
    /// Grant exactly this prefix to the node
    #[arg(long = "prefix", value_name = "CIDR")]
    pub(crate) prefixes: Vec<String>,
    /// Grant what the node finds on itself inside these limits, when a signer renews its certificate
    #[arg(long = "allow", value_name = "CIDR")]
    pub(crate) allow: Vec<String>,
    /// Let the node announce single addresses inside this range: its workloads (route_source = "workloads")
    #[arg(long = "workloads", value_name = "CIDR")]
    pub(crate) workloads: Vec<String>,
    /// Put the node into a group
    #[arg(long = "group", value_name = "NAME")]
    pub(crate) groups: Vec<String>,
    /// Issue the next certificate for the key, name and rights of this one, without a new key
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "prefixes", "allow", "workloads", "groups"])]
    pub(crate) certificate: Option<PathBuf>,
    /// Where the node asks first: a member's HOST:PORT [default: this host's addresses]
    #[arg(long = "seed", value_name = "ADDR")]
    pub(crate) seeds: Vec<String>,
    /// How long the certificate counts, such as 30d, at most 365d
    #[arg(long, default_value = "30d", value_parser = crate::text::parse_duration, value_name = "TIME")]
    pub(crate) ttl: Duration,
    /// The directory for the files: absent or empty
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// The roots that the mesh had, and what the replacing of one waits for
    Show,
    /// Replace the mesh's root by a new one; nothing is cut
    Rotate(CaRotate),
    /// Put the root's key on this host under a passphrase
    Encrypt(Passphrase),
    /// Open the root's key for a quarter of an hour
    Unlock(CaUnlock),
    /// Write the root's key to a file, under a passphrase, to be kept elsewhere
    Export(CaExport),
}

#[derive(Debug, Args)]
pub(crate) struct Passphrase {
    /// Read the passphrase from the first line of a file ("-": standard input) instead of asking
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CaUnlock {
    /// The key, where it is not on this host: a file that `export` wrote, or pki/root.key of a backup
    #[arg(long, value_name = "FILE")]
    pub(crate) root_key: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) passphrase: Passphrase,
}

#[derive(Debug, Args)]
pub(crate) struct CaExport {
    /// The file to write; it must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Take the key off this host when the file is written: signers are then added and revoked with `unlock --root-key`
    #[arg(long)]
    pub(crate) remove: bool,
    #[command(flatten)]
    pub(crate) passphrase: Passphrase,
}

#[derive(Debug, Args)]
pub(crate) struct CaRotate {
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}
