//! Any mix of repeats, gaps and restarts: each record once, in order, and no commit past open work.

use proptest::prelude::*;

use super::*;

fn place(stream: u32, ver: u64) -> Place {
    Place { stream, ver, fingerprint: ver ^ u64::from(stream) << 32 }
}

#[test]
fn a_later_record_waits_for_the_missing_one() {
    let (mut sequencer, mut out, now) = (Sequencer::new(&HighWater::default()), Vec::new(), Instant::now());
    assert_eq!(sequencer.offer(now, place(7, 5), 5, &mut out), Verdict::Taken);
    assert_eq!(sequencer.offer(now, place(7, 7), 7, &mut out), Verdict::Held);
    assert_eq!(sequencer.offer(now, place(7, 8), 8, &mut out), Verdict::Held);
    assert_eq!(out, [5]);
    assert_eq!(sequencer.offer(now, place(7, 6), 6, &mut out), Verdict::Taken);
    assert_eq!(out, [5, 6, 7, 8]);
    assert_eq!(sequencer.held(), 0);
}

#[test]
fn a_record_sent_twice_is_dropped_and_a_count_that_went_back_is_told() {
    let (mut sequencer, mut out, now) = (Sequencer::new(&HighWater::default()), Vec::new(), Instant::now());
    for ver in 1..=3 {
        sequencer.offer(now, place(0, ver), ver, &mut out);
    }
    assert_eq!(sequencer.offer(now, place(0, 2), 2, &mut out), Verdict::Duplicate);
    let other = Place { fingerprint: 999, ..place(0, 2) };
    assert_eq!(sequencer.offer(now, other, 2, &mut out), Verdict::WentBack);
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn a_gap_is_given_up_after_its_deadline_and_not_before() {
    let (mut sequencer, mut out, start) = (Sequencer::new(&HighWater::default()), Vec::new(), Instant::now());
    sequencer.offer(start, place(1, 1), 1, &mut out);
    sequencer.offer(start, place(1, 4), 4, &mut out);
    assert!(sequencer.expire(start + GAP_DEADLINE / 2, false, &mut out).is_empty());
    let gaps = sequencer.expire(start + GAP_DEADLINE, false, &mut out);
    assert_eq!(gaps, [Gap { stream: 1, missing: 2, resumed: 4 }]);
    assert_eq!(out, [1, 4]);
    assert_eq!(sequencer.offer(start, place(1, 5), 5, &mut out), Verdict::Taken);
}

#[test]
fn held_records_that_take_too_much_memory_end_their_gaps_at_once() {
    let (mut sequencer, mut out, now) = (Sequencer::new(&HighWater::default()), Vec::new(), Instant::now());
    for stream in [1, 2] {
        sequencer.offer(now, place(stream, 1), 1, &mut out);
        sequencer.offer(now, place(stream, 3), 3, &mut out);
    }
    assert_eq!(sequencer.expire(now, true, &mut out).len(), 2);
    assert_eq!((sequencer.held(), out.len()), (0, 4));

    let mut inflight = Inflight::default();
    inflight.begin(1, 100);
    inflight.begin(2, 10);
    inflight.done(2);
    inflight.done(2);
    assert_eq!((inflight.open(), inflight.bytes()), (1, 100));
}

#[test]
fn too_many_held_records_end_the_oldest_gap_at_once() {
    let (mut sequencer, mut out, now) = (Sequencer::new(&HighWater::default()), Vec::new(), Instant::now());
    sequencer.offer(now, place(1, 1), 0, &mut out);
    for ver in 0..=MAX_HELD as u64 {
        sequencer.offer(now, place(1, ver + 3), ver, &mut out);
    }
    assert_eq!(sequencer.expire(now, false, &mut out).len(), 1);
    assert_eq!(sequencer.held(), 0);
}

#[test]
fn a_commit_never_passes_open_work_and_neither_does_its_high_water() {
    let mut inflight = Inflight::new(HighWater::default());
    for offset in 10..14 {
        assert!(inflight.begin(offset, 1));
        inflight.mark(offset, 0, offset as u64);
    }
    assert!(!inflight.begin(12, 1));
    inflight.done(12);
    inflight.done(11);
    assert!(inflight.commit_point().is_none());
    inflight.done(10);
    let (next, high) = inflight.commit_point().map(|(n, h)| (n, h.clone())).unwrap();
    assert_eq!((next, high.get(0)), (13, Some(12)));
    inflight.committed(next);
    assert!(inflight.commit_point().is_none());
    assert_eq!(inflight.open(), 1);
}

#[test]
fn only_what_storage_has_reached_may_open_a_gap_or_begin_a_stream() {
    let mut sequencer = Sequencer::<u64>::new(&[(1, 10)].into_iter().collect());
    for ver in [1, 9, 10, 11] {
        assert!(sequencer.is_plausible(1, ver), "{ver}");
    }
    for ver in [12, 1 << 63, u64::MAX] {
        assert!(!sequencer.is_plausible(1, ver), "{ver}");
    }
    // One that was never heard of begins with its first version.
    assert!(sequencer.is_plausible(2, 1) && !sequencer.is_plausible(2, 2));
    sequencer.reached(1, 20);
    sequencer.reached(1, 15);
    assert!(sequencer.is_plausible(1, 20) && !sequencer.is_plausible(1, 21) && !sequencer.is_plausible(2, 20));
}

#[test]
fn what_was_set_aside_raises_no_high_water() {
    let mut inflight = Inflight::default();
    inflight.begin(1, 1);
    inflight.mark(1, 0, 5);
    inflight.begin(2, 1);
    inflight.done(1);
    inflight.done(2);
    let (next, high) = inflight.commit_point().unwrap();
    assert_eq!((next, high.get(0)), (3, Some(5)));
}

proptest! {
    /// Shuffled within a window and repeated at will, each stream still comes out as 1, 2, 3 … once each.
    #[test]
    fn each_record_comes_out_once_in_order(
        streams in 1_u32..4,
        picks in proptest::collection::vec((0_u32..4, 0_u64..6), 0..300),
    ) {
        let mut sequencer = Sequencer::new(&streams_at_zero(streams));
        let mut next = vec![1_u64; streams as usize];
        let (mut out, now) = (Vec::new(), Instant::now());
        for (stream, jitter) in picks {
            let stream = stream % streams;
            // Around the next expected one: sometimes known, sometimes too early.
            let ver = (next[stream as usize] + jitter).saturating_sub(3).max(1);
            sequencer.offer(now, place(stream, ver), (stream, ver), &mut out);
            next[stream as usize] = next[stream as usize].max(ver + 1);
        }
        for (stream, end) in next.iter().enumerate() {
            for ver in 1..*end {
                sequencer.offer(now, place(stream as u32, ver), (stream as u32, ver), &mut out);
            }
        }
        prop_assert_eq!(sequencer.held(), 0);
        for (stream, end) in next.iter().enumerate() {
            let got: Vec<u64> = out.iter().filter(|(s, _)| *s == stream as u32).map(|(_, v)| *v).collect();
            prop_assert_eq!(got, (1..*end).collect::<Vec<_>>());
        }
    }

    /// A crash at any moment: what was committed was finished, and everything else comes again.
    #[test]
    fn a_restart_repeats_all_unfinished_work(finished in proptest::collection::vec(0_i64..50, 0..50)) {
        let mut inflight = Inflight::new(HighWater::default());
        for offset in 0..50 {
            inflight.begin(offset, 1);
            inflight.mark(offset, 0, offset as u64 + 1);
        }
        for offset in &finished {
            inflight.done(*offset);
        }
        let first_open = (0..50).find(|o| !finished.contains(o)).unwrap_or(50);
        let point = inflight.commit_point().map(|(next, high)| (next, high.get(0)));
        let expected = (first_open > 0).then_some((first_open, Some(first_open as u64)));
        prop_assert_eq!(point, expected);
    }
}

fn streams_at_zero(streams: u32) -> HighWater {
    let mut high = HighWater::default();
    for stream in 0..streams {
        high.raise(stream, 0);
    }
    high
}
