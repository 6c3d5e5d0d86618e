//! Tests of planning as a whole: rules one by one, the order of changes, and random worlds.

mod arbitrary;
mod barred;
mod external;
mod hops;
mod nodes;
mod order;
mod properties;
mod rules;
mod single;
mod workloads;
mod worlds;
