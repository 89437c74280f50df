//! The fuzz targets, run from seeds for a bounded number of cases; `cargo fuzz run parsers|process` (folder
//! fuzz/) runs the same functions without bound. FAIRWAY_FUZZ_CASES sets the number, FAIRWAY_FUZZ_SEED the seed;
//! a failing case prints its own.

use fairway_dataplane::testkit::{addr, fuzz, packet};
use fairway_dataplane::wire::tcp_flags;

/// splitmix64: any seed is a good one.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not '{text}'")),
        Err(_) => default,
    }
}

fn each_case(cases: u64, mut run: impl FnMut(&mut Random)) {
    let first = setting("FAIRWAY_FUZZ_SEED", 20_260_101);
    for seed in first..first + setting("FAIRWAY_FUZZ_CASES", cases) {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&mut Random(seed))));
        if let Err(panic) = caught {
            eprintln!("failing case: FAIRWAY_FUZZ_SEED={seed} FAIRWAY_FUZZ_CASES=1");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn parsers_survive_any_bytes() {
    let world = fuzz::world();
    let ingresses = fuzz::ingresses(&world);
    let valid = [
        addr::from_pod(0, addr::pod(1)).tcp(1, 2, tcp_flags::SYN, b"payload"),
        addr::from_pod(0, addr::pod(1)).udp(1, 2, b"payload"),
        addr::from_pod(0, addr::pod(1)).echo(8, 1, 1, b"payload"),
        packet::encapsulate(
            &addr::encap_from(0),
            &addr::from_remote(addr::remote_pod(0, 7), addr::pod(0)).udp(1, 2, b"payload"),
            50_000,
        ),
        packet::into_vxlan6(
            &addr::outer6_from(0),
            &addr::vxlan6_from(0),
            &addr::from_remote(addr::remote_pod(0, 7), addr::pod(0)).udp(1, 2, b"payload"),
        ),
        packet::into_ipv6_with_limit(
            &addr::outer6_from(0),
            &addr::from_remote6(addr::remote_pod6(0, 7), addr::pod6(0)).udp(1, 2, b"payload"),
        ),
        packet::arp_request(addr::pod_mac(0), addr::pod(0), addr::GATEWAY),
    ];
    each_case(100_000, |random| {
        let mut bytes = if random.below(4) == 0 {
            let len = random.below(200);
            random.bytes(len)
        } else {
            valid[random.below(valid.len())].clone()
        };
        for _ in 0..random.below(4) {
            if !bytes.is_empty() {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
        }
        if random.below(4) == 0 {
            bytes.truncate(random.below(bytes.len() + 1));
        }
        fuzz::parsers(&ingresses, &bytes);
    });
    world.finish();
}

#[test]
fn process_survives_any_script_and_loses_no_frame() {
    let mut world = fuzz::world();
    each_case(20_000, |random| {
        let len = random.below(600);
        let script = random.bytes(len);
        fuzz::packets(&mut world, &script);
    });
    let (sent, dropped) = {
        let counters = &world.worker.counters;
        (counters.get(fairway_tables::stats::Counter::TxPackets), counters.all_drops())
    };
    // A fuzzer whose packets all die at the door tests nothing behind it.
    assert!(sent > 0 && dropped > 0 && sent > dropped / 50, "{sent} sent, {dropped} dropped");
    world.finish();
}
