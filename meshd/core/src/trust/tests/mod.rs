//! Tests across the modules of `trust`.

mod certificates;
mod joining;
mod records;
mod refused;
mod tokens;
mod world;
