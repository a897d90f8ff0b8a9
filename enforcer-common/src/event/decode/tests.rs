use std::vec::Vec;

use bytemuck::bytes_of;
use proptest::prelude::*;

use super::*;
use crate::event::HelloChunk;
use crate::map::{FlowKey, FlowState, TrafficClass};
use crate::{Address, Direction, Reason, Verdict};

fn key() -> FlowKey {
    FlowKey {
        client: Address::from_v4([10, 0, 0, 1]),
        pod: Address::from_v4([10, 0, 0, 2]),
        client_port: 1,
        pod_port: 2,
    }
}

fn event(kind: EventKind) -> Event {
    Event {
        kind,
        ifindex: 3,
        time_ns: 20,
        opened_ns: 10,
        key: key(),
        workload: 7,
        verdict: Verdict::RESET,
        reason: Reason::PLAINTEXT,
        direction: Direction::TO_POD,
        state: FlowState::PLAINTEXT,
        bytes_to_pod: 1,
        bytes_from_pod: 2,
        packets_to_pod: 3,
        packets_from_pod: 4,
        class: TrafficClass::PLAINTEXT,
        payload_len: 3,
        generation: 5,
        head_len: 3,
        reserved: 0,
        head: [b'G'; HEAD_BYTES],
    }
}

fn chunk(len: u16) -> HelloChunk {
    let header = HelloHeader {
        kind: EventKind::HELLO,
        ifindex: 3,
        time_ns: 20,
        opened_ns: 10,
        key: key(),
        workload: 7,
        offset: 1024,
        len,
        reserved: 0,
    };
    HelloChunk { header, data: [0x16; CHUNK_BYTES] }
}

#[test]
fn what_was_written_is_read_back() {
    let (verdict, end) = (event(EventKind::VERDICT), event(EventKind::END));
    assert_eq!(decode(bytes_of(&verdict)), Ok(Record::Verdict(verdict)));
    assert_eq!(decode(bytes_of(&end)), Ok(Record::End(end)));
    assert_eq!(end.head(), b"GGG");
    for len in [0, 1, 1024] {
        let chunk = chunk(len);
        let bytes = &chunk.data[..usize::from(len)];
        assert_eq!(decode(bytes_of(&chunk)), Ok(Record::Hello(Hello { header: chunk.header, bytes })));
    }
}

#[test]
fn every_shorter_record_is_refused() {
    let event = event(EventKind::END);
    for len in 0..size_of::<Event>() {
        assert_eq!(decode(&bytes_of(&event)[..len]), Err(InvalidRecord::Short { len }));
    }
    let chunk = chunk(1024);
    for len in 0..size_of::<HelloChunk>() {
        assert_eq!(decode(&bytes_of(&chunk)[..len]), Err(InvalidRecord::Short { len }));
    }
}

#[test]
fn lengths_beyond_the_record_and_unknown_numbers_are_refused() {
    let long = Event { head_len: 65, ..event(EventKind::VERDICT) };
    assert_eq!(decode(bytes_of(&long)), Err(InvalidRecord::Length));
    assert_eq!(decode(bytes_of(&chunk(1025))), Err(InvalidRecord::Length));
    let bytes = bytes_of(&event(EventKind::VERDICT)).to_vec();
    for (offset, what) in [(0, "kind"), (64, "verdict"), (68, "reason"), (72, "direction"), (76, "state")] {
        let mut bytes = bytes.clone();
        bytes[offset] = 0xee;
        assert_eq!(decode(&bytes), Err(InvalidRecord::Field), "{what}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_read_beyond_the_end(
        kind in 0_u8..5, rest in proptest::collection::vec(any::<u8>(), 0..1200)
    ) {
        let mut bytes: Vec<u8> = std::vec![kind, 0, 0, 0];
        bytes.extend(rest);
        if let Ok(Record::Hello(hello)) = decode(&bytes) {
            prop_assert_eq!(hello.bytes.len(), usize::from(hello.header.len));
        }
    }
}
