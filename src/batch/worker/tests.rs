//! The worker on tokio's paused clock, with the stub engine and no thread.

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

use futures_util::future::join_all;

use super::super::Batcher;
use super::*;
use crate::domain::{Embedding, Lane, Modality, Tokens};
use crate::runtime::stub::{StubBackend, StubFault, StubRecord};
use crate::runtime::{Backend, run_guarded};

/// The stub engine, taking `pace` per batch.
struct PacedDevice {
    name: &'static str,
    backend: StubBackend,
    pace: Duration,
}

impl Device for PacedDevice {
    async fn embed(&mut self, batch: Vec<Prepared>) -> Results {
        tokio::time::sleep(self.pace).await;
        match run_guarded(&mut self.backend, &batch) {
            Ok(vectors) => vectors.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); batch.len()],
        }
    }

    async fn warm_up(&mut self, input: Arc<Prepared>, most: usize) -> Result<(), BackendError> {
        self.embed(vec![Prepared::clone(&input); most])
            .await
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map(drop)
    }

    fn name(&self) -> &str {
        self.name
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// A device that takes a second per batch of at most four; ids 90, 91, 92 panic, fail, lose it.
fn spawn(max_queue_delay: Duration) -> (Batcher, StubRecord) {
    let backend = StubBackend::new(4).with_faults(|prepared| match id(prepared) {
        90 => Some(StubFault::Panic),
        91 => Some(StubFault::Fail),
        92 => Some(StubFault::Lose),
        _ => None,
    });
    let record = backend.record();
    let device = PacedDevice { name: "stub", backend, pace: SECOND };
    (
        Batcher::spawn(vec![(device, Lanes::All)], policy(max_queue_delay), Arc::default(), Metrics::new()),
        record,
    )
}

fn policy(max_queue_delay: Duration) -> BatchPolicy {
    BatchPolicy { max_pictures: 4, max_texts: 4, max_tokens: 1024, max_bulk_batch: None, max_queue_delay }
}

/// Two engines for bulk and one for searches, each taking a second per batch, and what each was given.
fn spawn_three() -> (Batcher, [StubRecord; 3]) {
    let lanes = [Lanes::Only(Lane::Search), Lanes::Only(Lane::Bulk), Lanes::Only(Lane::Bulk)];
    let mut records = Vec::new();
    let mut engine = |lanes| {
        let backend =
            StubBackend::new(4).with_faults(|prepared| (id(prepared) == 92).then_some(StubFault::Lose));
        records.push(backend.record());
        (PacedDevice { name: "stub", backend, pace: SECOND }, lanes)
    };
    let engines = lanes.map(&mut engine).into_iter().collect();
    let batcher = Batcher::spawn(engines, policy(Duration::ZERO), Arc::default(), Metrics::new());
    (batcher, records.try_into().expect("one each"))
}

fn text(id: u32) -> Prepared {
    Prepared::Tokens(Tokens { ids: vec![id], n_tokens: 1, truncated: false })
}

fn id(prepared: &Prepared) -> u32 {
    match prepared {
        Prepared::Tokens(tokens) => tokens.ids[0],
        Prepared::Pixels(_) => 0,
    }
}

type Waiting = tokio::task::JoinHandle<Result<Embedding, BatchError>>;

/// Submits and lets the worker see it.
async fn submit(batcher: &Batcher, id: u32, lane: Lane, within: Duration) -> Waiting {
    let batcher = batcher.clone();
    let deadline = Instant::now() + within;
    let task = tokio::spawn(async move { batcher.submit(text(id), lane, deadline).await });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    task
}

async fn bulk(batcher: &Batcher, id: u32) -> Waiting {
    submit(batcher, id, Lane::Bulk, SECOND * 1000).await
}

/// The ids of each batch so far.
fn batches(record: &StubRecord) -> Vec<Vec<u32>> {
    record.batches().iter().map(|batch| batch.iter().map(id).collect()).collect()
}

#[tokio::test(start_paused = true)]
async fn merges_what_comes_within_the_delay() {
    let (batcher, record) = spawn(Duration::from_millis(5));
    let mut waiting = vec![bulk(&batcher, 1).await];
    tokio::time::sleep(Duration::from_millis(4)).await;
    waiting.push(bulk(&batcher, 2).await);
    tokio::time::sleep(Duration::from_millis(4)).await;
    waiting.push(bulk(&batcher, 3).await);
    let start = Instant::now();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(batches(&record), [vec![1, 2], vec![3]]);
    assert_eq!(record.batches()[0][0].modality(), Modality::Text);
    assert_eq!(start.elapsed(), SECOND * 2 - Duration::from_millis(3));
}

#[tokio::test(start_paused = true)]
async fn a_busy_device_gathers_the_next_batch() {
    let (batcher, record) = spawn(Duration::ZERO);
    let mut waiting = Vec::new();
    for id in 0..7 {
        waiting.push(bulk(&batcher, id).await);
    }
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(batches(&record), [vec![0], vec![1, 2, 3, 4], vec![5, 6]]);
}

#[tokio::test(start_paused = true)]
async fn a_search_overtakes_waiting_bulk() {
    let (batcher, record) = spawn(Duration::ZERO);
    for id in 0..9 {
        bulk(&batcher, id).await;
    }
    let start = Instant::now();
    let search = submit(&batcher, 50, Lane::Search, SECOND * 30).await;
    search.await.unwrap().unwrap();
    assert_eq!(start.elapsed(), SECOND * 2);
    assert_eq!(batches(&record), [vec![0], vec![50]]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_job_is_answered_without_computing() {
    let (batcher, record) = spawn(Duration::ZERO);
    let first = bulk(&batcher, 1).await;
    let late = submit(&batcher, 2, Lane::Bulk, SECOND / 2).await;
    first.await.unwrap().unwrap();
    assert_eq!(late.await.unwrap(), Err(BatchError::Deadline));
    assert_eq!(batches(&record), [vec![1]]);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_caller_has_left_is_skipped() {
    let (batcher, record) = spawn(Duration::ZERO);
    let first = bulk(&batcher, 1).await;
    let gone = bulk(&batcher, 2).await;
    let last = bulk(&batcher, 3).await;
    gone.abort();
    first.await.unwrap().unwrap();
    last.await.unwrap().unwrap();
    assert_eq!(batches(&record), [vec![1], vec![3]]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_fails_alone() {
    let (batcher, _) = spawn(Duration::ZERO);
    for (id, message) in [(90, "panicked"), (91, "told to fail")] {
        let busy = bulk(&batcher, 1).await;
        let faulty = bulk(&batcher, id).await;
        let beside = bulk(&batcher, 2).await;
        busy.await.unwrap().unwrap();
        for task in [faulty, beside] {
            let error = task.await.unwrap().unwrap_err();
            assert!(matches!(&error, BatchError::Failed(text) if text.contains(message)), "{error:?}");
        }
        bulk(&batcher, 2).await.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_device_answers_all_and_takes_no_more() {
    let (batcher, record) = spawn(Duration::ZERO);
    let losing = bulk(&batcher, 92).await;
    let mut waiting = Vec::new();
    for id in 0..6 {
        waiting.push(bulk(&batcher, id).await);
    }
    let reason = batcher.device_lost().await;
    assert!(reason.contains("device lost"), "{reason}");
    for task in waiting.into_iter().chain([losing, bulk(&batcher, 7).await]) {
        assert_eq!(task.await.unwrap(), Err(BatchError::Unavailable(reason.clone())));
    }
    assert_eq!(batches(&record), [vec![92]]);
}

#[tokio::test(start_paused = true)]
async fn shutting_down_finishes_what_is_queued() {
    let (batcher, record) = spawn(SECOND * 100);
    let waiting = [bulk(&batcher, 1).await, bulk(&batcher, 2).await];
    batcher.shut_down().await;
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(batches(&record), [vec![1, 2]]);
    let refused = bulk(&batcher, 3).await.await.unwrap().unwrap_err();
    assert_eq!(refused, BatchError::Unavailable("the service is stopping".into()));
    // A stop that was asked for is no loss.
    assert!(tokio::time::timeout(SECOND, batcher.device_lost()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn engines_work_side_by_side_and_a_search_has_its_own() {
    let (batcher, [search, left, right]) = spawn_three();
    let mut waiting = Vec::new();
    for id in 0..20 {
        waiting.push(bulk(&batcher, id).await);
    }
    let start = Instant::now();
    submit(&batcher, 50, Lane::Search, SECOND * 30).await.await.unwrap().unwrap();
    assert_eq!(start.elapsed(), SECOND, "it waited for no batch of bulk");
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(start.elapsed(), SECOND * 4, "1 + 1, then 4 + 4, 4 + 4, and 1 + 1");
    assert_eq!(batches(&search), [vec![50]]);
    let computed = batches(&left).into_iter().chain(batches(&right)).flatten();
    assert_eq!(computed.collect::<std::collections::BTreeSet<_>>(), (0..20).collect());
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_lost_ends_the_others_too() {
    let (batcher, _) = spawn_three();
    let losing = bulk(&batcher, 92).await;
    tokio::time::sleep(SECOND / 2).await;
    let fine = bulk(&batcher, 1).await;
    let behind = bulk(&batcher, 2).await;
    let reason = batcher.device_lost().await;
    assert_eq!(losing.await.unwrap(), Err(BatchError::Unavailable(reason.clone())));
    assert_eq!(behind.await.unwrap(), Err(BatchError::Unavailable(reason)));
    // What another engine had begun is answered all the same.
    assert!(fine.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn shutting_down_waits_for_every_engine() {
    let (batcher, records) = spawn_three();
    let waiting = [bulk(&batcher, 1).await, bulk(&batcher, 2).await, bulk(&batcher, 3).await];
    batcher.shut_down().await;
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(records.iter().map(StubRecord::n_inputs).sum::<usize>(), 3);
}

#[tokio::test(start_paused = true)]
async fn seconds_of_waiting_and_computing_are_the_inputs_in_the_system() {
    let (batcher, record) = spawn(Duration::ZERO);
    let mut waiting = Vec::new();
    for id in 0..7 {
        waiting.push(bulk(&batcher, id).await);
    }
    let late = submit(&batcher, 7, Lane::Bulk, SECOND / 2).await;
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(late.await.unwrap(), Err(BatchError::Deadline));
    assert_eq!(batches(&record), [vec![0], vec![1, 2, 3, 4], vec![5, 6]]);
    // Eight were there in the first second, one of them in vain, then six, then two.
    let metrics = &batcher.inner.metrics;
    let waited = metrics.queue_wait_seconds.with_label_values(&["bulk"]);
    let computed = metrics.input_compute_seconds.with_label_values(&["bulk"]);
    assert_eq!((waited.get_sample_sum(), computed.get()), (1.0 + 4.0 + 2.0 * 2.0, 1.0 + 4.0 + 2.0));
    assert_eq!(waited.get_sample_sum() + computed.get(), 8.0 + 6.0 + 2.0);
}

/// Has room for one input.
struct Cramped(StubBackend);

impl Backend for Cramped {
    fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
        match batch {
            [input] if id(input) == 99 => Err(BackendError::OutOfMemory("full".into())),
            [_] => self.0.embed(batch),
            _ => Err(BackendError::OutOfMemory("full".into())),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_went_wrong_on_a_device_is_counted_by_kind() {
    let counted = |batcher: &Batcher| {
        let errors = &batcher.inner.metrics.device_errors;
        ["oom", "lost", "other"].map(|kind| errors.with_label_values(&[kind]).get())
    };
    let (batcher, _) = spawn(Duration::ZERO);
    for (id, expected) in [(1, [0, 0, 0]), (90, [0, 0, 1]), (91, [0, 0, 2]), (92, [0, 1, 2])] {
        assert_eq!(bulk(&batcher, id).await.await.unwrap().is_ok(), id == 1);
        assert_eq!(counted(&batcher), expected, "{id}");
    }
}

#[tokio::test]
async fn batches_that_do_not_fit_are_counted_and_their_cap_is_shown() {
    let thread = || DeviceThread::spawn(Box::new(Cramped(StubBackend::new(4))), "stub", Arc::default());
    let delay = Duration::from_millis(200);
    let batcher =
        Batcher::spawn(vec![(thread().unwrap(), Lanes::All)], policy(delay), Arc::default(), Metrics::new());
    let waiting = [1, 2, 3, 99].map(|id| bulk(&batcher, id));
    let answers = join_all(join_all(waiting).await).await;
    assert_eq!(
        answers.iter().map(|answer| answer.as_ref().unwrap().is_ok()).collect::<Vec<_>>(),
        [true, true, true, false]
    );
    let metrics = &batcher.inner.metrics;
    assert_eq!(
        metrics.device_errors.with_label_values(&["oom"]).get(),
        2 + 1,
        "4, then 2, then the last alone"
    );
    assert_eq!(metrics.batch_size_cap.with_label_values(&["text"]).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_never_ends_loses_the_device() {
    for (device, time) in [("cpu", "600 s"), ("cuda:0", " 60 s")] {
        let start = std::time::Instant::now();
        let (thread, its_end) = mpsc::channel();
        let engines = vec![(Hanging { device, its_end }, Lanes::All)];
        let batcher = Batcher::spawn(engines, policy(Duration::ZERO), Arc::default(), Metrics::new());
        let hanging = submit(&batcher, 1, Lane::Bulk, SECOND * 100_000_000).await;
        let reason = batcher.device_lost().await;
        assert!(reason.contains(time), "{reason}");
        assert_eq!(hanging.await.unwrap(), Err(BatchError::Unavailable(reason)));
        // The clock of the machine, which is not paused: nobody has waited for its thread.
        assert!(start.elapsed() < SECOND * 3, "{:?}", start.elapsed());
        drop(thread);
    }
}

#[tokio::test(start_paused = true)]
async fn batches_go_to_devices_that_do_nothing() {
    let mut records = HashMap::new();
    let mut engine = |name: &'static str| {
        let backend = StubBackend::new(4);
        records.entry(name).or_insert_with(Vec::new).push(backend.record());
        (PacedDevice { name, backend, pace: SECOND }, Lanes::All)
    };
    let engines = ["cuda:0", "cuda:0", "cuda:1", "cuda:1"].map(&mut engine).into();
    let batcher = Batcher::spawn(engines, policy(Duration::ZERO), Arc::default(), Metrics::new());
    for round in 1..=3 {
        let (one, two) = (bulk(&batcher, 1).await, bulk(&batcher, 2).await);
        join_all([one, two]).await.into_iter().for_each(|answer| assert!(answer.unwrap().is_ok()));
        for records in records.values() {
            assert_eq!(records.iter().map(|record| record.batches().len()).sum::<usize>(), round);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_that_never_ends_loses_the_device() {
    let (_thread, its_end) = mpsc::channel();
    let engines = vec![(Hanging { device: "cuda:0", its_end }, Lanes::All)];
    let batcher = Batcher::spawn(engines, policy(Duration::ZERO), Arc::default(), Metrics::new());
    let warm = tokio::time::timeout(SECOND * 1000, batcher.warm_up(text(1), 1)).await;
    assert_eq!(warm, Ok(Err(BatchError::Unavailable(batcher.device_lost().await))));
}

/// Its passes never end, nor does its thread, for five seconds.
struct Hanging {
    device: &'static str,
    its_end: mpsc::Receiver<()>,
}

impl Device for Hanging {
    async fn embed(&mut self, _: Vec<Prepared>) -> Results {
        std::future::pending().await
    }

    async fn warm_up(&mut self, _: Arc<Prepared>, _: usize) -> Result<(), BackendError> {
        std::future::pending().await
    }

    fn name(&self) -> &str {
        self.device
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let _ = self.its_end.recv_timeout(SECOND * 5);
    }
}

#[tokio::test(start_paused = true)]
async fn every_engine_warms_up() {
    let (batcher, records) = spawn_three();
    batcher.warm_up(text(1), 2).await.unwrap();
    assert_eq!(records.map(|record| batches(&record)), [[[1, 1]], [[1, 1]], [[1, 1]]]);
    let lost = batcher.warm_up(text(92), 1).await;
    // The engine for searches has no fault.
    let reason = batcher.device_lost().await;
    assert_eq!(lost, Err(BatchError::Unavailable(reason)));
}

/// Computes for five milliseconds, for which it waits a second while another model has the device.
struct SharedDevice(StubBackend);

impl Device for SharedDevice {
    async fn embed(&mut self, batch: Vec<Prepared>) -> Results {
        let computed = SECOND / 200;
        tokio::time::sleep(self.waited() + computed).await;
        self.0.embed(&batch).unwrap().into_iter().map(Ok).collect()
    }

    async fn warm_up(&mut self, _: Arc<Prepared>, _: usize) -> Result<(), BackendError> {
        Ok(())
    }

    fn waited(&self) -> Duration {
        SECOND
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_other_models_makes_no_batch_smaller() {
    let backend = StubBackend::new(4);
    let record = backend.record();
    let engines = vec![(SharedDevice(backend), Lanes::Only(Lane::Search))];
    let policy = BatchPolicy { max_texts: 8, ..policy(Duration::ZERO) };
    let batcher = Batcher::spawn(engines, policy, Arc::default(), Metrics::new());
    let mut waiting = Vec::new();
    for id in 0..17 {
        waiting.push(submit(&batcher, id, Lane::Search, SECOND * 30).await);
    }
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    let sizes: Vec<_> = record.batches().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 8, 8]);
    // Inputs spend the wait here all the same.
    let metrics = &batcher.inner.metrics;
    let inference = metrics.inference_seconds.with_label_values(&["text"]);
    let computed = metrics.input_compute_seconds.with_label_values(&["search"]);
    assert!((inference.get_sample_sum() - 3.0 * 0.005).abs() < 1e-6, "{}", inference.get_sample_sum());
    assert!((computed.get() - 17.0 * 1.005).abs() < 1e-6, "{}", computed.get());
}

#[tokio::test(start_paused = true)]
async fn searches_that_never_end_leave_a_quarter_of_the_time_to_bulk() {
    let share = Arc::new(CpuShare::default());
    let engine = |lane| {
        (PacedDevice { name: "stub", backend: StubBackend::new(4), pace: SECOND / 10 }, Lanes::Only(lane))
    };
    let engines = vec![engine(Lane::Search), engine(Lane::Bulk)];
    let batcher = Batcher::spawn(engines, policy(Duration::ZERO), share.clone(), Metrics::new());
    let seconds_of_a_hundred = async || {
        let start = Instant::now();
        for id in 0..100 {
            submit(&batcher, id, Lane::Search, SECOND).await.await.unwrap().unwrap();
        }
        start.elapsed().as_secs_f64()
    };
    assert_eq!(seconds_of_a_hundred().await, 10.0);
    let bulk = share.bulk_comes();
    let beside_bulk = seconds_of_a_hundred().await;
    assert!((13.0..13.5).contains(&beside_bulk), "{beside_bulk}");
    drop(bulk);
    assert_eq!(seconds_of_a_hundred().await, 10.0);
}
