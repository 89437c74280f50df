//! What a node full of pods costs: the memory of 250 ports (DESIGN: 250 pods fit in 1 GiB).

mod netns;

use fairway_pmd::af_xdp::{AfXdp, AfXdpConfig, AfXdpQueue};
use fairway_pmd::{Umem, UmemConfig};
use netns::{Netns, privileged};
use std::fmt::Write;

const PODS: usize = 250;
/// The engine's default.
const FRAMES: u32 = 16_384;
/// A quarter of 1 GiB is left to connections, flows and tables.
const LIMIT: usize = 768 << 20;

/// Bytes that the kernel holds for sockets: its records of the frames, and rings. It makes the records of pages in a row, or
/// maps single ones where there are none.
fn kernel_bytes() -> usize {
    let all = std::fs::read_to_string("/proc/meminfo").unwrap();
    let lines = all
        .lines()
        .filter_map(|line| line.strip_prefix("SUnreclaim:").or_else(|| line.strip_prefix("VmallocUsed:")));
    lines.map(|line| line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024).sum()
}

#[test]
fn the_ports_of_250_pods_fit_in_768_mebibytes() {
    if !privileged("250 ports") {
        return;
    }
    let engine = Netns::new("e");
    let mut script = String::new();
    for pod in 0..PODS {
        writeln!(script, "link add va{pod} type veth peer name vb{pod}").unwrap();
        writeln!(script, "link set va{pod} up").unwrap();
        writeln!(script, "link set vb{pod} up").unwrap();
    }
    engine.sh(&format!("ip -batch - <<'EOF'\n{script}EOF"));
    let umem = engine.run(|| {
        let before = kernel_bytes();
        let umem = Umem::new(UmemConfig { frames: FRAMES, frame_size: 2048, huge_pages: false }).unwrap();
        let af_xdp = AfXdp::new(&umem);
        let open =
            |pod: usize| af_xdp.open(&format!("va{pod}"), pod as u16, &AfXdpConfig::pod()).unwrap().remove(0);
        let queues: Vec<AfXdpQueue> = (0..PODS).map(open).collect();
        let (kernel, frames) = (kernel_bytes().saturating_sub(before), FRAMES as usize * 2048);
        println!(
            "{PODS} ports of {FRAMES} frames: {} MiB in the kernel, {} MiB of frames",
            kernel >> 20,
            frames >> 20
        );
        assert!(
            kernel > PODS * FRAMES as usize * 64,
            "{kernel} bytes: the kernel counts its memory otherwise"
        );
        assert!(kernel + frames < LIMIT, "{} MiB", (kernel + frames) >> 20);
        // Each drop waits for the kernel: all at once.
        std::thread::scope(|scope| {
            for queue in queues {
                scope.spawn(move || drop(queue));
            }
        });
        umem
    });
    assert_eq!(umem.pool().missing(), 0);
}
