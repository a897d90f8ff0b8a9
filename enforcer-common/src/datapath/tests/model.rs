//! The datapath over tables in memory: what the tests of the rules run on, and what the compiled programs are held
//! against packet by packet.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

use enforcer_common::datapath::{self, Decision, Env, FlowTables};
use enforcer_common::flow::Window;
use enforcer_common::map::{
    Endpoint, ExemptKind, Flow, FlowKey, HalfOpen, Outbound, PortKey, PortMode, endpoint_flags,
};
use enforcer_common::settings::{Action, Enforcement, Settings};
use enforcer_common::tcp::{Segment, overlap};
use enforcer_common::{Address, Direction, Mode};

/// A key in the order of its fields; the map type has none.
type Tuple = (Address, Address, u16, u16);

fn tuple(key: &FlowKey) -> Tuple {
    (key.client, key.pod, key.client_port, key.pod_port)
}

/// One TCP packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Packet {
    /// Its direction.
    pub direction: Direction,
    /// TCP flags.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Packet {
    /// What the rules see of it.
    pub(crate) fn segment(&self) -> Segment {
        let payload_len = u32::try_from(self.payload.len()).expect("a packet's length");
        Segment { seq: self.seq, ack: self.ack, payload_len, flags: self.flags }
    }
}

/// The tables, the settings and the packet at hand.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own about the packet or the pod's stack"
)]
pub(crate) struct Model {
    /// The pod.
    pub endpoint: Endpoint,
    /// What the agent told the programs.
    pub settings: Settings,
    /// The monotonic clock, ns; every packet moves it on by one.
    pub now_ns: Cell<u64>,
    /// The packet was sent by the agent.
    pub own_probe: bool,
    /// The packet carries a socket of the node that may probe.
    pub node_probe: bool,
    /// Flows that `TRANSIENT` takes.
    pub capacity: usize,
    /// Flows that `FLOWS` takes.
    pub room: usize,
    /// The pod's sockets tell their end.
    pub sockets: bool,
    /// The pod's stack answers SYNs with cookies.
    pub cookies: bool,
    /// `PORT_MODES` of the endpoint's workload.
    pub ports: BTreeMap<(u16, u16), PortMode>,
    /// `EXEMPT`.
    pub exempt: BTreeMap<Address, ExemptKind>,
    flows: RefCell<BTreeMap<Tuple, Flow>>,
    transient: RefCell<BTreeMap<Tuple, Flow>>,
    half_open: RefCell<BTreeMap<Tuple, HalfOpen>>,
    outbound: RefCell<BTreeMap<Tuple, Outbound>>,
    /// How often something showed that packets reach the pod past the hook.
    pub bypassed: Cell<u64>,
    outbound_ended: RefCell<BTreeMap<Tuple, Outbound>>,
    payload: RefCell<Vec<u8>>,
}

impl Model {
    /// One meshed pod whose every port has this mode.
    pub(crate) fn new(mode: Mode) -> Self {
        Self {
            endpoint: Endpoint {
                workload: 7,
                generation: 1,
                mode,
                flags: flags(mode),
                ifindex: 0,
                netns_id: 0,
            },
            settings: Settings::DEFAULT,
            now_ns: Cell::new(1_000_000_000),
            own_probe: false,
            node_probe: false,
            capacity: usize::MAX,
            room: usize::MAX,
            sockets: false,
            cookies: false,
            ports: BTreeMap::new(),
            exempt: BTreeMap::new(),
            flows: RefCell::default(),
            transient: RefCell::default(),
            half_open: RefCell::default(),
            outbound: RefCell::default(),
            bypassed: Cell::new(0),
            outbound_ended: RefCell::default(),
            payload: RefCell::default(),
        }
    }

    /// Changes the mode of every port without an entry, as the agent does: with a new generation.
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        let kept = self.endpoint.flags & !endpoint_flags::ANY_STRICT;
        self.endpoint.mode = mode;
        self.endpoint.flags = kept | flags(mode);
        self.endpoint.generation = self.endpoint.generation.wrapping_add(1);
        let old = core::mem::take(&mut self.ports);
        self.ports =
            old.into_iter().map(|((_, port), value)| ((self.endpoint.generation, port), value)).collect();
    }

    /// Gives a port an entry of its own.
    pub(crate) fn set_port(&mut self, port: u16, mode: Mode, flags: u8) {
        self.endpoint.generation = self.endpoint.generation.wrapping_add(1);
        self.endpoint.flags |= endpoint_flags::HAS_PORTS;
        let old = core::mem::take(&mut self.ports);
        self.ports =
            old.into_iter().map(|((_, port), value)| ((self.endpoint.generation, port), value)).collect();
        self.ports.insert((self.endpoint.generation, port), PortMode { mode, flags, reserved: 0 });
    }

    /// Runs one packet through the rules.
    pub(crate) fn run(&self, key: &FlowKey, packet: &Packet) -> Decision {
        self.now_ns.set(self.now_ns.get() + 1);
        self.payload.replace(packet.payload.clone());
        match packet.direction {
            Direction::TO_POD => datapath::to_pod(self, &self.endpoint, key, &packet.segment()),
            Direction::FROM_POD => datapath::from_pod(self, &self.endpoint, key, &packet.segment()),
        }
    }

    /// The entry of a flow.
    pub(crate) fn flow_entry(&self, key: &FlowKey) -> Option<Flow> {
        let found = self.protected_entry(key);
        found.or_else(|| self.transient.borrow().get(&tuple(key)).copied())
    }

    /// The entry of a flow in `FLOWS`.
    pub(crate) fn protected_entry(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.borrow().get(&tuple(key)).copied()
    }

    /// The entry of a half-open connection.
    pub(crate) fn half_open_entry(&self, key: &FlowKey) -> Option<HalfOpen> {
        self.half_open.borrow().get(&tuple(key)).copied()
    }

    /// The entry of a connection of the pod's own.
    pub(crate) fn outbound_entry(&self, key: &FlowKey) -> Option<Outbound> {
        self.outbound.borrow().get(&tuple(key)).copied()
    }

    /// The entry of one that is over.
    pub(crate) fn outbound_ended_entry(&self, key: &FlowKey) -> Option<Outbound> {
        self.outbound_ended.borrow().get(&tuple(key)).copied()
    }
}

fn flags(mode: Mode) -> u8 {
    if mode == Mode::STRICT { endpoint_flags::ANY_STRICT } else { 0 }
}

fn insert(table: &RefCell<BTreeMap<Tuple, Flow>>, capacity: usize, key: &FlowKey, flow: &Flow) -> bool {
    let mut table = table.borrow_mut();
    let fits = table.len() < capacity || table.contains_key(&tuple(key));
    if fits {
        table.insert(tuple(key), *flow);
    }
    fits
}

/// An entry, written back when it is done with, if it is still there.
pub(crate) struct FlowCopy<'a> {
    table: &'a RefCell<BTreeMap<Tuple, Flow>>,
    key: Tuple,
    flow: Flow,
}

impl core::ops::Deref for FlowCopy<'_> {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl core::ops::DerefMut for FlowCopy<'_> {
    fn deref_mut(&mut self) -> &mut Flow {
        &mut self.flow
    }
}

impl Drop for FlowCopy<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.table.borrow_mut().get_mut(&self.key) {
            *entry = self.flow;
        }
    }
}

impl FlowTables for Model {
    type FlowRef<'a> = FlowCopy<'a>;

    fn flow(&self, key: &FlowKey) -> Option<Self::FlowRef<'_>> {
        let table = if self.flows.borrow().contains_key(&tuple(key)) { &self.flows } else { &self.transient };
        // An entry may be replaced or removed while it is looked at, as in the kernel: so it is a copy that is handed out.
        let found = table.borrow().get(&tuple(key)).copied()?;
        Some(FlowCopy { table, key: tuple(key), flow: found })
    }

    fn open_flow(&self, key: &FlowKey, flow: &Flow) -> Option<Self::FlowRef<'_>> {
        if !self.transient.borrow().contains_key(&tuple(key)) {
            insert(&self.transient, self.capacity, key, flow);
        }
        let flow = self.transient.borrow().get(&tuple(key)).copied()?;
        Some(FlowCopy { table: &self.transient, key: tuple(key), flow })
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow) {
        insert(&self.transient, self.capacity, key, flow);
    }

    fn protect(&self, key: &FlowKey, flow: &Flow) -> bool {
        let fits = insert(&self.flows, self.room, key, flow);
        if fits {
            self.transient.borrow_mut().remove(&tuple(key));
        }
        fits
    }

    fn unprotect(&self, key: &FlowKey) {
        self.flows.borrow_mut().remove(&tuple(key));
    }

    fn remove_flow(&self, key: &FlowKey) {
        self.transient.borrow_mut().remove(&tuple(key));
        self.flows.borrow_mut().remove(&tuple(key));
    }
}

impl Env for Model {
    fn has_socket(&self) -> bool {
        !self.cookies
    }

    fn tag_socket(&self, _key: &FlowKey, _pod_start: u32) -> bool {
        self.sockets
    }

    fn half_open(&self, key: &FlowKey) -> Option<HalfOpen> {
        self.half_open_entry(key)
    }

    fn insert_half_open(&self, key: &FlowKey, half_open: &HalfOpen) {
        self.half_open.borrow_mut().insert(tuple(key), *half_open);
    }

    fn remove_half_open(&self, key: &FlowKey) {
        self.half_open.borrow_mut().remove(&tuple(key));
    }

    fn outbound(&self, key: &FlowKey) -> Option<Outbound> {
        self.outbound_entry(key)
    }

    fn outbound_ended(&self, key: &FlowKey) -> Option<Outbound> {
        self.outbound_ended_entry(key)
    }

    fn insert_outbound(&self, key: &FlowKey, outbound: &Outbound) {
        self.outbound.borrow_mut().insert(tuple(key), *outbound);
    }

    fn end_outbound(&self, key: &FlowKey, outbound: &Outbound) {
        self.outbound_ended.borrow_mut().insert(tuple(key), *outbound);
        self.outbound.borrow_mut().remove(&tuple(key));
    }

    fn remove_outbound(&self, key: &FlowKey) {
        self.outbound.borrow_mut().remove(&tuple(key));
        self.outbound_ended.borrow_mut().remove(&tuple(key));
    }

    fn port_mode(&self, key: &PortKey) -> Option<PortMode> {
        assert_eq!(key.workload, self.endpoint.workload);
        self.ports.get(&(key.generation, key.port)).copied()
    }

    fn exempt(&self, source: &Address) -> Option<ExemptKind> {
        self.exempt.get(source).copied()
    }

    fn enforcement(&self) -> Enforcement {
        self.settings.enforcement
    }

    fn action(&self) -> Action {
        self.settings.action
    }

    fn undecided_ns(&self) -> u64 {
        self.settings.undecided_ns
    }

    fn hello_bytes(&self) -> u32 {
        self.settings.hello_bytes
    }

    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn note_bypass(&self, _key: &FlowKey) {
        self.bypassed.set(self.bypassed.get() + 1);
    }

    fn is_own_probe(&self, _key: &FlowKey) -> bool {
        self.own_probe
    }

    fn is_node_probe(&self, _key: &FlowKey) -> bool {
        self.node_probe
    }

    fn window(&self, segment: &Segment, start: u32, limit: u32) -> Window {
        let Some(part) = overlap(start, segment.seq, segment.payload_len, limit) else {
            return Window::default();
        };
        let payload = self.payload.borrow();
        let mut bytes = [0; 8];
        for (to, from) in
            bytes.iter_mut().zip(payload.iter().skip(part.index as usize).take(part.count as usize))
        {
            *to = *from;
        }
        Window::new(part.offset, part.count, bytes)
    }
}
