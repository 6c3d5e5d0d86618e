//! A mesh of real nodes in virtual time: one event queue, one seed.
//!
//! The nodes are `meshd_core::node::Node` with real certificates and signatures. This module is the world
//! around them: connections, loss, delay, partitions, crashes, stores. It decides nothing that a node
//! decides. Everything follows from the seed, which a failing test prints.
//!
//! At every step it is checked that what a node holds was verified, and that no version goes back.

mod host;
mod links;
mod mesh;
mod network;
mod world;

pub use self::{
    host::Host,
    links::{Links, Weather},
    mesh::{Mesh, prefix},
    world::{Report, World},
};
