//! A mesh of real nodes in virtual time: one event queue, one seed.
//!
//! The nodes are `meshd_core::node::Node` with real certificates and signatures. This module is the world
//! around them: connections, loss, delay, partitions, crashes, stores. It decides nothing that a node
//! decides. Everything follows from the seed, which a failing test prints.
//!
//! At every step it is checked that what a node holds was verified, and that no version goes back.

mod event;
mod host;
mod links;
mod mesh;
mod network;
mod observe;
mod world;

pub use self::{
    event::Report,
    host::Host,
    links::{Links, Weather},
    mesh::{Mesh, prefix},
    world::World,
};
