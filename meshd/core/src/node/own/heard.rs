//! What a node hears of itself: a past of its own, a clone, or that it has left.

use std::sync::Arc;

use super::{CLONES, LONGEST_OUTBID, Stage};
use crate::{
    event::Event,
    limits,
    node::{Node, records::rank},
    now::Now,
    refusal::Code,
    trust::Record,
};

impl Node {
    /// A record of ours came from outside, verified.
    pub(in crate::node) fn hear_own(&mut self, record: &Record, now: Now) {
        let own = &mut self.own;
        let ours = own.published.clone();
        if ours.as_ref().is_some_and(|ours| rank(record) <= rank(ours)) {
            return;
        }
        if record.left {
            self.has_left_before(record);
            return;
        }
        let news = record.version > own.heard.0;
        own.heard.0 = own.heard.0.max(record.version);
        if record.issued_at.since(now.unix) <= limits::CLOCK_SKEW_SECONDS {
            own.heard.1 = own.heard.1.max(record.issued_at);
        }
        if ours.is_none() || own.has_left() {
            return; // The first one that we sign will be higher anyway.
        }
        own.renew = true;
        let at = now.mono.max(own.allowed);
        if !news {
            // Others still hold it; what answers it is due already.
            own.due = Some(own.due.map_or(at, |due| due.min(now.mono + own.outbid_pause)));
            return;
        }
        if self.sync.completed() && record.boot_id != own.boot_id {
            if own.outbids.len() >= CLONES && !own.outbids.contains_key(&record.boot_id) {
                own.outbids.pop_first();
            }
            let versions = own.outbids.entry(record.boot_id).or_default();
            versions.insert(record.version);
            if versions.len() > 1 {
                // More than two are no news, and would grow.
                versions.pop_first();
                own.outbid_pause = (own.outbid_pause * 2).min(LONGEST_OUTBID);
                if !std::mem::replace(&mut own.alarmed, true) {
                    let text = format!(
                        "another host signs records with this node's identity key (its start is {}); \
                         stop one of the two and enrol it under a name of its own",
                        record.boot_id
                    );
                    let event = Event::error("clone_suspected", text);
                    self.tell_of_self(event.with("boot_id", record.boot_id));
                }
            }
        }
        let own = &mut self.own;
        own.due = Some(at.max(now.mono + (own.outbid_pause - limits::OWN_UPDATE_INTERVAL)));
        let text = format!("a record of this node with version {} is outbid", record.version);
        self.tell_of_self(Event::info("outbid", text).with("boot_id", record.boot_id));
    }

    /// This membership was ended, by a leave that was cut short or before this state was restored from a
    /// backup: nothing that this node signs is believed any more.
    fn has_left_before(&mut self, record: &Record) {
        if self.own.stage != Stage::Present {
            return;
        }
        self.own.stage = Stage::Left;
        self.own.due = None;
        self.own.view.get_or_insert_with(|| Arc::new(record.clone()));
        let text =
            "this node has left the mesh before; `meshctl leave` here, then join with a new token";
        self.tell_of_self(Event::error("has_left", text));
    }

    /// A revocation of this node came in. Its kernel is left as it is: what goes into its tunnels is answered by
    /// nobody, and leaves nowhere in the clear.
    pub(in crate::node) fn end_own_membership(&mut self) {
        if self.own.stage == Stage::Revoked {
            return;
        }
        self.own.stage = Stage::Revoked;
        self.own.due = None;
        let text = "a signer has ended this node's membership; `meshctl leave` here, then join with a new token";
        let event = self.by_revoker(Event::error("revoked", text), &self.own.key, Code::Revoked);
        self.tell_of_self(event);
    }

    /// An own record from the store: the next one must be higher.
    pub(in crate::node) fn restore_own(&mut self, record: &Record) {
        if record.left {
            self.has_left_before(record);
            return;
        }
        self.own.heard.0 = self.own.heard.0.max(record.version);
        // What this node was is what it is until it can sign anew: without versions, as on a full disk, its
        // plans go on.
        self.own.view.get_or_insert_with(|| Arc::new(record.clone()));
        self.own.workloads.remember(&record.prefixes);
    }
}
