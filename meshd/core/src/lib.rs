//! Every decision of meshd.
//!
//! This crate does no I/O: time and randomness are arguments, what it wants done comes out as
//! values. The daemon, the simulator and the property tests all run the same code.
//!
//! | module | decides |
//! |---|---|
//! | [`trust`] | who is who: keys, certificates, tokens, enrolment, which records are believed |
//! | [`directory`] | what is known of each member: one verified record per identity |
//! | [`node`] | what to tell whom and when: SWIM, dissemination, anti-entropy |
//! | [`event`] | what is worth a line in the log, and how often |
//! | [`plan`] | what the kernel should hold, and the changes that lead there |
//! | [`reached`] | which addresses are whose, as connections have proved it |
//! | [`devices`] | what devices that cannot run meshd may have on this host |
//! | [`trial`] | which configuration runs while a new one is on trial |
//! | [`gateway`] | hosts that other zones reach through a gateway: the next hop, and which gateway |
//! | [`path_mtu`] | how large a packet each peer's path carries, and what to probe for it |

pub mod accord;
pub mod address;
pub mod devices;
pub mod directory;
pub mod event;
pub mod gateway;
pub mod limits;
pub mod node;
pub mod now;
pub mod path_mtu;
pub mod plan;
pub mod reached;
pub mod refusal;
pub mod trial;
pub mod trust;
