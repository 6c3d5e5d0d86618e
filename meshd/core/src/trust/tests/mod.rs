//! Tests across the modules of `trust`.

mod certificates;
mod description;
mod joining;
mod offline;
mod records;
mod refused;
mod renewal;
mod succession;
mod tokens;
mod vouching;
mod world;
