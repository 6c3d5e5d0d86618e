//! Members that somebody has to ask: those whom nobody heard yet, those who are doubted, and those who
//! are held for down though somebody says otherwise.
//!
//! Nobody's word about a third party decides here: a doubt ends when the member itself answers, or when it
//! left several questions of this node's own unanswered.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use meshd_proto::NodeHash;

use crate::node::budget::Bucket;

/// Questions a second, of all members together; as many again may go at once.
const PER_SECOND: u64 = 32;
/// Questions before a member that is doubted is given up.
const QUESTIONS: u8 = 3;

/// Why a member is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is down unless it answers.
    Doubt,
    /// It is held for down and stays so unless it answers.
    Revive,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask it.
    Ask(NodeHash),
    /// It did not answer.
    GiveUp(NodeHash, Purpose),
}

#[derive(Debug)]
struct Check {
    purpose: Purpose,
    asked: u8,
    every: Duration,
    next: Instant,
}

/// All open questions. At most one per member.
#[derive(Debug)]
pub(super) struct Checks {
    open: BTreeMap<NodeHash, Check>,
    due: BTreeSet<(Instant, NodeHash)>,
    rate: Bucket,
    /// Nothing is asked before this: one wait for all, or each would wake the node for itself.
    rest: Option<Instant>,
}

impl Checks {
    pub(super) fn new(now: Instant) -> Self {
        let rate = Bucket::new(PER_SECOND * 2, PER_SECOND, now);
        Self { open: BTreeMap::new(), due: BTreeSet::new(), rate, rest: None }
    }

    /// Asks `node` from `first` on, unless it is being asked for the same reason already. It is given up
    /// `patience` after the first question.
    pub(super) fn open(
        &mut self,
        node: NodeHash,
        purpose: Purpose,
        first: Instant,
        patience: Duration,
    ) {
        if self.open.get(&node).is_some_and(|check| check.purpose == purpose) {
            return;
        }
        self.close(&node);
        let every = patience / u32::from(QUESTIONS);
        self.open.insert(node, Check { purpose, asked: 0, every, next: first });
        self.due.insert((first, node));
    }

    /// It answered, or is gone.
    pub(super) fn close(&mut self, node: &NodeHash) {
        if let Some(check) = self.open.remove(node) {
            self.due.remove(&(check.next, *node));
        }
    }

    /// When [`Self::poll`] has something.
    pub(super) fn next(&self) -> Option<Instant> {
        let first = self.due.first()?.0;
        Some(self.rest.map_or(first, |rest| rest.max(first)))
    }

    /// The next step that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Step> {
        if self.next()? > now {
            return None;
        }
        let (at, node) = self.due.first().copied()?;
        let check = self.open.get_mut(&node)?;
        if check.asked >= QUESTIONS {
            let purpose = check.purpose;
            self.close(&node);
            return Some(Step::GiveUp(node, purpose));
        }
        if !self.rate.take(1, now) {
            self.rest = Some(self.rate.when(1, now));
            return None;
        }
        check.asked += 1;
        check.next = now + check.every;
        self.due.remove(&(at, node));
        self.due.insert((check.next, node));
        Some(Step::Ask(node))
    }
}
