//! Openings of real connections, cut at every place: each prefix and each pair of segments gives the one right judgement.
//! What is in the corpus and how it was made: `corpus/README.md`; what it means: `docs/protocols.md`.

use std::fs;
use std::path::{Path, PathBuf};

use enforcer_common::flow::{Opinion, Policy, Window};
use enforcer_common::map::{Flow, HalfOpen};
use enforcer_common::tcp::{ACK, Segment, overlap};
use enforcer_common::tls::{CLIENT_PREFIX, Class, POD_PREFIX, classify};
use enforcer_common::{Mode, Reason};

/// So that the first bytes straddle the end of the sequence numbers.
const ISN: u32 = u32::MAX - 3;
const POD_ISN: u32 = 77;
const BUDGET_NS: u64 = 5_000_000_000;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn hellos() -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(corpus().join("hello")).expect("the corpus");
    let mut hellos: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("readable")))
        .collect();
    hellos.sort();
    assert!(hellos.len() >= 30, "{} hellos", hellos.len());
    hellos
}

/// A line of `plaintext.tsv`.
struct Opening {
    name: String,
    by_client: bool,
    judged_after: usize,
    bytes: Vec<u8>,
}

fn openings() -> Vec<Opening> {
    let text = fs::read_to_string(corpus().join("plaintext.tsv")).expect("the corpus");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let openings: Vec<_> = lines
        .map(|line| {
            let [name, speaker, after, _, hex] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("not five columns: {line}");
            };
            let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
            Opening {
                name: name.to_owned(),
                by_client: speaker == "client",
                judged_after: after.parse().expect("a number"),
                bytes: (0..hex.len()).step_by(2).map(digits).collect(),
            }
        })
        .collect();
    assert!(openings.len() >= 60, "{} openings", openings.len());
    openings
}

fn strict() -> Policy {
    Policy { mode: Mode::STRICT, exempt: Reason::NONE, blocked: false, generation: 1 }
}

fn open() -> Flow {
    Flow::open(&HalfOpen { client_isn: ISN, pod_isn: POD_ISN, flags: 0 }, 1, 1, 0)
}

fn window(segment: &Segment, bytes: &[u8], start: u32, limit: u32) -> Window {
    overlap(start, segment.seq, segment.payload_len, limit).map_or_else(Window::default, |part| {
        let from = part.index as usize;
        let mut word = [0; 8];
        word[..part.count as usize].copy_from_slice(&bytes[from..from + part.count as usize]);
        Window::new(part.offset, part.count, word)
    })
}

/// The client says these bytes of its stream; whether they had to wait, and what is thought of the flow then.
fn client_says(flow: &mut Flow, offset: usize, bytes: &[u8]) -> (bool, Opinion) {
    let segment = Segment {
        seq: (ISN.wrapping_add(1)).wrapping_add(u32::try_from(offset).expect("small")),
        ack: POD_ISN + 1,
        payload_len: u32::try_from(bytes.len()).expect("small"),
        flags: ACK,
    };
    let window = window(&segment, bytes, flow.client_start, CLIENT_PREFIX);
    let seen = flow.observe_client(&segment, &window, true, 1, BUDGET_NS);
    (seen.early, flow.decide(&strict(), 8080, !bytes.is_empty()).of(seen, &strict()))
}

/// The judgement of the first `count` bytes of a stream that is known as a whole after `judged_after`.
fn expected(count: usize, judged_after: usize, whole: Opinion) -> Opinion {
    if count < judged_after { Opinion::Undecided } else { whole }
}

/// Every prefix in one segment, every prefix in two, the two in the wrong order, and byte by byte.
fn judge_all(name: &str, bytes: &[u8], judged_after: usize, whole: Opinion) {
    for count in 0..=bytes.len() {
        let (early, opinion) = client_says(&mut open(), 0, &bytes[..count]);
        assert_eq!((early, opinion), (false, expected(count, judged_after, whole)), "{name}: {count} bytes");
    }
    for cut in 0..=bytes.len() {
        let (first, second) = bytes.split_at(cut);
        let mut flow = open();
        let (_, opinion) = client_says(&mut flow, 0, first);
        assert_eq!(opinion, expected(cut, judged_after, whole), "{name}: the first {cut} bytes");
        let (early, opinion) = client_says(&mut flow, cut, second);
        assert_eq!((early, opinion), (false, whole), "{name}: cut at {cut}");
        // The second part first: it waits unless the gap is nothing.
        let mut flow = open();
        let (early, opinion) = client_says(&mut flow, cut, second);
        if cut > 0 && !second.is_empty() {
            assert!(
                early && opinion == Opinion::Undecided,
                "{name}: the part from {cut} came first: {opinion:?}"
            );
        }
        client_says(&mut flow, 0, first);
        assert_eq!(client_says(&mut flow, cut, second), (false, whole), "{name}: cut at {cut}, wrong order");
    }
    let mut flow = open();
    for (offset, byte) in bytes.iter().enumerate() {
        let (early, opinion) = client_says(&mut flow, offset, &[*byte]);
        assert_eq!(
            (early, opinion),
            (false, expected(offset + 1, judged_after, whole)),
            "{name}: byte {offset} by itself"
        );
    }
}

#[test]
fn every_hello_is_tls_from_its_sixth_byte() {
    for (name, bytes) in hellos() {
        let record = usize::from(u16::from_be_bytes([bytes[3], bytes[4]])) + 5;
        assert_eq!(bytes.len(), record, "{name} is not one whole record");
        for count in 0..=bytes.len() {
            let class = if count < 6 { Class::Incomplete } else { Class::Tls };
            assert_eq!(classify(&bytes[..count]), class, "{name}: {count} bytes");
        }
        judge_all(&name, &bytes, 6, Opinion::Allow(Reason::TLS));
    }
}

#[test]
fn the_corpus_has_hellos_larger_than_a_segment() {
    let large = hellos().iter().filter(|(_, bytes)| bytes.len() > 1460).count();
    assert!(large >= 4, "{large}");
}

#[test]
fn every_other_protocol_is_plaintext_as_soon_as_it_differs() {
    for Opening { name, judged_after, bytes, .. } in openings().iter().filter(|opening| opening.by_client) {
        for count in 0..=bytes.len() {
            let class = if count < *judged_after { Class::Incomplete } else { Class::Plaintext };
            assert_eq!(classify(&bytes[..count]), class, "{name}: {count} bytes");
        }
        judge_all(name, bytes, *judged_after, Opinion::Refuse(Reason::PLAINTEXT));
    }
}

/// The server speaks first, or answers a hello with this.
#[test]
fn every_greeting_is_refused_at_its_first_byte() {
    for Opening { name, bytes, .. } in openings().iter().filter(|opening| !opening.by_client) {
        for count in 1..=bytes.len() {
            for (said, reason) in
                [(&b""[..], Reason::SERVER_FIRST), (b"\x16\x03\x01\x01\x00\x01", Reason::SERVER_NOT_TLS)]
            {
                let mut flow = open();
                client_says(&mut flow, 0, said);
                let payload_len = u32::try_from(count).expect("small");
                let segment = Segment { seq: POD_ISN + 1, ack: flow.client_start, payload_len, flags: ACK };
                let window = window(&segment, &bytes[..count], flow.pod_start, POD_PREFIX);
                let seen = flow.observe_pod(&segment, &window, true);
                let opinion = flow.decide(&strict(), 8080, false).of(seen, &strict());
                assert_eq!(opinion, Opinion::Refuse(reason), "{name}: {count} bytes");
            }
        }
    }
}

/// The page says of each opening what it is judged.
#[test]
fn every_opening_is_in_the_documentation() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocols.md");
    let page = fs::read_to_string(page).expect("docs/protocols.md");
    for Opening { name, .. } in openings() {
        assert!(page.contains(&format!("`{name}`")), "docs/protocols.md does not mention {name}");
    }
}
