//! A reader's look-ups allocate nothing (I3).

// UNSAFETY: a counting allocator must implement GlobalAlloc.
#![allow(unsafe_code)]

use fairway_tables::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    /// # Safety
    /// As GlobalAlloc says.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.alloc(layout) }
    }

    /// # Safety
    /// As GlobalAlloc says.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn look_ups_and_quiescent_states_allocate_nothing() {
    let (mut writer, factory) = Tables::heap(Capacities::default());
    let ip = |n| Ip::v4([10, 0, 0, n]);
    let key = ServiceKey::new(ip(9), 80, 6);
    let hop = NextHop::new(NextHopKind::Local, Ip::UNSPECIFIED, PortId::NONE);
    let backends = vec![Backend { ip: ip(1), port: 80, flags: 0 }; 5];
    writer
        .apply(&[
            Op::SetRoute("10.0.0.0/30".parse().unwrap(), hop),
            Op::SetRoute("fd00::/64".parse().unwrap(), hop),
            Op::SetEndpoint(ip(1), Endpoint::new(PortId(0), Mac::ZERO)),
            Op::SetService(key, Service { id: 1, flags: 0, affinity_timeout_s: 0 }, backends.into()),
        ])
        .unwrap();
    let mut reader = factory.reader();
    let before = ALLOCATIONS.with(Cell::get);
    let mut found = 0;
    for _ in 0..1000 {
        let view = reader.view();
        found += usize::from(view.route(ip(1)).is_some() && view.route(ip(77)).is_none());
        found += usize::from(view.route("fd00::1".parse::<std::net::IpAddr>().unwrap().into()).is_some());
        found += usize::from(view.endpoint(ip(1)).is_some() && view.tunnel(ip(1)).is_none());
        found += usize::from(view.settings().vni == 0 && view.port(PortId(0)).is_none());
        found += view.service(&key).map_or(0, |s| s.backends().count());
        reader.quiescent();
    }
    assert_eq!(ALLOCATIONS.with(Cell::get), before);
    assert_eq!(found, 9000);
    // The counter does count.
    drop(std::hint::black_box(Box::new(1)));
    assert!(ALLOCATIONS.with(Cell::get) > before);
}
