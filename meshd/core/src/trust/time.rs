//! What time it is for certificates: by this host's clock and by what signers say.
//!
//! A clock that jumps years ahead would end every certificate, and one that jumps back would refuse every new
//! one; a mesh whose signers are gone would end by itself. So signers sign the time once an hour, the newest
//! stamp is kept by everybody, and a certificate has ended only when both clock and stamp say so. Without
//! signers that time stands still, and nothing is cut. `[trust] expiry = "hard"` goes by the clock alone.
//!
//! When signers speak again after a long silence, certificates have ended by their time that nobody could
//! renew: for three days more they count as they did before, and everybody renews.
//!
//! A stamp far ahead of this host's clock is refused: a stolen signer cannot end certificates early, and
//! without the signer's agreement a wrong clock cannot either.

use std::sync::Arc;

use bytes::Bytes;
use meshd_proto::{MeshId, wire};
use prost::Message;

use super::{
    anchors::Anchors,
    ca::Intermediate,
    signing::{self, Kind},
};
use crate::{
    limits,
    now::UnixTime,
    refusal::{Code, Refusal},
};

/// Whether certificates end by the clock alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Only when a signer's time agrees.
    #[default]
    Soft,
    /// By the clock.
    Hard,
}

/// The two times by which a certificate is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustTime {
    /// For what begins.
    pub begins: UnixTime,
    /// For what ends.
    pub ends: UnixTime,
}

/// The newest time that a signer has signed.
#[derive(Debug, Clone, Default)]
pub(super) struct SignerTime {
    signed: Arc<wire::SignedTime>,
    at: Option<UnixTime>,
    grace: Option<Grace>,
    expiry: Expiry,
}

/// After a silence of the signers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grace {
    /// What counts for what ends, meanwhile.
    ends: UnixTime,
    /// Until the signers' time is this.
    until: UnixTime,
}

impl SignerTime {
    /// Signers' time for what ends, whatever this host's clock says.
    fn ends(&self, at: UnixTime) -> UnixTime {
        match self.grace {
            Some(grace) if at < grace.until => grace.ends,
            _ => at.plus(limits::SIGNER_TIME_HOLDS_SECONDS),
        }
    }
}

impl Anchors {
    /// How certificates are judged when this host's clock says `wall`.
    #[must_use]
    pub fn trust_time(&self, wall: UnixTime) -> TrustTime {
        let time = self.signer_time_ref();
        match (time.expiry, time.at) {
            (Expiry::Hard, _) => TrustTime { begins: wall, ends: wall },
            (Expiry::Soft, None) => TrustTime { begins: wall, ends: wall.min(UnixTime(0)) },
            (Expiry::Soft, Some(at)) => {
                TrustTime { begins: wall.max(at), ends: wall.min(time.ends(at)) }
            }
        }
    }

    /// Whether certificates end by the clock alone, as this host is configured.
    pub fn set_expiry(&mut self, expiry: Expiry) {
        self.signer_time_mut().expiry = expiry;
    }

    /// The newest time that a signer has signed; `None` while none is known.
    #[must_use]
    pub fn signer_time(&self) -> Option<UnixTime> {
        self.signer_time_ref().at
    }

    /// The same as received, for those who lack it.
    #[must_use]
    pub fn signed_time(&self) -> &wire::SignedTime {
        &self.signer_time_ref().signed
    }

    /// Takes a signer's time over when it is newer than what is held; tells whether it was.
    pub fn take_time(
        &mut self,
        signed: &wire::SignedTime,
        wall: UnixTime,
    ) -> Result<bool, Refusal> {
        let at = self.verify_time(signed)?;
        // What was signed or taken while a clock was ahead must not stand for years.
        let ahead = |held: &UnixTime| held.since(wall) > limits::CLOCK_SKEW_SECONDS;
        let held = self.signer_time().filter(|held| !ahead(held));
        if held.is_some_and(|held| held >= at) {
            return Ok(false);
        }
        let ahead = at.since(wall);
        if ahead > limits::CLOCK_SKEW_SECONDS {
            return Err(Refusal::new(
                Code::ClockSkew,
                format!("a signer's time is {ahead} s ahead of this host's clock"),
            ));
        }
        if let Some(held) = held.filter(|held| at.since(*held) > limits::SIGNERS_SILENT_SECONDS) {
            let ends = self.signer_time_ref().ends(held);
            let until = at.plus(limits::SIGNERS_GRACE_SECONDS);
            self.signer_time_mut().grace = Some(Grace { ends, until });
        }
        self.hold_time(signed, at);
        Ok(true)
    }

    /// What is held, as bytes for the next start.
    #[must_use]
    pub fn encode_time(&self) -> Vec<u8> {
        let grace = self.signer_time_ref().grace;
        let kept = wire::KeptTime {
            time: Some(self.signed_time().clone()),
            grace_ends: grace.map_or(0, |grace| grace.ends.0),
            grace_until: grace.map_or(0, |grace| grace.until.0),
        };
        kept.encode_to_vec()
    }

    /// Takes over what was kept: it was judged when it came. One that is not believed any more is left out.
    pub fn restore_time(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let malformed = || Refusal::new(Code::Malformed, "signer's time: not decodable");
        let kept = wire::KeptTime::decode(bytes).map_err(|_| malformed())?;
        let signed = kept.time.ok_or_else(malformed)?;
        let at = self.verify_time(&signed)?;
        self.hold_time(&signed, at);
        let (ends, until) = (UnixTime(kept.grace_ends), UnixTime(kept.grace_until));
        self.signer_time_mut().grace = (until.0 != 0).then_some(Grace { ends, until });
        Ok(())
    }

    fn hold_time(&mut self, signed: &wire::SignedTime, at: UnixTime) {
        // What arrives shares its bytes with a whole frame.
        let signed = wire::SignedTime {
            payload: Bytes::copy_from_slice(&signed.payload),
            signature: Bytes::copy_from_slice(&signed.signature),
        };
        let time = self.signer_time_mut();
        time.signed = Arc::new(signed);
        time.at = Some(at);
    }

    fn verify_time(&self, signed: &wire::SignedTime) -> Result<UnixTime, Refusal> {
        let malformed = |why: &str| Refusal::new(Code::Malformed, format!("signer's time: {why}"));
        if signed.payload.len() > limits::SIGNER_TIME {
            return Err(Refusal::new(Code::TooLarge, "signer's time: too large"));
        }
        let time = wire::SignerTime::decode(&signed.payload[..])
            .map_err(|_| malformed("not decodable"))?;
        let signer = <[u8; 32]>::try_from(&time.signer_key[..])
            .map_err(|_| malformed("its signer's key is not 32 bytes"))?;
        if !self.has_intermediate(&signer) {
            let why = "signer's time: its signer is not in the bundle";
            return Err(Refusal::new(Code::UnknownIssuer, why));
        }
        let (payload, signature) = (&signed.payload, &signed.signature);
        signing::verify(&signer, Kind::Time, self.mesh_id(), payload, signature)?;
        Ok(UnixTime(time.time))
    }
}

impl Intermediate {
    /// Signs that it is `now`.
    #[must_use]
    pub fn sign_time(&self, mesh: &MeshId, now: UnixTime) -> wire::SignedTime {
        let time = wire::SignerTime { signer_key: self.public().to_vec().into(), time: now.0 };
        let payload = time.encode_to_vec();
        let signature = signing::sign(self.key(), Kind::Time, mesh, &payload);
        wire::SignedTime { payload: payload.into(), signature: signature.to_vec().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::fixture::{NOW, TestMesh};

    const YEAR: i64 = 365 * 24 * 3600;

    fn at(mesh: &TestMesh, time: UnixTime) -> wire::SignedTime {
        mesh.intermediate.sign_time(&mesh.mesh_id, time)
    }

    #[test]
    fn a_clock_that_jumps_ends_nothing_and_begins_nothing_too_late() {
        let mut mesh = TestMesh::new(1);
        let node = mesh.node("a", &[]);
        let certificate = node.certificate();
        let judge =
            |anchors: &Anchors, wall: UnixTime| certificate.check_dates(anchors.trust_time(wall));
        assert!(judge(&mesh.anchors, NOW.plus(10 * YEAR)).is_ok(), "no signer has spoken");
        mesh.anchors.take_time(&at(&mesh, NOW), NOW).unwrap();
        assert!(judge(&mesh.anchors, NOW.plus(10 * YEAR)).is_ok(), "ten years ahead");
        assert!(judge(&mesh.anchors, NOW.plus(-10 * YEAR)).is_ok(), "ten years back");
        // When the signers go on it ends, but not for who could not renew while they were silent.
        let late = NOW.plus(2 * YEAR);
        for hours in 0..72 {
            let now = late.plus(hours * 3600);
            mesh.anchors.take_time(&at(&mesh, now), now).unwrap();
            assert!(judge(&mesh.anchors, now).is_ok(), "after {hours} hours");
            let kept = mesh.anchors.encode_time();
            mesh.anchors = TestMesh::new(1).anchors;
            mesh.anchors.restore_time(&kept).unwrap();
        }
        let late = late.plus(72 * 3600);
        mesh.anchors.take_time(&at(&mesh, late), late).unwrap();
        assert_eq!(judge(&mesh.anchors, late).unwrap_err().code, Code::CertificateExpired);
        assert!(judge(&mesh.anchors, NOW).is_ok(), "its own clock does not say so");
        mesh.anchors.set_expiry(Expiry::Hard);
        assert!(judge(&mesh.anchors, NOW).is_ok());
        assert!(judge(&mesh.anchors, NOW.plus(-YEAR)).is_err());
    }

    #[test]
    fn a_stamp_from_the_future_of_the_past_or_of_nobody_is_not_taken() {
        let mut mesh = TestMesh::new(1);
        let ahead = at(&mesh, NOW.plus(601));
        assert_eq!(mesh.anchors.take_time(&ahead, NOW).unwrap_err().code, Code::ClockSkew);
        let now = at(&mesh, NOW);
        assert_eq!(mesh.anchors.take_time(&now, NOW), Ok(true));
        assert_eq!(mesh.anchors.take_time(&now, NOW), Ok(false));
        assert_eq!(mesh.anchors.take_time(&at(&mesh, NOW.plus(-1)), NOW), Ok(false));
        let other = TestMesh::new(2);
        let foreign = other.intermediate.sign_time(&mesh.mesh_id, NOW.plus(60));
        assert_eq!(mesh.anchors.take_time(&foreign, NOW).unwrap_err().code, Code::UnknownIssuer);
        let elsewhere = mesh.intermediate.sign_time(&other.mesh_id, NOW.plus(60));
        assert_eq!(mesh.anchors.take_time(&elsewhere, NOW).unwrap_err().code, Code::BadSignature);
        assert_eq!(mesh.anchors.signer_time(), Some(NOW));
    }

    #[test]
    fn what_was_signed_while_a_clock_was_ahead_is_replaced_when_it_is_right() {
        let mut mesh = TestMesh::new(1);
        let wrong = NOW.plus(YEAR);
        mesh.anchors.take_time(&at(&mesh, wrong), wrong).unwrap();
        assert_eq!(mesh.anchors.signer_time(), Some(wrong));
        assert_eq!(mesh.anchors.take_time(&at(&mesh, NOW), NOW), Ok(true));
        assert_eq!(mesh.anchors.signer_time(), Some(NOW));
        assert_eq!(
            mesh.anchors.take_time(&at(&mesh, wrong), NOW).unwrap_err().code,
            Code::ClockSkew
        );
    }

    #[test]
    fn it_reads_back_whatever_the_clock_says_then() {
        let mut mesh = TestMesh::new(1);
        mesh.anchors.take_time(&at(&mesh, NOW), NOW).unwrap();
        let kept = mesh.anchors.encode_time();
        let mut again = TestMesh::new(1).anchors;
        again.restore_time(&kept).unwrap();
        assert_eq!(again.signer_time(), Some(NOW));
        assert!(again.restore_time(&[1, 2, 3]).is_err());
    }
}
