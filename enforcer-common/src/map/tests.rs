//! The byte layout that the kernel programs, the agent and `bpftool` share.

use core::mem::{align_of, offset_of, size_of};

use super::{
    Bypassed, Client, ClientBudget, ClientKey, Counter, CounterKey, Endpoint, EventBudget, ExemptKind, Flow,
    FlowKey, FlowState, HalfOpen, Outbound, Pending, PodLink, PodLinkKey, PortKey, PortMode, ResetBudget,
    SocketTag, TrafficClass, WorkloadCounterKey,
};
use crate::event::{CHUNK_BYTES, Event, EventKind, HEAD_BYTES, HelloChunk, HelloHeader};
use crate::settings::{Action, Enforcement, Settings, UnknownPods};
use crate::{Address, Direction, Mode, Reason, Verdict};

/// Pins size, alignment and the offset of every field, and that fields leave no gap between them.
macro_rules! layout {
    ($ty:ident: $size:literal, align $align:literal { $($field:ident: $offset:literal, $len:literal;)* }) => {
        assert_eq!(size_of::<$ty>(), $size, stringify!($ty));
        assert_eq!(align_of::<$ty>(), $align, stringify!($ty));
        let mut end = 0;
        $(
            assert_eq!(offset_of!($ty, $field), $offset, concat!(stringify!($ty), ".", stringify!($field)));
            assert_eq!(end, $offset, concat!("gap before ", stringify!($ty), ".", stringify!($field)));
            end += $len;
        )*
        assert_eq!(end, $size, concat!("gap at the end of ", stringify!($ty)));
    };
}

#[test]
fn keys_and_small_values() {
    assert_eq!((size_of::<Address>(), align_of::<Address>()), (16, 1));
    layout!(Endpoint: 16, align 4 { workload: 0, 4; generation: 4, 2; mode: 6, 1; flags: 7, 1; ifindex: 8, 4; netns_id: 12, 4; });
    layout!(PortKey: 8, align 4 { workload: 0, 4; generation: 4, 2; port: 6, 2; });
    layout!(PortMode: 4, align 2 { mode: 0, 1; flags: 1, 1; reserved: 2, 2; });
    layout!(FlowKey: 36, align 2 { client: 0, 16; pod: 16, 16; client_port: 32, 2; pod_port: 34, 2; });
    layout!(SocketTag: 40, align 4 { key: 0, 36; pod_start: 36, 4; });
    layout!(HalfOpen: 12, align 4 { client_isn: 0, 4; pod_isn: 4, 4; flags: 8, 4; });
    layout!(Outbound: 8, align 4 { pod_isn: 0, 4; fins: 4, 4; });
    layout!(CounterKey: 12, align 4 { verdict: 0, 4; reason: 4, 4; direction: 8, 4; });
    layout!(WorkloadCounterKey: 16, align 4 { workload: 0, 4; verdict: 4, 4; reason: 8, 4; direction: 12, 4; });
    layout!(Counter: 24, align 8 { connections: 0, 8; packets: 8, 8; bytes: 16, 8; });
    layout!(ClientKey: 28, align 4 { workload: 0, 4; class: 4, 4; client: 8, 16; port: 24, 2; reserved: 26, 2; });
    layout!(Client: 32, align 8 { connections: 0, 8; first_ns: 8, 8; last_ns: 16, 8; verdict: 24, 4; reason: 28, 4; });
    layout!(PodLinkKey: 32, align 1 { pod: 0, 16; client: 16, 16; });
    layout!(PodLink: 12, align 1 { macs: 0, 12; });
    layout!(Bypassed: 48, align 8 { first_ns: 0, 8; last_ns: 8, 8; packets: 16, 8; client: 24, 16; ifindex: 40, 4; port: 44, 2; reserved: 46, 2; });
    layout!(Pending: 32, align 8 { since_ns: 0, 8; ifindex: 8, 4; frame: 12, 14; reserved: 26, 6; });
    layout!(ResetBudget: 16, align 8 { window_ns: 0, 8; sent: 8, 8; });
    layout!(ClientBudget: 24, align 8 { resets: 0, 16; told_ns: 16, 8; });
    layout!(EventBudget: 48, align 8 {
        window_ns: 0, 8; sent: 8, 8; hellos_sent: 16, 8; suppressed: 24, 8; hellos_suppressed: 32, 8; lost: 40, 8;
    });
}

#[test]
fn flow() {
    layout!(Flow: 96, align 8 {
        opened_ns: 0, 8; phase_ns: 8, 8; bytes_to_pod: 16, 8; bytes_from_pod: 24, 8; packets_to_pod: 32, 8;
        packets_from_pod: 40, 8; client_start: 48, 4; pod_start: 52, 4; pod_ack: 56, 4; workload: 60, 4; state: 64, 4;
        fault: 68, 4; verdict: 72, 4; reason: 76, 4; generation: 80, 2; client_prefix: 82, 6; client_mask: 88, 1;
        pod_judged: 89, 1; flags: 90, 2; hello_sent: 92, 2; hello_parts: 94, 1; counted_class: 95, 1;
    });
}

#[test]
fn event_and_settings() {
    assert_eq!(HEAD_BYTES, 64);
    layout!(Event: 192, align 8 {
        kind: 0, 4; ifindex: 4, 4; time_ns: 8, 8; opened_ns: 16, 8; key: 24, 36; workload: 60, 4; verdict: 64, 4;
        reason: 68, 4; direction: 72, 4; state: 76, 4; bytes_to_pod: 80, 8; bytes_from_pod: 88, 8; packets_to_pod: 96, 8;
        packets_from_pod: 104, 8; class: 112, 4; payload_len: 116, 4; generation: 120, 2; head_len: 122, 2;
        reserved: 124, 4; head: 128, 64;
    });
    assert_eq!(CHUNK_BYTES, 1024);
    layout!(HelloHeader: 72, align 8 {
        kind: 0, 4; ifindex: 4, 4; time_ns: 8, 8; opened_ns: 16, 8; key: 24, 36; workload: 60, 4; offset: 64, 4; len: 68, 2;
        reserved: 70, 2;
    });
    layout!(HelloChunk: 1096, align 8 { header: 0, 72; data: 72, 1024; });
    layout!(Settings: 56, align 8 {
        heartbeat_ns: 0, 8; undecided_ns: 8, 8; agent_pid: 16, 4; enforcement: 20, 4; action: 24, 4; unknown_pods: 28, 4;
        resets_per_second: 32, 4; events_per_second: 36, 4; resets_per_second_per_client: 40, 4; hello_bytes: 44, 4; probe_cgroup: 48, 8;
    });
}

/// The kernel side reads the first eight bytes as one word and takes it apart by shifts.
#[cfg(feature = "user")]
#[test]
fn the_policy_of_an_endpoint_is_one_word() {
    let endpoint = Endpoint {
        workload: 0x0102_0304,
        generation: 0x0506,
        mode: Mode::PERMISSIVE,
        flags: 0x0b,
        ifindex: 0x0c0d_0e0f,
        netns_id: 0x1011_1213,
    };
    let bytes: [u8; 16] = bytemuck::cast(endpoint);
    let [word, rest]: [u64; 2] = bytemuck::cast(bytes);
    assert_eq!(word, 0x0b02_0506_0102_0304);
    assert_eq!(rest, 0x1011_1213_0c0d_0e0f);
}

#[test]
fn enums_have_the_numbers_that_maps_hold() {
    assert_eq!([Mode::DISABLE as u8, Mode::PERMISSIVE as u8, Mode::STRICT as u8], [1, 2, 3]);
    assert_eq!([ExemptKind::SOURCE as u32, ExemptKind::NODE as u32], [1, 2]);
    assert_eq!([Direction::TO_POD as u32, Direction::FROM_POD as u32], [0, 1]);
    assert_eq!([Enforcement::ENFORCE as u32, Enforcement::AUDIT as u32], [0, 1]);
    assert_eq!([Action::RESET as u32, Action::DROP as u32], [0, 1]);
    assert_eq!([UnknownPods::ALLOW as u32, UnknownPods::STRICT as u32], [0, 1]);
    let states =
        [FlowState::OPEN, FlowState::HELLO, FlowState::TLS, FlowState::PLAINTEXT, FlowState::EXISTING];
    assert_eq!(states.map(|state| state as u32), [1, 2, 3, 4, 5]);
    assert_eq!([EventKind::VERDICT, EventKind::END, EventKind::HELLO].map(|kind| kind as u32), [1, 2, 3]);
    let classes = [
        TrafficClass::UNKNOWN,
        TrafficClass::PLAINTEXT,
        TrafficClass::TLS,
        TrafficClass::MESH_TLS,
        TrafficClass::EXISTING,
    ];
    assert_eq!(classes.map(|class| class as u32), [0, 1, 2, 3, 4]);
    assert_eq!(Verdict::ALL.map(|verdict| verdict as u32), [0, 1, 2, 3, 4, 5]);
    assert!(Reason::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(
        [Reason::PLAINTEXT as u32, Reason::RESET_LIMIT as u32, Reason::OUT_OF_ORDER as u32],
        [32, 42, 64]
    );
}
