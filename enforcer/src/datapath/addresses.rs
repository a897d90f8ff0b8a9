//! Following the node's own addresses.

use std::io;

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::netlink::Netlink;

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x10 | 0x100;

/// Tells when addresses of the network namespace in which it was opened come or go.
#[derive(Debug)]
pub struct AddressWatch(AsyncFd<Netlink>);

impl AddressWatch {
    /// Subscribes; list the addresses after that, so that nothing falls between the two.
    ///
    /// # Errors
    /// When netlink fails.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let socket = Netlink::subscribe(GROUPS)?;
        // SAFETY: the `Netlink` inside keeps one descriptor, its own, for as long as it lives.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }

    /// Waits until something changed since the last call. Safe to cancel.
    ///
    /// # Errors
    /// When netlink fails for good.
    pub async fn changed(&self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        let mut some = false;
        loop {
            match guard.try_io(|socket| socket.get_ref().receive()) {
                Ok(Ok(_)) => some = true,
                // Which ones is not asked for: they are listed anew.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => some = true,
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) if some => return Ok(()),
                Err(_would_block) => guard = self.0.readable().await?,
            }
        }
    }
}
