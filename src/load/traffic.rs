//! Bulk load from connections that ask again once answered, searches at a fixed pace beside it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval_at, sleep},
};

use super::{
    Form, Lane, Lanes, Length, LoadError, Memory, Peer, Report, Target,
    tally::{LaneReport, Tally},
};
use crate::domain::Modality;

/// Before a connection asks again after a failure.
const PAUSE: Duration = Duration::from_millis(100);

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the bulk goes.
    pub bulk: Target,
    /// Where single texts go.
    pub search: Option<Target>,
    /// A search each so often, beside the bulk.
    pub search_every: Option<Duration>,
    /// Bulk requests in flight.
    pub n_connections: usize,
    /// Inputs of a bulk request.
    pub n_inputs: usize,
    /// How long the bulk lasts.
    pub until: Until,
    /// Single inputs to measure before, one after another.
    pub n_idle: u64,
    /// The server's process, if it is on this machine.
    pub pid: Option<u32>,
}

/// How long the bulk lasts.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// No request starts later.
    Elapsed(Duration),
    /// So many requests.
    Requests(u64),
}

/// Warms up (only where inputs repeat), measures the idle server (only if asked), then under load.
///
/// # Errors
/// [`LoadError`] when the plan does not hold together. A server that fails is in the report.
///
/// # Cancel safety
/// Dropped half-way it ends its requests; nothing is reported.
pub async fn run(peer: &Arc<Peer>, plan: &Plan) -> Result<Report, LoadError> {
    let bulk = peer.lane(&plan.bulk, plan.n_inputs, Length::Product)?;
    let search = match &plan.search {
        Some(Target { form: Form::Multipart, .. }) => return Err(LoadError::SearchForm("an upload")),
        Some(target) if target.form.modality() == Modality::Image => {
            return Err(LoadError::SearchForm("its template"));
        }
        Some(target) => Some(peer.lane(target, 1, Length::Query)?),
        None => None,
    };
    let image = match plan.bulk.form.modality() {
        Modality::Image => Some(peer.lane(&plan.bulk, 1, Length::Product)?),
        Modality::Text => None,
    };
    let memory = plan.pid.map(Memory::at_start).transpose()?;

    let warm_up = match peer.inputs().repeat() {
        Some(n) => {
            // Each lane draws every input at least once.
            let mut tally =
                closed_loop(&bulk, plan.n_connections, Quota::requests(n.div_ceil(plan.n_inputs as u64)))
                    .await;
            if let Some(search) = search.as_ref().filter(|_| plan.search_every.is_some() || plan.n_idle > 0) {
                tally.merge(closed_loop(search, plan.n_connections, Quota::requests(n)).await);
            }
            Some(tally.report())
        }
        None => None,
    };
    let idle_text = idle(search.as_ref(), plan.n_idle).await;
    let idle_image = idle(image.as_ref(), plan.n_idle).await;

    let started = Instant::now();
    let quota = match plan.until {
        Until::Elapsed(time) => Quota::until(started + time),
        Until::Requests(n) => Quota::requests(n),
    };
    let searching = async {
        match (&search, plan.search_every) {
            (Some(lane), Some(every)) => Some(open_loop(lane, every, &quota).await.report()),
            _ => None,
        }
    };
    let (bulk, search) = tokio::join!(closed_loop(&bulk, plan.n_connections, quota.clone()), searching);
    let seconds = bulk.last_answer.map(|at| (at - started).as_secs_f64());
    let bulk = bulk.report();
    Ok(Report {
        url: plan.bulk.url.to_string(),
        modality: plan.bulk.form.modality().as_str(),
        n_connections: plan.n_connections,
        n_inputs: plan.n_inputs,
        repeat: peer.inputs().repeat(),
        seconds,
        inputs_per_second: seconds.map_or(0.0, |seconds| bulk.n_inputs as f64 / seconds),
        dimensions: peer.dimensions(),
        lanes: Lanes { warm_up, idle_text, idle_image, bulk, search },
        memory: plan.pid.zip(memory).map(|(pid, memory)| memory.at_end(pid)),
    })
}

/// Requests that may still start. Clones share the count.
#[derive(Debug, Clone)]
struct Quota {
    until: Option<Instant>,
    left: Arc<AtomicU64>,
}

impl Quota {
    fn requests(n: u64) -> Self {
        Self { until: None, left: Arc::new(n.into()) }
    }

    fn until(instant: Instant) -> Self {
        Self { until: Some(instant), ..Self::requests(u64::MAX) }
    }

    fn is_spent(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until) || self.left.load(Ordering::Relaxed) == 0
    }

    fn take(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        !self.is_spent() && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// `n` requests, one after another.
async fn idle(lane: Option<&Arc<Lane>>, n: u64) -> Option<LaneReport> {
    let lane = lane.filter(|_| n > 0)?;
    Some(closed_loop(lane, 1, Quota::requests(n)).await.report())
}

/// Keeps `n_connections` requests in flight until the quota is spent, then waits for the last.
async fn closed_loop(lane: &Arc<Lane>, n_connections: usize, quota: Quota) -> Tally {
    let mut connections = JoinSet::new();
    for _ in 0..n_connections {
        let (lane, quota) = (lane.clone(), quota.clone());
        connections.spawn(async move {
            let mut tally = Tally::default();
            while quota.take() {
                let started = Instant::now();
                let outcome = lane.send().await;
                let failed = outcome.is_err();
                tally.note(started, lane.n_inputs(), outcome);
                if failed {
                    sleep(PAUSE).await;
                }
            }
            tally
        });
    }
    let mut all = Tally::default();
    while let Some(tally) = connections.join_next().await {
        all.merge(tally.expect("a connection does not panic"));
    }
    all
}

/// Sends one request at each tick until the quota is spent, then waits for the last.
async fn open_loop(lane: &Arc<Lane>, every: Duration, quota: &Quota) -> Tally {
    let mut ticks = interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = JoinSet::new();
    loop {
        let due = ticks.tick().await.into_std();
        if quota.is_spent() {
            break;
        }
        let lane = lane.clone();
        requests.spawn(async move {
            let outcome = lane.send().await;
            let mut tally = Tally::default();
            tally.note(due, lane.n_inputs(), outcome);
            tally
        });
    }
    let mut all = Tally::default();
    while let Some(tally) = requests.join_next().await {
        all.merge(tally.expect("a search does not panic"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_gives_what_it_has() {
        let quota = Quota::requests(2);
        let same = quota.clone();
        assert!(quota.take() && !same.is_spent() && same.take());
        assert!(!quota.take() && same.is_spent());
        let quota = Quota::until(Instant::now());
        assert!(quota.is_spent() && !quota.take());
    }
}
