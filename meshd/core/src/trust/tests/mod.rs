//! Tests across the modules of `trust`.

mod certificates;
mod joining;
mod records;
mod refused;
mod renewal;
mod tokens;
mod vouching;
mod world;
