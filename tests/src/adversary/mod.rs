//! A member that lies: a process of its own with a legitimate identity, certificate and address.
//!
//! Responsible for speaking the protocol as that member and for saying what no honest daemon says: each [`Attack`] is
//! one lie, with the counter that a receiver must raise when it refuses it. Not for the verdict: the scenarios look at
//! the receivers. Nothing here is shared with the daemon but the formats and the means to sign.
//!
//! | file | has |
//! |---|---|
//! | `attack` | the names of all attacks and what refuses each |
//! | `member` | the identity, as an enrolled host's state directory holds it |
//! | `link` | a QUIC connection with a victim |
//! | `scene` | what is known before an attack: the records of all concerned |
//! | `records`, `foreign` | records that are not right; those of other CAs and meshes |
//! | `swim`, `streams`, `handshake` | lies about who is there; frames and handshakes that are not right |
//! | `signed`, `renewals` | what only root and signers may sign; requests that should bring nothing |
//! | `stolen` | what a signer's key is good for, and that of one that was taken out |
//! | `door`, `gossip` | what strangers reach; exchanges that say what is not so |
//! | `table` | all attacks and their outcomes, for people |
//! | `seed` | a member through which others join, and that looks at what it hands on |
//!
//! Used by the program `adversary` and by the scenarios that start it.

mod attack;
mod door;
mod foreign;
mod gossip;
mod handshake;
mod link;
mod member;
mod records;
mod renewals;
mod scene;
mod seed;
mod signed;
mod stolen;
mod streams;
mod swim;
mod table;

pub use attack::{Attack, Expected, Outcome};
pub use door::enrol_and_keep;
pub use scene::{Report, Target, attack};
pub use seed::{Replay, SeedPlan, SeedReport, serve as serve_as_seed};
pub use table::{DOCUMENTED, row, table};
