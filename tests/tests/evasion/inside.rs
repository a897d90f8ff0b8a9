//! A part of the cases at a pod's own device, for clients that come by the host side of its interface and for those that come
//! past it. `ENFORCER_TEST_ATTACH=pod` runs all of them there.

use anyhow::{Context, Result, ensure};
use enforcer_tests::Topology;

use crate::arena::{Arena, ECHO, each_family_in};
use crate::{alive, copies, fragments, headers, order, reuse};

type Case = fn(&Arena, bool) -> Result<()>;

const CASES: [(&str, Case); 12] = [
    ("a bad checksum", copies::bad_checksum),
    ("changed after the verdict", copies::changed_after_the_verdict),
    ("plaintext byte by byte", order::plaintext_byte_by_byte),
    ("a gap", order::gap),
    ("data in a SYN", order::data_in_a_syn),
    ("data in the third packet", order::data_in_the_third_packet),
    ("no handshake", order::no_handshake),
    ("forged SYNs and resets", alive::forged),
    ("garbage bytes", alive::garbage_bytes),
    ("a tuple reopened", reuse::reopened),
    ("options", headers::tcp_options),
    ("fragments", fragments::data_in_the_second),
];

#[test]
fn at_a_pods_own_device() -> Result<()> {
    let arena = Arena::with_agent(Topology::Routed, ECHO, &["--attach", "pod"])?;
    let [host, inside] = arena.scene.lab.own_hooks_by_side("frontend")?;
    ensure!(host.is_empty() && inside.len() == 2, "{host:?} at the host side, {inside:?} inside");
    let run = |way: &str| -> Result<()> {
        for (name, case) in CASES {
            each_family_in(&arena, case).with_context(|| format!("{name}, {way} the host side"))?;
        }
        Ok(())
    };
    run("by")?;
    let shortcut = arena.scene.lab.shortcut("sleep", "frontend")?;
    run("past")?;
    ensure!(shortcut.packets()? > 100, "nobody came past the host side");
    Ok(())
}
