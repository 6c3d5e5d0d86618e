//! Tests of meshd that need more than one function call: what they share.

pub mod harness;
pub mod sim;
