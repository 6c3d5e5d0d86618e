//! Who is who: keys, certificates, tokens, enrolment, and which records are believed.

mod record;

pub use record::{AdmitContext, LaneInfo, NodeCertificate, Grant, Record};
