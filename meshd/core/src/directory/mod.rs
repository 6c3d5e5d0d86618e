//! What is known of each member: one verified record per identity.

/// One verified record per identity.
#[derive(Debug, Default)]
pub struct Directory {}
