//! Any bytes as the opening of a stream: the classifier, the rules per byte and the flow agree with the grammar of TLS, however
//! the bytes are cut. What the fuzz target `classifier` and the test `oracles` have in common.

use enforcer_common::flow::{Opinion, Policy, Window};
use enforcer_common::map::{Flow, HalfOpen};
use enforcer_common::tcp::{ACK, Segment, overlap};
use enforcer_common::tls::{
    CLIENT_PREFIX, Class, POD_PREFIX, classify, client_byte_fits, client_word_fits, pod_byte_fits,
    pod_word_fits,
};
use enforcer_common::{Mode, Reason};

/// RFC 8446, sections 4 and 5.1, read once more and written down otherwise.
fn reference(stream: &[u8]) -> Class {
    let fits = match stream {
        [] | [22] | [22, 3] => true,
        [22, 3, minor] => *minor < 5,
        [22, 3, minor, high] => *minor < 5 && *high <= 64,
        [22, 3, minor, high, low, rest @ ..] => {
            let length = usize::from(*high) << 8 | usize::from(*low);
            *minor < 5 && (1..=16384).contains(&length) && rest.first().is_none_or(|kind| *kind == 1)
        }
        _ => false,
    };
    match (fits, stream.len()) {
        (false, _) => Class::Plaintext,
        (true, 0..=5) => Class::Incomplete,
        (true, _) => Class::Tls,
    }
}

fn word(bytes: &[u8]) -> (u64, u64) {
    let (mut word, mut mask) = ([0; 8], [0; 8]);
    for (at, byte) in bytes.iter().take(6).enumerate() {
        (word[at], mask[at]) = (*byte, 0xff);
    }
    (u64::from_le_bytes(word), u64::from_le_bytes(mask))
}

/// The first byte says how the rest is cut and where its numbers begin.
///
/// # Panics
/// When two of them disagree.
pub(crate) fn judge(bytes: &[u8]) {
    let Some((&shape, stream)) = bytes.split_first() else { return };
    for end in 0..=stream.len().min(16) {
        assert_eq!(classify(&stream[..end]), reference(&stream[..end]), "{:x?}", &stream[..end]);
    }
    // Each byte by itself and all at once.
    for (at, byte) in (0..CLIENT_PREFIX).zip(stream) {
        let (value, mask) = (u64::from(*byte) << (at * 8), 0xff << (at * 8));
        assert_eq!(client_word_fits(value, mask), client_byte_fits(at, *byte), "byte {at} is {byte:#x}");
        if at < POD_PREFIX {
            assert_eq!(pod_word_fits(value, mask), pod_byte_fits(at, *byte), "pod byte {at} is {byte:#x}");
        }
    }
    let (value, mask) = word(stream);
    let each = (0..CLIENT_PREFIX).zip(stream).all(|(at, byte)| client_byte_fits(at, *byte));
    assert_eq!(client_word_fits(value, mask), each);
    // Through a flow, in order, in segments of one size.
    let policy = Policy { mode: Mode::STRICT, exempt: Reason::NONE, blocked: false, generation: 0 };
    let isn = u32::MAX.wrapping_sub(u32::from(shape >> 4));
    let mut flow = Flow::open(&HalfOpen { client_isn: isn, pod_isn: 0, flags: 0 }, 1, 0, 0);
    let size = usize::from(shape & 15) + 1;
    for (index, piece) in stream.chunks(size).enumerate() {
        let offset = u32::try_from(index * size).expect("an input");
        let payload_len = u32::try_from(piece.len()).expect("an input");
        let segment =
            Segment { seq: isn.wrapping_add(1).wrapping_add(offset), ack: 1, payload_len, flags: ACK };
        let window = overlap(flow.client_start, segment.seq, payload_len, CLIENT_PREFIX);
        let window = window.map_or_else(Window::default, |part| {
            let mut covered = [0; 8];
            let from = part.index as usize;
            let count = part.count as usize;
            covered[..count].copy_from_slice(&piece[from..from + count]);
            Window::new(part.offset, part.count, covered)
        });
        let seen = flow.observe_client(&segment, &window, true, 0, u64::MAX);
        let opinion = flow.decide(&policy, 8080, true).of(seen, &policy);
        let read = &stream[..index * size + piece.len()];
        let expected = match reference(read) {
            Class::Incomplete => Opinion::Undecided,
            Class::Tls => Opinion::Allow(Reason::TLS),
            Class::Plaintext => Opinion::Refuse(Reason::PLAINTEXT),
        };
        assert_eq!(opinion, expected, "{read:x?}");
    }
}
