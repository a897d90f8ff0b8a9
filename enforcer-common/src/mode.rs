//! The mode of a workload or port, as Istio's `PeerAuthentication` names it.

use core::fmt;

/// What inbound connections must be. The names are the ones of `PeerAuthentication`, and `bpftool` prints them.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
pub enum Mode {
    /// Plaintext and TLS are served; TLS is not asked for.
    DISABLE = 1,
    /// Plaintext and mutual TLS are served.
    PERMISSIVE = 2,
    /// Only mutual TLS is served.
    STRICT = 3,
}

impl Mode {
    /// The mode's name as it stands in a policy document.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DISABLE => "DISABLE",
            Self::PERMISSIVE => "PERMISSIVE",
            Self::STRICT => "STRICT",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
