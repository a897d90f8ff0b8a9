//! Where the cases take place: a pod under STRICT with a server that sends back what it reads, and a raw client.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer::datapath::load::Pinned;
use enforcer::datapath::maps::Counters;
use enforcer_common::map::endpoint_flags;
use enforcer_common::{Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::lab::Running;
use enforcer_tests::raw::{Client, Wire};
use enforcer_tests::record::{End, Record, Records};
use enforcer_tests::{Lab, Pod, Scene, Topology, poll};

/// The server's port.
pub(crate) const PORT: u16 = 8080;
/// The initial sequence number of a case that does not care.
pub(crate) const ISN: u32 = 0x1234_5678;
/// What makes the server send back what it reads, once it has read what is judged.
pub(crate) const ECHO: &[&str] = &["--echo-after", "6"];
/// A plaintext request.
pub(crate) const REQUEST: &[u8] = b"GET /evil HTTP/1.1\r\nhost: frontend\r\n\r\n";
/// Its length in sequence numbers.
pub(crate) const REQUEST_LEN: u32 = 38;
/// What the rules take for a hello: the first bytes are all that counts to them. The server sends it back, which is a
/// handshake record too.
pub(crate) const HELLO: &[u8] = b"\x16\x03\x01\x01\x20\x01\x00\x01\x1c\x03\x03hello";
/// Its length in sequence numbers.
pub(crate) const HELLO_LEN: u32 = 16;

/// A lab with an agent, a pod under STRICT, its server, and a way in for raw clients.
pub(crate) struct Arena {
    pub(crate) wire: Wire,
    pub(crate) records: Records,
    _server: Running,
    pub(crate) scene: Scene,
    port: Cell<u16>,
    counters: Cell<Counts>,
}

/// (verdict, reason) -> connections and packets.
type Counts = BTreeMap<(String, String), [u64; 2]>;

impl Arena {
    /// With a server that echoes.
    pub(crate) fn new() -> Result<Self> {
        Self::with(Topology::Routed, ECHO)
    }

    /// With these arguments for `lab-server raw`.
    pub(crate) fn with(topology: Topology, server: &[&str]) -> Result<Self> {
        Self::with_agent(topology, server, &[])
    }

    /// With these arguments for the agent.
    pub(crate) fn with_agent(topology: Topology, server: &[&str], agent: &[&str]) -> Result<Self> {
        let lab = Lab::with(topology, Pod::cast())?;
        lab.describe()?;
        lab.apply("mesh.yaml", MESH_STRICT)?;
        let scene = Scene { agent: lab.agent_with(agent)?, lab };
        scene.lab.wait_mode("frontend", enforcer_common::Mode::STRICT)?;
        poll::until("the pod's open connections to be known", Duration::from_secs(20), || {
            for address in scene.lab.pod("frontend").addresses() {
                let flags = scene.lab.endpoint(address)?.flags;
                ensure!(flags & endpoint_flags::LEARNING == 0, "{address} is still being looked at");
            }
            Ok(())
        })?;
        let (running, records) = scene.lab.raw_server("frontend", PORT, server)?;
        let wire = Wire::open(&scene.lab, "sleep", "frontend")?;
        let counters = Cell::default();
        Ok(Self { wire, records, _server: running, scene, port: Cell::new(40_000), counters })
    }

    /// The pod's server.
    pub(crate) fn target(&self, v6: bool) -> SocketAddr {
        self.scene.lab.address("frontend", PORT, v6)
    }

    /// A client at a port that nobody has used; nothing is sent.
    pub(crate) fn client(&self, v6: bool, isn: u32) -> Client<'_> {
        self.port.set(self.port.get() + 1);
        Client::new(&self.wire, self.port.get(), self.target(v6), isn)
    }

    /// A client whose handshake is done.
    pub(crate) fn open(&self, v6: bool) -> Result<Client<'_>> {
        let mut client = self.client(v6, ISN);
        client.shake()?;
        Ok(client)
    }

    /// A client whose flow is judged as TLS, the pod's answer included.
    pub(crate) fn judged(&self, v6: bool) -> Result<Client<'_>> {
        let mut client = self.open(v6)?;
        hello(&mut client)?;
        Ok(client)
    }

    /// The flow of a judged client lives on: more bytes go there and back. Ends it, and looks at what the pod read.
    pub(crate) fn lives_on(&self, client: &mut Client) -> Result<()> {
        let more = b"more of the same";
        client.send(&client.data(HELLO_LEN, more))?;
        client.expect_heard(&[HELLO, more].concat())?;
        client.abort(HELLO_LEN + 16)?;
        let record = self.records.of_peer(client.local())?;
        ensure!(record.head == [HELLO, more].concat(), "the pod read {record:?}");
        Ok(())
    }

    /// The connection of this client ended by a reset, and the pod's application had read exactly this.
    pub(crate) fn pod_was_reset(&self, seen: usize, client: &Client, read: &[u8]) -> Result<Record> {
        let record = self.records.next(seen, client.local())?;
        ensure!(record.end == End::Reset, "the pod's socket did not end by a reset: {record:?}");
        ensure!(record.head == read, "the pod read {record:?} instead of {read:x?}");
        Ok(record)
    }

    /// Verdicts other than `ALLOW` since the last call.
    pub(crate) fn refused(&self) -> Result<Counts> {
        let map = Pinned::open(&self.scene.lab.bpffs())?.map("COUNTERS")?;
        let mut now = Counts::new();
        for (key, counter) in Counters::new("COUNTERS", map)?.totals()? {
            if key.verdict != Verdict::ALLOW {
                let key = (key.verdict.to_string(), key.reason.to_string());
                let [connections, packets] = now.entry(key).or_default();
                *connections += counter.connections;
                *packets += counter.packets;
            }
        }
        let before = self.counters.take();
        self.counters.set(now.clone());
        let new = now.into_iter().map(|(key, [connections, packets])| {
            let old = before.get(&key).copied().unwrap_or_default();
            (key, [connections - old[0], packets - old[1]])
        });
        Ok(new.filter(|(_, [_, packets])| *packets > 0).collect())
    }

    /// Since the last call exactly one connection was reset, for this reason.
    pub(crate) fn was_reset_for(&self, reason: Reason) -> Result<()> {
        let refused = self.refused()?;
        let resets: Vec<_> = refused.iter().filter(|((verdict, _), _)| verdict == "reset").collect();
        let expected = reason.to_string();
        ensure!(
            matches!(resets.as_slice(), [((_, found), [1, _])] if *found == expected),
            "one reset for {reason} was due, there is {refused:?}"
        );
        Ok(())
    }

    /// Since the last call exactly so many packets were dropped for this reason, and nothing else was refused; a busy machine may take
    /// a moment to get to them.
    pub(crate) fn were_dropped_for(&self, reason: Reason, packets: u64) -> Result<()> {
        let expected = ("drop".to_owned(), reason.to_string());
        let mut all = Counts::new();
        poll::until(&format!("{packets} drops for {reason}"), Duration::from_secs(3), || {
            for (key, [connections, packets]) in self.refused()? {
                let sum = all.entry(key).or_default();
                sum[0] += connections;
                sum[1] += packets;
            }
            let found = all.get(&expected).map_or(0, |[_, packets]| *packets);
            ensure!(all.keys().all(|key| *key == expected) && found == packets, "there is {all:?}");
            Ok(())
        })
    }

    /// Since the last call nothing was refused.
    pub(crate) fn nothing_refused(&self) -> Result<()> {
        let refused = self.refused()?;
        ensure!(refused.is_empty(), "refused: {refused:?}");
        Ok(())
    }
}

/// Says hello on an open connection and hears the echo.
pub(crate) fn hello(client: &mut Client) -> Result<()> {
    client.send(&client.data(0, HELLO))?;
    client.expect_heard(HELLO)
}

/// A case in both address families, in one arena.
pub(crate) fn each_family(case: impl Fn(&Arena, bool) -> Result<()>) -> Result<()> {
    let arena = Arena::new()?;
    each_family_in(&arena, case)
}

/// The same in an arena of one's own.
pub(crate) fn each_family_in(arena: &Arena, case: impl Fn(&Arena, bool) -> Result<()>) -> Result<()> {
    for v6 in [false, true] {
        arena.refused()?;
        case(arena, v6).map_err(|error| error.context(if v6 { "IPv6" } else { "IPv4" }))?;
    }
    Ok(())
}
