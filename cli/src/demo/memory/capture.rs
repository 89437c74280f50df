//! What the demo records: every frame that enters or leaves an engine, in one pcapng file with one
//! interface per port. A step records a bounded number of frames; what goes beyond is counted.

use super::error::Result;
use fairway_pmd::pcap::{self, Direction, PcapError, PcapTap};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

/// The recording under way.
pub(super) struct Capture {
    tap: PcapTap<BufWriter<File>>,
    path: PathBuf,
    /// Goes to the next frame as a comment, which Wireshark shows with it.
    remark: Option<String>,
    /// Frames that this step may still record.
    left: u64,
    recorded: u64,
    omitted: u64,
    /// The first failure to write ends the recording, not the demo, which reports it at the end.
    failed: Option<PcapError>,
}

impl Capture {
    /// Makes (or replaces) the file.
    pub(super) fn create(path: &Path) -> Result<Capture> {
        let tap = PcapTap::create(path)?;
        let path = path.to_owned();
        Ok(Capture { tap, path, remark: None, left: 0, recorded: 0, omitted: 0, failed: None })
    }

    /// Adds an interface under the name that Wireshark is to show.
    pub(super) fn interface(&mut self, name: &str) -> Result<u32> {
        Ok(self.tap.interface(name)?)
    }

    /// Begins a step, whose title goes to its first frame, and which records at most `frames`.
    pub(super) fn begin(&mut self, title: &str, frames: u64) {
        self.remark = Some(title.to_owned());
        self.left = frames;
    }

    /// Records a frame that enters (`In`) or leaves (`Out`) the engine.
    pub(super) fn frame(&mut self, interface: u32, direction: Direction, bytes: &[u8]) {
        if self.left == 0 || self.failed.is_some() {
            self.omitted += 1;
            return;
        }
        self.left -= 1;
        self.recorded += 1;
        let remark = self.remark.take();
        let result =
            self.tap.record_with_comment(interface, pcap::now(), direction, bytes, remark.as_deref());
        self.failed = result.err();
    }

    /// Ends the recording, and says in words what it holds.
    pub(super) fn finish(mut self) -> Result<String> {
        if let Some(error) = self.failed {
            return Err(error.into());
        }
        self.tap.flush()?;
        let (path, recorded, omitted) = (self.path.display(), self.recorded, self.omitted);
        let rest = if omitted > 0 {
            format!(" ({omitted} more of the busiest steps left out)")
        } else {
            String::new()
        };
        Ok(format!("{path}: {recorded} frames, one interface per port{rest}"))
    }
}
