//! What two hosts tell each other inside their tunnel before either routes the other's node addresses into it.
//!
//! A statement says: these of your node addresses are among the allowed IPs of your peer here. It is sent when it is new,
//! and again until the other side answers with its own; after that nothing is sent until something changes. WireGuard
//! vouches for the sender, and that an answer came proves the tunnel both ways. A capability in the record would not do:
//! it cannot say that this very pair is ready.
//!
//! ```text
//!            new, or ours changed           no answer: after 0.5 s, 1 s … 60 s
//!   Said ─────────────────────► Due ─► sent ──────────────────────────────► Due
//!     ▲                                  │
//!     └──────── answer to the newest ────┘
//! ```
//! Each change of mind costs its hearers a plan. So what a member takes no more counts at once, for a route to it would be
//! a hole; what it takes again counts after a while that doubles with each time that it took something back.
//!
//! Called by the daemon's loop, which sends and receives. Statements carry the sender's start and a counter, so that one
//! that was overtaken by a newer one changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use meshd_proto::NodeKey;

use crate::{address, limits::RECORD_NODE_ADDRESSES};

const FIRST: Duration = Duration::from_millis(500);
const LAST: Duration = Duration::from_secs(60);
/// A member's statements are read so often at once, and one more for each [`REFILL`]: each may cost a plan.
const BURST: u32 = 16;
const REFILL: Duration = Duration::from_secs(1);
/// What a member took back and takes again counts after this, doubled each time.
const HOLD: Duration = Duration::from_secs(2);
const HOLD_LONGEST: Duration = Duration::from_secs(600);
/// Who has taken nothing back for so long may do so again as if it were the first time.
const CALM: Duration = Duration::from_secs(1_800);
/// Of a statement that was not sent yet: the first has the number 1.
const UNSAID: u64 = 0;
/// Start, counter and count.
const HEADER: usize = 17;

/// A statement: which of the receiver's node addresses its sender takes from the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Random, of the sender's start.
    pub start: [u8; 8],
    /// Counts the sender's statements.
    pub count: u64,
    /// What it takes.
    pub accepts: BTreeSet<IpAddr>,
}

impl Statement {
    /// For the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.start.to_vec();
        bytes.extend(self.count.to_be_bytes());
        let addresses = self.accepts.iter().take(RECORD_NODE_ADDRESSES);
        bytes.push(u8::try_from(addresses.len()).unwrap_or(0));
        for wire in addresses.map(address::address_to_wire) {
            bytes.push(u8::try_from(wire.len()).unwrap_or(0));
            bytes.extend(wire);
        }
        bytes
    }

    /// From the wire; what comes after it is a later version's.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, mut rest) = bytes.split_at_checked(HEADER)?;
        let (start, counts) = header.split_first_chunk::<8>()?;
        let (count, number) = counts.split_first_chunk::<8>()?;
        let number = usize::from(*number.first()?);
        if number > RECORD_NODE_ADDRESSES {
            return None;
        }
        let mut accepts = BTreeSet::new();
        for _ in 0..number {
            let (length, after) = rest.split_first()?;
            let (address, after) = after.split_at_checked(usize::from(*length))?;
            accepts.insert(address::address_from_wire(address).ok()?);
            rest = after;
        }
        Some(Self { start: *start, count: u64::from_be_bytes(*count), accepts })
    }
}

/// What this host takes from a member's tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Takes {
    /// Node addresses of the member.
    pub addresses: BTreeSet<IpAddr>,
    /// The member is down: it is told when it is back.
    pub quiet: bool,
}

/// A packet to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// To whom.
    pub to: NodeKey,
    /// Which of ours an answer answers; of an answer: which it answers.
    pub id: u64,
    /// What it says.
    pub statement: Statement,
}

/// What is said to each member, and what each has said.
#[derive(Debug)]
pub struct Accord {
    start: [u8; 8],
    count: u64,
    pairs: BTreeMap<NodeKey, Pair>,
    changed: bool,
}

#[derive(Debug)]
struct Pair {
    /// What we take of its addresses.
    ours: BTreeSet<IpAddr>,
    /// What it takes of ours, as far as that counts; `None` until it has spoken.
    theirs: Option<BTreeSet<IpAddr>>,
    /// What it says that it takes, and from when on all of it counts.
    held: Option<(BTreeSet<IpAddr>, Instant)>,
    /// How often it took something back of late, and when it did last.
    fickle: Option<(u32, Instant)>,
    /// Of its newest statement.
    newest: Option<([u8; 8], u64)>,
    /// It does not answer anything: nothing is sent to it.
    quiet: bool,
    /// When `ours` is to be said (again); `None`: it has answered.
    due: Option<Instant>,
    pause: Duration,
    /// Of the statement whose answer counts.
    id: u64,
    left: u32,
    refilled: Instant,
}

impl Pair {
    fn new(now: Instant) -> Self {
        Self {
            ours: BTreeSet::new(),
            theirs: None,
            held: None,
            fickle: None,
            newest: None,
            quiet: false,
            due: Some(now),
            pause: FIRST,
            id: UNSAID,
            left: BURST,
            refilled: now,
        }
    }

    /// Takes in what it says that it takes; true when what counts has changed.
    fn hear(&mut self, says: BTreeSet<IpAddr>, now: Instant) -> bool {
        let Some(counts) = &mut self.theirs else {
            self.theirs = Some(says);
            return true;
        };
        let before = counts.len();
        counts.retain(|address| says.contains(address));
        let less = counts.len() != before;
        if less {
            let calm = |at: Instant| now.saturating_duration_since(at) >= CALM;
            let times = self.fickle.filter(|(_, at)| !calm(*at)).map_or(0, |(times, _)| times);
            self.fickle = Some((times.saturating_add(1), now));
        }
        if *counts == says {
            self.held = None;
            return less;
        }
        let from = self.fickle.map_or(now, |(times, at)| {
            let doubled = HOLD.saturating_mul(1 << times.saturating_sub(1).min(16));
            at + doubled.min(HOLD_LONGEST)
        });
        self.held = Some((says, from));
        self.settle(now) || less
    }

    /// What was held back counts when its time has come; true when it does.
    fn settle(&mut self, now: Instant) -> bool {
        match self.held.take_if(|(_, from)| *from <= now) {
            Some((says, _)) => {
                self.theirs = Some(says);
                true
            }
            None => false,
        }
    }

    fn may_speak(&mut self, now: Instant) -> bool {
        while self.left < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

impl Accord {
    /// `start`: random, another at each start.
    #[must_use]
    pub fn new(start: [u8; 8]) -> Self {
        Self { start, count: 0, pairs: BTreeMap::new(), changed: false }
    }

    /// What the kernel takes from each member's tunnel now; members that are not named are told nothing and forgotten.
    pub fn observe(&mut self, takes: &BTreeMap<NodeKey, Takes>, now: Instant) {
        let before = self.pairs.len();
        self.pairs.retain(|key, _| takes.contains_key(key));
        self.changed |= self.pairs.len() != before;
        for (key, takes) in takes {
            let pair = self.pairs.entry(*key).or_insert_with(|| Pair::new(now));
            let back = pair.quiet && !takes.quiet;
            pair.quiet = takes.quiet;
            let changed = pair.ours != takes.addresses;
            if changed {
                pair.ours.clone_from(&takes.addresses);
            }
            if changed || (back && pair.due.is_some()) {
                // An answer that is still on its way answers what was said before.
                (pair.due, pair.pause, pair.id) = (Some(now), FIRST, UNSAID);
            }
        }
    }

    /// When [`Self::due`] is to be asked next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let words = self.pairs.values().filter(|pair| !pair.quiet).filter_map(|pair| pair.due);
        let held = self.pairs.values().filter_map(|pair| pair.held.as_ref());
        words.chain(held.map(|(_, from)| *from)).min()
    }

    /// What is to be sent now. What was held back until now counts from here on, see [`Self::take_changed`].
    pub fn due(&mut self, now: Instant) -> Vec<Word> {
        let mut words = Vec::new();
        for (key, pair) in &mut self.pairs {
            self.changed |= pair.settle(now);
            if pair.quiet || pair.due.is_none_or(|due| due > now) {
                continue;
            }
            pair.due = Some(now + pair.pause);
            pair.pause = (pair.pause * 2).min(LAST);
            self.count += 1;
            pair.id = self.count;
            let accepts = pair.ours.clone();
            let statement = Statement { start: self.start, count: self.count, accepts };
            words.push(Word { to: *key, id: pair.id, statement });
        }
        words
    }

    /// A statement came out of `from`'s tunnel. Returns the answer to it.
    pub fn heard(
        &mut self,
        from: NodeKey,
        id: u64,
        is_answer: bool,
        statement: Statement,
        now: Instant,
    ) -> Option<Word> {
        // From a member with which there is nothing to agree on there is nothing to learn.
        let pair = self.pairs.get_mut(&from)?;
        if !pair.may_speak(now) {
            return None;
        }
        let overtaken = pair
            .newest
            .is_some_and(|(start, count)| start == statement.start && count >= statement.count);
        if !overtaken {
            pair.newest = Some((statement.start, statement.count));
            self.changed |= pair.hear(statement.accepts, now);
        }
        if is_answer {
            if id == pair.id && id != UNSAID {
                pair.due = None;
            }
            return None;
        }
        self.count += 1;
        let accepts = pair.ours.clone();
        Some(Word {
            to: from,
            id,
            statement: Statement { start: self.start, count: self.count, accepts },
        })
    }

    /// What `member` takes of our node addresses, when it has said so.
    #[must_use]
    pub fn accepts(&self, member: &NodeKey) -> Option<&BTreeSet<IpAddr>> {
        self.pairs.get(member)?.theirs.as_ref()
    }

    /// True once after something changed of what members take.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests;
