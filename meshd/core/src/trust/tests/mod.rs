//! Tests across the modules of `trust`.

mod again;
mod certificates;
mod description;
mod joining;
mod offline;
mod pools;
mod records;
mod refused;
mod renewal;
mod scene;
mod succession;
mod tokens;
mod vouching;
mod world;
