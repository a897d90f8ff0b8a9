//! The kernel side of enforcer.
#![no_std]
#![no_main]

use aya_ebpf::{macros::classifier, programs::TcContext};

/// Towards the pod.
#[classifier]
pub fn to_pod(_ctx: TcContext) -> i32 {
    -1
}

/// From the pod.
#[classifier]
pub fn from_pod(_ctx: TcContext) -> i32 {
    -1
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
