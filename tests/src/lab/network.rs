//! The network of a lab: namespaces, veth pairs, addresses, routes. All of it static, so that nothing waits for ARP,
//! neighbour discovery or duplicate address detection.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::finish;
use super::{Pod, inside};
use crate::poll;

/// How the pods are connected in the node's namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Topology {
    /// Point to point, as Calico and the AWS plug-in do: a route per pod, a /32 and /128 in each pod.
    #[default]
    Routed,
    /// All on one bridge, as the reference plug-in `bridge` does.
    Bridge,
}

/// The node's own IPv4 address.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The node's own IPv6 address.
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);

/// The MAC of every host-side interface in the routed topology, as Calico has it.
const HOST_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// The namespaces and the node's own interface.
pub(super) fn build_node(namespace: &str, topology: Topology) -> Result<()> {
    add_namespace(namespace)?;
    inside(namespace, || {
        sysctl("net/ipv4/ip_forward", "1")?;
        sysctl("net/ipv6/conf/all/forwarding", "1")?;
        // What a node has; resets that the enforcer sends in a pod's name must come through it.
        sysctl("net/ipv4/conf/all/rp_filter", "1")
    })??;
    let addresses = match topology {
        // The loopback holds the node's addresses: kernels without the dummy driver exist.
        Topology::Routed => {
            format!("address add {NODE_V4}/32 dev lo\naddress add {NODE_V6}/128 dev lo nodad\n")
        }
        Topology::Bridge => format!(
            "link add node0 type bridge mcast_snooping 0\n\
             link set node0 up\n\
             address add {NODE_V4}/24 dev node0\n\
             address add {NODE_V6}/64 dev node0 nodad\n"
        ),
    };
    batch(namespace, &format!("link set lo up\n{addresses}"))
}

/// One pod with its veth pair; `node` is the node's namespace, `namespace` the pod's.
pub(super) fn add_pod(node: &str, namespace: &str, pod: &Pod, topology: Topology) -> Result<()> {
    add_namespace(namespace)?;
    let (host, mac, v4, v6) = (pod.interface(), pod.mac(), pod.v4(), pod.v6());
    let mut node_side = format!("link add {host} type veth peer name eth0 address {mac} netns {namespace}\n");
    let mut pod_side = String::from("link set lo up\nlink set eth0 up\n");
    match topology {
        Topology::Routed => {
            let _ = write!(
                node_side,
                "link set {host} address {HOST_MAC} up\n\
                 neighbour add {v4} lladdr {mac} dev {host} nud permanent\n\
                 neighbour add {v6} lladdr {mac} dev {host} nud permanent\n\
                 route add {v4}/32 dev {host}\n\
                 route add {v6}/128 dev {host}\n"
            );
            let _ = write!(
                pod_side,
                "address add {v4}/32 dev eth0\n\
                 address add {v6}/128 dev eth0 nodad\n\
                 neighbour add 169.254.1.1 lladdr {HOST_MAC} dev eth0 nud permanent\n\
                 neighbour add fe80::1 lladdr {HOST_MAC} dev eth0 nud permanent\n\
                 route add 169.254.1.1 dev eth0 scope link\n\
                 route add default via 169.254.1.1 dev eth0\n\
                 route add default via fe80::1 dev eth0 onlink\n"
            );
        }
        Topology::Bridge => {
            let _ = writeln!(node_side, "link set {host} master node0 up");
            let _ = write!(
                pod_side,
                "address add {v4}/24 dev eth0\n\
                 address add {v6}/64 dev eth0 nodad\n\
                 route add default via {NODE_V4} dev eth0\n\
                 route add default via {NODE_V6} dev eth0\n"
            );
        }
    }
    batch(node, &node_side)?;
    batch(namespace, &pod_side)?;
    for address in [IpAddr::from(NODE_V4), NODE_V6.into()] {
        reachable(namespace, address)?;
    }
    Ok(())
}

/// Waits until the node answers: a refused connection is an answer.
fn reachable(namespace: &str, address: IpAddr) -> Result<()> {
    inside(namespace, || {
        poll::until(&format!("a way from {namespace} to {address}"), Duration::from_secs(5), || {
            match TcpStream::connect_timeout(&SocketAddr::new(address, 1), Duration::from_millis(200)) {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
                Err(error) => Err(error.into()),
                Ok(_) => bail!("somebody listens on port 1"),
            }
        })
    })?
}

/// `/etc/netns/<namespace>/hosts`, which `ip netns exec` puts over `/etc/hosts`.
pub(super) fn write_hosts(namespace: &str, pods: &[Pod]) -> Result<()> {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for pod in pods {
        for address in pod.addresses() {
            let _ = writeln!(text, "{address} {}", pod.host());
        }
    }
    let dir = Path::new("/etc/netns").join(namespace);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::write(dir.join("hosts"), text).with_context(|| format!("cannot write hosts of {namespace}"))?;
    // No name is asked of the machine's own resolver.
    fs::write(dir.join("resolv.conf"), "").with_context(|| format!("cannot write resolv.conf of {namespace}"))
}

fn add_namespace(namespace: &str) -> Result<()> {
    super::process::run("ip", ["netns", "add", namespace])?.success()?;
    inside(namespace, || {
        for setting in ["accept_dad", "accept_ra", "router_solicitations"] {
            sysctl(&format!("net/ipv6/conf/default/{setting}"), "0")?;
        }
        Ok(())
    })?
}

/// Commands of `ip` in a namespace.
pub(super) fn batch(namespace: &str, commands: &str) -> Result<()> {
    let mut command = std::process::Command::new("ip");
    command.args(["-n", namespace, "-batch", "-"]);
    // `ip` takes the family of a route from its address only without a -4 or -6 in front.
    finish(command, Some(commands))?.success().with_context(|| commands.to_owned())?;
    Ok(())
}

/// Sets a kernel parameter of the network namespace that the calling thread is in.
fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).with_context(|| format!("cannot set {} to {value}", path.display()))
}
