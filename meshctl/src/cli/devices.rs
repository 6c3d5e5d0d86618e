//! `peers add` and `peers config`.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DeviceAdd {
    /// What the device is called on this host
    pub(crate) name: String,
    /// Its address, or a network behind it [default: a free address out of what is granted to this host]
    #[arg(long = "prefix", value_name = "CIDR")]
    pub(crate) prefixes: Vec<String>,
    /// Its WireGuard public key; its private key then never leaves it [default: a key pair is made]
    #[arg(long, value_name = "KEY")]
    pub(crate) public_key: Option<String>,
    /// Where it is, if it has a fixed place; any other speaks first and is found by that
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) endpoint: Option<String>,
    /// Seconds between its keepalives, which keep NAT boxes open; 0 is never [default: 25]
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=65_535), value_name = "N")]
    pub(crate) keepalive: Option<u32>,
    /// No pre-shared key: for a device that cannot have one
    #[arg(long)]
    pub(crate) no_psk: bool,
    /// A resolver or search domain for its configuration
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DeviceConfig {
    /// The device's name
    pub(crate) name: String,
    /// Print a QR code for the WireGuard app of a phone
    #[arg(long)]
    pub(crate) qr: bool,
    /// Where the device reaches this host, if it is not what this host takes for its best address
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) endpoint: Option<String>,
    /// Then throw the device's private key away: it is on the device alone
    #[arg(long)]
    pub(crate) forget_key: bool,
}
