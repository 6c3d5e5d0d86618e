//! Whether an authentic record may replace what is held: the questions of time and order.
//!
//! Called by the directory for every record that came from outside. Records of the own store are only
//! authenticated: they were admitted once, and a host whose clock is wrong after a power cut must
//! still program its kernel from them.

use super::record::{AdmitContext, Record};
use crate::{
    limits,
    refusal::{Code, Refusal},
};

/// Judges a record against the clock and against the one that is held for the same identity.
///
/// | rule | what it stops |
/// |---|---|
/// | not revoked | a stolen host |
/// | a retiring signer's certificate only where it is held already | what a stolen signer issues after that was seen |
/// | the certificate is in date | a former member whose certificate was not renewed |
/// | not dated more than 10 min ahead | a member that makes its record outlive every forgetting |
/// | not held, and older than `forget_after` (a leave: 7 days) | the dead rising: a stored record that is played again after all have forgotten it |
/// | not under an older certificate than the held record's | a node that goes back to grants, or a name, that a newer certificate took away |
/// | a higher version | a replay of the node's own past, e.g. a key or endpoint that it gave up |
/// | one version, two payloads: the smaller hash | a clone, or a restored backup, that would leave two halves of the mesh with different records for ever |
///
/// A record with a higher version may be dated before the held one: clocks are set back, and the
/// version is what orders.
pub fn admit(record: &Record, context: &AdmitContext<'_>) -> Result<(), Refusal> {
    context.anchors.check_membership(&record.key)?;
    check_issuer(record, context)?;
    record.certificate.check_dates(context.anchors.trust_time(context.now))?;
    let ahead = record.issued_at.since(context.now);
    if ahead > limits::CLOCK_SKEW_SECONDS {
        return Err(Refusal::new(
            Code::ClockSkew,
            format!("the record of {} is dated {ahead} s ahead of this host's clock", record.name),
        ));
    }
    match context.held {
        None => check_age(record, context),
        Some(held) => check_succession(record, held),
    }
}

fn check_issuer(record: &Record, context: &AdmitContext<'_>) -> Result<(), Refusal> {
    let known = context.held.is_some_and(|held| held.certificate.hash == record.certificate.hash);
    if !known && context.anchors.is_from_retiring(&record.certificate) {
        return Err(Refusal::new(
            Code::UnknownIssuer,
            format!("the certificate of {} is from a signer that is retiring", record.name),
        ));
    }
    Ok(())
}

fn check_age(record: &Record, context: &AdmitContext<'_>) -> Result<(), Refusal> {
    let age = context.now.since(record.issued_at);
    let forgotten_after = if record.left {
        context.forget_after_seconds.min(limits::TOMBSTONE_SECONDS)
    } else {
        context.forget_after_seconds
    };
    if age > forgotten_after {
        return Err(Refusal::new(
            Code::PastDate,
            format!("the record of {} is {age} s old and was not held", record.name),
        ));
    }
    Ok(())
}

fn check_succession(record: &Record, held: &Record) -> Result<(), Refusal> {
    if record.certificate.not_before < held.certificate.not_before {
        return Err(Refusal::new(
            Code::SupersededCertificate,
            format!("{} has a newer certificate than the one of this record", record.name),
        ));
    }
    let newer = (record.version, std::cmp::Reverse(record.payload_hash))
        > (held.version, std::cmp::Reverse(held.payload_hash));
    if newer {
        return Ok(());
    }
    Err(Refusal::new(
        Code::OldVersion,
        format!(
            "version {} of the record of {}, and version {} is held",
            record.version, record.name, held.version
        ),
    ))
}
