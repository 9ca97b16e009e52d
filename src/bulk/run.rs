//! A run under way: lines in, tables out, both bounded.

use std::{
    future::Future,
    io,
    panic::resume_unwind,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::{JoinError, JoinHandle, JoinSet, spawn_blocking},
    time::{Instant, interval_at, sleep},
};

use super::{
    BulkError, End, Output, Plan, Record,
    line::Line,
    progress::{self, Progress},
    window::Window,
    work::{Outcome, work},
};
use crate::{
    cache::{TableItem, write_items},
    embedder::Embedder,
};

/// Lines between the thread that reads and those that work.
const LINES_READ_AHEAD: usize = 64;
/// Bytes of lines that were read and are not done: a line may hold a picture.
const MAX_LINES_BYTES: u32 = 256 << 20;
/// Tables' worth of items in memory: one fills up, one is written, one waits for its slowest item.
const TABLES_IN_MEMORY: usize = 3;

/// A run under way.
pub(super) struct Run<'a> {
    plan: &'a Plan,
    embedder: &'a Embedder,
    record: &'a mut Record,
    progress: &'a mut Progress,
    window: Window,
    working: JoinSet<(u64, Outcome)>,
    /// The table that is written, and the record as it will be then: one at a time, in their order.
    writing: JoinSet<Result<Record, BulkError>>,
    stopping: watch::Sender<bool>,
}

impl<'a> Run<'a> {
    pub fn new(
        plan: &'a Plan,
        embedder: &'a Embedder,
        record: &'a mut Record,
        progress: &'a mut Progress,
    ) -> Self {
        Self {
            plan,
            embedder,
            record,
            progress,
            window: Window::new(),
            working: JoinSet::new(),
            writing: JoinSet::new(),
            stopping: watch::Sender::new(false),
        }
    }

    /// Does all of `lines`, until `stop` ends.
    pub async fn until(
        mut self,
        lines: impl Iterator<Item = io::Result<Line>> + Send + 'static,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<End, BulkError> {
        let (mut lines, mut reading) = read(lines);
        let mut end = Ok(End::Complete);
        let mut has_lines = true;
        let mut patience = pin!(sleep(Duration::MAX));
        let mut log = interval_at(Instant::now() + progress::EVERY, progress::EVERY);
        while has_lines || !self.working.is_empty() || !self.writing.is_empty() {
            let is_stopping = *self.stopping.borrow();
            tokio::select! {
                line = lines.recv(), if has_lines && self.has_room() => match line {
                    Some(Ok((line, room))) => self.begin(line, room),
                    // What is before it is done and written all the same.
                    Some(Err(source)) => {
                        end = Err(self.plan.unread(source));
                        has_lines = false;
                    }
                    None => {
                        has_lines = false;
                        (&mut reading).await.unwrap_or_else(|panic| resume_unwind(panic.into_panic()));
                    }
                },
                Some(worked) = self.working.join_next() => match worked {
                    Ok((place, Outcome::Done(item))) => {
                        self.progress.item(item.outcome.is_err());
                        self.window.fill(place, item);
                    }
                    // Its place stays empty, and the table ends before it.
                    Ok((_, Outcome::Unfinished)) => {}
                    Ok((_, Outcome::DeviceLost(reason))) => {
                        end = Ok(End::DeviceLost(reason));
                        has_lines = false;
                        self.stopping.send_replace(true);
                        self.working.abort_all();
                    }
                    // Aborted: as above.
                    Err(error) if error.is_cancelled() => {}
                    Err(panic) => resume_unwind(panic.into_panic()),
                },
                Some(written) = self.writing.join_next() => self.written(written)?,
                () = &mut stop, if !is_stopping => {
                    end = Ok(End::Stopped);
                    has_lines = false;
                    self.stopping.send_replace(true);
                    patience.set(sleep(self.plan.stop_within));
                }
                () = &mut patience, if !self.working.is_empty() => self.working.abort_all(),
                _ = log.tick() => self.progress.log(),
            }
            let is_last = !has_lines && self.working.is_empty();
            let least = if is_last { 1 } else { self.plan.table_items };
            if self.writing.is_empty() && self.window.n_done() >= least {
                self.write(false);
            }
        }
        if matches!(end, Ok(End::Complete)) {
            self.write(true);
            while let Some(written) = self.writing.join_next().await {
                self.written(written)?;
            }
        }
        end
    }

    /// Whether one more item may begin.
    fn has_room(&self) -> bool {
        // Small tables are no reason to have less under way.
        let window = (TABLES_IN_MEMORY * self.plan.table_items).max(2 * self.plan.max_in_flight);
        self.working.len() < self.plan.max_in_flight && self.window.len() < window
    }

    /// Begins to work on a line, which keeps its `room` until it is done.
    fn begin(&mut self, line: Line, room: OwnedSemaphorePermit) {
        let place = self.window.reserve(line.digest);
        let (embedder, retries) = (self.embedder.clone(), self.plan.retries);
        let stopping = self.stopping.subscribe();
        self.working.spawn(async move {
            let _room = room;
            (place, work(&embedder, line, retries, stopping).await)
        });
    }

    /// Begins to write the table of the items in front, and then the record.
    fn write(&mut self, is_complete: bool) {
        let (items, digest) = self.window.take(self.plan.table_items);
        let before = self.record.clone();
        let mut record = before.clone();
        record.count(&items, digest);
        record.complete = is_complete;
        self.writing.spawn(write(self.plan.output.clone(), self.embedder.clone(), items, before, record));
    }

    fn written(&mut self, written: Result<Result<Record, BulkError>, JoinError>) -> Result<(), BulkError> {
        *self.record = written.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))?;
        Ok(())
    }
}

/// Writes the table of `items`, if there are any, and then `record`, which counts them, in the place of `before`. What
/// stands there instead is another process's, where no lock keeps it out.
async fn write(
    output: Output,
    embedder: Embedder,
    items: Vec<TableItem>,
    before: Record,
    record: Record,
) -> Result<Record, BulkError> {
    if Record::read(&output).await? != Some(before) {
        return Err(BulkError::Shared { output: output.to_string() });
    }
    if !items.is_empty() {
        let table = move || {
            let (mut table, info) = (Vec::new(), embedder.info());
            write_items(&mut table, &items, info.fingerprint, info.spec.dimensions).map(|()| table)
        };
        let table = spawn_blocking(table).await.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))?;
        let written = output.write(&table_name(record.tables - 1), table).await;
        written.map_err(|source| BulkError::Output { output: output.to_string(), source })?;
    }
    record.write(&output).await?;
    Ok(record)
}

/// Reads on a thread of its own, a little ahead, and gives each line with the room that it takes.
fn read(
    lines: impl Iterator<Item = io::Result<Line>> + Send + 'static,
) -> (mpsc::Receiver<io::Result<(Line, OwnedSemaphorePermit)>>, JoinHandle<()>) {
    let (sender, receiver) = mpsc::channel(LINES_READ_AHEAD);
    let (room, runtime) = (Arc::new(Semaphore::new(MAX_LINES_BYTES as usize)), Handle::current());
    let reading = spawn_blocking(move || {
        for line in lines {
            let line = line.map(|line| {
                let bytes = u32::try_from(line.bytes()).unwrap_or(u32::MAX).min(MAX_LINES_BYTES);
                let room = runtime.block_on(room.clone().acquire_many_owned(bytes));
                (line, room.expect("the semaphore is never closed"))
            });
            // A run that has ended wants no more.
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    (receiver, reading)
}

/// The name of a table; there is room for a million of them before names stop sorting.
fn table_name(number: u64) -> String {
    format!("{number:06}.parquet")
}
