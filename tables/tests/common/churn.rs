//! Random inserts and deletes of routes of both families, checked against plain maps. Used by the tests of the
//! tables and by `make bench-lpm`.

use fairway_tables::{Ip, NextHop, NextHopKind, Op, PortId, Prefix, Reader, Writer};
use std::collections::HashMap;

/// Different prefixes that come and go.
const PREFIXES: usize = 40_000;

/// A prefix as the model holds it: is it IPv4, its bits from the top, its length.
type Key = (bool, u128, u32);

fn mask(len: u32) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - len) }
}

fn ip((is_v4, bits): (bool, u128)) -> Ip {
    if is_v4 { Ip::v4(((bits >> 96) as u32).to_be_bytes()) } else { Ip(bits.to_be_bytes()) }
}

fn prefix((is_v4, bits, len): Key) -> Prefix {
    Prefix::new(ip((is_v4, bits)), len as u8).expect("a length of its family")
}

fn hop(value: u32) -> NextHop {
    NextHop::new(NextHopKind::Gateway, Ip::v4(value.to_be_bytes()), PortId(0))
}

fn width(is_v4: bool) -> u32 {
    if is_v4 { 32 } else { 128 }
}

/// A new prefix: anywhere, or close to one that is there: around it, inside it, beside it.
fn draw(known: &[Key], next: &mut impl FnMut() -> u64) -> Key {
    let random = u128::from(next()) << 64 | u128::from(next());
    let is_v4 = next().is_multiple_of(2);
    let near = known.get(next() as usize % known.len().max(1)).filter(|key| key.0 == is_v4);
    // A short IPv4 prefix fills thousands of root entries: some are enough.
    let any_len = match next() as u32 % (width(is_v4) + 1) {
        len if len < 12 && !next().is_multiple_of(32) => len + 12,
        len => len,
    };
    let (bits, len) = match (near, next() % 8) {
        // Of the same length, next to it.
        (Some((_, bits, len)), 0 | 1) if *len > 0 => (bits ^ 1 << (128 - len), *len),
        // Around it, or inside.
        (Some((_, bits, len)), 2..=4) => (bits | random & !mask(*len), any_len),
        // Inside, a little longer.
        (Some((_, bits, len)), 5 | 6) => {
            (bits | random & !mask(*len), (len + next() as u32 % 9).min(width(is_v4)))
        }
        // Anywhere, in a few corners, so that prefixes meet; or truly anywhere.
        (_, 0..7) if is_v4 => (10 << 120 | (random & 0x0000_0303_ff00) << 80, any_len),
        (_, 0..7) => (0xfd << 120 | random & 0x0000_0303_0000_ffff_0000_0001_0000_00ff, any_len),
        _ => (random, any_len),
    };
    (is_v4, bits & mask(len), len)
}

/// The longest match, the slow way.
fn look_up(model: &HashMap<Key, u32>, is_v4: bool, bits: u128) -> Option<u32> {
    (0..=width(is_v4)).rev().find_map(|len| model.get(&(is_v4, bits & mask(len), len)).copied())
}

fn check(reader: &Reader, model: &HashMap<Key, u32>, is_v4: bool, bits: u128) -> Result<(), String> {
    let ip = ip((is_v4, bits));
    let (found, wanted) = (reader.view().route(ip), look_up(model, is_v4, bits).map(hop));
    if found == wanted {
        return Ok(());
    }
    Err(format!("{ip}: found {found:?}, but the longest match is {wanted:?}"))
}

/// Checks two of: both edges of a prefix, one beyond each, and one inside.
fn check_around(reader: &Reader, model: &HashMap<Key, u32>, key: Key, random: u64) -> Result<(), String> {
    let (is_v4, first, len) = key;
    let family = mask(width(is_v4));
    let last = first | !mask(len) & family;
    let step = 1 << (128 - width(is_v4));
    let inside = first | (u128::from(random) << 64 | u128::from(random)) & !mask(len) & family;
    let places = [first, last, first.wrapping_sub(step) & family, last.wrapping_add(step) & family, inside];
    for bits in [places[random as usize % 5], places[(random >> 8) as usize % 5]] {
        // An IPv6 address that is a mapped IPv4 one means that.
        if is_v4 || !ip((false, bits)).is_v4() {
            check(reader, model, is_v4, bits)?;
        }
    }
    Ok(())
}

/// Applies `count` random changes in batches of random size, checks look-ups around each, and takes all out again at
/// the end. Says what went wrong.
pub(crate) fn churn(
    writer: &mut Writer,
    reader: &mut Reader,
    count: usize,
    mut next: impl FnMut() -> u64,
) -> Result<(), String> {
    let mut known: Vec<Key> = vec![(true, 0, 0), (false, 0, 0)];
    let mut model: HashMap<Key, u32> = HashMap::new();
    let mut done = 0;
    while done < count {
        let size = (1 + next() as usize % 400).min(count - done);
        let (mut ops, mut touched) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for _ in 0..size {
            let key = if known.len() < PREFIXES && next().is_multiple_of(2) {
                let key = draw(&known, &mut next);
                // What reads as a mapped IPv4 address is no IPv6 prefix.
                if !key.0 && key.2 >= 96 && ip((false, key.1)).is_v4() {
                    continue;
                }
                known.push(key);
                key
            } else {
                known[next() as usize % known.len()]
            };
            touched.push(key);
            if next().is_multiple_of(2) {
                let value = next() as u32 % 200;
                ops.push(Op::SetRoute(prefix(key), hop(value)));
                model.insert(key, value);
            } else {
                ops.push(Op::DelRoute(prefix(key)));
                model.remove(&key);
            }
        }
        writer.apply(&ops).map_err(|error| error.to_string())?;
        for key in touched {
            check_around(reader, &model, key, next())?;
        }
        reader.quiescent();
        done += size;
    }
    let rest: Vec<Op> = model.keys().map(|key| Op::DelRoute(prefix(*key))).collect();
    for part in rest.chunks(1000) {
        writer.apply(part).map_err(|error| error.to_string())?;
        reader.quiescent();
    }
    let left = writer
        .usage()
        .into_iter()
        .find(|usage| ["routes", "next_hops", "lpm_nodes"].contains(&usage.table) && usage.used > 0);
    left.map_or(Ok(()), |usage| Err(format!("{} still holds {} entries", usage.table, usage.used)))
}
