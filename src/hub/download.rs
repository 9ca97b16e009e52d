//! One file into the cache: resumed, verified, and only then given its name.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    time::Duration,
};

use futures_util::StreamExt;

use super::{
    HubError,
    cache::{Cache, create_parent},
    digest::digest_like,
    error::reason,
    progress::Progress,
    remote::{FileInfo, Remote},
};

/// How often something is tried that keeps failing without getting further.
const ATTEMPTS: u32 = 5;
/// The first pause between tries; each one after is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Counts the tries of one file.
struct Patience {
    tries: u32,
}

impl Patience {
    fn new() -> Self {
        Self { tries: 1 }
    }

    /// Waits before the next try, or hands the failure back when another would not help.
    async fn after(&mut self, error: HubError) -> Result<(), HubError> {
        if !error.is_passing() || self.tries >= ATTEMPTS {
            return Err(error);
        }
        tracing::warn!("{error}; trying again");
        tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.tries - 1)).await;
        self.tries += 1;
        Ok(())
    }
}

/// What the hub says of a file.
pub(super) async fn file_info(remote: &Remote, commit: &str, file: &str) -> Result<FileInfo, HubError> {
    let mut patience = Patience::new();
    loop {
        match remote.file_info(commit, file).await {
            Err(error) => patience.after(error).await?,
            found => return found,
        }
    }
}

/// Makes sure that the file's blob is in the cache.
pub(super) async fn fetch(
    remote: &Remote,
    cache: &Cache,
    commit: &str,
    info: &FileInfo,
    progress: &mut Progress,
) -> Result<(), HubError> {
    let before = progress.done();
    progress.file(&info.file);
    let blob = cache.blob(&info.etag);
    create_parent(&blob)?;
    let _lock = cache.lock(&info.etag, &info.file)?;
    // Here already, or by the process that was waited for.
    if !blob.exists() {
        let incomplete = blob.with_file_name(format!("{}.incomplete", info.etag));
        let mut part = Part::open(incomplete)?;
        let resumed = part.len > 0;
        let mut patience = Patience::new();
        loop {
            let had = part.len;
            match part.receive(remote, commit, info, before, progress).await {
                Ok(()) => break,
                Err(error) if part.len > had => {
                    tracing::warn!("{error}; going on");
                    patience = Patience::new();
                }
                Err(error) => patience.after(error).await?,
            }
        }
        if let Err(error) = part.verify(info) {
            // What an earlier run had left may have been at fault; once more, from the beginning.
            if !resumed {
                return Err(part.discard(error));
            }
            tracing::warn!("{error}; downloading it again");
            part.restart()?;
            part.receive(remote, commit, info, before, progress).await?;
            if let Err(error) = part.verify(info) {
                return Err(part.discard(error));
            }
        }
        part.file.sync_all().map_err(HubError::io(&part.path))?;
        fs::rename(&part.path, &blob).map_err(HubError::io(&blob))?;
    }
    progress.set(before + info.size);
    Ok(())
}

/// What has arrived of a file.
struct Part {
    path: std::path::PathBuf,
    file: File,
    len: u64,
}

impl Part {
    fn open(path: std::path::PathBuf) -> Result<Self, HubError> {
        let file = OpenOptions::new().create(true).append(true).read(true).open(&path);
        let mut file = file.map_err(HubError::io(&path))?;
        let len = file.seek(SeekFrom::End(0)).map_err(HubError::io(&path))?;
        Ok(Self { path, file, len })
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.len = 0;
        self.file.set_len(0).map_err(HubError::io(&self.path))
    }

    /// Receives what is missing; on failure what arrived is kept, unless it is too much.
    async fn receive(
        &mut self,
        remote: &Remote,
        commit: &str,
        info: &FileInfo,
        before: u64,
        progress: &mut Progress,
    ) -> Result<(), HubError> {
        if self.len > info.size {
            self.restart()?;
        }
        let start = self.len;
        if start < info.size {
            if start > 0 {
                tracing::info!(file = info.file, start, size = info.size, "resuming");
            }
            let mut stream = remote.bytes(commit, info, start).await?;
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|error| self.broke_off(info, reason(&error)))?;
                self.file.write_all(&chunk).map_err(HubError::io(&self.path))?;
                self.len += chunk.len() as u64;
                if self.len > info.size {
                    self.restart()?;
                    return Err(match start {
                        0 => HubError::TooLong { file: info.file.clone(), size: info.size },
                        // A server that cannot resume sent all of it.
                        _ => self.broke_off(info, "the hub did not resume where it was asked to".into()),
                    });
                }
                progress.set(before + self.len);
            }
        }
        match self.len < info.size {
            true => Err(self.broke_off(info, "the hub ended it early".into())),
            false => Ok(()),
        }
    }

    fn broke_off(&self, info: &FileInfo, reason: String) -> HubError {
        HubError::BrokeOff { file: info.file.clone(), received: self.len, size: info.size, reason }
    }

    fn verify(&self, info: &FileInfo) -> Result<(), HubError> {
        match digest_like(&info.etag, &self.path).map_err(HubError::io(&self.path))? {
            Some(found) if found != info.etag => {
                Err(HubError::Digest { file: info.file.clone(), found, etag: info.etag.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Removes what arrived; gives the reason back.
    fn discard(self, error: HubError) -> HubError {
        match fs::remove_file(&self.path) {
            Ok(()) => error,
            Err(source) => HubError::Io { path: self.path, source },
        }
    }
}
