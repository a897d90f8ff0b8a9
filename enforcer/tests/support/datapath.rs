//! A network namespace with a veth for each test, on a thread of its own.

use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// What a test gets: it runs in a fresh network namespace where `host0` is a veth whose peer `eth0` lives in the
/// namespace `pod`.
pub(crate) struct Lab {
    /// A pin folder of its own.
    pub bpffs: PathBuf,
    /// Name of the pod's namespace.
    pub pod: String,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = enforcer::datapath::detach::detach(&self.bpffs, true);
        for part in ["own", "other"] {
            let _ = enforcer::datapath::detach::detach(&self.bpffs.join(part), true);
        }
        let _ = std::fs::remove_dir(&self.bpffs);
        shell(&format!("ip netns del {} 2>/dev/null || true", self.pod));
    }
}

/// Runs a command line and gives its output; it must succeed.
fn run(script: &str) -> (bool, String) {
    let output = Command::new("sh").args(["-c", script]).output().expect("sh runs");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Runs a command line in the test's namespace and gives its output.
pub(crate) fn shell(script: &str) -> String {
    run(script).1
}

/// Runs the test in its own namespace.
pub(crate) fn in_namespace(name: &str, test: impl FnOnce(&Lab) + Send + 'static) {
    let pod = format!("{name}-{}", std::process::id());
    let bpffs = PathBuf::from(format!("/sys/fs/bpf/enforcer-test-{pod}"));
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        let lab = Lab { bpffs, pod };
        let (done, output) = run(&format!(
            "set -e; ip link set lo up; ip netns add {0}; ip link add host0 type veth peer name eth0 netns {0}; \
             ip link set host0 up; ip -n {0} link set lo up; ip -n {0} link set eth0 up; \
             ip addr add 10.77.0.1/24 dev host0; ip -n {0} addr add 10.77.0.2/24 dev eth0",
            lab.pod
        ));
        assert!(done, "{output}");
        test(&lab);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
