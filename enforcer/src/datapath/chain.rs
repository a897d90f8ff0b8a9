//! Everything that runs on the hooks of an interface, in its order: TCX programs first, then the filters of clsact. A
//! packet that one before ours redirects, drops or lets pass for good never comes to ours.

use std::fmt;
use std::io;

use super::attach::{Hook, Side, Way};
use super::netlink::Netlink;
use super::{clsact, redirects, sys, tcx};

/// Something that runs on a hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnHook {
    /// The direction of the hook.
    pub way: Way,
    /// `Tcx` or `Clsact`.
    pub hook: Hook,
    /// Id of the program; `None` for a filter that is no program.
    pub program: Option<u32>,
    /// Name of the program or filter; the filter's kind where it has none; empty when it cannot be read.
    pub name: String,
}

impl fmt::Display for OnHook {
    /// `police (program 12, tcx)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Clsact => "clsact",
            Hook::Auto | Hook::Tcx => "tcx",
        };
        match self.program {
            Some(id) => write!(f, "{} (program {id}, {hook})", self.name),
            None => write!(f, "{} ({hook})", self.name),
        }
    }
}

impl OnHook {
    /// It has the name of one of our programs; another agent's has it too.
    #[must_use]
    pub fn is_enforcer(&self) -> bool {
        self.name == self.way.program() || self.name == clsact::filter_name(self.way)
    }
}

/// Something of somebody else on a hook of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Which of our directions it shares.
    pub way: Way,
    /// True when it runs before ours.
    pub before: bool,
    /// What it is.
    pub on_hook: OnHook,
    /// Whether it can redirect packets, where its code says so; `None`: it cannot be told.
    pub redirects: Option<bool>,
}

/// What runs on both hooks of the host side of a pod's interface, in the calling thread's namespace, first to run first. A kernel
/// without TCX has filters only.
///
/// # Errors
/// When the interface is gone.
pub fn chain(ifindex: u32) -> io::Result<Vec<OnHook>> {
    chain_at(ifindex, Side::Host)
}

/// The same where the interface is this end of a pod's pair.
///
/// # Errors
/// When the interface is gone.
pub fn chain_at(ifindex: u32, side: Side) -> io::Result<Vec<OnHook>> {
    let mut netlink = Netlink::route()?;
    let mut all = Vec::new();
    for way in Way::BOTH {
        match sys::tcx_query(ifindex, tcx::hook(way, side)) {
            Ok(found) => all.extend(found.iter().map(|h| OnHook {
                way,
                hook: Hook::Tcx,
                program: Some(h.program),
                name: sys::program_name(h.program),
            })),
            Err(e) if tcx::is_unsupported(&e) => {}
            Err(e) => return Err(e),
        }
        let filters = clsact::filters(&mut netlink, ifindex, way, side)?;
        all.extend(filters.into_iter().map(|filter| OnHook {
            way,
            hook: Hook::Clsact,
            program: filter.program,
            name: filter.name,
        }));
    }
    Ok(all)
}

/// The others around our own programs, which are told by their ids: (towards the pod, from the pod). Where ours is not
/// on the hook, everybody counts as before it.
#[must_use]
pub fn neighbours(chain: &[OnHook], own: [u32; 2]) -> Vec<Neighbour> {
    let mut all = Vec::new();
    for (way, own) in Way::BOTH.into_iter().zip(own) {
        let mut before = true;
        for other in chain.iter().filter(|other| other.way == way) {
            if other.program == Some(own) {
                before = false;
                continue;
            }
            let redirects = if before { other.program.and_then(redirects::redirects) } else { None };
            all.push(Neighbour { way, before, on_hook: other.clone(), redirects });
        }
    }
    all
}

/// True when our programs, told by their ids, are on both hooks.
#[must_use]
pub fn is_hooked(chain: &[OnHook], own: [u32; 2]) -> bool {
    Way::BOTH
        .into_iter()
        .zip(own)
        .all(|(way, own)| chain.iter().any(|on_hook| on_hook.way == way && on_hook.program == Some(own)))
}

impl Neighbour {
    /// What it is, for a list: `police (program 12, tcx) before to_pod`.
    #[must_use]
    pub fn describe(&self) -> String {
        let place = if self.before { "before" } else { "behind" };
        let redirects = if self.before && self.redirects == Some(true) { ", redirects" } else { "" };
        format!("{} {place} {}{redirects}", self.on_hook, self.way.program())
    }

    /// What an operator should know of it, in one sentence; `None` for one that runs behind ours.
    #[must_use]
    pub fn warning(&self, interface: &str) -> Option<String> {
        let (title, own) = (&self.on_hook, self.way.program());
        if self.on_hook.is_enforcer() {
            return Some(format!(
                "a second program {own} is on {interface}, {title}: another enforcer with its own --bpffs folder is at work there"
            ));
        }
        if !self.before {
            return None;
        }
        let effect = match self.redirects {
            Some(true) => "it redirects, and connections that it redirects are not held to any policy",
            Some(false) => "packets that it lets pass for good are not held to any policy",
            None => "packets that it redirects or lets pass for good are not held to any policy",
        };
        Some(format!(
            "{title} runs before {own} on {interface}: {effect}; attach it behind, or make it answer NEXT (-1)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(way: Way, hook: Hook, program: Option<u32>, name: &str) -> OnHook {
        OnHook { way, hook, program, name: name.into() }
    }

    #[test]
    fn order_tells_before_from_behind_in_each_direction() {
        let chain = [
            on(Way::ToPod, Hook::Tcx, Some(u32::MAX), "early"),
            on(Way::ToPod, Hook::Tcx, Some(1), "to_pod"),
            on(Way::ToPod, Hook::Clsact, None, "flower"),
            on(Way::FromPod, Hook::Tcx, Some(2), "from_pod"),
        ];
        let found = neighbours(&chain, [1, 2]);
        let told: Vec<_> = found.iter().map(|n| (n.on_hook.name.as_str(), n.before)).collect();
        assert_eq!(told, [("early", true), ("flower", false)]);
        assert!(is_hooked(&chain, [1, 2]) && !is_hooked(&chain, [2, 1]));
        assert!(found[0].warning("veth1").expect("a warning").contains("early (program 4294967295, tcx)"));
        assert_eq!(found[1].warning("veth1"), None);
        assert_eq!(found[1].describe(), "flower (clsact) behind to_pod");
    }

    #[test]
    fn without_ours_everybody_is_before_it() {
        let chain = [on(Way::ToPod, Hook::Clsact, Some(7), "other")];
        assert!(neighbours(&chain, [1, 2]).iter().all(|n| n.before));
        assert!(!is_hooked(&chain, [1, 2]));
    }
}
