//! The pcap driver: packets from and to capture files; and [`PcapTap`], which records packets of many ports in
//! one file that Wireshark shows port by port.
//!
//! This is for tests, demonstrations and replays: unlike the other drivers it allocates and makes system calls
//! for each packet.

use crate::queue::{Queue, QueueStats};
use crate::{Burst, FrameCache};
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest packet that an interface of a tap announces.
const SNAP_LEN: u32 = 65535;
/// First four bytes of a pcapng file.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Why a capture file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// The file could not be opened or made.
    #[error("capture file {}: {source}; check the path and its permissions", path.display())]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not a capture of Ethernet frames.
    #[error("capture file {}: {reason}; give a pcap or pcapng file of an Ethernet interface", path.display())]
    Format {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A packet could not be written.
    #[error("writing a capture: {reason}; check the space left on the disk")]
    Write {
        /// What went wrong.
        reason: String,
    },
    /// The tap has no such interface.
    #[error("writing a capture: interface {interface} was not added to it; add it first")]
    NoInterface {
        /// Number asked for.
        interface: u32,
    },
}

fn write_error(error: pcap_file::PcapError) -> PcapError {
    let reason = match error {
        pcap_file::PcapError::IoError(error) => error.to_string(),
        error => error.to_string(),
    };
    PcapError::Write { reason }
}

/// Which way a recorded packet went, seen from Fairway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received from the port.
    In,
    /// Sent out of the port.
    Out,
}

/// Records packets of several ports in one pcapng file, with nanosecond times.
pub struct PcapTap<W: Write> {
    writer: PcapNgWriter<W>,
    interfaces: u32,
}

impl PcapTap<BufWriter<File>> {
    /// Makes (or replaces) a file.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, PcapError> {
        let path = path.as_ref();
        let file = File::create(path).map_err(|source| PcapError::Open { path: path.to_owned(), source })?;
        PcapTap::new(BufWriter::new(file))
    }
}

impl<W: Write> PcapTap<W> {
    /// Records to any writer.
    pub fn new(writer: W) -> Result<PcapTap<W>, PcapError> {
        Ok(PcapTap { writer: PcapNgWriter::new(writer).map_err(write_error)?, interfaces: 0 })
    }

    /// Adds an interface under the name that Wireshark is to show, at any time, and returns its number.
    pub fn interface(&mut self, name: &str) -> Result<u32, PcapError> {
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: SNAP_LEN,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                // Times count 10^-9 seconds.
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        };
        self.writer.write_block(&Block::InterfaceDescription(block)).map_err(write_error)?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    /// Records a packet at a time since 1970.
    pub fn record(
        &mut self,
        interface: u32,
        time: Duration,
        direction: Direction,
        packet: &[u8],
    ) -> Result<(), PcapError> {
        self.record_with_comment(interface, time, direction, packet, None)
    }

    /// Records a packet with a remark, which Wireshark shows with it: a drop reason, say.
    pub fn record_with_comment(
        &mut self,
        interface: u32,
        time: Duration,
        direction: Direction,
        packet: &[u8],
        comment: Option<&str>,
    ) -> Result<(), PcapError> {
        if interface >= self.interfaces {
            return Err(PcapError::NoInterface { interface });
        }
        let mut options = vec![EnhancedPacketOption::Flags(match direction {
            Direction::In => 1,
            Direction::Out => 2,
        })];
        options.extend(comment.map(|text| EnhancedPacketOption::Comment(Cow::Borrowed(text))));
        let stored = packet.len().min(SNAP_LEN as usize);
        let block = EnhancedPacketBlock {
            interface_id: interface,
            timestamp: time,
            original_len: packet.len() as u32,
            data: Cow::Borrowed(&packet[..stored]),
            options,
        };
        self.writer.write_block(&Block::EnhancedPacket(block)).map_err(write_error)?;
        Ok(())
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) -> Result<(), PcapError> {
        self.writer.get_mut().flush().map_err(|error| PcapError::Write { reason: error.to_string() })
    }

    /// Ends the recording and returns the writer.
    pub fn into_inner(self) -> W {
        self.writer.into_inner()
    }
}

/// The time of day as captures count it.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What is left of the opened file, its first bytes read already.
type Input = io::Chain<Cursor<[u8; 4]>, File>;

enum Source {
    Pcap(PcapReader<Input>),
    PcapNg(PcapNgReader<Input>),
}

/// A queue that receives what is in one capture file and writes what it sends to another.
///
/// Packets come in as fast as they are asked for; their times are not kept. A packet that is longer than a
/// frame has room for is counted under `kernel_rx_dropped`. A file that turns out to be damaged ends there,
/// with an error in the log.
pub struct PcapQueue {
    port: u16,
    source: Option<(Source, PathBuf)>,
    sink: Option<PcapTap<BufWriter<File>>>,
    stats: QueueStats,
}

impl PcapQueue {
    /// Opens a port that reads from `rx` and writes to `tx`. Without `rx` it receives nothing; without `tx` what
    /// it sends goes nowhere.
    pub fn open(port: u16, rx: Option<&Path>, tx: Option<&Path>) -> Result<PcapQueue, PcapError> {
        let source = rx.map(open_source).transpose()?;
        let mut sink = tx.map(PcapTap::create).transpose()?;
        if let Some(tap) = &mut sink {
            tap.interface(&format!("port{port}"))?;
        }
        Ok(PcapQueue { port, source, sink, stats: QueueStats::default() })
    }

    /// Whether everything in the file has been received.
    pub fn is_at_end(&self) -> bool {
        self.source.is_none()
    }
}

fn open_source(path: &Path) -> Result<(Source, PathBuf), PcapError> {
    let open_error = |source| PcapError::Open { path: path.to_owned(), source };
    let format_error = |reason: String| PcapError::Format { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(open_error)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(|_| format_error("it is shorter than a header".to_owned()))?;
    let input = Cursor::new(magic).chain(file);
    let source = if magic == PCAPNG_MAGIC {
        Source::PcapNg(PcapNgReader::new(input).map_err(|error| format_error(error.to_string()))?)
    } else {
        let reader = PcapReader::new(input).map_err(|error| format_error(error.to_string()))?;
        let link = reader.header().datalink;
        if link != DataLink::ETHERNET {
            return Err(format_error(format!("its link type is {link:?}")));
        }
        Source::Pcap(reader)
    };
    Ok((source, path.to_owned()))
}

impl Source {
    /// Hands the next Ethernet packet to `take`; `Ok(false)` at the end of the file.
    fn next(&mut self, take: impl FnOnce(&[u8])) -> Result<bool, pcap_file::PcapError> {
        match self {
            Source::Pcap(reader) => {
                let Some(packet) = reader.next_packet() else { return Ok(false) };
                take(&packet?.data);
                Ok(true)
            }
            Source::PcapNg(reader) => loop {
                let Some(block) = reader.next_block() else { return Ok(false) };
                let (interface, data) = match block? {
                    Block::EnhancedPacket(packet) => (packet.interface_id, packet.data.into_owned()),
                    Block::SimplePacket(packet) => (0, packet.data.into_owned()),
                    _ => continue,
                };
                let link = reader.interfaces().get(interface as usize).map(|interface| interface.linktype);
                if link == Some(DataLink::ETHERNET) {
                    take(&data);
                    return Ok(true);
                }
            },
        }
    }
}

impl Queue for PcapQueue {
    fn port(&self) -> u16 {
        self.port
    }

    fn rx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        let mut received = 0;
        while !burst.is_full() {
            let Some((source, path)) = &mut self.source else { break };
            let Some(mut frame) = cache.alloc() else { break };
            let mut fits = false;
            let next = source.next(|packet| fits = frame.copy_from(packet));
            if let Err(error) = &next {
                tracing::error!(path = %path.display(), %error, "the capture file is damaged; reading ends here");
            }
            let more = matches!(next, Ok(true));
            if more && fits {
                frame.set_port(self.port);
                self.stats.rx_packets += 1;
                self.stats.rx_bytes += frame.len() as u64;
                burst.push(frame);
                received += 1;
                continue;
            }
            cache.free(frame);
            if more {
                self.stats.kernel_rx_dropped += 1;
            } else {
                self.source = None;
            }
        }
        received
    }

    fn tx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        let sent = burst.len();
        for frame in burst.drain(..) {
            if let Some(tap) = &mut self.sink
                && let Err(error) = tap.record(0, now(), Direction::Out, frame.bytes())
            {
                tracing::error!(port = self.port, %error, "recording ends here");
                self.sink = None;
            }
            self.stats.tx_packets += 1;
            self.stats.tx_bytes += frame.len() as u64;
            cache.free(frame);
        }
        sent
    }

    fn kick(&mut self, _cache: &mut FrameCache) {}

    fn tx_pending(&self) -> usize {
        0
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn stats(&self) -> QueueStats {
        self.stats
    }

    fn close(&mut self, _cache: &mut FrameCache) -> usize {
        self.source = None;
        if let Some(tap) = &mut self.sink
            && let Err(error) = tap.flush()
        {
            tracing::error!(port = self.port, %error, "the end of the recording is lost");
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Umem, UmemConfig};
    use pcap_file::pcap::{PcapPacket, PcapWriter};
    use proptest::prelude::*;

    fn umem() -> Umem {
        Umem::new(UmemConfig { frames: 128, frame_size: 2048, huge_pages: false }).unwrap()
    }

    fn sample(bytes: &mut Vec<u8>, packets: &[Vec<u8>]) {
        let mut tap = PcapTap::new(bytes).unwrap();
        let (a, b) = (tap.interface("pod-a").unwrap(), tap.interface("uplink").unwrap());
        for (n, packet) in packets.iter().enumerate() {
            let interface = if n % 2 == 0 { a } else { b };
            let time = Duration::new(1_700_000_000, n as u32);
            tap.record_with_comment(interface, time, Direction::In, packet, Some("why")).unwrap();
        }
    }

    #[test]
    fn what_is_read_from_a_capture_is_written_to_another_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let (rx, tx) = (dir.path().join("rx.pcap"), dir.path().join("tx.pcapng"));
        let packets: Vec<Vec<u8>> = (0..150u8).map(|n| vec![n; 60 + usize::from(n)]).collect();
        let mut writer = PcapWriter::new(File::create(&rx).unwrap()).unwrap();
        for packet in packets.iter().chain([&vec![0xaa; 3000]]) {
            writer.write_packet(&PcapPacket::new(Duration::ZERO, packet.len() as u32, packet)).unwrap();
        }
        drop(writer);

        let umem = umem();
        let mut cache = umem.cache();
        let mut queue = PcapQueue::open(5, Some(&rx), Some(&tx)).unwrap();
        let mut burst = Burst::new();
        while queue.rx_burst(&mut cache, &mut burst) > 0 {
            assert!(burst.iter().all(|frame| frame.port() == 5));
            queue.tx_burst(&mut cache, &mut burst);
        }
        assert!(queue.is_at_end());
        assert_eq!(queue.close(&mut cache), 0);
        let stats = queue.stats();
        assert_eq!((stats.rx_packets, stats.tx_packets, stats.kernel_rx_dropped), (150, 150, 1));

        let mut replay = PcapQueue::open(6, Some(&tx), None).unwrap();
        let mut read = Vec::new();
        while replay.rx_burst(&mut cache, &mut burst) > 0 {
            read.extend(burst.iter().map(|frame| frame.bytes().to_vec()));
            cache.free_burst(&mut burst);
        }
        assert_eq!(read, packets);
        drop(cache);
        assert_eq!(umem.pool().missing(), 0);
    }

    #[test]
    fn a_tap_tells_ports_apart_and_keeps_nanoseconds_and_comments() {
        let mut bytes = Vec::new();
        sample(&mut bytes, &[vec![1; 60], vec![2; 61]]);
        let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
        let mut seen = Vec::new();
        while let Some(block) = reader.next_block() {
            if let Block::EnhancedPacket(packet) = block.unwrap() {
                let packet = packet.clone();
                assert!(packet.options.contains(&EnhancedPacketOption::Comment("why".into())));
                seen.push((packet.interface_id, packet.timestamp.subsec_nanos(), packet.data.len()));
            }
        }
        assert_eq!(seen, [(0, 0, 60), (1, 1, 61)]);
        let names: Vec<_> =
            reader.interfaces().iter().map(|interface| interface.options[0].clone()).collect();
        assert_eq!(names, ["pod-a", "uplink"].map(|name| InterfaceDescriptionOption::IfName(name.into())));
    }

    #[test]
    fn a_packet_of_an_interface_that_was_not_added_is_refused() {
        let mut tap = PcapTap::new(Vec::new()).unwrap();
        let result = tap.record(0, Duration::ZERO, Direction::In, &[0; 60]);
        assert!(matches!(result, Err(PcapError::NoInterface { interface: 0 })));
    }

    #[test]
    fn a_file_that_is_no_ethernet_capture_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let refused = |path: &Path| PcapQueue::open(0, Some(path), None).err().map(|error| error.to_string());
        assert!(refused(&path).unwrap().contains("No such file"));
        std::fs::write(&path, b"abc").unwrap();
        assert!(refused(&path).unwrap().contains("shorter than a header"));
        std::fs::write(&path, [b'x'; 100]).unwrap();
        assert!(refused(&path).unwrap().contains("give a pcap or pcapng file"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn a_damaged_file_ends_the_reading_and_loses_no_frame(
            cut in any::<prop::sample::Index>(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            legacy in any::<bool>(),
        ) {
            let mut bytes = Vec::new();
            let packets: Vec<Vec<u8>> = (0..6u8).map(|n| vec![n; 30]).collect();
            if legacy {
                let mut writer = PcapWriter::new(&mut bytes).unwrap();
                for packet in &packets {
                    writer.write_packet(&PcapPacket::new(Duration::ZERO, 30, packet)).unwrap();
                }
            } else {
                sample(&mut bytes, &packets);
            }
            for (place, byte) in damage {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            let umem = umem();
            let mut cache = umem.cache();
            if let Ok(mut queue) = PcapQueue::open(0, Some(file.path()), None) {
                let mut burst = Burst::new();
                while queue.rx_burst(&mut cache, &mut burst) > 0 {
                    cache.free_burst(&mut burst);
                }
                prop_assert!(queue.is_at_end());
            }
            drop(cache);
            prop_assert_eq!(umem.pool().missing(), 0);
        }
    }
}
