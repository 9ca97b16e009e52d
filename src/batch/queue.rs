//! What waits, and what goes next: plain state and plain functions, time given as an argument.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::job::{BatchError, Job};
use super::policy::BatchPolicy;
use crate::domain::{Lane, Modality};

/// Search batches in a row while bulk waits; then one bulk batch is served.
const MAX_SEARCHES_IN_A_ROW: usize = 4;

/// Jobs by lane and modality, oldest first.
pub(super) struct Queue {
    policy: BatchPolicy,
    search: [VecDeque<Job>; 2],
    bulk: [VecDeque<Job>; 2],
    searches_in_a_row: usize,
}

/// What to do now.
pub(super) enum Next {
    /// Compute these: 1 to `max_batch_size` jobs of one modality and one lane.
    Batch(Vec<Job>),
    /// Nothing is due before this moment, unless more jobs come.
    WaitUntil(Instant),
    /// Nothing waits.
    Empty,
}

impl Queue {
    pub fn new(policy: BatchPolicy) -> Self {
        Self { policy, search: Default::default(), bulk: Default::default(), searches_in_a_row: 0 }
    }

    pub fn push(&mut self, job: Job) {
        let modality = job.prepared.modality() as usize;
        match job.lane {
            Lane::Search => self.search[modality].push_back(job),
            Lane::Bulk => self.bulk[modality].push_back(job),
        }
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.search.iter().chain(&self.bulk).map(VecDeque::len).sum()
    }

    /// From now on nothing waits for others: no more will come.
    pub fn stop_waiting(&mut self) {
        self.policy.max_queue_delay = Duration::ZERO;
    }

    /// Takes the next batch. Expired jobs are answered and abandoned ones dropped on the way.
    ///
    /// Searches go first and alone, since filling up their batch with bulk would slow them down; but bulk is
    /// served after [`MAX_SEARCHES_IN_A_ROW`] of them. Among bulk the older head goes first.
    pub fn next_batch(&mut self, now: Instant) -> Next {
        self.drop_dead(now);
        let bulk_waits = Modality::ALL.into_iter().any(|modality| !self.bulk[modality as usize].is_empty());
        if !bulk_waits {
            self.searches_in_a_row = 0;
        }
        let bulk_first = self.searches_in_a_row >= MAX_SEARCHES_IN_A_ROW;
        if !bulk_first && let Some(queue) = oldest(&mut self.search, |_| true) {
            self.searches_in_a_row += 1;
            return Next::Batch(take(queue, self.policy.max_batch_size));
        }
        let BatchPolicy { max_batch_size, max_queue_delay } = self.policy;
        let due_at = |queue: &VecDeque<Job>| queue.front().map(|head| head.enqueued_at + max_queue_delay);
        let is_due = |queue: &VecDeque<Job>| {
            bulk_first || queue.len() >= max_batch_size || due_at(queue).is_some_and(|at| at <= now)
        };
        if let Some(queue) = oldest(&mut self.bulk, is_due) {
            self.searches_in_a_row = 0;
            return Next::Batch(take(queue, max_batch_size));
        }
        self.bulk.iter().filter_map(due_at).min().map_or(Next::Empty, Next::WaitUntil)
    }

    /// Takes every job.
    pub fn drain(&mut self) -> impl Iterator<Item = Job> {
        self.search.iter_mut().chain(&mut self.bulk).flat_map(|queue| queue.drain(..))
    }

    fn drop_dead(&mut self, now: Instant) {
        for queue in self.search.iter_mut().chain(&mut self.bulk) {
            queue.retain_mut(|job| {
                let expired = job.deadline <= now;
                if expired {
                    job.reply.send(Err(BatchError::Deadline));
                }
                !expired && !job.reply.is_abandoned()
            });
        }
    }
}

/// The queue with the oldest head among those that may go.
fn oldest(
    queues: &mut [VecDeque<Job>; 2],
    may_go: impl Fn(&VecDeque<Job>) -> bool,
) -> Option<&mut VecDeque<Job>> {
    queues
        .iter_mut()
        .filter(|queue| !queue.is_empty() && may_go(queue))
        .max_by_key(|queue| queue.front().map(|head| Reverse(head.enqueued_at)))
}

fn take(queue: &mut VecDeque<Job>, most: usize) -> Vec<Job> {
    queue.drain(..most.min(queue.len())).collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::batch::job::Reply;
    use crate::domain::{Embedding, Pixels, Prepared, Tokens};

    type Answer = oneshot::Receiver<Result<Embedding, BatchError>>;

    struct Bench {
        queue: Queue,
        start: Instant,
        answers: Vec<Answer>,
    }

    impl Bench {
        fn new(max_batch_size: usize, delay_ms: u64) -> Self {
            let max_queue_delay = Duration::from_millis(delay_ms);
            let queue = Queue::new(BatchPolicy { max_batch_size, max_queue_delay });
            Self { queue, start: Instant::now(), answers: Vec::new() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        /// Pushes a job named by `id` that comes at `ms` and expires a second later.
        fn push(&mut self, id: u32, lane: Lane, modality: Modality, ms: u64) {
            let prepared = match modality {
                Modality::Text => Prepared::Tokens(Tokens { ids: vec![id], n_tokens: 1, truncated: false }),
                Modality::Image => {
                    Prepared::Pixels(Pixels { rgb8: id.to_le_bytes().to_vec(), height: 1, width: 1 })
                }
            };
            let (sender, answer) = oneshot::channel();
            self.answers.push(answer);
            let (enqueued_at, deadline) = (self.at(ms), self.at(ms + 1000));
            self.queue.push(Job { prepared, lane, enqueued_at, deadline, reply: Reply::new(sender) });
        }

        /// The ids of the batch that is due at `ms`, if one is.
        fn batch(&mut self, ms: u64) -> Option<Vec<u32>> {
            match self.queue.next_batch(self.at(ms)) {
                Next::Batch(jobs) => Some(jobs.iter().map(id).collect()),
                _ => None,
            }
        }
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
        assert!(matches!(bench.queue.next_batch(bench.at(1)), Next::WaitUntil(at) if at == due));
        assert_eq!(bench.batch(2), Some(vec![1, 2]));
        assert!(matches!(bench.queue.next_batch(bench.at(2)), Next::Empty));
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
}
