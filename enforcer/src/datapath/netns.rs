//! What is inside a pod: its network namespace, found by the number that the host side of its veth carries, its
//! addresses and its sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use nix::libc;
use nix::sched::{CloneFlags, setns};

use super::interface::{self, Interface};
use super::netlink::{Message, Netlink, read_u32};
use super::sockdiag::{self, PodSockets};

const RTM_GETADDR: u16 = 22;
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// `struct ifaddrmsg`.
const IFADDR: usize = 8;

/// Why a pod's namespace cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The interface is not one end of a pair with its peer elsewhere.
    #[error("interface {0} has no peer in another network namespace")]
    NoPeer(String),
    /// No process and no file holds the namespace where it can be seen.
    #[error(
        "the network namespace behind interface {interface} (id {nsid}) is not visible from here: \
             run the agent with the host's process ids (hostPID) or with /run/netns mounted"
    )]
    NotVisible {
        /// The interface.
        interface: String,
        /// The namespace's number.
        nsid: i32,
    },
    /// The kernel refuses.
    #[error("cannot look into the network namespace behind interface {interface}: {source}")]
    Io {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// Index of the interface that has it, in its own namespace.
    pub ifindex: u32,
}

/// What is inside a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodNamespace {
    /// The namespace as the agent's numbers it.
    pub nsid: i32,
    /// The addresses of the pod's end of this pair.
    pub addresses: Vec<InterfaceAddress>,
    /// The addresses of its other interfaces, loopback excepted.
    pub other_addresses: Vec<InterfaceAddress>,
    /// Its TCP sockets.
    pub sockets: PodSockets,
}

/// The network namespaces that can be seen from here, by the number that the calling thread's namespace has for each.
/// One scan serves many interfaces.
#[derive(Debug)]
pub struct Namespaces(BTreeMap<i32, File>);

impl Namespaces {
    /// Looks through `/run/netns` and every process.
    ///
    /// # Errors
    /// When netlink fails; a process that ends under way is no error.
    pub fn scan() -> io::Result<Self> {
        let mut netlink = Netlink::route()?;
        let mut seen = BTreeMap::new();
        for path in candidates() {
            // The mode of opening matters for named namespaces only; those of other processes need ptrace rights.
            let Ok(file) = File::open(&path) else { continue };
            let Ok(meta) = file.metadata() else { continue };
            seen.entry((meta.dev(), meta.ino())).or_insert(file);
        }
        let mut by_id = BTreeMap::new();
        for file in seen.into_values() {
            if let Some(nsid) = nsid(&mut netlink, &file)? {
                by_id.insert(nsid, file);
            }
        }
        Ok(Self(by_id))
    }

    /// Does something in the namespace behind an interface, on a thread of its own.
    ///
    /// # Errors
    /// When it is not visible, or the work fails.
    pub fn enter<T: Send>(
        &self,
        interface: &Interface,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, NetnsError> {
        self.behind(interface, work).map(|(_, done)| done)
    }

    /// Looks into the namespace behind an interface, on a thread of its own.
    ///
    /// # Errors
    /// When it is not visible, or the kernel refuses.
    pub fn inspect(&self, interface: &Interface) -> Result<PodNamespace, NetnsError> {
        let (nsid, (all, sockets)) = self.behind(interface, || Ok((addresses()?, sockdiag::sockets()?)))?;
        let (addresses, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|address| Some(address.ifindex) == interface.peer_index);
        let other_addresses = others.into_iter().filter(|other| !other.address.is_loopback()).collect();
        Ok(PodNamespace { nsid, addresses, other_addresses, sockets })
    }

    /// The number of the namespace behind an interface, and the addresses of the pod's end.
    ///
    /// # Errors
    /// As [`Namespaces::inspect`].
    pub fn addresses(&self, interface: &Interface) -> Result<(i32, Vec<IpAddr>), NetnsError> {
        let (nsid, all) = self.behind(interface, addresses)?;
        let own = all.into_iter().filter(|address| Some(address.ifindex) == interface.peer_index);
        Ok((nsid, own.map(|address| address.address).collect()))
    }

    fn behind<T: Send>(
        &self,
        interface: &Interface,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<(i32, T), NetnsError> {
        let name = || interface.name.clone();
        let nsid = interface.peer_netns_id.ok_or_else(|| NetnsError::NoPeer(name()))?;
        let file = self.0.get(&nsid).ok_or_else(|| NetnsError::NotVisible { interface: name(), nsid })?;
        let found = within(file, work).map_err(|source| NetnsError::Io { interface: name(), source })?;
        Ok((nsid, found))
    }
}

/// Finds and looks into the namespace behind one interface.
///
/// # Errors
/// See [`Namespaces::inspect`].
pub fn inspect(interface: &Interface) -> Result<PodNamespace, NetnsError> {
    Namespaces::scan()
        .map_err(|source| NetnsError::Io { interface: interface.name.clone(), source })?
        .inspect(interface)
}

/// Where an address was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The interface that has it, in its own namespace.
    pub interface: String,
    /// What that is (`veth`, `macvlan`, …); empty for hardware.
    pub kind: String,
}

/// Which of these addresses are in other network namespaces than the calling thread's, on an interface that is tied to
/// this one (a peer or a parent is here) or to none. Other nodes on the same kernel may use the same addresses.
///
/// # Errors
/// When the own namespace cannot be opened.
pub fn holders(wanted: &BTreeSet<IpAddr>) -> io::Result<BTreeMap<IpAddr, Holder>> {
    let own = File::open("/proc/thread-self/ns/net")?;
    let meta = own.metadata()?;
    let mut found = BTreeMap::new();
    for path in candidates() {
        let Ok(file) = File::open(&path) else { continue };
        if file.metadata().is_ok_and(|other| (other.dev(), other.ino()) == (meta.dev(), meta.ino())) {
            continue;
        }
        // Whatever is no namespace, or goes meanwhile, holds nothing.
        let inside =
            within(&file, || Ok((addresses()?, interface::list()?, nsid(&mut Netlink::route()?, &own)?)));
        let Ok((addresses, interfaces, home)) = inside else { continue };
        for address in addresses.into_iter().filter(|address| wanted.contains(&address.address)) {
            let on = interfaces.iter().find(|on| on.index == address.ifindex);
            if let Some(on) = on.filter(|on| is_tied(on, home)) {
                found.insert(address.address, Holder { interface: on.name.clone(), kind: on.kind.clone() });
            }
        }
    }
    Ok(found)
}

/// `home`: the node's namespace as the interface's own one numbers it.
fn is_tied(interface: &Interface, home: Option<i32>) -> bool {
    match interface.peer_netns_id {
        Some(peer) => Some(peer) == home,
        // A pair inside the pod leads nowhere else.
        None => interface.peer_index.is_none(),
    }
}

/// Runs something in another network namespace, on a thread of its own: the calling one may serve other tasks.
fn within<T: Send>(namespace: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace died")))
    })
}

/// Where namespaces can be opened: named ones first, which also stand without a process.
fn candidates() -> Vec<PathBuf> {
    let entries =
        |dir: &str| fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let is_process = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    };
    let mut seen = BTreeSet::new();
    let processes = entries("/proc").filter(is_process).map(|path| path.join("ns/net"));
    entries("/run/netns")
        .chain(entries("/var/run/netns"))
        .chain(processes)
        // Thousands of processes share a few namespaces: only one of each is opened.
        .filter(|path| fs::metadata(path).is_ok_and(|meta| seen.insert((meta.dev(), meta.ino()))))
        .collect()
}

/// The number of a namespace; `None` when it has none here, or the file is no namespace.
fn nsid(netlink: &mut Netlink, namespace: &File) -> io::Result<Option<i32>> {
    let fd = namespace.as_raw_fd().cast_unsigned().to_ne_bytes();
    let reply = match netlink.ask(&Message::new(RTM_GETNSID, &[0; 4]).with(NETNSA_FD, &fd)) {
        Ok(reply) => reply,
        Err(e)
            if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::EPERM | libc::EBADF)) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    Ok(reply.attributes(4).get(NETNSA_NSID).and_then(read_u32).map(u32::cast_signed).filter(|id| *id >= 0))
}

/// All addresses of the calling thread's network namespace; in the agent's own, the node's addresses.
///
/// # Errors
/// When netlink fails.
pub fn addresses() -> io::Result<Vec<InterfaceAddress>> {
    let all = Netlink::route()?.dump(&Message::new(RTM_GETADDR, &[0; IFADDR]))?;
    Ok(all.iter().filter_map(read_address).collect())
}

fn read_address(message: &Message) -> Option<InterfaceAddress> {
    let attributes = message.attributes(IFADDR);
    // On point-to-point links IFA_ADDRESS is the other end's; IFA_LOCAL is absent in IPv6.
    let bytes = attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS))?;
    let address = match i32::from(*message.payload.first()?) {
        libc::AF_INET => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(*bytes.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(InterfaceAddress { address, prefix: *message.payload.get(1)?, ifindex: message.u32_at(4)? })
}
