//! VLAN tags. The pods are on one bridge, which carries tagged frames from one to the other as they are.

use anyhow::Result;
use enforcer_common::Reason;
use enforcer_tests::Topology;
use enforcer_tests::raw::Tag;

use crate::arena::{Arena, ECHO, HELLO, REQUEST, each_family_in, hello};

/// Tags with VLAN id 0 only carry a priority: the pod's stack unpacks any number of them without being told of a VLAN.
#[test]
fn priority_tags_hide_nothing() -> Result<()> {
    let arena = Arena::with(Topology::Bridge, ECHO)?;
    each_family_in(&arena, |arena, v6| {
        for depth in 0..12 {
            let seen = arena.records.all()?.len();
            let mut client = arena.open(v6)?;
            client.tags = (0..depth).map(|priority| Tag::customer((priority % 8) << 13)).collect();
            client.send(&client.data(0, REQUEST))?;
            if depth <= 5 {
                client.expect_reset().map_err(|error| error.context(format!("{depth} tags")))?;
                arena
                    .pod_was_reset(seen, &client, b"")
                    .map_err(|error| error.context(format!("{depth} tags")))?;
                arena.was_reset_for(Reason::PLAINTEXT)?;
                continue;
            }
            // Too many to be stepped over: dropped, so that the same bytes can still be said right.
            arena
                .were_dropped_for(Reason::MALFORMED, 1)
                .map_err(|error| error.context(format!("{depth} tags")))?;
            client.tags.clear();
            hello(&mut client).map_err(|error| error.context(format!("{depth} tags")))?;
            arena.lives_on(&mut client)?;
        }
        Ok(())
    })
}

/// The same with tags of providers (802.1ad), alone, around others and inside: the pod's stack unpacks each kind in each order.
#[test]
fn service_tags_hide_nothing() -> Result<()> {
    let arena = Arena::with(Topology::Bridge, ECHO)?;
    let (service, customer) = (Tag::service(0), Tag::customer(7 << 13));
    each_family_in(&arena, |arena, v6| {
        for tags in [
            [service].as_slice(),
            &[service, customer],
            &[service, service],
            &[customer, service],
            &[service, customer, service, customer],
        ] {
            let case = || -> Result<()> {
                // The pod takes what comes like this, so that it matters that it is judged.
                let mut client = arena.open(v6)?;
                client.tags = tags.to_vec();
                hello(&mut client)?;
                arena.lives_on(&mut client)?;
                arena.nothing_refused()?;
                let seen = arena.records.all()?.len();
                let mut client = arena.open(v6)?;
                client.tags = tags.to_vec();
                client.send(&client.data(0, REQUEST))?;
                client.expect_reset()?;
                arena.pod_was_reset(seen, &client, b"")?;
                arena.was_reset_for(Reason::PLAINTEXT)
            };
            case().map_err(|error| error.context(format!("{tags:x?}")))?;
        }
        Ok(())
    })
}

/// A VLAN that the pod is not in: its stack takes nothing of it, and what is judged of it clears no way.
#[test]
fn a_hello_in_a_foreign_vlan_does_not_clear_the_way() -> Result<()> {
    let arena = Arena::with(Topology::Bridge, ECHO)?;
    each_family_in(&arena, |arena, v6| {
        for tag in [Tag::customer(5), Tag::service(5)] {
            let seen = arena.records.all()?.len();
            let mut client = arena.open(v6)?;
            client.tags = vec![tag];
            client.send(&client.data(0, HELLO))?;
            client.tags.clear();
            client.send(&client.data(0, REQUEST))?;
            client.expect_reset()?;
            arena.pod_was_reset(seen, &client, b"")?;
            arena.was_reset_for(Reason::PLAINTEXT)?;
        }
        Ok(())
    })
}
