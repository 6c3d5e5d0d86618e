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
/// How a member is asked before it is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// So often.
    pub(super) questions: u8,
    /// In this time.
    pub(super) patience: Duration,
}

impl Pace {
    /// As many questions as are enough where others ask for themselves as well.
    pub(super) fn few(patience: Duration) -> Self {
        Self { questions: 3, patience }
    }
}

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
    /// Ask it, for the so-manieth time.
    Ask(NodeHash, u8),
    /// It did not answer.
    GiveUp(NodeHash, Purpose),
}

#[derive(Debug)]
struct Check {
    purpose: Purpose,
    since: Instant,
    asked: u8,
    questions: u8,
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
    /// so long after the first question as `pace` says.
    pub(super) fn open(&mut self, node: NodeHash, purpose: Purpose, first: Instant, pace: Pace) {
        if self.open.get(&node).is_some_and(|check| check.purpose == purpose) {
            return;
        }
        self.close(&node);
        let Pace { questions, patience } = pace;
        let every = patience / u32::from(questions.max(1));
        self.open
            .insert(node, Check { purpose, since: first, asked: 0, questions, every, next: first });
        self.due.insert((first, node));
    }

    /// It answered, or is gone.
    pub(super) fn close(&mut self, node: &NodeHash) {
        if let Some(check) = self.open.remove(node) {
            self.due.remove(&(check.next, *node));
        }
    }

    /// From when on it is asked, while it is.
    pub(super) fn since(&self, node: &NodeHash) -> Option<Instant> {
        self.open.get(node).map(|check| check.since)
    }

    /// True while it is down unless it answers.
    pub(super) fn is_doubted(&self, node: &NodeHash) -> bool {
        self.open.get(node).is_some_and(|check| check.purpose == Purpose::Doubt)
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
        if check.asked >= check.questions {
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
        Some(Step::Ask(node, check.asked))
    }
}
