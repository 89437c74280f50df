//! The manifests folder, followed as the control process follows it: inotify in a thread, what it sees out.

use super::error::{MemoryError, Result};
use fairway_control::manifests::{Scan, follow};
use std::path::Path;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};

/// Looks that may wait.
const SCANS: usize = 16;

/// See the module's head. Ends its thread when dropped.
pub(super) struct Feed {
    scans: mpsc::Receiver<Scan>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    /// Begins to follow a folder.
    pub(super) fn start(folder: &Path) -> Result<Feed> {
        let (sender, scans) = mpsc::channel(SCANS);
        let (stop, stopped) = oneshot::channel::<()>();
        let system = |what| move |source| MemoryError::System { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("starting to follow the manifests"))?;
        let folder = folder.to_owned();
        let body = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = follow(folder, sender) => {}
                    // Also when the other end was dropped.
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("fairway-feed".to_owned())
            .spawn(body)
            .map_err(system("starting to follow the manifests"))?;
        Ok(Feed { scans, stop: Some(stop), thread: Some(thread) })
    }

    /// What was seen next, if the folder has changed.
    pub(super) fn next(&mut self) -> Option<Scan> {
        self.scans.try_recv().ok()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
