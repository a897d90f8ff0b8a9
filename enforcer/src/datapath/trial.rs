//! What this kernel takes, found out by trying; leaves nothing behind.

use std::io;

use aya::EbpfLoader;
use aya::programs::SchedClassifier;

use super::attach::Way;
use super::load::{OBJECT, OpenError};
use super::sys::{self, TcxHook};

/// Loads the programs of this build past the verifier, against maps of their own with one entry each (the ring buffer
/// with one page), and lets go of them.
///
/// # Errors
/// What the kernel refuses; `EPERM` without the capabilities.
pub fn load() -> Result<(), OpenError> {
    let object = aya_obj::Object::parse(OBJECT)?;
    let mut loader = EbpfLoader::new();
    let large = |map: &aya_obj::Map| map.data().is_empty() && map.max_entries() > 1;
    for (name, map) in object.maps.iter().filter(|(_, map)| large(map)) {
        let ring = map.map_type() == aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
        loader.map_max_entries(name, if ring { 4096 } else { 1 });
    }
    let mut ebpf = loader.load(OBJECT)?;
    for way in Way::BOTH {
        let name = way.program();
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(OpenError::NoProgram(name))?;
        program.load().map_err(|error| super::load::refused(name, &error))?;
    }
    Ok(())
}

/// Asks for the programs on the TCX hooks of the loopback interface, which every network namespace has.
///
/// # Errors
/// `EINVAL` from a kernel without TCX (before 6.6); `EPERM` without `CAP_NET_ADMIN`.
pub fn tcx() -> io::Result<()> {
    const LOOPBACK: u32 = 1;
    sys::tcx_query(LOOPBACK, TcxHook::Ingress).map(drop)
}
