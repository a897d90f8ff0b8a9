//! Policy, settings and exemptions, on new and on live flows.

use super::super::{policy, unreadable};
use super::conversation::{REQUEST, allowed, passes, reset};
use super::{Conversation, HELLO, Model, SERVER_HELLO};
use crate::datapath::FlowTables as _;
use crate::datapath::{Act, Decision};
use crate::map::{ExemptKind, Flow, FlowState, endpoint_flags, flow_flags, port_flags};
use crate::settings::{Action, Enforcement};
use crate::tcp::ACK;
use crate::{Address, Mode, Reason, Verdict};

#[test]
fn live_plaintext_is_reset_when_the_policy_turns_strict() {
    for from_client in [true, false] {
        let mut talk = Conversation::open(Mode::PERMISSIVE);
        allowed(talk.client(0, REQUEST), Reason::PLAINTEXT_PERMITTED);
        talk.received = 18;
        passes(talk.pod(0, b"HTTP/1.1 200 OK"));
        assert_eq!(talk.flow().flags & flow_flags::SETTLED, flow_flags::SETTLED);
        talk.model.set_mode(Mode::STRICT);
        let decision = if from_client { talk.client(18, REQUEST) } else { talk.pod(15, &[]) };
        reset(decision, Reason::POLICY_CHANGED);
        let again = talk.client(18, REQUEST);
        assert_eq!((again.act, again.reason, again.report), (Act::Reset, Reason::POLICY_CHANGED, false));
        talk.model.set_mode(Mode::DISABLE);
        allowed(talk.client(18, REQUEST), Reason::DISABLED);
        talk.model.set_mode(Mode::STRICT);
        reset(talk.client(18, REQUEST), Reason::POLICY_CHANGED);
    }
}

#[test]
fn live_tls_survives_every_change() {
    let mut talk = Conversation::tls(Mode::PERMISSIVE);
    for mode in [Mode::STRICT, Mode::DISABLE, Mode::STRICT, Mode::PERMISSIVE, Mode::STRICT] {
        talk.model.set_mode(mode);
        assert_eq!(talk.client(11, REQUEST).act, Act::Pass);
        assert_eq!(talk.pod(9, REQUEST).act, Act::Pass);
        assert_eq!((talk.flow().state, talk.flow().verdict), (FlowState::TLS, Verdict::ALLOW));
        assert_eq!(talk.flow().generation, talk.model.endpoint.generation);
    }
    assert_eq!(talk.flow().reason, Reason::TLS);
}

/// What was let through early under a lax policy is known all the same.
#[test]
fn bytes_are_judged_before_the_policy_asks() {
    let mut talk = Conversation::open(Mode::PERMISSIVE);
    passes(talk.client(0, &HELLO[..2]));
    talk.model.set_mode(Mode::STRICT);
    passes(talk.client(2, &HELLO[2..5]));
    reset(talk.client(5, b"x"), Reason::PLAINTEXT);
}

#[test]
fn audit_says_what_it_would_do_and_does_nothing() {
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.settings.enforcement = Enforcement::AUDIT;
    let decision = talk.client(0, REQUEST);
    let expected = (Act::Pass, Verdict::WOULD_RESET, Reason::PLAINTEXT, true);
    assert_eq!((decision.act, decision.verdict, decision.reason, decision.report), expected);
    let again = talk.client(18, REQUEST);
    assert_eq!((again.act, again.verdict, again.report), (Act::Pass, Verdict::WOULD_RESET, false));
    assert_eq!(talk.flow().bytes_to_pod, 36);
    // Turned on, it takes the live connection down.
    talk.model.settings.enforcement = Enforcement::ENFORCE;
    reset(talk.client(36, REQUEST), Reason::PLAINTEXT);
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.settings.enforcement = Enforcement::AUDIT;
    assert_eq!(talk.client(0, REQUEST).reason, Reason::MIDSTREAM);
    assert_eq!(talk.client(0, REQUEST).act, Act::Pass);
}

#[test]
fn the_action_drop_answers_nobody() {
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.settings.action = Action::DROP;
    let decision = talk.client(0, REQUEST);
    assert_eq!(
        (decision.act, decision.verdict, decision.reason),
        (Act::Drop, Verdict::DROP, Reason::PLAINTEXT)
    );
    assert_eq!(talk.client(0, REQUEST).act, Act::Drop);
    assert_eq!(talk.flow().bytes_to_pod, 0);
}

#[test]
fn port_modes_win_over_the_endpoint() {
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.set_port(8080, Mode::PERMISSIVE, 0);
    allowed(talk.client(0, REQUEST), Reason::PLAINTEXT_PERMITTED);
    let mut talk = Conversation::open(Mode::PERMISSIVE);
    talk.model.set_port(8080, Mode::STRICT, 0);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.set_port(8081, Mode::DISABLE, 0);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    // Entries of another generation do not count: half of a change is never seen.
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.set_port(8080, Mode::DISABLE, 0);
    talk.model.endpoint.generation += 1;
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
}

#[test]
fn exempt_ports_are_never_judged() {
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.set_port(8080, Mode::STRICT, port_flags::EXEMPT);
    passes(talk.client(7, HELLO));
    allowed(talk.client(0, REQUEST), Reason::EXEMPT_PORT);
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.set_port(8080, Mode::STRICT, port_flags::EXEMPT);
    passes(talk.to_pod(crate::tcp::SYN, 1, 0, REQUEST));
    passes(talk.client(500, REQUEST));
    // Even when the flow is one that was refused.
    let mut talk = Conversation::open(Mode::STRICT);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    talk.model.set_port(8080, Mode::STRICT, port_flags::EXEMPT);
    allowed(talk.client(0, REQUEST), Reason::EXEMPT_PORT);
}

#[test]
fn sources_and_probes_are_exempt_as_far_as_their_kind_goes() {
    for (kind, flags, reason) in [
        (ExemptKind::SOURCE, 0, Reason::EXEMPT_SOURCE),
        (ExemptKind::SOURCE, port_flags::PROBE, Reason::EXEMPT_SOURCE),
        (ExemptKind::NODE, port_flags::PROBE, Reason::PROBE),
    ] {
        let mut talk = Conversation::open(Mode::STRICT);
        talk.model.set_port(8080, Mode::STRICT, flags);
        talk.model.exempt.insert(talk.key.client, kind);
        talk.model.node_probe = kind == ExemptKind::NODE;
        allowed(talk.client(0, REQUEST), reason);
        // Neither the pod's answers nor what the client's socket leaves behind carry that socket.
        talk.model.node_probe = false;
        passes(talk.pod(0, REQUEST));
        talk.received = 18;
        passes(talk.client(18, REQUEST));
    }
    // What the node only forwards carries no socket: its address alone exempts nobody.
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.set_port(8080, Mode::STRICT, port_flags::PROBE);
    talk.model.exempt.insert(talk.key.client, ExemptKind::NODE);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    // The policy of this moment counts for probes, too.
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.set_port(8080, Mode::STRICT, port_flags::PROBE);
    talk.model.exempt.insert(talk.key.client, ExemptKind::NODE);
    talk.model.node_probe = true;
    allowed(talk.client(0, REQUEST), Reason::PROBE);
    talk.model.set_port(8080, Mode::STRICT, 0);
    reset(talk.client(18, REQUEST), Reason::POLICY_CHANGED);
    // The node itself is no exempt source for ports that no probe names.
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.exempt.insert(talk.key.client, ExemptKind::NODE);
    talk.model.node_probe = true;
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    // The pod's own address in the table exempts nobody else.
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.exempt.insert(talk.key.pod, ExemptKind::SOURCE);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.own_probe = true;
    allowed(talk.client(0, REQUEST), Reason::PROBE);
    // The pod's answer to a check carries no mark.
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.own_probe = true;
    allowed(talk.client(0, HELLO), Reason::PROBE);
    talk.model.own_probe = false;
    talk.received = 11;
    passes(talk.pod(0, REQUEST));
}

#[test]
fn audit_tells_of_a_connection_that_was_not_seen_from_its_start_once() {
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.settings.enforcement = Enforcement::AUDIT;
    let first = talk.client(500, REQUEST);
    let told = (Act::Pass, Verdict::WOULD_RESET, Reason::MIDSTREAM, true);
    assert_eq!((first.act, first.verdict, first.reason, first.report), told);
    for again in [talk.client(518, REQUEST), talk.pod(0, REQUEST), talk.pod(900, REQUEST)] {
        let told = (Act::Pass, Verdict::WOULD_RESET, Reason::MIDSTREAM, false);
        assert_eq!((again.act, again.verdict, again.reason, again.report), told);
    }
    talk.model.settings.enforcement = Enforcement::ENFORCE;
    reset(talk.client(536, REQUEST), Reason::MIDSTREAM);
}

#[test]
fn enforcement_remembers_nothing_of_packets_without_a_handshake() {
    let mut talk = Conversation::new(Mode::STRICT);
    reset(talk.client(500, REQUEST), Reason::MIDSTREAM);
    assert_eq!(talk.model.flow_entry(&talk.key), None);
    talk.model.settings.action = Action::DROP;
    let dropped = talk.client(500, REQUEST);
    assert_eq!((dropped.act, dropped.report, dropped.stray), (Act::Drop, false, true));
}

#[test]
fn a_blocked_port_refuses_new_flows_only() {
    for size in [1, 3, 6, HELLO.len()] {
        let mut talk = Conversation::open(Mode::STRICT);
        talk.model.set_port(8080, Mode::STRICT, port_flags::BLOCKED);
        passes(talk.client(0, &[]));
        reset(talk.client(0, &HELLO[..size]), Reason::CERTIFICATE);
        for decision in [talk.client(0, HELLO), talk.client(11, HELLO), talk.pod(0, SERVER_HELLO)] {
            assert_eq!((decision.act, decision.reason), (Act::Reset, talk.flow().reason));
        }
        assert_eq!(talk.flow().bytes_to_pod, 0);
    }
    let mut talk = Conversation::tls(Mode::STRICT);
    talk.model.set_port(8080, Mode::STRICT, port_flags::BLOCKED);
    passes(talk.client(11, REQUEST));
    passes(talk.pod(9, REQUEST));
    // A hello that was let through before its answer came is no new flow either.
    let mut talk = Conversation::open(Mode::STRICT);
    allowed(talk.client(0, HELLO), Reason::TLS);
    talk.model.set_port(8080, Mode::STRICT, port_flags::BLOCKED);
    talk.received = 11;
    passes(talk.pod(0, SERVER_HELLO));
    // Nothing is refused where plaintext would not be, and the agent's own checks get through.
    let mut talk = Conversation::open(Mode::PERMISSIVE);
    talk.model.set_port(8080, Mode::PERMISSIVE, port_flags::BLOCKED);
    allowed(talk.client(0, HELLO), Reason::TLS);
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.set_port(8080, Mode::STRICT, port_flags::BLOCKED);
    talk.model.own_probe = true;
    allowed(talk.client(0, HELLO), Reason::PROBE);
    // Audit: the connection lives, counted once.
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.set_port(8080, Mode::STRICT, port_flags::BLOCKED);
    talk.model.settings.enforcement = Enforcement::AUDIT;
    let decision = talk.client(0, HELLO);
    assert_eq!(
        (decision.verdict, decision.reason, decision.report),
        (Verdict::WOULD_RESET, Reason::CERTIFICATE, true)
    );
    talk.received = 11;
    for decision in [talk.pod(0, SERVER_HELLO), talk.client(11, REQUEST)] {
        assert_eq!((decision.act, decision.reason, decision.report), (Act::Pass, Reason::CERTIFICATE, false));
    }
}

#[test]
fn the_tunnel_port_is_mesh_tls() {
    let mut talk = Conversation::new(Mode::STRICT);
    talk.key.pod_port = 15008;
    talk.handshake();
    allowed(talk.client(0, HELLO), Reason::MESH_TLS);
    let mut talk = Conversation::new(Mode::STRICT);
    talk.key.pod_port = 15008;
    talk.model.set_port(15008, Mode::STRICT, port_flags::EXEMPT);
    talk.handshake();
    allowed(talk.client(0, HELLO), Reason::MESH_TLS);
    talk.received = 11;
    allowed(talk.pod(0, REQUEST), Reason::EXEMPT_PORT);
}

/// The agent enters connections that were open before it came: allowed, or refused when its operator wants that.
#[test]
fn existing_connections() {
    let existing = |fault| {
        let talk = Conversation::new(Mode::PERMISSIVE);
        let open = Conversation::open(Mode::PERMISSIVE).flow();
        talk.model.insert_flow(&talk.key, &Flow { state: FlowState::EXISTING, fault, ..open });
        talk
    };
    for fault in [Reason::NONE, Reason::MIDSTREAM] {
        let mut talk = existing(fault);
        allowed(talk.client(500, REQUEST), Reason::EXISTING);
        passes(talk.pod(500, REQUEST));
        talk.model.set_mode(Mode::STRICT);
        if fault == Reason::NONE {
            passes(talk.client(500, REQUEST));
        } else {
            reset(talk.client(500, REQUEST), Reason::MIDSTREAM);
        }
    }
    // Nothing was seen of the connection: the reset to the pod takes the client's number until the pod has told its own,
    // wherever in the number space that is.
    for told in [1, 0x7fff_ffff, 0x8000_0001, u32::MAX] {
        let mut talk = existing(Reason::MIDSTREAM);
        talk.model.insert_flow(&talk.key, &Flow { pod_ack: 0, ..talk.flow() });
        talk.model.set_mode(Mode::STRICT);
        let decision = talk.to_pod(ACK, 77, 88, REQUEST);
        assert_eq!((decision.numbers.pod_seq, decision.numbers.client_seq), (77, 88));
        reset(decision, Reason::MIDSTREAM);
        talk.pod_sends(ACK, 88, told, &[]);
        assert_eq!(talk.to_pod(ACK, 77, 88, REQUEST).numbers.pod_seq, told);
    }
    let mut talk = existing(Reason::MIDSTREAM);
    talk.model.set_mode(Mode::STRICT);
    reset(talk.pod(500, REQUEST), Reason::MIDSTREAM);
    talk.model.set_mode(Mode::DISABLE);
    allowed(talk.pod(500, REQUEST), Reason::DISABLED);
}

#[test]
fn what_cannot_be_read_is_held_to_the_strictest_mode() {
    let client = Address::from_v4([10, 0, 0, 1]);
    for reason in [Reason::FRAGMENT, Reason::MALFORMED] {
        let mut model = Model::new(Mode::STRICT);
        let decision = unreadable(&model, &model.endpoint, &client, reason);
        assert_eq!(
            (decision.act, decision.verdict, decision.reason, decision.report, decision.stray),
            (Act::Drop, Verdict::DROP, reason, false, true)
        );
        model.settings.enforcement = Enforcement::AUDIT;
        let decision = unreadable(&model, &model.endpoint, &client, reason);
        assert_eq!(
            (decision.act, decision.verdict, decision.reason),
            (Act::Pass, Verdict::WOULD_RESET, reason)
        );
        model.settings.enforcement = Enforcement::ENFORCE;
        model.exempt.insert(client, ExemptKind::NODE);
        assert_eq!(unreadable(&model, &model.endpoint, &client, reason).act, Act::Drop);
        model.exempt.insert(client, ExemptKind::SOURCE);
        assert_eq!(unreadable(&model, &model.endpoint, &client, reason), Decision::PASS);
        for flag in [endpoint_flags::LEARNING, endpoint_flags::NOT_MESHED] {
            let mut model = Model::new(Mode::STRICT);
            model.endpoint.flags |= flag;
            assert_eq!(unreadable(&model, &model.endpoint, &client, reason), Decision::PASS);
        }
        // One strict port is enough, since the port cannot be read.
        let mut model = Model::new(Mode::PERMISSIVE);
        assert_eq!(unreadable(&model, &model.endpoint, &client, reason), Decision::PASS);
        model.endpoint.flags |= endpoint_flags::ANY_STRICT;
        assert_eq!(unreadable(&model, &model.endpoint, &client, reason).act, Act::Drop);
    }
}

#[test]
fn the_policy_of_a_flow_carries_the_generation_of_its_endpoint() {
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.set_port(8080, Mode::PERMISSIVE, port_flags::BLOCKED);
    let found = policy(&talk.model, &talk.model.endpoint, &talk.key, 0);
    assert_eq!((found.mode, found.blocked, found.generation), (Mode::PERMISSIVE, true, 2));
    assert!(!found.is_enforced());
}
