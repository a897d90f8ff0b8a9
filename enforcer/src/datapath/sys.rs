//! The few `bpf(2)` calls that are made here rather than through aya: TCX links by interface index (aya takes
//! names, which can change under us), with the information that aya leaves out, and never detached by a drop.
//!
//! Numbers and layouts: `include/uapi/linux/bpf.h`.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::libc;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Place before the programs that are on the hook.
const BPF_F_BEFORE: u32 = 1 << 3;

/// The type of a cgroup link (`BPF_LINK_TYPE_CGROUP`).
const LINK_TYPE_CGROUP: u32 = 3;
/// Attach type of programs that see sockets.
const BPF_CGROUP_SOCK_OPS: u32 = 3;

/// The type of a TCX link (`BPF_LINK_TYPE_TCX`).
pub(super) const LINK_TYPE_TCX: u32 = 11;

/// Most programs that the kernel admits on one hook (`BPF_MPROG_MAX`).
const MPROG_MAX: usize = 64;

/// The two TCX hooks of an interface; the numbers are the kernel's attach types.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TcxHook {
    /// Packets that come in by the interface.
    Ingress = 46,
    /// Packets that go out by the interface.
    Egress = 47,
}

/// What the kernel says of a TCX link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkInfo {
    /// Link type; [`LINK_TYPE_TCX`] or the other fields beyond `program` mean nothing.
    pub kind: u32,
    /// Link id.
    pub id: u32,
    /// Id of the program behind it.
    pub program: u32,
    /// The interface's index in its own namespace; 0 when the interface is gone.
    pub ifindex: u32,
    /// Attach type.
    pub hook: u32,
}

/// One program on a hook, in the order in which they run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hooked {
    /// Program id.
    pub program: u32,
    /// Link id; 0 when attached without a link.
    pub link: u32,
}

impl LinkInfo {
    /// A link to a cgroup that is still there. Of such a link the kernel tells a 64-bit id where others have an interface.
    pub(super) fn has_cgroup(&self) -> bool {
        self.kind == LINK_TYPE_CGROUP && (self.ifindex, self.hook) != (0, 0)
    }
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    program: u32,
    /// Or the descriptor of a cgroup.
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct MapCreateAttr {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct MapElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoadAttr {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// `struct bpf_link_info`, with the TCX member of its union.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    attach_type: u32,
    rest: [u64; 8],
}

/// The beginning of `struct bpf_prog_info`, up to the name.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: u64,
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    between: [u64; 3],
    name: [u8; 16],
}

/// Makes the call. `attr` must be one of the `repr(C)` structures above.
pub(super) fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes of `attr`, which is exclusively borrowed; the
    // pointers inside it are made from live buffers by the callers, which outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just handed out this descriptor, nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(super) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

pub(super) fn address<T: ?Sized>(pointer: *const T) -> u64 {
    pointer.cast::<u8>() as usize as u64
}

/// Pins an object. `EEXIST` when the path is taken.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { pathname: address(path.as_ptr()), fd: raw(fd), ..ObjectAttr::default() };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { pathname: address(path.as_ptr()), ..ObjectAttr::default() };
    bpf(BPF_OBJ_GET, &mut attr).map(own)
}

/// The name of the program with this id; empty when it is gone or may not be read.
pub(super) fn program_name(id: u32) -> String {
    let read = || -> io::Result<String> {
        let program = program_by_id(id)?;
        let mut info = ProgramInfo::default();
        program_info(program.as_fd(), &mut info)?;
        let end = info.name.iter().position(|b| *b == 0).unwrap_or(info.name.len());
        Ok(String::from_utf8_lossy(info.name.get(..end).unwrap_or_default()).into_owned())
    };
    read().unwrap_or_default()
}

/// The instructions of the program with this id, as the verifier left them; empty when they may not be read.
pub(super) fn program_code(id: u32) -> io::Result<Vec<u8>> {
    let program = program_by_id(id)?;
    let mut info = ProgramInfo::default();
    program_info(program.as_fd(), &mut info)?;
    let mut code = vec![0; info.xlated_len as usize];
    let mut info = ProgramInfo {
        xlated_len: info.xlated_len,
        xlated: address(code.as_mut_ptr()),
        ..ProgramInfo::default()
    };
    program_info(program.as_fd(), &mut info)?;
    // The kernel takes the pointer out where it shows nothing.
    Ok(if info.xlated == 0 { Vec::new() } else { code })
}

/// The id of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = ProgramInfo::default();
    program_info(program, &mut info)?;
    Ok(info.id)
}

fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    // `start_id` is the first field; `next_id` and `open_flags` are zero.
    bpf(BPF_PROG_GET_FD_BY_ID, &mut InfoAttr { fd: id, ..InfoAttr::default() }).map(own)
}

fn program_info(program: BorrowedFd<'_>, info: &mut ProgramInfo) -> io::Result<()> {
    let len = u32::try_from(size_of::<ProgramInfo>()).map_err(io::Error::other)?;
    bpf(
        BPF_OBJ_GET_INFO_BY_FD,
        &mut InfoAttr { fd: raw(program), len, info: address(std::ptr::from_mut(info)) },
    )
    .map(drop)
}

/// Makes an array of programs to go on in.
pub(super) fn program_array(name: &str, entries: u32) -> io::Result<OwnedFd> {
    /// `BPF_MAP_TYPE_PROG_ARRAY`.
    const PROG_ARRAY: u32 = 3;
    let mut attr = MapCreateAttr { kind: PROG_ARRAY, key: 4, value: 4, entries, ..MapCreateAttr::default() };
    let name = name.as_bytes();
    attr.name[..name.len()].copy_from_slice(name);
    bpf(BPF_MAP_CREATE, &mut attr).map(own)
}

/// Writes a program into such an array.
pub(super) fn set_program(array: BorrowedFd<'_>, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let value = raw(program);
    let mut attr = MapElementAttr {
        map: raw(array),
        padding: 0,
        key: address(&raw const index),
        value: address(&raw const value),
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Loads a classifier from its instructions, under a name of at most 15 bytes.
pub(super) fn load_classifier(name: &str, code: &[[u8; 8]]) -> io::Result<OwnedFd> {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    const SCHED_CLS: u32 = 3;
    let mut attr = ProgramLoadAttr {
        kind: SCHED_CLS,
        count: u32::try_from(code.len()).map_err(io::Error::other)?,
        code: address(code.as_ptr()),
        license: address(c"Dual MIT/GPL".as_ptr()),
        ..ProgramLoadAttr::default()
    };
    let name = name.as_bytes();
    attr.name[..name.len()].copy_from_slice(name);
    bpf(BPF_PROG_LOAD, &mut attr).map(own)
}

/// Asks for a link's information.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::default();
    let len = u32::try_from(size_of::<RawLinkInfo>()).map_err(io::Error::other)?;
    let mut attr = InfoAttr { fd: raw(link), len, info: address(&raw mut info) };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let RawLinkInfo { kind, id, program, ifindex, attach_type, .. } = info;
    Ok(LinkInfo { kind, id, program, ifindex, hook: attach_type })
}

/// Puts a program on a hook of an interface of the calling thread's network namespace, before all others.
///
/// The link ends with its last descriptor and pin.
pub(super) fn tcx_attach_first(program: BorrowedFd<'_>, ifindex: u32, hook: TcxHook) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program: raw(program),
        ifindex,
        attach_type: hook as u32,
        flags: BPF_F_BEFORE,
        ..LinkCreateAttr::default()
    };
    bpf(BPF_LINK_CREATE, &mut attr).map(own)
}

/// Opens the root of a file system of this kind through a mount of its own that has no place in any mount namespace.
pub(super) fn unseen_mount(kind: &CStr) -> io::Result<File> {
    /// `FSCONFIG_CMD_CREATE` (`include/uapi/linux/mount.h`).
    const CREATE: libc::c_uint = 6;
    let checked = |result: libc::c_long| {
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        RawFd::try_from(result).map_err(io::Error::other)
    };
    // SAFETY: the string ends with a zero; the other arguments are numbers.
    let context = own(checked(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) })?);
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes no key and no value.
    checked(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, none, none, 0) })?;
    // SAFETY: plain numbers.
    let mount = own(checked(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) })?);
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the string ends with a zero.
    let root = unsafe { libc::openat(mount.as_raw_fd(), c".".as_ptr(), flags) };
    Ok(File::from(own(checked(libc::c_long::from(root))?)))
}

/// Puts a program that sees sockets on a cgroup, beside what others put there.
pub(super) fn cgroup_attach(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program: raw(program),
        ifindex: raw(cgroup),
        attach_type: BPF_CGROUP_SOCK_OPS,
        ..LinkCreateAttr::default()
    };
    bpf(BPF_LINK_CREATE, &mut attr).map(own)
}

/// Replaces the program behind a link, atomically. `ENOLINK`: the interface is gone.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link: raw(link), program: raw(program), ..LinkUpdateAttr::default() };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes the program off the hook at once; the end of the last descriptor or pin would do so a little later.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link: raw(link), ..LinkUpdateAttr::default() };
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

/// The programs on a TCX hook of an interface of the calling thread's network namespace, first to run first.
pub(super) fn tcx_query(ifindex: u32, hook: TcxHook) -> io::Result<Vec<Hooked>> {
    let mut programs = [0_u32; MPROG_MAX];
    let mut links = [0_u32; MPROG_MAX];
    let mut attr = QueryAttr {
        ifindex,
        attach_type: hook as u32,
        programs: address(programs.as_mut_ptr()),
        links: address(links.as_mut_ptr()),
        count: u32::try_from(MPROG_MAX).map_err(io::Error::other)?,
        ..QueryAttr::default()
    };
    match bpf(BPF_PROG_QUERY, &mut attr) {
        Ok(_) => {}
        // Nobody has ever put a program on this hook.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    let count = usize::try_from(attr.count).map_err(io::Error::other)?.min(MPROG_MAX);
    Ok(programs.iter().zip(&links).take(count).map(|(&program, &link)| Hooked { program, link }).collect())
}

/// The cookie of the calling thread's network namespace: never used twice while the kernel runs. Kernels before
/// 5.14 have none; the inode number of the namespace stands in for it there.
pub(super) fn netns_cookie() -> io::Result<u64> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: `cookie` and `len` are live and of the sizes that are told.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        return Ok(cookie);
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            Ok(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata("/proc/thread-self/ns/net")?))
        }
        e => Err(e),
    }
}
