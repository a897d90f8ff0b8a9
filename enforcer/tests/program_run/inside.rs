//! The programs for a pod's own device: resets in the other shape, and whose packets are whose.

use enforcer_common::map::{Endpoint, FlowKey, endpoint_flags};
use enforcer_common::tcp::{ACK, SYN};
use enforcer_common::{Direction, Mode, Reason, Verdict};

use super::frame::Frame;
use super::reset::check_resets;
use super::rig::{NEXT, Outcome, REDIRECT, Rig, v4, v6, with_rig};

const CLIENT_ISN: u32 = 1000;
const POD_ISN: u32 = 0x7fff_fffe;
const STAMP: u32 = 0x1234_5678;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n";

#[test]
fn both_ends_get_an_exact_reset_from_the_pods_own_device() {
    with_rig(|rig| {
        rig.go_inside(STAMP);
        let tagged = |frame: Frame| Frame { tags: vec![(0x8100, 42)], ..frame };
        for (key, tag) in [(v4(1), false), (v6(1), false), (v4(2), true), (v6(2), true)] {
            rig.list(key.pod, Mode::STRICT);
            rig.handshake(key, CLIENT_ISN, POD_ISN);
            let (seq, ack) = (CLIENT_ISN + 1, POD_ISN.wrapping_add(1));
            let shape = |frame: Frame| if tag { tagged(frame) } else { frame };
            let frame = shape(Frame::new(key, Direction::TO_POD, ACK, seq, ack, REQUEST));
            check_resets(rig, key, &frame, ack, seq, ack);
            let frame = shape(Frame::new(key, Direction::FROM_POD, ACK, ack, seq + 18, ANSWER));
            check_resets(rig, key, &frame, ack, seq + 18, ack);
        }
        assert_eq!(rig.counter(Verdict::RESET, Reason::PLAINTEXT, Direction::TO_POD).connections, 4);
    });
}

/// A frame that came past the host side was not sent to the pod's address: the reset goes where the pod's frames go.
#[test]
fn a_reset_to_the_client_goes_the_way_of_the_pods_frames() {
    with_rig(|rig| {
        rig.go_inside(STAMP);
        let key = v4(1);
        rig.list(key.pod, Mode::STRICT);
        rig.handshake(key, CLIENT_ISN, POD_ISN);
        let (seq, ack) = (CLIENT_ISN + 1, POD_ISN.wrapping_add(1));
        let own = Frame::new(key, Direction::FROM_POD, SYN | ACK, POD_ISN, seq, &[]).bytes()[..12].to_vec();
        let mut frame = Frame::new(key, Direction::TO_POD, ACK, seq, ack, REQUEST).bytes();
        frame[..12].copy_from_slice(&[2; 12]);
        rig.sent();
        let (outcome, _) = rig.run_bytes(Direction::TO_POD, &frame, 1);
        assert_eq!((outcome.code, &outcome.frame[..12]), (NEXT, &[2; 12][..]), "the pod takes it as it came");
        let sent = rig.sent();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].macs.concat(), own);
    });
}

fn untouched(rig: &mut Rig, frame: &Frame) {
    let before = rig.counts();
    assert_eq!(rig.run(frame), Outcome { code: NEXT, frame: frame.bytes() });
    assert_eq!(rig.counts(), before);
    assert_eq!(rig.outbound.entries().expect("OUTBOUND"), []);
}

/// Neither another pod whose device has the same index, nor the other end of the pair.
#[test]
fn a_packet_is_judged_at_one_end_and_for_one_pod_only() {
    with_rig(|rig| {
        rig.go_inside(STAMP);
        let key = v4(1);
        rig.list(key.pod, Mode::STRICT);
        let to_pod = Frame::new(key, Direction::TO_POD, ACK, 5, 6, REQUEST);
        let from_pod = Frame::new(key, Direction::FROM_POD, SYN, POD_ISN, 0, &[]);
        // By another pod's device, and at the host side.
        for elsewhere in [Some(STAMP + 1), Some(0), None] {
            rig.inside = elsewhere;
            untouched(rig, &to_pod);
            untouched(rig, &from_pod);
        }
        rig.inside = Some(STAMP);
        assert_eq!(rig.run(&Frame { direction: Direction::TO_POD, ..to_pod.clone() }).code, NEXT);
        assert_eq!(rig.counter(Verdict::RESET, Reason::MIDSTREAM, Direction::TO_POD).packets, 1);
        // One that is enforced at the host side is none of the pod's own device.
        let outside =
            Endpoint { ifindex: rig.ifindex(), ..rig.endpoints.get(&key.pod).expect("it").expect("one") };
        let outside = Endpoint { flags: outside.flags & !endpoint_flags::POD_SIDE, ..outside };
        rig.endpoints.insert(&key.pod, &outside).expect("an endpoint");
        untouched(rig, &to_pod);
        rig.inside = None;
        assert_eq!(rig.run(&to_pod).code, REDIRECT);
        // One whose place is not known is judged wherever it is seen.
        rig.endpoints.insert(&key.pod, &Endpoint { ifindex: 0, ..outside }).expect("an endpoint");
        for inside in [Some(STAMP), None] {
            rig.inside = inside;
            let code = if inside.is_some() { NEXT } else { REDIRECT };
            assert_eq!(rig.run(&to_pod).code, code);
        }
        assert_eq!(rig.counter(Verdict::RESET, Reason::MIDSTREAM, Direction::TO_POD).packets, 4);
    });
}

/// What the pod acknowledges and `to_pod` did not see is evidence at the host side; past its own device nothing comes.
#[test]
fn a_bypass_is_noted_at_the_host_side_only() {
    with_rig(|rig| {
        let deaf = |rig: &mut Rig, key: FlowKey| {
            rig.list(key.pod, Mode::PERMISSIVE);
            rig.run(&Frame::new(key, Direction::FROM_POD, SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]));
            rig.run(&Frame::new(
                key,
                Direction::FROM_POD,
                ACK,
                POD_ISN.wrapping_add(1),
                CLIENT_ISN + 19,
                &[],
            ));
        };
        for key in [v4(1), v6(1)] {
            deaf(rig, key);
            deaf(rig, key);
            let noted = rig.bypassed.get(&key.pod).expect("BYPASSED").expect("an entry");
            assert_eq!((noted.packets, noted.client, noted.port), (2, key.client, key.pod_port));
            assert_eq!(noted.ifindex, rig.ifindex());
            assert!(noted.first_ns > 0 && noted.last_ns >= noted.first_ns);
            rig.bypassed.remove(&key.pod).expect("removed");
        }
        rig.go_inside(STAMP);
        for key in [v4(2), v6(2)] {
            deaf(rig, key);
        }
        assert_eq!(rig.bypassed.entries().expect("BYPASSED"), []);
    });
}
