//! Frames: from bytes to the module that answers them, and back to bytes.

use bytes::Bytes;
use meshd_proto::{NodeKey, wire};
use prost::Message as _;

use super::{
    Node,
    types::{Output, Traffic},
};
use crate::{address, limits, now::Now, refusal::Code};
use wire::frame::Body;

/// What looking at a directory's digest costs, in verifications.
const DIGEST_COST: u64 = 5;
/// What handing a joiner's request on costs, in verifications.
const ENROL_COST: u64 = 100;

impl Traffic {
    pub(super) fn receive(&mut self, bytes: usize) {
        self.received += 1;
        self.received_bytes += bytes as u64;
    }

    pub(super) fn send(&mut self, bytes: usize) {
        self.sent += 1;
        self.sent_bytes += bytes as u64;
    }
}

impl Node {
    /// Queues a frame.
    pub(super) fn send(&mut self, to: NodeKey, body: Body) {
        if to == self.own.key() {
            return;
        }
        let bytes: Bytes = wire::Frame { body: Some(body) }.encode_to_vec().into();
        self.counters.frames.send(bytes.len());
        self.outputs.push_back(Output::Frame { to, bytes });
    }

    /// The first frame of a connection.
    pub(super) fn send_hello(&mut self, to: NodeKey, remote: std::net::SocketAddr) {
        let observed = wire::Endpoint {
            address: address::address_to_wire(&remote.ip()).into(),
            port: u32::from(remote.port()),
        };
        let hello = wire::Hello {
            observed: Some(observed),
            software_version: self.config.software_version.clone(),
        };
        self.send(to, Body::Hello(hello));
    }

    /// A whole stream on a connection to `from`.
    pub fn handle_frame(&mut self, from: NodeKey, bytes: &[u8], now: Now) {
        self.counters.frames.receive(bytes.len());
        self.frame(from, bytes, now);
        self.settle(now);
    }

    fn frame(&mut self, from: NodeKey, bytes: &[u8], now: Now) {
        if bytes.len() > limits::FRAME {
            let detail = format!("frame of {} bytes, at most {}", bytes.len(), limits::FRAME);
            return self.refuse(from, Code::TooLarge, &detail);
        }
        if from == self.own.key() {
            return;
        }
        if self.anchors.revocation(&from).is_some() {
            // Its connection is being closed.
            return self.refuse(from, Code::Revoked, "it is no member any more");
        }
        if !self.budgets.of(&from, now.mono).work.take(1, now.mono) {
            return self.refuse(from, Code::RateLimited, "more frames than are allowed");
        }
        let Ok(wire::Frame { body }) = wire::Frame::decode(Bytes::copy_from_slice(bytes)) else {
            return self.refuse(from, Code::Malformed, "frame: not Protobuf");
        };
        self.membership.heard(&from, now.mono);
        let cost = match &body {
            Some(Body::SyncRoot(_) | Body::SyncBuckets(_) | Body::SyncEntries(_)) => DIGEST_COST,
            Some(
                Body::EnrolForward(_)
                | Body::EnrolForwardReply(_)
                | Body::SignerInvite(_)
                | Body::SignerOffer(_),
            ) => ENROL_COST,
            _ => 0,
        };
        if !self.budgets.of(&from, now.mono).work.take(cost, now.mono) {
            return self.refuse(from, Code::RateLimited, "more work than is allowed");
        }
        match body {
            Some(Body::Hello(hello)) => {
                if let Some(endpoint) = &hello.observed {
                    self.paths.observe(from, endpoint);
                }
            }
            Some(Body::Push(push)) => self.handle_push(from, &push, now),
            Some(Body::Announce(announce)) => self.handle_announce(from, &announce.records, now),
            Some(Body::Pull(pull)) => {
                self.handle_pull(from, &pull.identity_keys, now);
                self.handle_pull_of_reports(from, &pull.reports_of, now);
            }
            Some(Body::SyncRoot(root)) => self.handle_sync_root(from, &root, now),
            Some(Body::SyncBuckets(buckets)) => self.handle_sync_buckets(from, &buckets, now),
            Some(Body::SyncEntries(entries)) => self.handle_sync_entries(from, &entries, now),
            Some(Body::SyncDone(done)) => self.handle_sync_done(from, done.exchange, now),
            Some(Body::EnrolForward(forward)) => {
                if forward.request.len() > limits::ENROL_MESSAGE {
                    return self.refuse(from, Code::TooLarge, "enrolment request");
                }
                let (id, request) = (forward.id, forward.request);
                self.outputs.push_back(Output::EnrolForward { from, id, request });
            }
            Some(Body::EnrolForwardReply(reply)) => {
                let (id, reply) = (reply.id, reply.reply);
                if self.hear_renewal(from, id, &reply, now) {
                    return;
                }
                self.outputs.push_back(Output::EnrolReply { from, id, reply });
            }
            Some(Body::SignerInvite(invite)) => {
                self.outputs.push_back(Output::SignerInvite { from, invite });
            }
            Some(Body::SignerOffer(offer)) => {
                self.outputs.push_back(Output::SignerOffer { from, offer });
            }
            // A newer program's frame.
            None => {}
        }
    }

    /// Hands a joiner's request to the signer `to`; [`Output::EnrolReply`] with `id` may follow.
    pub fn forward_enrolment(&mut self, to: NodeKey, id: u64, request: Bytes) {
        self.send(to, Body::EnrolForward(wire::EnrolForward { id, request }));
    }

    /// Asks `to` to become a signer; [`Output::SignerOffer`] may follow.
    pub fn send_invite(&mut self, to: NodeKey, invite: wire::SignerInvite) {
        self.send(to, Body::SignerInvite(invite));
    }

    /// Answers [`Output::SignerInvite`].
    pub fn send_offer(&mut self, to: NodeKey, offer: wire::SignerOffer) {
        self.send(to, Body::SignerOffer(offer));
    }

    /// Answers [`Output::EnrolForward`].
    pub fn reply_enrolment(&mut self, to: NodeKey, id: u64, reply: Bytes, now: Now) {
        if to == self.own.key() {
            self.hear_renewal(to, id, &reply, now);
            return self.settle(now);
        }
        self.send(to, Body::EnrolForwardReply(wire::EnrolForwardReply { id, reply }));
    }
}
