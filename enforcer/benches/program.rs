//! Nanoseconds that a packet costs in the compiled programs, by `BPF_PROG_TEST_RUN`, beside a program that does nothing.
//!
//! The object is the optimised one whatever the profile of this binary, so
//! `cargo bench -p enforcer --bench program --profile dev` says the same and builds faster.

#[path = "../tests/program_run/frame.rs"]
mod frame;
#[path = "../tests/program_run/rig.rs"]
#[expect(dead_code, reason = "the tests of the programs use the rest")]
mod rig;

use std::io::Error;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use enforcer_common::map::FlowKey;
use enforcer_common::tcp::{ACK, SYN};
use enforcer_common::{Direction, Mode};
use nix::libc;

use frame::Frame;
use rig::{NEXT, Rig, v4, v6, with_rig};

const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
const ANSWER: &[u8] = &[0x16, 3, 3, 0, 122, 2, 0, 0, 118];
/// Runs of one measurement.
const REPEAT: u32 = 1_000_000;
/// Measurements; the fastest counts, since all that disturbs one makes it slower.
const ROUNDS: usize = 7;
/// Connections whose first packet is measured, one run each.
const CONNECTIONS: u16 = 2000;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

fn main() {
    with_rig(|rig| {
        let empty = Empty::load();
        let key = v4(1);
        rig.list(key.pod, Mode::STRICT);
        rig.list(v6(1).pod, Mode::STRICT);
        let payload = [0x17; 1000];
        let base = fastest(|| empty.run(&data(key, &payload).bytes(), REPEAT));
        println!("{:<44}{:>10}{:>8}{:>9}", "repeated packet", "ns", "ratio", "target");
        println!("{:<44}{base:>10}", "a program that does nothing");

        let mut udp = data(key, &payload);
        udp.protocol = 17;
        let other = FlowKey { pod: v4(1).client, client: v4(1).pod, ..key };
        for (name, frame, target) in [
            ("not TCP", udp, 2),
            ("not meshed, IPv4", data(other, &payload), 2),
            ("not meshed, IPv6", data(FlowKey { pod: v6(1).client, ..v6(1) }, &payload), 2),
            ("judged flow, IPv4", judged(rig, v4(10), &payload), 4),
            ("judged flow, IPv6", judged(rig, v6(10), &payload), 4),
            ("judged flow, bare acknowledgement", judged(rig, v4(11), &[]), 4),
            ("half a hello, looked at each time", half(rig, v4(12)), 8),
        ] {
            let ns = fastest(|| passed(rig, &frame, REPEAT));
            line(name, ns, base, target);
        }
        let reply = Frame::new(v4(10), Direction::FROM_POD, ACK, 2010, 1012, &payload);
        line("judged flow, from the pod", fastest(|| passed(rig, &reply, REPEAT)), base, 4);

        // A connection has one first packet, so each is a run of its own, clock included.
        println!("{:<44}{:>10}{:>8}{:>9}", "single packet (median)", "ns", "ratio", "target");
        let base = median(|_| empty.run(&data(key, HELLO).bytes(), 1));
        println!("{:<44}{base:>10}", "a program that does nothing");
        let known = judged(rig, v4(10), &payload);
        line("judged flow", median(|_| passed(rig, &known, 1)), base, 4);
        line(
            "first packet: the hello makes the flow",
            median(|number| first(rig, v4(100 + number), ACK, HELLO)),
            base,
            8,
        );
        line(
            "first packet: the acknowledgement makes it",
            median(|number| first(rig, v4(3000 + number), ACK, &[])),
            base,
            8,
        );
    });
}

fn line(name: &str, ns: u64, base: u64, target: u32) {
    // Exact enough: nanoseconds of one packet.
    let ratio = f64::from(u32::try_from(ns).unwrap_or(u32::MAX))
        / f64::from(u32::try_from(base.max(1)).unwrap_or(u32::MAX));
    println!("{name:<44}{ns:>10}{ratio:>8.1}{:>9}", format!("<= {target}"));
}

fn fastest(mut measure: impl FnMut() -> u64) -> u64 {
    (0..ROUNDS).map(|_| measure()).min().unwrap_or_default()
}

fn median(measure: impl FnMut(u16) -> u64) -> u64 {
    let mut all: Vec<u64> = (0..CONNECTIONS).map(measure).collect();
    all.sort_unstable();
    all[all.len() / 2]
}

/// A packet of a client whose sequence numbers are those of [`judged`].
fn data(key: FlowKey, payload: &[u8]) -> Frame {
    Frame::new(key, Direction::TO_POD, ACK, 1012, 2010, payload)
}

fn passed(rig: &mut Rig, frame: &Frame, repeat: u32) -> u64 {
    let (outcome, ns) = rig.run_bytes(frame.direction, &frame.bytes(), repeat);
    assert_eq!(outcome.code, NEXT);
    ns
}

/// A packet of a flow that is known as TLS.
fn judged(rig: &mut Rig, key: FlowKey, payload: &[u8]) -> Frame {
    rig.handshake(key, 1000, 2000);
    passed(rig, &Frame::new(key, Direction::TO_POD, ACK, 1001, 2001, HELLO), 1);
    passed(rig, &Frame::new(key, Direction::FROM_POD, ACK, 2001, 1012, ANSWER), 1);
    data(key, payload)
}

/// A packet that leaves its flow undecided.
fn half(rig: &mut Rig, key: FlowKey) -> Frame {
    rig.handshake(key, 1000, 2000);
    Frame::new(key, Direction::TO_POD, ACK, 1001, 2001, &HELLO[..3])
}

/// The packet that turns a half-open connection into a flow.
fn first(rig: &mut Rig, key: FlowKey, flags: u8, payload: &[u8]) -> u64 {
    passed(rig, &Frame::new(key, Direction::TO_POD, SYN, 1000, 0, &[]), 1);
    passed(rig, &Frame::new(key, Direction::FROM_POD, SYN | ACK, 2000, 1001, &[]), 1);
    passed(rig, &Frame::new(key, Direction::TO_POD, flags, 1001, 2001, payload), 1)
}

/// A classifier that lets everything through.
struct Empty(OwnedFd);

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    rest: [u64; 3],
}

/// The start of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 4],
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> libc::c_long {
    // SAFETY: `attr` is readable and writable for its size, and what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    assert!(result >= 0, "bpf command {command}: {}", Error::last_os_error());
    result
}

impl Empty {
    fn load() -> Self {
        // r0 = -1; exit.
        let code: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
        let license = c"MIT";
        let mut attr = LoadAttr {
            prog_type: BPF_PROG_TYPE_SCHED_CLS,
            insn_cnt: 2,
            insns: code.as_ptr() as u64,
            license: license.as_ptr() as u64,
            rest: [0; 3],
        };
        let fd = bpf(BPF_PROG_LOAD, &mut attr);
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Self(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) })
    }

    fn run(&self, frame: &[u8], repeat: u32) -> u64 {
        let mut attr = RunAttr {
            prog_fd: self.0.as_raw_fd().cast_unsigned(),
            data_size_in: u32::try_from(frame.len()).expect("a packet's length"),
            data_in: frame.as_ptr() as u64,
            repeat,
            ..RunAttr::default()
        };
        bpf(BPF_PROG_TEST_RUN, &mut attr);
        assert_eq!(attr.retval, NEXT.cast_unsigned());
        u64::from(attr.duration)
    }
}
