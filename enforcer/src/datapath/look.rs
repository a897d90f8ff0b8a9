//! What is on the hooks of a pod's interface at this moment, whatever the agent saw last.

use super::attach::Way;
use super::chain::{self, Neighbour, OnHook};
use super::interface;
use super::load::PinnedProgram;
use super::netns::Namespaces;
use super::pin::Pins;
use super::pod_side::PodDevice;
use crate::agent::state::InterfaceState;

/// One look at an interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Look {
    /// The interface's name.
    pub interface: String,
    /// Every program on its hooks, in their order.
    pub programs: Vec<OnHook>,
    /// Those of others; `None` where that cannot be seen from here.
    pub neighbours: Option<Vec<Neighbour>>,
    /// Our programs are on both of its hooks; `None` where that cannot be seen from here.
    pub hooked: Option<bool>,
}

/// Looks at every interface, or at the pod's own device behind it where that is hooked.
#[must_use]
pub fn all(interfaces: &[InterfaceState], pins: &Pins, ours: &[PinnedProgram]) -> Vec<Look> {
    let inside = interfaces.iter().any(|state| state.device.is_some());
    let namespaces = if inside { Namespaces::scan().ok() } else { None };
    let look = |state: &InterfaceState| match &state.device {
        None => look(state.index, &state.name, ours),
        Some(device) => look_inside(state, device, pins, namespaces.as_ref()),
    };
    interfaces.iter().map(look).collect()
}

/// The pinned links say what is on the pod's device, wherever that is; who is beside it needs a look into the pod.
fn look_inside(
    state: &InterfaceState,
    device: &PodDevice,
    pins: &Pins,
    namespaces: Option<&Namespaces>,
) -> Look {
    let own = device.programs(pins).ok().flatten();
    let here = interface::by_index(state.index).ok().filter(|here| here.name == state.name);
    let chain = here.zip(namespaces).and_then(|(here, namespaces)| device.chain(namespaces, &here).ok());
    Look {
        interface: device.place(&state.name),
        hooked: Some(own.is_some()),
        neighbours: chain.as_ref().zip(own).map(|(chain, own)| chain::neighbours(chain, own)),
        programs: chain.unwrap_or_default(),
    }
}

/// Looks at an interface, unless this is another network namespace than the agent's. `ours` are the pinned programs.
#[must_use]
pub fn look(ifindex: u32, name: &str, ours: &[PinnedProgram]) -> Look {
    let mut look = Look { interface: name.to_owned(), ..Look::default() };
    let here = interface::by_index(ifindex).is_ok_and(|here| here.name == name);
    let Some(chain) = here.then(|| chain::chain(ifindex).ok()).flatten() else { return look };
    let id = |way: Way| ours.iter().find(|program| program.name == way.program()).map(|program| program.id);
    if let Some((to_pod, from_pod)) = id(Way::ToPod).zip(id(Way::FromPod)) {
        let own = [to_pod, from_pod];
        look.neighbours = Some(chain::neighbours(&chain, own));
        look.hooked = Some(chain::is_hooked(&chain, own));
    }
    look.programs = chain;
    look
}

impl Look {
    /// What a person should do something about, one sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        match self.hooked {
            Some(false) => vec![format!(
                "interface {} has lost our programs: its pod is not enforced; restart the agent",
                self.interface
            )],
            Some(true) => {
                let others = self.neighbours.iter().flatten();
                others.filter_map(|other| other.warning(&self.interface)).collect()
            }
            None => Vec::new(),
        }
    }
}
