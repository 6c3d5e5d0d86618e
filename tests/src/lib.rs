//! Tests of meshd that need more than one function call: what they share.

pub mod adversary;
pub mod harness;
pub mod many;
pub mod matrix;
pub mod paths;
pub mod sim;
