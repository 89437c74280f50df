use super::*;
use crate::conntrack::Direction::{Original, Reply};
use crate::conntrack::tcp::{initial, next, syn_again};
use crate::wire::proto;
use proptest::prelude::*;

pub(super) const GENERATION: u32 = 86;
const CLIENT: u32 = 0xffff_ff00;
const SERVER: u32 = 5_000_000;

fn segment(flags: u8, seq: u32, len: u32, ack: u32, window: u16) -> Segment {
    let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    Segment { flags, seq, len: len + control, ack, sack: ack, window, shift: None, is_whole: true }
}

fn syn(seq: u32, shift: Option<u8>) -> Segment {
    Segment { shift, ..segment(SYN, seq, 0, 0, 1000) }
}

fn syn_ack(seq: u32, ack: u32, shift: Option<u8>) -> Segment {
    Segment { shift, ..segment(SYN | ACK, seq, 0, ack, 2000) }
}

/// A connection in a table: its windows as words, its state as a word.
pub(super) struct Connection {
    pub(super) words: [u32; Windows::WORDS],
    pub(super) state: u32,
}

impl Connection {
    pub(super) fn begin(first: &Segment) -> Connection {
        let words = Windows::begin(Some(first)).to_words(GENERATION);
        Connection { words, state: initial(proto::TCP, first.flags) }
    }

    /// Client's numbers from [`CLIENT`], server's from [`SERVER`], windows of 1000 << `shift` and 2000 << `shift` bytes.
    fn established(shift: Option<u8>) -> Connection {
        let mut connection = Connection::begin(&syn(CLIENT, shift));
        let answer = syn_ack(SERVER, CLIENT.wrapping_add(1), shift);
        assert_eq!(connection.take(Reply, answer), Verdict::Counts(SYN | ACK));
        let ack = segment(ACK, CLIENT.wrapping_add(1), 0, SERVER + 1, 1000);
        assert_eq!(connection.take(Original, ack), Verdict::Counts(ACK));
        assert_eq!(State::from_bits(connection.state), State::Established);
        connection
    }

    /// As the table does it.
    pub(super) fn take(&mut self, direction: Direction, segment: Segment) -> Verdict {
        let mut windows = Windows::of_words(&self.words, GENERATION);
        let verdict = windows.take(direction, &segment, self.state);
        match verdict {
            Verdict::Outside => return verdict,
            Verdict::Counts(flags) => self.state = next(self.state, proto::TCP, direction, flags),
            Verdict::Again(shift) if direction == Original => self.state = syn_again(self.state, shift),
            Verdict::Anew => self.state = tcp::begun_anew(),
            _ => {}
        }
        self.words = windows.to_words(GENERATION);
        verdict
    }

    fn passes(&mut self, direction: Direction, segment: Segment) {
        let verdict = self.take(direction, segment);
        assert_ne!(verdict, Verdict::Outside, "{direction:?} {segment:x?}");
    }

    fn is_outside(&mut self, direction: Direction, segment: Segment) {
        let before = (self.words, self.state);
        let verdict = self.take(direction, segment);
        assert_eq!(verdict, Verdict::Outside, "{direction:?} {segment:x?}");
        assert_eq!((self.words, self.state), before, "what is outside changes nothing");
    }

    pub(super) fn state(&self) -> State {
        State::from_bits(self.state)
    }

    pub(super) fn forget(&mut self) {
        self.words[6] = Windows::forget(self.words[6]);
    }

    pub(super) fn is_strict(&self) -> bool {
        Windows::of_words(&self.words, GENERATION).is_strict
    }
}

/// What may be kept of so many bytes.
fn kept(window: i64) -> i64 {
    window + window / 8
}

/// Client's and server's n-th byte.
fn client(n: i64) -> u32 {
    CLIENT.wrapping_add(1).wrapping_add(n as u32)
}

fn server(n: i64) -> u32 {
    SERVER.wrapping_add(1).wrapping_add(n as u32)
}

#[test]
fn windows_are_kept_in_words_rounded_up_by_an_eighth_at_most() {
    for power in 0..31 {
        for window in [1u32 << power, (1u32 << power) + 1, (1u32 << power) + (1 << power) / 3] {
            let kept = decode(encode(window));
            let window = window.min(LARGEST);
            assert!(kept >= window && kept - window <= window / 8, "{window} is kept as {kept}");
        }
    }
    assert_eq!(decode(encode(0)), 1);
}

proptest! {
    #[test]
    fn any_words_and_segments_are_survived(
        mut words: [u32; 7], generation: u32, state: u32, flags: u8, numbers: [u32; 4], window: u16,
        shift in proptest::option::of(0u8..15), reply: bool, is_whole: bool, same_tag: bool,
    ) {
        if same_tag {
            words[6] = words[6] & 0x1fff_ffff | (generation >> 1) << 29;
        }
        let mut windows = Windows::of_words(&words, generation);
        let [seq, len, ack, sack] = numbers;
        let segment = Segment { flags: flags & 0x17, seq, len, ack, sack, window, shift, is_whole };
        windows.take(if reply { Reply } else { Original }, &segment, state & 0xffff);
        let kept = windows.to_words(generation);
        prop_assert_eq!(Windows::of_words(&kept, generation).to_words(generation), kept);
    }
}

#[test]
fn a_sender_may_send_what_was_offered_and_no_more() {
    for shift in [None, Some(0), Some(7)] {
        let mut tcp = Connection::established(shift);
        // The server's window of the SYN-ACK is not scaled.
        tcp.passes(Original, segment(ACK, client(1999), 1, server(0), 1000));
        tcp.passes(Original, segment(ACK, client(2000), 0, server(0), 1000));
        tcp.is_outside(Original, segment(ACK, client(2001), 1, server(0), 1000));
        tcp.passes(Reply, segment(ACK, server(0), 0, client(2000), 2000));
        let offered = 2000 << shift.unwrap_or(0);
        tcp.passes(Original, segment(ACK, client(2000 + offered), 1, server(0), 1000));
        tcp.is_outside(Original, segment(ACK, client(2001 + offered), 0, server(0), 1000));
    }
}

#[test]
fn windows_are_scaled_only_if_both_sides_say_so() {
    for (offers, answers) in [(Some(7), None), (None, Some(7)), (None, None)] {
        let mut tcp = Connection::begin(&syn(CLIENT, offers));
        tcp.passes(Reply, syn_ack(SERVER, client(0), answers));
        tcp.passes(Original, segment(ACK, client(0), 0, server(0), 1000));
        tcp.is_outside(Reply, segment(ACK, server(kept(1000) + 1), 10, client(0), 2000));
    }
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_outside_by_sack_too() {
    let mut tcp = Connection::established(Some(7));
    tcp.passes(Original, segment(ACK, client(0), 1000, server(0), 1000));
    tcp.is_outside(Reply, segment(ACK, server(0), 0, client(1001), 2000));
    let mut sacks = segment(ACK, server(0), 0, client(0), 2000);
    sacks.sack = client(1001);
    tcp.is_outside(Reply, sacks);
    sacks.sack = client(1000);
    tcp.passes(Reply, sacks);
    tcp.passes(Reply, segment(ACK, server(0), 0, client(1000), 2000));
}

#[test]
fn old_numbers_are_outside_once_they_are_a_window_old() {
    let mut tcp = Connection::established(Some(7));
    for n in 0..100 {
        tcp.passes(Original, segment(ACK, client(n * 1000), 1000, server(0), 1000));
        tcp.passes(Reply, segment(ACK, server(0), 0, client((n + 1) * 1000), 200));
        tcp.passes(Reply, segment(ACK, server(0), 0, client((n + 1) * 1000), 0));
    }
    // 200 << 7 bytes is the most that the server offered after the first, 2000 << 0 in the SYN-ACK.
    tcp.passes(Original, segment(ACK, client(100_000 - 25_600), 1, server(0), 1000));
    tcp.is_outside(Original, segment(ACK, client(100_000 - 30_000), 1, server(0), 1000));
    tcp.passes(Reply, segment(ACK, server(0), 0, client(100_000 - 66_000), 200));
    tcp.is_outside(Reply, segment(ACK, server(0), 0, client(100_000 - 66_001), 200));
}

#[test]
fn retransmissions_keepalives_and_probes_are_inside() {
    let mut tcp = Connection::established(None);
    tcp.passes(Original, segment(ACK, client(0), 1000, server(0), 1000));
    tcp.passes(Original, segment(ACK, client(1000), 1000, server(0), 1000));
    tcp.passes(Original, segment(ACK, client(0), 1000, server(0), 1000));
    tcp.passes(Reply, segment(ACK, server(0), 0, client(2000), 0));
    // RFC 1122 section 4.2.3.6, with a byte and without; RFC 9293 section 3.8.6.1.
    tcp.passes(Original, segment(ACK, client(1999), 0, server(0), 1000));
    tcp.passes(Original, segment(ACK, client(1999), 1, server(0), 1000));
    tcp.passes(Original, segment(ACK, client(2000), 1, server(0), 1000));
    tcp.passes(Reply, segment(ACK, server(0), 0, client(2000), 0));
    tcp.is_outside(Original, segment(ACK, client(2002), 1, server(0), 1000));
    tcp.passes(Reply, segment(ACK, server(0), 0, client(2001), 2000));
    tcp.passes(Original, segment(ACK, client(2001), 1000, server(0), 1000));
}

#[test]
fn fins_inside_end_and_fins_outside_do_not() {
    let mut tcp = Connection::established(Some(7));
    tcp.is_outside(Original, segment(FIN | ACK, client(500_000), 0, server(0), 1000));
    tcp.is_outside(Reply, segment(FIN | ACK, server(0), 0, client(1), 1000));
    assert_eq!(tcp.state(), State::Established);
    tcp.passes(Original, segment(FIN | ACK, client(0), 10, server(0), 1000));
    tcp.passes(Reply, segment(ACK, server(0), 0, client(11), 2000));
    tcp.passes(Reply, segment(FIN | ACK, server(0), 0, client(11), 2000));
    assert_eq!(tcp.state(), State::TimeWait);
    tcp.passes(Reply, segment(FIN | ACK, server(0), 0, client(11), 2000));
    tcp.passes(Original, segment(ACK, client(11), 0, server(1), 1000));
}

#[test]
fn a_reset_is_believed_with_the_very_next_number_only() {
    let established = || {
        let mut tcp = Connection::established(Some(7));
        tcp.passes(Reply, segment(ACK, server(0), 1000, client(0), 2000));
        tcp.passes(Original, segment(ACK, client(0), 0, server(1000), 1000));
        tcp.passes(Reply, segment(ACK, server(1000), 500, client(0), 2000));
        tcp
    };
    // What was acknowledged; behind all that was sent, as when a process is killed; what lies between may be anybody's.
    for (seq, verdict) in
        [(1000, Verdict::Counts(RST)), (1500, Verdict::Counts(RST)), (1200, Verdict::Passes)]
    {
        let mut tcp = established();
        assert_eq!(tcp.take(Reply, segment(RST, server(seq), 0, 0, 0)), verdict);
        let closed = verdict != Verdict::Passes;
        assert_eq!(tcp.state(), if closed { State::Closed } else { State::Established });
        // The challenge and its answer (RFC 5961 section 3.2).
        tcp.passes(Original, segment(ACK, client(0), 0, server(1000), 1000));
        tcp.passes(Reply, segment(RST, server(1000), 0, 0, 0));
        assert_eq!(tcp.state(), State::Closed);
    }
    for seq in [999, -1, 1 << 31, 128_000 + 1001] {
        established().is_outside(Reply, segment(RST, server(seq), 0, 0, 0));
    }
    // With an acknowledgement of nothing, as some stacks send it, and with a false one.
    assert_eq!(
        established().take(Reply, segment(RST | ACK, server(1000), 0, 0, 0)),
        Verdict::Counts(RST | ACK)
    );
    established().is_outside(Reply, segment(RST | ACK, server(1000), 0, client(1), 0));
}

#[test]
fn a_syn_is_refused_only_by_a_reset_that_acknowledges_it() {
    let mut tcp = Connection::begin(&syn(CLIENT, Some(7)));
    tcp.is_outside(Reply, segment(RST | ACK, 0, 0, client(1), 0));
    tcp.is_outside(Reply, segment(RST, 0, 0, 0, 0));
    tcp.is_outside(Reply, syn_ack(SERVER, client(1), None));
    tcp.passes(Reply, segment(RST | ACK, 0, 0, client(0), 0));
    assert_eq!(tcp.state(), State::Closed);
}

#[test]
fn a_syn_repeated_or_tried_anew_is_answered() {
    let mut tcp = Connection::begin(&syn(CLIENT, None));
    tcp.passes(Original, syn(CLIENT, Some(7)));
    tcp.passes(Reply, syn_ack(SERVER, client(0), Some(7)));
    tcp.passes(Reply, syn_ack(SERVER, client(0), Some(7)));
    tcp.passes(Original, segment(ACK, client(0), 0, server(0), 1000));
    tcp.is_outside(Reply, segment(ACK, server(128_001), 0, client(0), 2000));
    // Another one, after the client gave up or by somebody else: whichever is answered counts.
    for answered in [CLIENT, 77] {
        let mut tcp = Connection::begin(&syn(CLIENT, Some(7)));
        tcp.passes(Original, syn(77, Some(7)));
        tcp.passes(Reply, syn_ack(SERVER, answered.wrapping_add(1), Some(7)));
        tcp.passes(Original, segment(ACK, answered.wrapping_add(1), 0, server(0), 1000));
        assert!(tcp.is_strict());
        tcp.is_outside(Original, segment(ACK, answered.wrapping_add(1 << 30), 0, server(0), 1000));
    }
}

#[test]
fn data_may_come_with_the_syn_and_with_its_answer() {
    let mut tcp = Connection::begin(&segment(SYN, CLIENT, 500, 0, 3000));
    let mut other = Connection { ..tcp };
    tcp.passes(Reply, syn_ack(SERVER, client(500), None));
    tcp.passes(Reply, segment(ACK, server(0), 1460, client(500), 2000));
    tcp.passes(Reply, segment(ACK, server(1460), 1460, client(500), 2000));
    tcp.is_outside(Reply, segment(ACK, server(kept(3000) + 1), 10, client(500), 2000));
    // The server may not take the data (RFC 7413 section 4.2).
    other.passes(Reply, syn_ack(SERVER, client(0), None));
    other.passes(Original, segment(ACK, client(0), 500, server(0), 3000));
    tcp.is_outside(Reply, syn_ack(SERVER + 9999, client(499), None));
}

#[test]
fn both_sides_may_open_at_once() {
    for shift in [None, Some(7)] {
        let mut tcp = Connection::begin(&syn(CLIENT, shift));
        tcp.passes(Reply, syn(SERVER, shift));
        tcp.is_outside(Original, syn_ack(CLIENT, server(1), shift));
        tcp.passes(Original, syn_ack(CLIENT, server(0), shift));
        tcp.passes(Reply, syn_ack(SERVER, client(0), shift));
        assert_eq!(tcp.state(), State::Established);
        tcp.passes(Original, segment(ACK, client(0), 900, server(0), 1000));
        tcp.passes(Reply, segment(ACK, server(0), 900, client(900), 1000));
        tcp.is_outside(
            Reply,
            segment(ACK, server(900 + kept(1000 << shift.unwrap_or(0)) + 1), 0, client(900), 1000),
        );
    }
}

#[test]
fn a_connection_begins_anew_when_its_server_agrees() {
    let mut tcp = Connection::established(Some(2));
    assert_eq!(tcp.take(Original, syn(123, Some(9))), Verdict::Again(Some(9)));
    // The server remembers, and challenges; the client then resets what it does not know, and tries again.
    tcp.passes(Reply, segment(ACK, server(0), 0, client(0), 2000));
    let mut forgotten = Connection { ..tcp };
    assert_eq!(tcp.take(Original, segment(RST, client(0), 0, 0, 0)), Verdict::Counts(RST));
    assert!(tcp.state().may_be_reused());
    // The server does not.
    assert_eq!(forgotten.take(Reply, syn_ack(9_000_000, 124, Some(3))), Verdict::Anew);
    assert_eq!(forgotten.state(), State::SynReceived);
    forgotten.passes(Original, segment(ACK, 124, 0, 9_000_001, 1000));
    assert_eq!((forgotten.state(), forgotten.is_strict()), (State::Established, true));
    forgotten.passes(Reply, segment(ACK, 9_000_001 + (0xffff << 9), 0, 124, 2000));
    forgotten.is_outside(Reply, segment(ACK, 9_000_002 + (0xffff << 9), 0, 124, 2000));
    // Nor does one answer without being asked.
    Connection::established(Some(2)).is_outside(Reply, syn_ack(9_000_000, 124, Some(3)));
}

#[test]
fn a_forged_syn_changes_nothing() {
    let mut tcp = Connection::established(Some(7));
    let before = tcp.words;
    for seq in [0, client(0), client(50), 1 << 31] {
        assert!(matches!(tcp.take(Original, syn(seq, Some(14))), Verdict::Again(_)));
        assert!(matches!(tcp.take(Reply, syn(seq, Some(14))), Verdict::Again(_)));
    }
    assert_eq!((tcp.words, tcp.state()), (before, State::Established));
}

#[test]
fn an_answer_from_the_connection_before_goes_on_and_is_reset() {
    let mut tcp = Connection::begin(&syn(CLIENT, Some(7)));
    assert_eq!(tcp.take(Reply, segment(ACK, 42, 0, 99, 500)), Verdict::Passes);
    assert_eq!(tcp.take(Original, segment(RST, 99, 0, 0, 0)), Verdict::Passes);
    assert_eq!(tcp.state(), State::New);
    tcp.passes(Original, syn(CLIENT, Some(7)));
    tcp.passes(Reply, syn_ack(SERVER, client(0), Some(7)));
}

#[test]
fn what_was_found_under_way_is_learnt_when_both_sides_agree() {
    let mut tcp = Connection::begin(&segment(ACK, client(0), 100, server(0), 500));
    // One side alone says nothing for certain, and whoever is not there yet is not ended by it.
    tcp.passes(Original, segment(FIN | ACK, 4711, 0, 815, 500));
    assert_eq!(tcp.take(Original, segment(RST, 815, 0, 0, 0)), Verdict::Passes);
    assert_eq!(tcp.state(), State::Established);
    tcp.passes(Original, segment(ACK, client(100), 100, server(0), 500));
    tcp.passes(Reply, segment(ACK, server(0), 1400, client(200), 500));
    assert!(tcp.is_strict());
    // What shift there is was not seen.
    tcp.passes(Original, segment(ACK, client(200 + (0xffff << 14)), 0, server(1400), 500));
    tcp.is_outside(Original, segment(ACK, client(201 + (0xffff << 14)), 0, server(1400), 500));
    assert_eq!(tcp.take(Reply, segment(RST, server(1401), 0, 0, 0)), Verdict::Passes);
    assert_eq!(tcp.take(Reply, segment(RST, server(1400), 0, 0, 0)), Verdict::Counts(RST));
}

#[test]
fn who_forges_one_side_of_what_is_learnt_does_not_mislead() {
    let mut tcp = Connection::established(Some(7));
    tcp.forget();
    for n in 1..1000u32 {
        let random = n.wrapping_mul(0x9e37_79b1);
        tcp.passes(Original, segment(FIN | ACK, random, 10, random.rotate_left(9), 500));
        tcp.passes(Original, segment(RST, random, 10, 0, 500));
        tcp.passes(Reply, segment(ACK, server(0), 0, client(0), 500));
    }
    assert!(!tcp.is_strict() && tcp.state() == State::Established);
    tcp.passes(Original, segment(ACK, client(0), 100, server(0), 500));
    tcp.passes(Reply, segment(ACK, server(0), 0, client(100), 500));
    assert!(tcp.is_strict());
    tcp.is_outside(Original, segment(ACK, client(101 + kept(0xffff << 7)), 10, server(0), 500));
}

#[test]
fn what_passed_unseen_is_learnt_anew_with_the_shifts_known() {
    let mut tcp = Connection::established(Some(2));
    tcp.forget();
    tcp.passes(Reply, segment(ACK, server(700_000_000), 1000, client(300_000_000), 500));
    tcp.passes(Original, segment(ACK, client(300_000_000), 0, server(700_001_000), 500));
    assert!(tcp.is_strict());
    // Before, either may have offered as much as its shift allows, and have sent as much as the other allowed.
    let most = 0xffff << 2;
    tcp.is_outside(Reply, segment(ACK, server(700_001_001 + most), 1000, client(300_000_000), 500));
    tcp.passes(Reply, segment(ACK, server(700_001_000 + most), 1000, client(300_000_000), 500));
    tcp.is_outside(Reply, segment(ACK, server(700_001_000), 0, client(300_000_001 + most), 500));
    tcp.passes(Reply, segment(ACK, server(700_001_000), 0, client(300_000_000 + most), 500));
}

#[test]
fn another_connection_in_the_place_is_no_longer_this_one() {
    let tcp = Connection::established(Some(2));
    assert_eq!(Windows::of_words(&tcp.words, GENERATION + 2), Windows::NOTHING);
    assert_eq!(Windows::of_words(&[0; 7], GENERATION), Windows::NOTHING, "files of former versions");
}

#[test]
fn one_direction_alone_is_never_dropped() {
    let mut tcp = Connection::begin(&syn(CLIENT, Some(7)));
    for n in 0..100_000 {
        tcp.passes(Original, segment(ACK, client(n * 100_000), 1460, server(n * 10), 500));
    }
    let mut tcp = Connection::begin(&segment(ACK, client(0), 0, server(0), 500));
    for n in 0..100_000 {
        tcp.passes(Original, segment(ACK, client(n * 100_000), 1460, server(n * 10), 500));
    }
}

#[test]
fn a_segment_in_fragments_ends_the_tracking_if_it_is_inside() {
    let mut tcp = Connection::established(Some(2));
    let first = |seq| Segment { is_whole: false, ..segment(ACK, seq, 1400, server(0), 500) };
    tcp.is_outside(Original, first(client(1 << 30)));
    tcp.passes(Original, first(client(0)));
    tcp.passes(Reply, segment(ACK, server(0), 0, client(60_000), 500));
}

#[test]
fn a_segment_that_no_tcp_sends_is_outside() {
    for flags in [0, FIN, SYN | FIN, SYN | RST, SYN | FIN | ACK] {
        Connection::established(None).is_outside(Original, segment(flags, client(0), 0, server(0), 500));
    }
    Connection::established(None).is_outside(Reply, Segment::NONSENSE);
}
