//! Tests across the modules of `trust`.

mod certificates;
mod records;
