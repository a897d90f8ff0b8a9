//! A program of somebody else on a hook: counts its packets and answers always the same. Written in instructions, so
//! that no compiler is between what a test says and what runs.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use enforcer::datapath::attach::Way;
use nix::net::if_::if_nametoindex;

use crate::Lab;
use crate::lab::NODE;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const LINK_CREATE: libc::c_long = 28;
const ARRAY: u32 = 2;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const BEFORE: u32 = 1 << 3;
const AFTER: u32 = 1 << 4;

/// What the program answers to every packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The next one decides (`TCX_NEXT`).
    Next,
    /// The packet passes, nobody else is asked (`TCX_PASS`).
    Pass,
    /// The packet is dropped.
    Drop,
    /// The packet goes out by the interface with this index.
    Redirect(u32),
    /// The packet comes in by the other end of the pair whose host side has this index, past that side (`bpf_redirect_peer`).
    RedirectPeer(u32),
}

/// Where the program goes on the hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Before all that are there.
    First,
    /// Behind all that are there.
    Last,
}

/// A loaded program. Its links end with it.
#[derive(Debug)]
pub struct Neighbour {
    program: OwnedFd,
    counter: OwnedFd,
    links: Vec<OwnedFd>,
}

/// The call; `attr` as the kernel's `union bpf_attr` begins for this command, in 32-bit words.
fn bpf(command: libc::c_long, attr: &mut [u32]) -> io::Result<RawFd> {
    // SAFETY: the kernel reads that many bytes of `attr`; the pointers inside are of buffers that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        RawFd::try_from(result).map_err(io::Error::other)
    }
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just handed out this descriptor, nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// A pointer in two words.
fn pointer<T: ?Sized>(to: *const T) -> [u32; 2] {
    let bytes = (to.cast::<u8>() as usize as u64).to_ne_bytes();
    [0, 4].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

/// `struct bpf_insn`.
fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> [u8; 8] {
    let mut bytes = [code, to | from << 4, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&immediate.to_ne_bytes());
    bytes
}

fn code(counter: u32, answer: Answer) -> Vec<u8> {
    let mut code = vec![
        // The key 0 on the stack; the counter of that key; one more.
        instruction(0x62, 10, 0, -4, 0),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, (-4_i32).cast_unsigned()),
        instruction(0x18, 1, 1, 0, counter),
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, 1),
        instruction(0x15, 0, 0, 2, 0),
        instruction(0xb7, 1, 0, 0, 1),
        instruction(0xdb, 0, 1, 0, 0),
    ];
    let answer = match answer {
        Answer::Next => -1_i32,
        Answer::Pass => 0,
        Answer::Drop => 2,
        Answer::Redirect(ifindex) | Answer::RedirectPeer(ifindex) => {
            // bpf_redirect(ifindex, 0) or bpf_redirect_peer(ifindex, 0) gives the answer.
            let helper = if matches!(answer, Answer::Redirect(_)) { 23 } else { 155 };
            code.push(instruction(0xb7, 1, 0, 0, ifindex));
            code.push(instruction(0xb7, 2, 0, 0, 0));
            code.push(instruction(0x85, 0, 0, 0, helper));
            code.push(instruction(0x95, 0, 0, 0, 0));
            return code.concat();
        }
    };
    code.push(instruction(0xb7, 0, 0, 0, answer.cast_unsigned()));
    code.push(instruction(0x95, 0, 0, 0, 0));
    code.concat()
}

/// Pins an empty LRU hash map with keys and values of these sizes: what another version might have made.
///
/// # Errors
/// When the kernel refuses.
pub fn pin_map(path: &Path, key: u32, value: u32) -> Result<()> {
    const LRU_HASH: u32 = 9;
    let map = own(bpf(MAP_CREATE, &mut [LRU_HASH, key, value, 1024]).context("no map")?);
    let path = CString::new(path.as_os_str().as_bytes())?;
    let [low, high] = pointer(path.as_ptr());
    bpf(OBJ_PIN, &mut [low, high, raw(&map), 0]).context("cannot pin")?;
    Ok(())
}

impl Neighbour {
    /// Loads the program under a name of at most 15 letters.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load(name: &str, answer: Answer) -> Result<Self> {
        let counter = own(bpf(MAP_CREATE, &mut [ARRAY, 4, 8, 1]).context("no counter")?);
        let code = code(raw(&counter), answer);
        let license = CString::new("GPL")?;
        let count = u32::try_from(code.len() / 8)?;
        let ([code_low, code_high], [license_low, license_high]) =
            (pointer(code.as_ptr()), pointer(license.as_ptr()));
        // Type, count, instructions, licence, no log (five words), flags, name (four words).
        let mut attr = [0; 17];
        attr[..6].copy_from_slice(&[SCHED_CLS, count, code_low, code_high, license_low, license_high]);
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        for (word, four) in attr[12..16].iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([four[0], four[1], four[2], four[3]]);
        }
        let program = own(bpf(PROG_LOAD, &mut attr).context("the kernel refuses the program")?);
        Ok(Self { program, counter, links: Vec::new() })
    }

    /// Puts it on a TCX hook of an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, ifindex: u32, way: Way, place: Place) -> Result<()> {
        let hook = if way == Way::ToPod { TCX_EGRESS } else { TCX_INGRESS };
        let place = if place == Place::First { BEFORE } else { AFTER };
        let mut attr = [raw(&self.program), ifindex, hook, place, 0, 0, 0, 0];
        self.links.push(own(bpf(LINK_CREATE, &mut attr).context("cannot attach")?));
        Ok(())
    }

    /// Pins it, for `tc`.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn pin(&self, path: &Path) -> Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let [low, high] = pointer(path.as_ptr());
        bpf(OBJ_PIN, &mut [low, high, raw(&self.program), 0]).context("cannot pin")?;
        Ok(())
    }

    /// How many packets it saw.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn packets(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let ([key_low, key_high], [value_low, value_high]) =
            (pointer(&raw const key), pointer(&raw mut value));
        bpf(MAP_LOOKUP, &mut [raw(&self.counter), 0, key_low, key_high, value_low, value_high, 0, 0])?;
        Ok(value)
    }
}

impl Lab {
    /// Everything that a client sends comes straight into a pod's own device from now on, past the host side of the pod's
    /// interface, as with Cilium's host routing. It ends when the program is dropped.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn shortcut(&self, from: &str, to: &str) -> Result<Neighbour> {
        let index = |pod: &str| self.inside(NODE, || if_nametoindex(self.pod(pod).interface().as_str()));
        let (client, pod) = (index(from)??, index(to)??);
        let mut program = Neighbour::load("shortcut", Answer::RedirectPeer(pod))?;
        // From the client's pod is the ingress of the host side of its interface. Behind ours, which have nothing to do there.
        self.inside(NODE, || program.attach(client, Way::FromPod, Place::Last))??;
        Ok(program)
    }
}
