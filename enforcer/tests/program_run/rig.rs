//! The compiled programs, loaded and fed with single packets by `BPF_PROG_TEST_RUN`, in a network namespace with nothing
//! in it but a pair of linked interfaces: copies that a program sends leave by one and are caught at the other.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::maps::RingBuf;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use enforcer::datapath::maps::{
    BypassedPods, ClientResets, Clients, Counters, Endpoints, Exempt, Flows, HalfOpens, Outbounds, Pendings,
    PortModes, SettingsMap, WorkloadCounters,
};
use enforcer::datapath::{Datapath, OpenOptions};
use enforcer_common::event::{Event, HelloHeader, Record, decode};
use enforcer_common::map::{Client, ClientKey, Counter, Endpoint, Flow, FlowKey, endpoint_flags};
use enforcer_common::settings::Settings;
use enforcer_common::{Address, Direction, Mode, Reason, Verdict};
use nix::libc;
use nix::sched::{CloneFlags, unshare};

use super::frame::{Frame, Seen, read};

/// `TCX_NEXT`: the packet goes on.
pub(crate) const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub(crate) const SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub(crate) const REDIRECT: i32 = 7;

/// Workload id of the rig's pod.
pub(crate) const WORKLOAD: u32 = 7;
/// What the programs do not know.
const NOTHING: Counter = Counter { connections: 0, packets: 0, bytes: 0 };

/// What a program did with a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    /// The program's verdict.
    pub code: i32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// What the ring buffer held, by kind.
#[derive(Default)]
pub(crate) struct Records {
    /// Verdicts.
    pub verdicts: Vec<Event>,
    /// Ends of connections.
    pub ends: Vec<Event>,
    /// Bytes of TLS clients.
    pub hellos: Vec<(HelloHeader, Vec<u8>)>,
}

/// Loaded programs and their maps.
pub(crate) struct Rig {
    datapath: Option<Datapath>,
    bpffs: PathBuf,
    ifindex: u32,
    wire: OwnedFd,
    /// Mark of the packets.
    pub mark: u32,
    /// The stamp of the pod's entry program, where packets are looked at on the pod's own device.
    pub inside: Option<u32>,
    /// `BYPASSED`.
    pub bypassed: BypassedPods,
    /// `ENDPOINTS`.
    pub endpoints: Endpoints,
    /// `PORT_MODES`.
    pub ports: PortModes,
    /// `EXEMPT`.
    pub exempt: Exempt,
    /// `SETTINGS`.
    pub settings: SettingsMap,
    /// `FLOWS`.
    pub flows: Flows,
    /// `TRANSIENT`.
    pub transient: Flows,
    /// `HALF_OPEN`.
    pub half_open: HalfOpens,
    /// `OUTBOUND`.
    pub outbound: Outbounds,
    /// `OUTBOUND_ENDED`.
    pub outbound_ended: Outbounds,
    /// `PENDING`.
    pub pending: Pendings,
    /// `CLIENT_RESETS`.
    pub client_resets: ClientResets,
    /// `CLIENTS`.
    pub clients: Clients,
    counters: Counters,
    workload_counters: WorkloadCounters,
    events: RingBuf<aya::maps::MapData>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.datapath.take());
        let _ = enforcer::datapath::detach::detach(&self.bpffs, true);
        let _ = std::fs::remove_dir(&self.bpffs);
    }
}

/// Runs a test over freshly loaded programs, on a thread in a network namespace of its own.
pub(crate) fn with_rig(test: impl FnOnce(&mut Rig) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests of the kernel side run as root");
        test(&mut Rig::new());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Rig {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let script = "ip link add near type veth peer name far && ip link set near up && ip link set far up";
        assert!(Command::new("sh").args(["-c", script]).status().expect("sh runs").success(), "{script}");
        let ifindex = nix::net::if_::if_nametoindex("near").expect("near");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/enforcer-run-{}-{number}", std::process::id()));
        // Small where tests read all of a map after each packet.
        let sizes = [
            ("FLOWS", 8192),
            ("TRANSIENT", 8192),
            ("HALF_OPEN", 8192),
            ("OUTBOUND", 8192),
            ("OUTBOUND_ENDED", 8192),
            ("CLIENTS", 64),
            ("WORKLOAD_COUNTERS", 256),
        ]
        .map(|(name, size)| (name.to_owned(), size));
        let options = OpenOptions { bpffs: bpffs.clone(), sizes: sizes.into(), ..OpenOptions::default() };
        let mut datapath = Datapath::open(&options).expect("the kernel takes the programs");
        let mut map = |name: &str| datapath.take_map(name).expect("the object has the map");
        let mut rig = Self {
            bypassed: BypassedPods::new("BYPASSED", map("BYPASSED")).expect("BYPASSED"),
            endpoints: Endpoints::new("ENDPOINTS", map("ENDPOINTS")).expect("ENDPOINTS"),
            ports: PortModes::new("PORT_MODES", map("PORT_MODES")).expect("PORT_MODES"),
            exempt: Exempt::new(map("EXEMPT")).expect("EXEMPT"),
            settings: SettingsMap::new(map("SETTINGS")).expect("SETTINGS"),
            transient: Flows::new("TRANSIENT", map("TRANSIENT")).expect("TRANSIENT"),
            flows: Flows::new("FLOWS", map("FLOWS")).expect("FLOWS"),
            half_open: HalfOpens::new("HALF_OPEN", map("HALF_OPEN")).expect("HALF_OPEN"),
            outbound: Outbounds::new("OUTBOUND", map("OUTBOUND")).expect("OUTBOUND"),
            outbound_ended: Outbounds::new("OUTBOUND_ENDED", map("OUTBOUND_ENDED")).expect("OUTBOUND_ENDED"),
            pending: Pendings::new("PENDING", map("PENDING")).expect("PENDING"),
            client_resets: ClientResets::new("CLIENT_RESETS", map("CLIENT_RESETS")).expect("CLIENT_RESETS"),
            clients: Clients::new("CLIENTS", map("CLIENTS")).expect("CLIENTS"),
            counters: Counters::new("COUNTERS", map("COUNTERS")).expect("COUNTERS"),
            workload_counters: WorkloadCounters::new("WORKLOAD_COUNTERS", map("WORKLOAD_COUNTERS"))
                .expect("counters"),
            events: RingBuf::try_from(map("EVENTS")).expect("EVENTS"),
            datapath: Some(datapath),
            bpffs,
            ifindex,
            wire: listen("far"),
            mark: 0,
            inside: None,
        };
        rig.set(Settings {
            resets_per_second: u32::MAX,
            resets_per_second_per_client: u32::MAX,
            events_per_second: u32::MAX,
            ..Settings::DEFAULT
        });
        rig
    }

    /// From now on packets are looked at on the pod's own device, stamped like this.
    pub(crate) fn go_inside(&mut self, stamp: u32) {
        self.datapath.as_mut().expect("loaded").prepare_inside().expect("the kernel takes the programs");
        self.inside = Some(stamp);
    }

    /// Puts settings in force.
    pub(crate) fn set(&mut self, settings: Settings) {
        self.settings.set(&settings).expect("settings");
    }

    /// Lists an address as a meshed pod whose every port has this mode.
    pub(crate) fn list(&mut self, pod: Address, mode: Mode) {
        let flags = if mode == Mode::STRICT { endpoint_flags::ANY_STRICT } else { 0 };
        let endpoint = Endpoint { workload: WORKLOAD, generation: 1, mode, flags, ifindex: 0, netns_id: 0 };
        let endpoint = match self.inside {
            None => endpoint,
            Some(netns_id) => {
                let flags = flags | endpoint_flags::POD_SIDE;
                Endpoint { flags, ifindex: self.ifindex, netns_id, ..endpoint }
            }
        };
        self.endpoints.insert(&pod, &endpoint).expect("an endpoint");
    }

    /// Runs a frame through the program of a direction, `repeat` times; also gives nanoseconds a run.
    pub(crate) fn run_bytes(&mut self, direction: Direction, frame: &[u8], repeat: u32) -> (Outcome, u64) {
        let name = match (self.inside, direction) {
            (None, Direction::TO_POD) => "to_pod",
            (None, Direction::FROM_POD) => "from_pod",
            (Some(_), Direction::TO_POD) => "to_pod_in",
            (Some(_), Direction::FROM_POD) => "from_pod_in",
        };
        let datapath = self.datapath.as_mut().expect("loaded");
        let program: &mut SchedClassifier =
            datapath.ebpf_mut().program_mut(name).expect("a program").try_into().expect("a classifier");
        // `struct __sk_buff`: the mark is its third word, the interface its eleventh, the last word of the control buffer its
        // seventeenth.
        let mut context = [0; 68];
        context[64..68].copy_from_slice(&self.inside.unwrap_or_default().to_ne_bytes());
        context[8..12].copy_from_slice(&self.mark.to_ne_bytes());
        context[40..44].copy_from_slice(&self.ifindex.to_ne_bytes());
        let mut out = vec![0; frame.len() + 64];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                repeat,
                ..TestRunOptions::default()
            })
            .expect("the program runs");
        out.truncate(result.data_size_out as usize);
        let code = i32::from_ne_bytes(result.return_value.to_ne_bytes());
        (Outcome { code, frame: out }, u64::try_from(result.duration.as_nanos()).expect("a short time"))
    }

    /// Runs a packet through the program of its direction.
    pub(crate) fn run(&mut self, frame: &Frame) -> Outcome {
        self.run_bytes(frame.direction, &frame.bytes(), 1).0
    }

    /// Takes a connection through its handshake.
    pub(crate) fn handshake(&mut self, key: FlowKey, client_isn: u32, pod_isn: u32) {
        use enforcer_common::tcp::{ACK, SYN};
        for (direction, flags, seq, ack) in [
            (Direction::TO_POD, SYN, client_isn, 0),
            (Direction::FROM_POD, SYN | ACK, pod_isn, client_isn.wrapping_add(1)),
            (Direction::TO_POD, ACK, client_isn.wrapping_add(1), pod_isn.wrapping_add(1)),
        ] {
            let frame = Frame::new(key, direction, flags, seq, ack, &[]);
            assert_eq!(self.run(&frame), Outcome { code: NEXT, frame: frame.bytes() });
        }
    }

    /// The TCP packets that left by the interface since the last call.
    pub(crate) fn sent(&mut self) -> Vec<Seen> {
        let mut socket = std::fs::File::from(self.wire.try_clone().expect("a descriptor"));
        let mut frames = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            match socket.read(&mut buffer) {
                Ok(len) => frames.extend(read(&buffer[..len])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return frames,
                Err(error) => panic!("the other end of the wire: {error}"),
            }
        }
    }

    /// One of the node's counters.
    pub(crate) fn counter(&self, verdict: Verdict, reason: Reason, direction: Direction) -> Counter {
        self.counts().get(&(verdict, reason, direction)).copied().unwrap_or(NOTHING)
    }

    /// The node's counters; those of the rig's pod must say the same.
    pub(crate) fn counts(&self) -> BTreeMap<(Verdict, Reason, Direction), Counter> {
        let all = self.counters.totals().expect("COUNTERS");
        let node: BTreeMap<_, _> =
            all.into_iter().map(|(key, value)| ((key.verdict, key.reason, key.direction), value)).collect();
        let all = self.workload_counters.totals().expect("WORKLOAD_COUNTERS");
        let of_pod: BTreeMap<_, _> = all
            .into_iter()
            .filter(|(key, _)| key.workload == WORKLOAD)
            .map(|(key, value)| ((key.verdict, key.reason, key.direction), value))
            .collect();
        if !node.keys().any(|(_, reason, _)| *reason == Reason::UNKNOWN_POD) {
            assert_eq!(node, of_pod);
        }
        node
    }

    /// The verdicts since the last call; other records are left out.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        self.records().verdicts
    }

    /// The records since the last call.
    pub(crate) fn records(&mut self) -> Records {
        let mut records = Records::default();
        while let Some(record) = self.events.next() {
            match decode(&record).expect("a valid record") {
                Record::Verdict(event) => records.verdicts.push(event),
                Record::End(event) => records.ends.push(event),
                Record::Hello(hello) => records.hellos.push((hello.header, hello.bytes.to_vec())),
            }
        }
        records
    }

    /// The entry of a flow, and whether it is in `FLOWS`.
    pub(crate) fn flow(&self, key: &FlowKey) -> Option<(Flow, bool)> {
        let protected = self.flows.get(key).expect("FLOWS").map(|flow| (flow, true));
        protected.or_else(|| self.transient.get(key).expect("TRANSIENT").map(|flow| (flow, false)))
    }

    /// The entries of `CLIENTS`, in the order of client and class.
    pub(crate) fn client_entries(&self) -> Vec<(ClientKey, Client)> {
        let mut entries = self.clients.entries().expect("CLIENTS");
        entries.sort_by_key(|(key, _)| (key.client, key.class, key.port));
        entries
    }

    /// Index of the interface that packets come by.
    pub(crate) fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

/// A socket that sees every packet that comes in by an interface.
fn listen(interface: &str) -> OwnedFd {
    let index = nix::net::if_::if_nametoindex(interface).expect("the interface");
    let every = u16::try_from(libc::ETH_P_ALL).expect("a protocol").to_be();
    // SAFETY: a plain system call.
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            i32::from(every),
        )
    };
    assert!(fd >= 0, "a packet socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid address of this kind.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a family");
    address.sll_protocol = every;
    address.sll_ifindex = i32::try_from(index).expect("an index");
    let len = libc::socklen_t::try_from(size_of_val(&address)).expect("a length");
    // SAFETY: the address is readable for its length.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    assert_eq!(result, 0, "bound: {}", std::io::Error::last_os_error());
    socket
}

/// A connection of IPv4.
pub(crate) fn v4(client_port: u16) -> FlowKey {
    connection("10.9.0.1", "10.9.0.2", client_port)
}

/// A connection of IPv6.
pub(crate) fn v6(client_port: u16) -> FlowKey {
    connection("fd00:9::1", "fd00:9::2", client_port)
}

fn connection(client: &str, pod: &str, client_port: u16) -> FlowKey {
    let address = |text: &str| Address::from(text.parse::<IpAddr>().expect("an address"));
    FlowKey { client: address(client), pod: address(pod), client_port, pod_port: 8080 }
}
