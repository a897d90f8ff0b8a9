//! The packet at hand: direct access to its linear part, and the few helpers that the programs use.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::size_of;

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_skb_cgroup_id,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use enforcer_common::map::POD_STAMP_WORD;

/// Let the packet on to the next program on the hook (`TCX_NEXT`; `TC_ACT_UNSPEC` to clsact).
pub const NEXT: i32 = -1;
/// Drop the packet (`TC_ACT_SHOT`).
pub const DROP: i32 = 2;

/// Keep the sum of the whole packet right that some cards deliver.
const RECOMPUTE_CSUM: u64 = 1;
const INGRESS: u64 = 1;

/// Masks a value where the verifier sees it. The compiler knows its range and would leave a plain mask out.
#[inline(always)]
pub fn bounded<const MASK: u32>(value: u32) -> u32 {
    let mut value = u64::from(value);
    // SAFETY: one instruction on one register.
    unsafe {
        asm!("{value} &= {mask}", value = inout(reg) value, mask = const MASK, options(pure, nomem, nostack))
    };
    value as u32
}

/// A packet. Offsets count from its Ethernet header.
pub struct Skb {
    raw: *mut __sk_buff,
}

impl Skb {
    /// The packet of a TC program.
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { raw: ctx.skb.skb }
    }

    /// The context that the log macros want.
    #[inline(always)]
    pub fn context(&self) -> TcContext {
        TcContext::new(self.raw)
    }

    /// Length of the whole packet, paged part included.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        unsafe { (*self.raw).len }
    }

    /// Index of the interface.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).ifindex }
    }

    /// The number of the pod's namespace that the entry program of the pod's device left.
    #[inline(always)]
    pub fn stamp(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).cb[POD_STAMP_WORD] }
    }

    /// The packet's mark.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).mark }
    }

    /// The socket that sent the packet, where the packet still carries it; may be null.
    #[inline(always)]
    pub fn socket(&self) -> *mut bpf_sock {
        // SAFETY: as above.
        unsafe { (*self.raw).__bindgen_anon_2.sk }
    }

    /// Id of the cgroup (v2) of the socket that sent the packet; 0 where it carries none.
    #[inline(always)]
    pub fn cgroup(&self) -> u64 {
        // SAFETY: the helper checks its arguments.
        unsafe { bpf_skb_cgroup_id(self.raw) }
    }

    /// Whether the packet is a batch of segments that the stack has not split yet.
    #[inline(always)]
    pub fn is_gso(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw).gso_size != 0 }
    }

    /// Length of the linear part, which can be read directly.
    #[inline(always)]
    pub fn linear_len(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).data_end.wrapping_sub((*self.raw).data) }
    }

    /// Reads a value from the linear part, at an offset below 2048.
    #[inline(always)]
    pub fn read<T: Copy>(&self, offset: u32) -> Option<T> {
        let offset = bounded::<0x7ff>(offset);
        // SAFETY: the verifier holds every access against `data_end`; packet data has no alignment, hence `unaligned`.
        unsafe {
            let start = (*self.raw).data as usize + offset as usize;
            if start + size_of::<T>() > (*self.raw).data_end as usize {
                return None;
            }
            Some((start as *const T).read_unaligned())
        }
    }

    /// Makes the first `len` bytes linear.
    #[inline(always)]
    pub fn pull(&self, len: u32) -> bool {
        // SAFETY: the helper checks its arguments.
        unsafe { bpf_skb_pull_data(self.raw, len) == 0 }
    }

    /// Copies `count` bytes (1 to the size of `to`) wherever they lie.
    #[inline(always)]
    pub fn load(&self, offset: u32, to: *mut u8, count: u32) -> bool {
        // SAFETY: the verifier holds `count` against the buffer's size.
        unsafe { bpf_skb_load_bytes(self.raw.cast::<c_void>(), offset, to.cast::<c_void>(), count) == 0 }
    }

    /// Overwrites bytes.
    #[inline(always)]
    pub fn store<T>(&self, offset: u32, value: &T) -> bool {
        let from = (&raw const *value).cast::<c_void>();
        // SAFETY: `from` is readable for the size of `T`.
        unsafe { bpf_skb_store_bytes(self.raw, offset, from, size_of::<T>() as u32, RECOMPUTE_CSUM) == 0 }
    }

    /// Cuts the packet to `len` bytes; a batch of segments becomes one packet.
    #[inline(always)]
    pub fn truncate(&self, len: u32) -> bool {
        // SAFETY: the helper checks its arguments.
        unsafe { bpf_skb_change_tail(self.raw, len, 0) == 0 }
    }

    /// Updates the IPv4 header checksum at `offset` for a two-byte field that changes from `old` to `new`.
    #[inline(always)]
    pub fn replace_l3_csum(&self, offset: u32, old: u16, new: u16) -> bool {
        // SAFETY: the helper checks its arguments.
        unsafe { bpf_l3_csum_replace(self.raw, offset, u64::from(old), u64::from(new), 2) == 0 }
    }

    /// Adds `difference` to the TCP checksum at `offset`, unless that holds only the pseudo-header's sum.
    #[inline(always)]
    pub fn replace_l4_csum(&self, offset: u32, difference: u16) -> bool {
        // SAFETY: the helper checks its arguments.
        unsafe { bpf_l4_csum_replace(self.raw, offset, 0, u64::from(difference), 2) == 0 }
    }

    /// Sends a copy out of this packet's interface.
    #[inline(always)]
    pub fn clone_to_egress(&self) -> bool {
        // SAFETY: the helper checks its arguments.
        unsafe { bpf_clone_redirect(self.raw, self.ifindex(), 0) == 0 }
    }

    /// Turns the packet round: it enters by the interface it was about to leave by. The result is the program's.
    #[inline(always)]
    pub fn redirect_to_ingress(&self) -> i32 {
        // SAFETY: the helper checks its arguments.
        unsafe { bpf_redirect(self.ifindex(), INGRESS) as i32 }
    }
}
