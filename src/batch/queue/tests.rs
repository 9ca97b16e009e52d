//! The queue on a clock of its own: who goes when, and in what company.

use prometheus::{Histogram, HistogramOpts};
use tokio::sync::oneshot;

use super::*;
use crate::batch::job::{Reply, Trace, Wait};
use crate::domain::{Embedding, Pixels, Prepared, Tokens};

type Answer = oneshot::Receiver<Result<Embedding, BatchError>>;

struct Bench {
    queue: Queue,
    demand: Demand,
    start: Instant,
    answers: Vec<Answer>,
}

impl Bench {
    fn new(max_batch_size: usize, delay_ms: u64) -> Self {
        let max_queue_delay = Duration::from_millis(delay_ms);
        let queue = Queue::new(BatchPolicy {
            max_pictures: max_batch_size,
            max_texts: max_batch_size,
            max_tokens: 64,
            max_bulk_batch: Some(Duration::from_millis(100)),
            max_queue_delay,
        });
        let demand = Demand { lanes: Lanes::All, caps: [usize::MAX; 2], sharers: 1, rests_until: None };
        Self { queue, demand, start: Instant::now(), answers: Vec::new() }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// Pushes a job named by `id` that comes at `ms` and expires a second later.
    fn push(&mut self, id: u32, lane: Lane, modality: Modality, ms: u64) {
        match modality {
            Modality::Text => self.push_prepared(tokens(id, 1), lane, ms),
            Modality::Image => self.push_prepared(picture(id, 1), lane, ms),
        }
    }

    fn push_prepared(&mut self, prepared: Prepared, lane: Lane, ms: u64) {
        let (sender, answer) = oneshot::channel();
        self.answers.push(answer);
        let seconds = Histogram::with_opts(HistogramOpts::new("waits", "waits")).unwrap();
        let (wait, deadline) = (Wait::new(self.at(ms), seconds), self.at(ms + 1000));
        let (trace, reply) = (Trace::begin_wait(lane), Reply::new(sender));
        self.queue.push(Job { prepared, lane, wait, deadline, trace, reply });
    }

    fn next(&mut self, ms: u64) -> Next {
        self.queue.next_batch(self.at(ms), &self.demand)
    }

    /// For twenty seconds pictures of width 1, 2, ... come, of each so many a second, to an engine for bulk that takes so many
    /// milliseconds for a batch of a width and a size. Gives how many of each were in time, and late.
    fn run<const N: usize>(
        &mut self,
        per_s: [f64; N],
        mut took: impl FnMut(usize, u64) -> u64,
    ) -> [[usize; 2]; N] {
        let (mut n_pushed, mut counts, mut now) = ([0; N], [[0; 2]; N], 0);
        self.demand.lanes = Lanes::Only(Bulk);
        while now < 20_000 {
            for i in 0..N {
                while f64::from(n_pushed[i]) < per_s[i] * now as f64 / 1000.0 {
                    self.push_prepared(picture(n_pushed[i], i as u32 + 1), Bulk, now);
                    n_pushed[i] += 1;
                }
            }
            let Next::Batch(jobs) = self.next(now) else {
                now += 1;
                continue;
            };
            let kind = Kind::of(&jobs[0].prepared);
            let Kind::Image(_, width) = kind else { panic!("{kind:?}") };
            let took = took(width as usize, jobs.len() as u64);
            now += took;
            self.queue.learn(Bulk, kind, jobs.len(), Duration::from_millis(took));
            for job in jobs {
                counts[width as usize - 1][usize::from(job.deadline < self.at(now))] += 1;
            }
        }
        counts
    }

    /// The ids of the batch that is due at `ms`, if one is.
    fn batch(&mut self, ms: u64) -> Option<Vec<u32>> {
        match self.next(ms) {
            Next::Batch(jobs) => Some(jobs.iter().map(id).collect()),
            _ => None,
        }
    }
}

fn tokens(id: u32, length: usize) -> Prepared {
    Prepared::Tokens(Tokens { ids: vec![id; length], n_tokens: length, truncated: false })
}

fn picture(id: u32, width: u32) -> Prepared {
    Prepared::Pixels(Pixels { rgb8: id.to_le_bytes().to_vec(), height: 1, width })
}

fn id(job: &Job) -> u32 {
    match &job.prepared {
        Prepared::Tokens(tokens) => tokens.ids[0],
        Prepared::Pixels(pixels) => u32::from_le_bytes(pixels.rgb8[..].try_into().unwrap()),
    }
}

use Lane::{Bulk, Search};
use Modality::{Image, Text};

#[test]
fn bulk_waits_for_a_full_batch_or_the_delay() {
    let mut bench = Bench::new(3, 2);
    bench.push(1, Bulk, Text, 0);
    bench.push(2, Bulk, Text, 1);
    let due = bench.at(2);
    assert!(matches!(bench.next(1), Next::WaitUntil(at) if at == due));
    assert_eq!(bench.batch(2), Some(vec![1, 2]));
    assert!(matches!(bench.next(2), Next::Empty));
    (1..=4).for_each(|id| bench.push(id, Bulk, Text, 10));
    assert_eq!(bench.batch(10), Some(vec![1, 2, 3]));
    assert_eq!(bench.batch(10), None);
}

#[test]
fn batches_are_of_one_modality_and_the_older_head_goes_first() {
    let mut bench = Bench::new(8, 0);
    bench.push(1, Bulk, Image, 0);
    bench.push(2, Bulk, Text, 1);
    bench.push(3, Bulk, Image, 2);
    assert_eq!(bench.batch(2), Some(vec![1, 3]));
    assert_eq!(bench.batch(2), Some(vec![2]));
}

#[test]
fn a_full_batch_does_not_wait_behind_an_older_lone_job() {
    let mut bench = Bench::new(2, 5);
    bench.push(1, Bulk, Image, 0);
    bench.push(2, Bulk, Text, 1);
    bench.push(3, Bulk, Text, 1);
    assert_eq!(bench.batch(1), Some(vec![2, 3]));
    assert_eq!(bench.batch(5), Some(vec![1]));
}

#[test]
fn searches_go_first_alone_and_at_once() {
    let mut bench = Bench::new(8, 1000);
    bench.push(1, Bulk, Text, 0);
    bench.push(2, Search, Text, 5);
    bench.push(3, Search, Text, 5);
    assert_eq!(bench.batch(5), Some(vec![2, 3]));
    assert_eq!(bench.batch(5), None);
}

#[test]
fn bulk_is_served_after_four_search_batches() {
    let mut bench = Bench::new(1, 0);
    (0..10).for_each(|id| bench.push(id, Search, Text, 0));
    bench.push(100, Bulk, Text, 0);
    bench.push(101, Bulk, Image, 1);
    let order: Vec<u32> = std::iter::from_fn(|| bench.batch(1)).flatten().collect();
    assert_eq!(order, [0, 1, 2, 3, 100, 4, 5, 6, 7, 101, 8, 9]);
}

#[test]
fn searches_before_bulk_came_do_not_count() {
    let mut bench = Bench::new(1, 0);
    (0..6).for_each(|id| bench.push(id, Search, Text, 0));
    (0..5).for_each(|id| assert_eq!(bench.batch(0), Some(vec![id])));
    bench.push(100, Bulk, Text, 0);
    assert_eq!(bench.batch(0), Some(vec![5]));
    assert_eq!(bench.batch(0), Some(vec![100]));
}

#[test]
fn expired_jobs_are_answered_and_abandoned_ones_dropped() {
    let mut bench = Bench::new(8, 0);
    bench.push(1, Bulk, Text, 0);
    bench.push(2, Bulk, Text, 500);
    bench.push(3, Search, Image, 500);
    drop(bench.answers.pop());
    assert_eq!(bench.batch(1000), Some(vec![2]));
    assert_eq!(bench.answers[0].try_recv(), Ok(Err(BatchError::Deadline)));
    assert_eq!(bench.queue.len(), 0);
}

#[test]
fn nothing_waits_once_no_more_will_come() {
    let mut bench = Bench::new(8, 1000);
    bench.push(1, Bulk, Text, 0);
    assert_eq!(bench.batch(0), None);
    bench.queue.stop_waiting();
    assert_eq!(bench.batch(0), Some(vec![1]));
}

#[test]
fn texts_go_with_others_of_their_length() {
    let mut bench = Bench::new(8, 0);
    for (id, length) in [(1, 3), (2, 40), (3, 16), (4, 17), (5, 33), (6, 100), (7, 64)] {
        bench.push_prepared(tokens(id, length), Bulk, u64::from(id));
    }
    // 64 tokens to a batch: four short ones, two of 32, one of 64; what is longer goes alone.
    let order: Vec<Vec<u32>> = std::iter::from_fn(|| bench.batch(10)).collect();
    assert_eq!(order, [vec![1, 3], vec![2], vec![4], vec![5], vec![6], vec![7]]);
    (0..6).for_each(|id| bench.push_prepared(tokens(id, 5), Bulk, 20));
    assert_eq!(bench.batch(20), Some(vec![0, 1, 2, 3]));
}

#[test]
fn texts_of_nearly_one_length_go_together() {
    let mut bench = Bench::new(8, 0);
    for (id, length) in [(1, 20), (2, 32), (3, 28), (4, 21), (5, 31), (6, 20)] {
        bench.push_prepared(tokens(id, length), Bulk, u64::from(id));
    }
    // Two to a batch. The oldest always goes, and of two as near the older.
    let order: Vec<Vec<u32>> = std::iter::from_fn(|| bench.batch(10)).collect();
    assert_eq!(order, [vec![1, 6], vec![2, 5], vec![3, 4]]);
    for (id, length) in [(1, 9), (2, 10), (3, 8), (4, 9), (5, 16), (6, 10)] {
        bench.push_prepared(tokens(id, length), Bulk, 20);
    }
    assert_eq!(bench.batch(20), Some(vec![1, 2, 3, 4]), "in the order they came");
    assert_eq!(bench.batch(20), Some(vec![5, 6]));
}

#[test]
fn pictures_of_two_sizes_never_share_a_batch() {
    let mut bench = Bench::new(8, 0);
    (0..4).for_each(|id| bench.push_prepared(picture(id, 1 + id % 2), Bulk, id.into()));
    let order: Vec<Vec<u32>> = std::iter::from_fn(|| bench.batch(4)).collect();
    assert_eq!(order, [vec![0, 2], vec![1, 3]]);
}

#[test]
fn an_engine_gets_its_lane_only() {
    let mut bench = Bench::new(8, 0);
    bench.push(1, Bulk, Text, 0);
    bench.demand.lanes = Lanes::Only(Search);
    assert!(matches!(bench.next(0), Next::Empty));
    bench.push(2, Search, Text, 0);
    bench.demand.lanes = Lanes::Only(Bulk);
    assert_eq!(bench.batch(0), Some(vec![1]));
    assert!(matches!(bench.next(0), Next::Empty));
    bench.demand.lanes = Lanes::Only(Search);
    assert_eq!(bench.batch(0), Some(vec![2]));
}

#[test]
fn what_waits_is_dealt_out_to_idle_engines() {
    let mut bench = Bench::new(8, 0);
    (0..10).for_each(|id| bench.push(id, Bulk, Image, 0));
    bench.demand.sharers = 2;
    assert_eq!(bench.batch(0).unwrap().len(), 5);
    bench.demand.sharers = 1;
    assert_eq!(bench.batch(0).unwrap().len(), 5);
}

#[test]
fn no_batch_is_larger_than_memory() {
    let mut bench = Bench::new(8, 0);
    (0..4).for_each(|id| bench.push(id, Search, Image, 0));
    bench.demand.caps[Image as usize] = 3;
    assert_eq!(bench.batch(0).unwrap().len(), 3);
}

#[test]
fn bulk_shrinks_until_a_search_need_not_wait_long() {
    let mut bench = Bench::new(8, 0);
    let fill = |bench: &mut Bench| (0..8).for_each(|id| bench.push(id, Bulk, Image, 0));
    let image = Kind::of(&picture(0, 1));
    fill(&mut bench);
    assert_eq!(bench.batch(0).unwrap().len(), 8, "nothing is known yet");
    bench.queue.learn(Bulk, image, 8, Duration::from_millis(400));
    fill(&mut bench);
    assert_eq!(bench.batch(0).unwrap().len(), 2, "50 ms each, 100 ms in all");
    (0..20).for_each(|_| bench.queue.learn(Bulk, image, 2, Duration::from_millis(800)));
    assert_eq!(bench.batch(0).unwrap().len(), 1, "never none");
    (0..20).for_each(|_| bench.queue.learn(Bulk, image, 1, Duration::from_millis(10)));
    assert_eq!(bench.batch(0).unwrap().len(), 5, "all that is left, since it got faster");
    bench.queue.learn(Bulk, image, 1, Duration::from_millis(290));
    fill(&mut bench);
    bench.demand.lanes = Lanes::Only(Bulk);
    assert_eq!(bench.batch(0).unwrap().len(), 8, "no search waits for this engine");
}

/// Each expires after a second.
#[test]
fn a_batch_ends_before_its_deadline() {
    let mut bench = Bench::new(8, 0);
    bench.demand.lanes = Lanes::Only(Bulk);
    bench.queue.learn(Bulk, Kind::of(&picture(0, 1)), 1, Duration::from_millis(190));
    (0..16).for_each(|id| bench.push(id, Bulk, Image, 0));
    assert_eq!(bench.batch(0).unwrap().len(), 4, "760 ms, and 950 ms at worst");
    assert_eq!(bench.batch(500).unwrap().len(), 2);
    assert_eq!(bench.batch(900).unwrap().len(), 1, "late as it may be");
}

#[test]
fn searches_wait_for_few_others() {
    let mut bench = Bench::new(8, 0);
    let image = Kind::of(&picture(0, 1));
    bench.queue.learn(Bulk, image, 1, Duration::from_millis(900));
    for lanes in [Lanes::All, Lanes::Only(Search)] {
        bench.demand.lanes = lanes;
        (0..8).for_each(|id| bench.push(id, Search, Image, 0));
        assert_eq!(
            bench.batch(0).unwrap().len(),
            8,
            "an engine's pace for bulk says nothing of its searches"
        );
    }
    bench.queue.learn(Search, image, 1, Duration::from_millis(140));
    (0..8).for_each(|id| bench.push(id, Search, Image, 0));
    assert_eq!(bench.batch(0).unwrap().len(), 2);
}

#[test]
fn an_engine_that_rests_takes_searches_that_came_meanwhile_together() {
    let mut bench = Bench::new(4, 0);
    bench.demand.lanes = Lanes::Only(Lane::Search);
    bench.demand.rests_until = Some(bench.at(20));
    assert!(matches!(bench.next(0), Next::Empty));
    bench.push(1, Lane::Search, Modality::Text, 0);
    assert!(matches!(bench.next(0), Next::WaitUntil(moment) if moment == bench.at(20)));
    bench.push(2, Lane::Search, Modality::Text, 10);
    bench.demand.rests_until = None;
    assert_eq!(bench.batch(20), Some(vec![1, 2]));
}

#[test]
fn a_burst_of_more_than_can_be_computed_makes_nothing_late_for_long() {
    let mut bench = Bench::new(32, 0);
    let (mut n_pushed, mut n_in_time, mut now) = (0, 0, 0);
    while now < 20_000 {
        // In full batches 780 a second are computed, one by one a hundred.
        let comes_by = |ms: u64| if ms < 3000 { 2 * ms } else { 6000 + (ms - 3000) * 2 / 5 };
        while n_pushed < comes_by(now) {
            bench.push(n_pushed as u32, Search, Image, now);
            n_pushed += 1;
        }
        let Next::Batch(jobs) = bench.next(now) else {
            now += 1;
            continue;
        };
        let took = 9 + jobs.len() as u64;
        now += took;
        bench.queue.learn(Search, Kind::of(&jobs[0].prepared), jobs.len(), Duration::from_millis(took));
        n_in_time += jobs.iter().filter(|job| now > 5000 && job.deadline >= bench.at(now)).count();
    }
    assert!(n_in_time >= 5990, "{n_in_time} of 400 a second for 15 s");
}

#[test]
fn a_batch_that_takes_longer_than_most_is_in_time_too() {
    let mut n_batches = 0;
    let took = |_, n: u64| {
        n_batches += 1;
        if n_batches % 3 == 0 { n * 18 } else { n * 15 }
    };
    let [[in_time, late]] = Bench::new(32, 0).run([100.0], took);
    assert!(in_time >= 1200 && late <= 30, "{in_time} of some 63 a second that can be computed, {late} late");
}

#[test]
fn what_is_slow_is_in_time_beside_more_than_can_be_computed() {
    let took = |width, n: u64| if width == 1 { 10 + 2 * n } else { 400 * n };
    let [fast, slow] = Bench::new(32, 0).run([700.0, 0.5], took);
    assert_eq!(slow, [10, 0]);
    assert!(fast[0] >= 6000 && fast[1] <= 100, "{fast:?}");
    // Too much of both.
    let [fast, slow] = Bench::new(32, 0).run([700.0, 5.0], took);
    assert!(slow[0] >= 20 && slow[1] <= 2, "{slow:?}");
    assert!(fast[0] >= 3000 && fast[1] <= 100, "{fast:?}");
}

#[test]
fn kinds_that_are_late_together_have_as_much_time_each() {
    let mut bench = Bench::new(1, 0);
    bench.demand.lanes = Lanes::Only(Bulk);
    for (width, ms) in [(1, 100), (2, 10)] {
        bench.queue.learn(Bulk, Kind::Image(1, width), 1, Duration::from_millis(ms));
        (0..100).for_each(|_| bench.push_prepared(picture(width, width), Bulk, 0));
    }
    let taken: Vec<_> = (0..44).flat_map(|_| bench.batch(995).unwrap()).collect();
    assert_eq!(taken.iter().filter(|width| **width == 1).count(), 4, "{taken:?}");
    assert_eq!(taken[..22].iter().filter(|width| **width == 1).count(), 2, "{taken:?}");

    // One that was not late meanwhile has not saved up turns.
    bench.queue.learn(Bulk, Kind::Image(1, 3), 1, Duration::from_millis(10));
    (0..100).for_each(|_| bench.push_prepared(picture(3, 3), Bulk, 0));
    let taken: Vec<_> = (0..42).flat_map(|_| bench.batch(995).unwrap()).collect();
    assert_eq!(taken.iter().filter(|width| **width == 3).count(), 20, "{taken:?}");
}

#[test]
fn what_is_late_has_a_quarter_of_the_time_beside_what_never_is() {
    let mut bench = Bench::new(32, 0);
    bench.demand.lanes = Lanes::Only(Bulk);
    let (fast, slow) = (Kind::Image(1, 1), Kind::Image(1, 2));
    let (mut n_fast, mut n_slow, mut now, mut n_in_time) = (0, 0, 0, [0; 2]);
    while now < 20_000 {
        // Callers that have an answer ask again at once; of the slow kind comes twice as much as can be computed.
        while bench.queue.lanes[Bulk as usize].get(&fast).is_none_or(|queue| queue.len() < 128) {
            bench.push_prepared(picture(n_fast, 1), Bulk, now);
            n_fast += 1;
        }
        while u64::from(n_slow) * 100 < now {
            bench.push_prepared(picture(n_slow, 2), Bulk, now);
            n_slow += 1;
        }
        let Next::Batch(jobs) = bench.next(now) else { panic!("something always waits") };
        let kind = Kind::of(&jobs[0].prepared);
        let took = jobs.len() as u64 * if kind == slow { 200 } else { 2 };
        now += took;
        bench.queue.learn(Bulk, kind, jobs.len(), Duration::from_millis(took));
        let in_time = jobs.iter().filter(|job| job.deadline >= bench.at(now)).count();
        n_in_time[usize::from(kind == slow)] += in_time;
    }
    let [fast, slow] = n_in_time;
    // A second has five of the slow kind, which goes first until it is late.
    assert!((20..=40).contains(&slow) && fast >= 6000, "{fast} and {slow}");
}

#[test]
fn what_would_be_late_goes_last_and_another_kind_goes_before_it() {
    let mut bench = Bench::new(4, 0);
    let image = Kind::of(&picture(0, 1));
    bench.queue.learn(Bulk, image, 1, Duration::from_millis(50));
    bench.demand.lanes = Lanes::Only(Bulk);
    (0..3).for_each(|id| bench.push(id, Bulk, Image, 0));
    bench.push(10, Bulk, Text, 100);
    (3..5).for_each(|id| bench.push(id, Bulk, Image, 200));
    // Four take 200 ms and may take 250 ms.
    assert_eq!(bench.batch(760), Some(vec![10]));
    assert_eq!(bench.batch(760), Some(vec![3, 4]));
    assert_eq!(bench.batch(860), Some(vec![0, 1]), "nothing else waits, and 140 ms are enough for two");
    assert_eq!(bench.batch(960), Some(vec![2]), "late as it may be");
}
