use proptest::prelude::*;

use super::*;

const A: NodeKey = NodeKey([1; 32]);
const B: NodeKey = NodeKey([2; 32]);

#[allow(clippy::disallowed_methods)] // A starting point; only differences count.
fn start() -> Instant {
    Instant::now()
}

fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn knows(other: NodeKey, takes: &BTreeSet<IpAddr>, now: Instant, seed: u8) -> Accord {
    let mut accord = Accord::new([seed; 8]);
    accord.observe(&BTreeMap::from([(other, taking(takes))]), now);
    accord
}

fn taking(addresses: &BTreeSet<IpAddr>) -> Takes {
    Takes { addresses: addresses.clone(), quiet: false }
}

#[test]
fn who_is_down_is_told_when_it_is_back() {
    let now = start();
    let mut a = knows(B, &ips(&["192.0.2.2"]), now, 1);
    let takes = |quiet| Takes { quiet, ..taking(&ips(&["192.0.2.2"])) };
    a.observe(&BTreeMap::from([(B, takes(true))]), now);
    assert!(a.due(now + LAST).is_empty() && a.poll_timeout().is_none());
    a.observe(&BTreeMap::from([(B, takes(false))]), now + LAST);
    assert_eq!(a.due(now + LAST).len(), 1);
}

#[test]
fn one_question_and_its_answer_are_enough_for_both() {
    let now = start();
    let (of_a, of_b) = (ips(&["192.0.2.1", "2001:db8::1"]), ips(&["192.0.2.2"]));
    let (mut a, mut b) = (knows(B, &of_b, now, 1), knows(A, &of_a, now, 2));
    let word = a.due(now).remove(0);
    let answer = b.heard(A, word.id, false, word.statement, now).unwrap();
    assert_eq!(a.heard(B, answer.id, true, answer.statement, now), None);
    assert_eq!(a.accepts(&B), Some(&of_a));
    assert_eq!(b.accepts(&A), Some(&of_b));
    assert!(a.take_changed() && !a.take_changed());
    assert_eq!(a.poll_timeout(), None, "nothing more is sent");
}

#[test]
fn it_is_said_again_until_it_is_answered_and_ever_more_rarely() {
    let mut now = start();
    let mut a = knows(B, &ips(&["192.0.2.2"]), now, 1);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        assert_eq!(a.due(now).len(), 1);
        assert!(a.due(now).is_empty());
        let next = a.poll_timeout().unwrap();
        pauses.push(next - now);
        now = next;
    }
    assert!(pauses.is_sorted());
    assert_eq!((pauses[0], pauses[11]), (FIRST, LAST));
}

#[test]
fn what_changed_is_said_at_once_and_an_answer_to_the_former_does_not_count() {
    let now = start();
    let mut a = knows(B, &ips(&["192.0.2.2"]), now, 1);
    let first = a.due(now).remove(0);
    a.observe(&BTreeMap::from([(B, taking(&ips(&[])))]), now);
    let second = a.due(now).remove(0);
    assert!(second.statement.accepts.is_empty() && second.id != first.id);
    let answer = |count| Statement { start: [9; 8], count, accepts: ips(&[]) };
    a.heard(B, first.id, true, answer(1), now);
    assert!(a.poll_timeout().is_some());
    a.heard(B, second.id, true, answer(2), now);
    assert_eq!(a.poll_timeout(), None);
}

#[test]
fn an_answer_that_comes_before_the_change_is_said_does_not_count() {
    let now = start();
    let mut a = knows(B, &ips(&[]), now, 1);
    let first = a.due(now).remove(0);
    a.observe(&BTreeMap::from([(B, taking(&ips(&["192.0.2.2"])))]), now);
    let answer = |count| Statement { start: [9; 8], count, accepts: ips(&[]) };
    a.heard(B, first.id, true, answer(1), now);
    a.heard(B, UNSAID, true, answer(2), now);
    assert_eq!(a.due(now).remove(0).statement.accepts, ips(&["192.0.2.2"]));
}

#[test]
fn what_was_overtaken_changes_nothing_and_a_new_start_counts() {
    let now = start();
    let mut a = knows(B, &ips(&[]), now, 1);
    let say =
        |start, count, list: &[&str]| Statement { start: [start; 8], count, accepts: ips(list) };
    a.heard(B, 7, false, say(5, 2, &["192.0.2.1"]), now);
    a.heard(B, 6, false, say(5, 1, &[]), now);
    assert_eq!(a.accepts(&B), Some(&ips(&["192.0.2.1"])));
    a.heard(B, 1, false, say(6, 1, &[]), now);
    assert_eq!(a.accepts(&B), Some(&ips(&[])));
}

#[test]
fn who_changes_its_mind_is_believed_at_once_when_it_takes_less_and_ever_later_when_more() {
    let mut now = start();
    let mut a = knows(B, &ips(&[]), now, 1);
    a.due(now);
    let (all, some) = (ips(&["192.0.2.1", "192.0.2.9"]), ips(&["192.0.2.9"]));
    let mut count = 0;
    let mut say = |a: &mut Accord, accepts: &BTreeSet<IpAddr>, now| {
        count += 1;
        let statement = Statement { start: [5; 8], count, accepts: accepts.clone() };
        a.heard(B, 0, true, statement, now);
        a.take_changed()
    };
    assert!(say(&mut a, &all, now), "the first word counts");
    let mut holds = Vec::new();
    for _ in 0..12 {
        assert!(say(&mut a, &some, now), "less counts at once");
        assert_eq!(a.accepts(&B), Some(&some));
        let began = now;
        now += Duration::from_secs(1);
        assert!(!say(&mut a, &all, now), "more does not");
        assert!(!say(&mut a, &all, now), "however often it is said");
        assert_eq!(a.accepts(&B), Some(&some));
        // Quiet until then, as far as this member is concerned.
        now = loop {
            let next = a.poll_timeout().unwrap();
            a.due(next);
            if a.take_changed() {
                break next;
            }
        };
        assert_eq!(a.accepts(&B), Some(&all));
        holds.push(now - began);
    }
    assert_eq!(holds[..3], [HOLD, HOLD * 2, HOLD * 4]);
    assert!(holds.is_sorted() && holds.last() == Some(&HOLD_LONGEST), "{holds:?}");
    // Calm again, it is as in the beginning.
    now += CALM;
    assert!(say(&mut a, &ips(&[]), now) && !say(&mut a, &all, now));
    a.due(now + HOLD);
    assert!(a.take_changed() && a.accepts(&B) == Some(&all));
    // What is taken back while it is held back never counts.
    assert!(say(&mut a, &some, now + HOLD) && !say(&mut a, &all, now + HOLD));
    assert!(!say(&mut a, &some, now + HOLD));
    a.due(now + CALM);
    assert!(!a.take_changed() && a.accepts(&B) == Some(&some));
}

#[test]
fn a_member_that_flaps_for_an_hour_costs_few_plans() {
    let begun = start();
    let mut a = knows(B, &ips(&[]), begun, 1);
    let mut plans = 0;
    for second in 0..3_600_u64 {
        let now = begun + Duration::from_secs(second);
        let accepts = if second % 2 == 0 { ips(&["192.0.2.1"]) } else { ips(&[]) };
        let statement = Statement { start: [5; 8], count: second + 1, accepts };
        a.heard(B, 0, true, statement, now);
        a.due(now);
        plans += u32::from(a.take_changed());
    }
    assert!((2..=40).contains(&plans), "{plans} plans");
}

#[test]
fn who_is_not_asked_and_who_floods_is_not_heard() {
    let now = start();
    let mut a = knows(B, &ips(&[]), now, 1);
    let say = |count| Statement { start: [5; 8], count, accepts: ips(&["192.0.2.1"]) };
    assert_eq!(a.heard(A, 1, false, say(1), now), None);
    assert_eq!(a.accepts(&A), None);
    let answered = (1..100).filter(|n| a.heard(B, *n, false, say(*n), now).is_some()).count();
    assert_eq!(answered, BURST as usize);
    assert!(a.heard(B, 100, false, say(100), now + REFILL).is_some());
    a.observe(&BTreeMap::new(), now);
    assert_eq!(a.accepts(&B), None, "who is a member no more is forgotten");
}

proptest! {
    #[test]
    fn statements_read_back_and_nothing_panics(
        count in any::<u64>(),
        v4 in proptest::collection::btree_set(any::<[u8; 4]>(), 0..20),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 0..100_usize,
    ) {
        let accepts = v4.into_iter().map(IpAddr::from).collect();
        let statement = Statement { start: [3; 8], count, accepts };
        let wire = statement.encode();
        prop_assert_eq!(Statement::decode(&wire), Some(statement));
        prop_assert_eq!(Statement::decode(&wire[..cut.min(wire.len() - 1)]), None);
        if let Some(read) = Statement::decode(&bytes) {
            prop_assert!(read.accepts.len() <= RECORD_NODE_ADDRESSES);
        }
    }
}
