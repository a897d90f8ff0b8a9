//! The fallback for kernels without TCX: direct-action filters of the clsact qdisc, by a priority and handle of our
//! own, so that a restart replaces them in place and a detach finds them.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;

use super::attach::{AttachError, Attachment, Hook, Side, Way};
use super::interface::Interface;
use super::load::Datapath;
use super::netlink::{Attributes, Message, NLM_F_CREATE, NLM_F_EXCL, Netlink};
use super::pin::{LinkKind, LinkName, Pins};
use super::sys::{self, TcxHook};
use super::tcx;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const PARENT_INGRESS: u32 = 0xffff_fff2;
const PARENT_EGRESS: u32 = 0xffff_fff3;
/// Before all others.
const PRIORITY: u32 = 1;
/// A handle that nobody else picks: filters of one priority are told apart by it.
const HANDLE: u32 = 0x656e_6601;
/// `struct tcmsg`.
const TCMSG: usize = 20;

const fn parent(way: Way, side: Side) -> u32 {
    match tcx::hook(way, side) {
        TcxHook::Egress => PARENT_EGRESS,
        TcxHook::Ingress => PARENT_INGRESS,
    }
}

/// The name that the filter carries.
pub(super) fn filter_name(way: Way) -> String {
    format!("enforcer_{}", way.program())
}

fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, ifindex, handle, parent, info].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Priority and protocol (all) of our filters.
fn info() -> u32 {
    const ETH_P_ALL: u16 = 3;
    (PRIORITY << 16) | u32::from(ETH_P_ALL.to_be())
}

/// Hooks both directions, or replaces our filters.
pub(super) fn attach(datapath: &Datapath, interface: &Interface) -> Result<Attachment, AttachError> {
    let failed = |e| AttachError::io("attach filters to", interface, e);
    let mut netlink = Netlink::route().map_err(failed)?;
    let made = ensure_qdisc(&mut netlink, interface)?;
    let mark = |made| datapath.pins.link(datapath.link_name(interface.index, LinkKind::Clsact { made }));
    if made {
        // A mark of an earlier interface with this index says nothing about this one.
        remove_dir(&mark(false)).map_err(failed)?;
        fs::create_dir_all(mark(true)).map_err(failed)?;
    } else if !mark(true).is_dir() {
        fs::create_dir_all(mark(false)).map_err(failed)?;
    }
    let mut replaced = true;
    for way in Way::BOTH {
        replaced &= own_filter(&mut netlink, interface.index, way).map_err(failed)?;
        let program =
            datapath.program(way, Side::Host).map_err(failed)?.as_raw_fd().cast_unsigned().to_ne_bytes();
        let mut name = filter_name(way).into_bytes();
        name.push(0);
        let message =
            Message::new(RTM_NEWTFILTER, &tcmsg(interface.index, HANDLE, parent(way, Side::Host), info()))
                .with(TCA_KIND, b"bpf\0")
                .with_nested(
                    TCA_OPTIONS,
                    &[
                        (TCA_BPF_FD, &program),
                        (TCA_BPF_NAME, &name),
                        (TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes()),
                    ],
                );
        // Without EXCL a filter with this priority and handle is replaced, atomically.
        netlink.change(&message, NLM_F_CREATE).map_err(failed)?;
    }
    Ok(Attachment {
        interface: interface.clone(),
        device: None,
        hook: Hook::Clsact,
        replaced,
        neighbours: Vec::new(),
        warnings: Vec::new(),
    })
}

/// True when the qdisc was made now.
fn ensure_qdisc(netlink: &mut Netlink, interface: &Interface) -> Result<bool, AttachError> {
    let message = Message::new(RTM_NEWQDISC, &tcmsg(interface.index, CLSACT_HANDLE, TC_H_CLSACT, 0))
        .with(TCA_KIND, b"clsact\0");
    match netlink.change(&message, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        // An ingress qdisc sits in the same place and gives the same error.
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
            let kind = qdisc(netlink, interface.index)
                .map_err(|e| AttachError::io("read the qdiscs of", interface, e))?;
            match kind.as_deref() {
                Some("ingress") => Err(AttachError::IngressQdisc(interface.name.clone())),
                _ => Ok(false),
            }
        }
        Err(e) => Err(AttachError::io("make the clsact qdisc of", interface, e)),
    }
}

/// The kind of the qdisc in clsact's place.
fn qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<Option<String>> {
    let all = netlink.dump(&Message::new(RTM_GETQDISC, &tcmsg(ifindex, 0, 0, 0)))?;
    let ours = all.iter().find(|q| q.u32_at(4) == Some(ifindex) && q.u32_at(12) == Some(TC_H_CLSACT));
    Ok(ours.and_then(|q| q.attributes(TCMSG).text(TCA_KIND)))
}

/// A filter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    /// Its handle.
    handle: u32,
    /// Its name; its kind where it has none.
    pub name: String,
    /// The id of its program, if it is one.
    pub program: Option<u32>,
}

/// The filters of a direction, first to run first; none where there is no such qdisc.
pub(super) fn filters(netlink: &mut Netlink, ifindex: u32, way: Way, side: Side) -> io::Result<Vec<Filter>> {
    let all = match netlink.dump(&Message::new(RTM_GETTFILTER, &tcmsg(ifindex, 0, parent(way, side), 0))) {
        Ok(all) => all,
        // No interface, or no such qdisc on it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(e),
    };
    let read = |filter: &Message| {
        // The first message of a priority has no handle: it stands for the list.
        let handle = filter.u32_at(8).filter(|handle| *handle != 0)?;
        let attributes = filter.attributes(TCMSG);
        let kind = attributes.text(TCA_KIND).unwrap_or_default();
        let options = Attributes::of(attributes.get(TCA_OPTIONS)?);
        if kind != "bpf" {
            return Some(Filter { handle, name: kind, program: None });
        }
        let program = options.u32(TCA_BPF_ID);
        let name = options.text(TCA_BPF_NAME).or_else(|| program.map(sys::program_name)).unwrap_or(kind);
        Some(Filter { handle, name, program })
    };
    Ok(all.iter().filter_map(read).collect())
}

fn own_filter(netlink: &mut Netlink, ifindex: u32, way: Way) -> io::Result<bool> {
    let name = filter_name(way);
    Ok(filters(netlink, ifindex, way, Side::Host)?
        .iter()
        .any(|filter| filter.handle == HANDLE && filter.name == name))
}

/// Takes our filters off an interface of the calling thread's namespace, and the qdisc when it was made for them and
/// serves nobody else; then the marks. Nothing to do is no error.
pub(super) fn remove(datapath: &Datapath, ifindex: u32) -> io::Result<()> {
    for made in [false, true] {
        let name = datapath.link_name(ifindex, LinkKind::Clsact { made });
        if datapath.pins.link(name).is_dir() {
            remove_marked(&datapath.pins, name, made)?;
        }
    }
    Ok(())
}

/// What [`remove_marked`] took away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Taken {
    pub filters: usize,
    pub qdisc: bool,
}

/// Undoes what a mark stands for, and removes the mark.
pub(super) fn remove_marked(pins: &Pins, name: LinkName, made: bool) -> io::Result<Taken> {
    let mut netlink = Netlink::route()?;
    let (mut taken, mut others) = (Taken::default(), 0);
    for way in Way::BOTH {
        if own_filter(&mut netlink, name.ifindex, way)? {
            let message =
                Message::new(RTM_DELTFILTER, &tcmsg(name.ifindex, HANDLE, parent(way, Side::Host), info()))
                    .with(TCA_KIND, b"bpf\0");
            netlink.change(&message, 0)?;
            taken.filters += 1;
        }
        others += filters(&mut netlink, name.ifindex, way, Side::Host)?.len();
    }
    if made && others == 0 && qdisc(&mut netlink, name.ifindex)?.as_deref() == Some("clsact") {
        let message = Message::new(RTM_DELQDISC, &tcmsg(name.ifindex, CLSACT_HANDLE, TC_H_CLSACT, 0));
        netlink.change(&message, 0)?;
        taken.qdisc = true;
    }
    remove_dir(&pins.link(name))?;
    Ok(taken)
}

fn remove_dir(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
