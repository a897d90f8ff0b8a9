//! Which interfaces are pods', as they come and go.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::netlink::{Attributes, Message, Netlink};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
/// `struct ifinfomsg`.
const IFINFO: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
const RTMGRP_LINK: u32 = 1;

/// An interface of the namespace that is watched.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Interface {
    /// Its index: what everything is done by, because names change.
    pub index: u32,
    /// Its name, for people.
    pub name: String,
    /// What it is (`veth`, `netkit`, …); empty for hardware and loopback.
    pub kind: String,
    /// Index of the peer, in the peer's namespace.
    pub peer_index: Option<u32>,
    /// The peer's namespace as this one numbers it; `None`: the peer is here, or there is none.
    pub peer_netns_id: Option<i32>,
}

/// What happened to an interface that the selector takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InterfaceEvent {
    /// It is there, or became a pod's.
    Appeared(Interface),
    /// It looks like a pod's and cannot be hooked: its pod is not enforced.
    Unsupported(Interface),
    /// It is gone, or no pod's any more.
    Gone(Interface),
}

/// Which interfaces are taken.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector {
    globs: Vec<String>,
}

/// What the selector makes of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    Take,
    Unsupported,
    Leave,
}

impl Selector {
    /// Only interfaces with a name that one of the globs matches (`*`, `?`); without globs every veth whose peer
    /// lives in another namespace.
    #[must_use]
    pub fn new(globs: Vec<String>) -> Self {
        Self { globs }
    }

    fn choose(&self, interface: &Interface) -> Choice {
        let chosen = if self.globs.is_empty() {
            matches!(interface.kind.as_str(), "veth" | "netkit") && interface.peer_netns_id.is_some()
        } else {
            self.globs.iter().any(|glob| matches(glob.as_bytes(), interface.name.as_bytes()))
        };
        match (chosen, interface.kind.as_str()) {
            (false, _) => Choice::Leave,
            (true, "netkit") => Choice::Unsupported,
            (true, _) => Choice::Take,
        }
    }
}

/// `*` is any text, `?` any one byte.
fn matches(glob: &[u8], name: &[u8]) -> bool {
    match (glob, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            matches(rest, name) || name.split_first().is_some_and(|(_, tail)| matches(glob, tail))
        }
        ([b'?', rest @ ..], [_, tail @ ..]) => matches(rest, tail),
        ([c, rest @ ..], [d, tail @ ..]) => c == d && matches(rest, tail),
        _ => false,
    }
}

impl Interface {
    fn read(message: &Message) -> Option<Self> {
        let attributes = message.attributes(IFINFO);
        let kind = attributes
            .get(IFLA_LINKINFO)
            .and_then(|info| Attributes::of(info).text(IFLA_INFO_KIND))
            .unwrap_or_default();
        Some(Self {
            index: message.u32_at(4)?,
            name: attributes.text(IFLA_IFNAME)?,
            kind,
            peer_index: attributes.u32(IFLA_LINK).filter(|index| *index != 0),
            peer_netns_id: attributes.u32(IFLA_LINK_NETNSID).map(u32::cast_signed).filter(|id| *id >= 0),
        })
    }

    /// True for one end of a pair.
    fn is_pair(&self) -> bool {
        matches!(self.kind.as_str(), "veth" | "netkit")
    }
}

/// The interfaces of the calling thread's network namespace.
///
/// # Errors
/// When netlink fails.
pub fn list() -> io::Result<Vec<Interface>> {
    let all = Netlink::route()?.dump(&Message::new(RTM_GETLINK, &[0; IFINFO]))?;
    Ok(all.iter().filter_map(Interface::read).collect())
}

/// One interface by its index.
///
/// # Errors
/// `ENODEV` when there is none.
pub fn by_index(index: u32) -> io::Result<Interface> {
    get(&mut Netlink::route()?, index)
}

fn get(netlink: &mut Netlink, index: u32) -> io::Result<Interface> {
    let mut fixed = [0; IFINFO];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let reply = netlink.ask(&Message::new(RTM_GETLINK, &fixed))?;
    Interface::read(&reply).ok_or_else(|| io::Error::other("an interface without a name"))
}

/// Follows the interfaces of the network namespace in which it was opened.
#[derive(Debug)]
pub struct LinkWatch {
    events: AsyncFd<Netlink>,
    queries: Netlink,
    selector: Selector,
    known: BTreeMap<u32, Interface>,
    pending: VecDeque<InterfaceEvent>,
}

impl LinkWatch {
    /// Starts with an event for every interface that is there.
    ///
    /// # Errors
    /// When netlink fails.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(selector: Selector) -> io::Result<Self> {
        // Subscribed before the first dump: nothing falls between the two.
        let socket = Netlink::subscribe(RTMGRP_LINK)?;
        // SAFETY: the `Netlink` inside keeps one descriptor, its own, for as long as it lives.
        let events = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        let queries = Netlink::route()?;
        let mut watch = Self { events, queries, selector, known: BTreeMap::new(), pending: VecDeque::new() };
        watch.resync()?;
        Ok(watch)
    }

    /// The next event. Safe to cancel.
    ///
    /// # Errors
    /// When netlink fails for good.
    pub async fn next(&mut self) -> io::Result<InterfaceEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let mut guard = self.events.readable().await?;
            let received = guard.try_io(|socket| socket.get_ref().receive());
            drop(guard);
            match received {
                Err(_would_block) => {}
                Ok(Ok(messages)) => messages.iter().try_for_each(|message| self.apply(message))?,
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => self.resync()?,
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
            }
        }
    }

    /// Compares all interfaces with what is known.
    ///
    /// # Errors
    /// When netlink fails.
    pub fn resync(&mut self) -> io::Result<()> {
        let found = self.queries.dump(&Message::new(RTM_GETLINK, &[0; IFINFO]))?;
        let found: BTreeMap<_, _> = found.iter().filter_map(Interface::read).map(|i| (i.index, i)).collect();
        let gone: Vec<_> = self.known.keys().copied().filter(|index| !found.contains_key(index)).collect();
        for index in gone {
            self.remove(index);
        }
        for interface in found.into_values() {
            self.update(interface);
        }
        Ok(())
    }

    fn apply(&mut self, message: &Message) -> io::Result<()> {
        let Some(interface) = Interface::read(message) else {
            return Ok(());
        };
        match message.kind {
            // Bridges tell of their ports with messages of another family: not about the link itself.
            RTM_NEWLINK | RTM_DELLINK if message.payload.first() != Some(&0) => {}
            // The peer of a pair is told of before both ends are tied together.
            RTM_NEWLINK if interface.is_pair() && interface.peer_index.is_none() => {
                self.refresh(interface.index)?;
            }
            RTM_NEWLINK => self.update(interface),
            RTM_DELLINK => {
                self.remove(interface.index);
                // A peer that moves to a pod's namespace is only told of as gone from here.
                let peers: Vec<_> = self
                    .known
                    .values()
                    .filter(|k| {
                        k.is_pair() && k.peer_netns_id.is_none() && k.peer_index == Some(interface.index)
                    })
                    .map(|k| k.index)
                    .collect();
                peers.into_iter().try_for_each(|index| self.refresh(index))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn refresh(&mut self, index: u32) -> io::Result<()> {
        match get(&mut self.queries, index) {
            Ok(interface) => self.update(interface),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => self.remove(index),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn remove(&mut self, index: u32) {
        if let Some(old) = self.known.remove(&index)
            && self.selector.choose(&old) != Choice::Leave
        {
            self.pending.push_back(InterfaceEvent::Gone(old));
        }
    }

    fn update(&mut self, interface: Interface) {
        let before = self.known.insert(interface.index, interface.clone());
        let was = before.as_ref().map_or(Choice::Leave, |old| self.selector.choose(old));
        // A peer in another namespace than before is another pod.
        let moved = before.is_some_and(|old| {
            (old.peer_netns_id, old.peer_index) != (interface.peer_netns_id, interface.peer_index)
        });
        match self.selector.choose(&interface) {
            Choice::Take if was != Choice::Take || moved => {
                self.pending.push_back(InterfaceEvent::Appeared(interface));
            }
            Choice::Unsupported if was != Choice::Unsupported => {
                self.pending.push_back(InterfaceEvent::Unsupported(interface));
            }
            Choice::Leave if was != Choice::Leave => self.pending.push_back(InterfaceEvent::Gone(interface)),
            Choice::Take | Choice::Unsupported | Choice::Leave => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (glob, name, expected) in [
            ("*", "", true),
            ("veth*", "veth12", true),
            ("veth*", "eth0", false),
            ("cali?*", "cali1", true),
            ("cali?*", "cali", false),
            ("*a*b", "xaxb", true),
            ("*a*b", "xaxbc", false),
            ("eth0", "eth0", true),
        ] {
            assert_eq!(matches(glob.as_bytes(), name.as_bytes()), expected, "{glob} {name}");
        }
    }

    #[test]
    fn a_pod_interface_is_a_veth_with_its_peer_elsewhere() {
        let veth = Interface {
            index: 2,
            name: "v".into(),
            kind: "veth".into(),
            peer_index: Some(3),
            peer_netns_id: None,
        };
        let away = Interface { peer_netns_id: Some(0), ..veth.clone() };
        let netkit = Interface { kind: "netkit".into(), ..away.clone() };
        let any = Selector::default();
        assert_eq!(any.choose(&veth), Choice::Leave);
        assert_eq!(any.choose(&away), Choice::Take);
        assert_eq!(any.choose(&netkit), Choice::Unsupported);
        let named = Selector::new(vec!["v?".into(), "v".into()]);
        assert_eq!(named.choose(&veth), Choice::Take);
        assert_eq!(named.choose(&Interface { name: "w".into(), ..away }), Choice::Leave);
    }
}
