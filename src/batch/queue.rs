//! What waits, and what goes next: plain state and plain functions, time given as an argument.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::job::{BatchError, Job};
use super::policy::BatchPolicy;
use crate::domain::{Lane, Lanes, Modality, Prepared};

/// Search batches in a row while bulk waits; then one bulk batch is served. For engines that serve both.
const MAX_SEARCHES_IN_A_ROW: usize = 4;

/// Texts up to so many tokens share batches whatever their lengths: shorter ones gain nothing.
const SHORT_TEXT: usize = 16;

/// How long a batch of searches may take: whoever comes while it runs waits for all of it, and so do other models' searches.
const MAX_SEARCH_BATCH: Duration = Duration::from_millis(300);

/// How much longer than by its pace a batch may take without being late.
const SLACK: f64 = 1.25;

/// How much the newest batch counts in what is known of a kind's pace.
const NEWEST: f64 = 0.3;

/// Kinds that are late have their turn once those that are in time have been computed for so many times as long since the last
/// one. Those of a caller that always sends the next request once it has its answer are never late, however much there is.
const IN_TIME: u32 = 3;

/// What jobs have in common that may share a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// Texts of more than half of this many tokens, and of no more than them: one is padded to the longest, and
    /// at worst half of its batch is padding.
    Text(usize),
    /// Pictures of one height and width.
    Image(u32, u32),
}

impl Kind {
    pub fn of(prepared: &Prepared) -> Self {
        match prepared {
            Prepared::Tokens(tokens) => Self::Text(tokens.ids.len().next_power_of_two().max(SHORT_TEXT)),
            Prepared::Pixels(pixels) => Self::Image(pixels.height, pixels.width),
        }
    }

    pub fn modality(self) -> Modality {
        match self {
            Self::Text(_) => Modality::Text,
            Self::Image(..) => Modality::Image,
        }
    }
}

/// An idle engine's question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    /// Whom it works for.
    pub lanes: Lanes,
    /// What its memory holds of each modality: pictures, or tokens of texts with their padding.
    pub caps: [usize; Modality::ALL.len()],
    /// Idle engines that would take bulk, this one among them: what waits is dealt out to all.
    pub sharers: usize,
    /// Until then it leaves the CPU to bulk, where it works for searches alone.
    pub rests_until: Option<Instant>,
}

/// Jobs by lane and kind, oldest first.
pub(super) struct Queue {
    policy: BatchPolicy,
    lanes: [BTreeMap<Kind, VecDeque<Job>>; Lane::ALL.len()],
    searches_in_a_row: usize,
    /// By lane.
    pace: [HashMap<Kind, Pace>; Lane::ALL.len()],
    /// By lane.
    turns: [Turns; Lane::ALL.len()],
}

/// What is known of a kind in a lane.
struct Pace {
    /// Seconds that an input took, lately.
    seconds: f64,
    /// For how long it has been computed while it was late, on the clock of [`Turns`].
    had: Duration,
}

/// Whose turn it is, of kinds that are late.
#[derive(Default)]
struct Turns {
    /// For how long the one that came last had been computed before: a kind that was not late meanwhile begins with that, or
    /// it would have all turns until it has caught up.
    clock: Duration,
    /// For how long kinds that are in time have been computed since.
    in_time: Duration,
}

/// Jobs of one lane and kind for the next batch.
struct Portion {
    kind: Kind,
    /// The place of the oldest of them.
    first: usize,
    /// How many, if as many wait behind it; at least 1.
    most: usize,
    /// How long that takes; zero where nothing is known of it.
    takes: Duration,
    /// If the oldest job of all would be late, for how long the kind has been computed, see [`Turns`].
    late: Option<Duration>,
}

/// What to do now.
pub(super) enum Next {
    /// Compute these: jobs of one kind and one lane, at least one.
    Batch(Vec<Job>),
    /// Nothing is due before this moment, unless more jobs come.
    WaitUntil(Instant),
    /// Nothing waits.
    Empty,
}

impl Queue {
    pub fn new(policy: BatchPolicy) -> Self {
        let (lanes, pace, turns) = Default::default();
        Self { policy, lanes, searches_in_a_row: 0, pace, turns }
    }

    pub fn push(&mut self, job: Job) {
        let kind = Kind::of(&job.prepared);
        self.lanes[job.lane as usize].entry(kind).or_default().push_back(job);
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.lanes.iter().flat_map(BTreeMap::values).map(VecDeque::len).sum()
    }

    /// From now on nothing waits for others: no more will come.
    pub fn stop_waiting(&mut self) {
        self.policy.max_queue_delay = Duration::ZERO;
    }

    /// A batch of `n_jobs` took `elapsed`: the next of its lane and kind is sized by that.
    pub fn learn(&mut self, lane: Lane, kind: Kind, n_jobs: usize, elapsed: Duration) {
        let newest = elapsed.as_secs_f64() / n_jobs as f64;
        let pace =
            self.pace[lane as usize].entry(kind).or_insert(Pace { seconds: newest, had: Duration::ZERO });
        pace.seconds += NEWEST * (newest - pace.seconds);
    }

    /// Takes the next batch for an engine. Expired jobs are answered and abandoned ones dropped on the way.
    ///
    /// Searches go first and alone, since filling up their batch with bulk would slow them down; but an engine for
    /// both lanes serves bulk after [`MAX_SEARCHES_IN_A_ROW`] of them. Within a lane the older head goes first, but for kinds
    /// of which more comes than can be computed, see [`Self::first`].
    pub fn next_batch(&mut self, now: Instant, demand: &Demand) -> Next {
        self.drop_dead(now, demand.lanes);
        if self.lanes[Lane::Bulk as usize].is_empty() {
            self.searches_in_a_row = 0;
        }
        let bulk_first = demand.lanes == Lanes::All && self.searches_in_a_row >= MAX_SEARCHES_IN_A_ROW;
        if demand.lanes.serve(Lane::Search)
            && !bulk_first
            && let Some(portion) = self.first(Lane::Search, demand, now, |_, _| true)
        {
            if let Some(moment) = demand.rests_until {
                return Next::WaitUntil(moment);
            }
            self.searches_in_a_row += 1;
            return Next::Batch(self.take(Lane::Search, portion));
        }
        if !demand.lanes.serve(Lane::Bulk) {
            return Next::Empty;
        }
        let delay = self.policy.max_queue_delay;
        let due_at = |queue: &VecDeque<Job>| queue.front().map(|head| head.wait.since + delay);
        let is_due = |queue: &VecDeque<Job>, portion: &Portion| {
            bulk_first || queue.len() >= portion.most || due_at(queue).is_some_and(|at| at <= now)
        };
        if let Some(portion) = self.first(Lane::Bulk, demand, now, is_due) {
            self.searches_in_a_row = 0;
            let waiting = self.lanes[Lane::Bulk as usize][&portion.kind].len();
            let share = waiting.div_ceil(demand.sharers.max(1));
            let most = portion.most.min(share);
            return Next::Batch(self.take(Lane::Bulk, Portion { most, ..portion }));
        }
        let bulk = self.lanes[Lane::Bulk as usize].values();
        bulk.filter_map(due_at).min().map_or(Next::Empty, Next::WaitUntil)
    }

    /// Takes every job.
    pub fn drain(&mut self) -> impl Iterator<Item = Job> {
        std::mem::take(&mut self.lanes).into_iter().flatten().flat_map(|(_, queue)| queue)
    }

    /// What goes next of `kind`, of which a job waits.
    fn portion(&self, lane: Lane, kind: Kind, demand: &Demand, now: Instant) -> Portion {
        let by_tokens = match kind {
            Kind::Text(tokens) => self.policy.max_tokens / tokens,
            Kind::Image(..) => usize::MAX,
        };
        // A search waits for the batch that runs on the engine that serves it.
        let budget = match lane {
            Lane::Search => Some(MAX_SEARCH_BATCH),
            Lane::Bulk if demand.lanes == Lanes::All => self.policy.max_bulk_batch,
            Lane::Bulk => None,
        };
        let cap = demand.caps[kind.modality() as usize];
        let by_memory = match kind {
            Kind::Text(tokens) => cap / tokens,
            Kind::Image(..) => cap,
        };
        let fitting = self.policy.max_inputs(kind.modality()).min(by_tokens).min(by_memory);
        let queue = &self.lanes[lane as usize][&kind];
        let until_late = |job: &Job| job.deadline.saturating_duration_since(now);
        let Some(pace) = self.pace[lane as usize].get(&kind) else {
            return Portion { kind, first: 0, most: fitting.max(1), takes: Duration::ZERO, late: None };
        };
        let within = |time: Duration| fitting.min((time.as_secs_f64() / pace.seconds) as usize).max(1);
        // Where more comes than can be computed every head is nearly late. Batches that shrink for those compute less still,
        // so that from then on all are late, even once less comes. So what would be late in a full batch goes last; where
        // inputs are slow, what would be late alone.
        let enough = pace.of(within(MAX_SEARCH_BATCH)).mul_f64(SLACK);
        let in_time = queue.iter().position(|job| until_late(job) >= enough);
        let late = (in_time != Some(0)).then(|| pace.had.max(self.turns[lane as usize].clock));
        let first = in_time.unwrap_or(0);
        // Nobody waits for an answer beyond the deadline, and a batch is answered as a whole.
        let time = until_late(&queue[first]).div_f64(SLACK).min(budget.unwrap_or(Duration::MAX));
        let most = within(time);
        Portion { kind, first, most, takes: pace.of(most), late }
    }

    /// Of the portions that may go the one that begins with the oldest job.
    ///
    /// But a kind that is late already goes behind those that are not: it has jobs that are only just in time at every moment,
    /// and slow ones, which have to begin earlier, would never be older than those. Now and then it goes before them all the
    /// same, see [`IN_TIME`]. Kinds that are late together are computed for as long each: one that is in time again, as it was
    /// served more, would keep the others out for good.
    fn first(
        &self,
        lane: Lane,
        demand: &Demand,
        now: Instant,
        may_go: impl Fn(&VecDeque<Job>, &Portion) -> bool,
    ) -> Option<Portion> {
        self.lanes[lane as usize]
            .iter()
            .map(|(kind, queue)| (queue, self.portion(lane, *kind, demand, now)))
            .filter(|(queue, portion)| may_go(queue, portion))
            .min_by_key(|(queue, portion)| {
                let is_turn = || self.turns[lane as usize].in_time >= portion.takes * IN_TIME;
                let rank = match portion.late {
                    Some(_) if is_turn() => Ordering::Less,
                    None => Ordering::Equal,
                    Some(_) => Ordering::Greater,
                };
                (rank, portion.late, queue[portion.first].wait.since)
            })
            .map(|(_, portion)| portion)
    }

    fn take(&mut self, lane: Lane, Portion { kind, first, most, late, .. }: Portion) -> Vec<Job> {
        let kinds = &mut self.lanes[lane as usize];
        let queue = kinds.get_mut(&kind).expect("the kind was found there");
        let jobs = match kind {
            Kind::Text(_) if most < queue.len() - first => take_of_a_length(queue, first, most),
            _ => queue.drain(first..queue.len().min(first + most)).collect(),
        };
        if queue.is_empty() {
            kinds.remove(&kind);
        }
        if let Some(pace) = self.pace[lane as usize].get_mut(&kind) {
            let (turns, takes) = (&mut self.turns[lane as usize], pace.of(jobs.len()));
            match late {
                None => turns.in_time += takes,
                Some(had) => {
                    *turns = Turns { clock: had, in_time: Duration::ZERO };
                    pace.had = had + takes;
                }
            }
        }
        jobs
    }

    /// Of the lanes that are asked for only: an idle engine for searches asks at every new job.
    fn drop_dead(&mut self, now: Instant, lanes: Lanes) {
        for lane in Lane::ALL.into_iter().filter(|lane| lanes.serve(*lane)) {
            self.lanes[lane as usize].retain(|_, queue| {
                queue.retain_mut(|job| {
                    let expired = job.deadline <= now;
                    if expired {
                        job.reply.send(Err(BatchError::Deadline));
                    }
                    !expired && !job.reply.is_abandoned()
                });
                !queue.is_empty()
            });
        }
    }
}

impl Pace {
    /// How long so many inputs take.
    fn of(&self, n: usize) -> Duration {
        Duration::from_secs_f64(self.seconds * n as f64)
    }
}

/// Takes `n` of more texts: the `first`, and those behind it whose length is nearest to its, since all are padded to the
/// longest.
fn take_of_a_length(queue: &mut VecDeque<Job>, first: usize, n: usize) -> Vec<Job> {
    let length = queue[first].prepared.length();
    let mut places: Vec<usize> = (first..queue.len()).collect();
    places.select_nth_unstable_by_key(n - 1, |i| (queue[*i].prepared.length().abs_diff(length), *i));
    places.truncate(n);
    places.sort_unstable();
    // From the back, where nothing that is still to be taken moves.
    let mut jobs: Vec<Job> = places.iter().rev().filter_map(|i| queue.remove(*i)).collect();
    jobs.reverse();
    jobs
}

#[cfg(test)]
mod tests;
