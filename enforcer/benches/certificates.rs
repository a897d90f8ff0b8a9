//! Processor time of full rounds of certificate checks: 250 endpoints with 3 ports each, every one of them a stunnel that
//! insists on a certificate of the mesh, checked by the agent's own checker with its default bounds but the pause between
//! starts and the interval, its file written as the agent writes it. The first round asks by every name of the Service, each
//! later one by one of them; a later one is what counts. Run with `cargo bench -p enforcer --bench certificates`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use enforcer::certificate::bundle::TrustBundle;
use enforcer::certificate::checker::{Checker, CheckerConfig};
use enforcer::certificate::client;
use enforcer::certificate::report::CertificateReport;
use enforcer::certificate::schedule::ScheduleSettings;
use enforcer::certificate::spiffe::TrustDomains;
use enforcer::certificate::state::State;
use enforcer::certificate::target::{Target, istio_server_name, service_names};
use enforcer::object::ObjectName;

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/certs_servers/support.rs"]
mod support;

const ENDPOINTS: u16 = 250;
const PORTS: usize = 3;
/// The goal: this part of one core over the default interval.
const PERCENT: f64 = 1.0;

/// Processor time of this process so far.
fn processor_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("usage");
    let seconds = |time: nix::sys::time::TimeVal| {
        let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
        Duration::from_micros(u64::try_from(micros).expect("positive"))
    };
    seconds(usage.user_time()) + seconds(usage.system_time())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mesh = support::Mesh::new();
    mesh.issue("server", |_| {});
    // A listener on every address of loopback stands for all endpoints.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let application = listener.local_addr().expect("an address");
    // It keeps its connections, as long as they last, and says nothing.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut std::io::sink()));
        }
    });
    let servers: Vec<_> =
        (0..PORTS).map(|_| support::stunnel_anywhere(&mesh, application, "verifyChain = yes")).collect();
    let settings = ScheduleSettings::default();
    let interval = settings.interval;
    let file = mesh.path("certificates.json");
    let config = CheckerConfig {
        schedule: ScheduleSettings { spacing: Duration::from_millis(1), ..settings },
        file: Some(file.clone()),
        ..CheckerConfig::default()
    };
    let targets: Vec<Target> = (0..ENDPOINTS)
        .flat_map(|number| servers.iter().map(move |server| (number, server.address.port())))
        .map(|(number, port)| Target {
            pod: ObjectName::new("shop", format!("web-{number}")),
            address: IpAddr::from(Ipv4Addr::from_bits(0x7f01_0001 + u32::from(number))),
            port,
            expected: TrustDomains::default().expected("shop", "web").expect("an identity"),
            uid: format!("uid-{number}"),
            server_name: istio_server_name(port, "web", "shop", "cluster.local"),
            names: service_names("web", "shop", "cluster.local"),
            tunnel: false,
        })
        .collect();
    let checks = targets.len();

    let checker = Checker::spawn(config).expect("it starts");
    let client = || {
        let loaded = client::load(&mesh.path("client.pem"), &mesh.path("client.key"));
        loaded.map_err(|error| error.to_string())
    };
    let bundle = TrustBundle::from_file(&mesh.path("root.pem"));
    checker.set_targets(targets);
    checker.set_bundle(bundle);
    for round in ["the first", "a later"] {
        let (before, start, begun) = (processor_time(), Instant::now(), jiff::Timestamp::now());
        // A renewed certificate has everything checked.
        checker.set_mesh_client(client());
        let report = all_checked(&checker, checks, begun).await;
        // Until the file has it too.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let (took, used) = (start.elapsed(), processor_time().saturating_sub(before));
        let kept = CertificateReport::read(&file).expect("the file");
        for report in [report, kept] {
            assert!(
                report.entries.iter().all(|entry| entry.history.state == State::Verified),
                "all are verified"
            );
        }
        let percent = used.as_secs_f64() / interval.as_secs_f64() * 100.0;
        println!(
            "{round} round: {checks} checks: {:.2} s of processor time in {:.1} s, {:.2} ms a check; over {} s: {percent:.2} % of one core",
            used.as_secs_f64(),
            took.as_secs_f64(),
            used.as_secs_f64() * 1000.0 / f64::from(u32::try_from(checks).expect("small")),
            interval.as_secs()
        );
        // The goal is for optimised code.
        assert!(cfg!(debug_assertions) || round == "the first" || percent < PERCENT, "beyond the goal");
    }
}

/// Waits until each was checked since then.
async fn all_checked(checker: &Checker, checks: usize, since: jiff::Timestamp) -> CertificateReport {
    let mut reports = checker.subscribe();
    let done = reports.wait_for(|report| {
        let known =
            report.entries.iter().filter(|entry| entry.checked.is_some_and(|checked| checked > since));
        report.entries.len() == checks && known.count() == checks
    });
    done.await.expect("the checker runs").clone()
}
