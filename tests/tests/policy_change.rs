//! Policy is the truth of this moment, for live connections too.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT, policy};
use enforcer_tests::client::{self, Outcome, tls};
use enforcer_tests::record::End;
use enforcer_tests::{Lab, Scene};

const HOST: &str = "frontend.hipstershopv1v2";
const APP: &str = "frontend.hipstershopv1v2.svc.cluster.local";
const LIMIT: Duration = Duration::from_secs(5);

/// What curl says to the client outside the mesh: (code, exit).
fn plain(lab: &Lab, url: &str) -> Result<(String, i32)> {
    let output = lab.curl("sleep", &[url])?;
    Ok((output.stdout, output.code))
}

fn served() -> (String, i32) {
    ("200\n".to_owned(), 0)
}

fn reset() -> (String, i32) {
    ("000\n".to_owned(), 56)
}

#[test]
fn the_walk_through() -> Result<()> {
    let scene = Scene::new(&[])?;
    let lab = &scene.lab;
    let (frontend, adservice) =
        ("http://frontend.hipstershopv1v2:8080", "http://adservice.hipstershopv1v2:9555");
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = lab.sidecar("adservice", 9555)?;
    let mesh_is_served = || -> Result<()> {
        for url in [frontend, adservice] {
            let output = lab.mesh_curl("loadgenerator", &[&url.replace("http:", "https:")])?;
            assert_eq!((output.stdout.as_str(), output.code), ("200\n", 0), "{output:?}");
        }
        Ok(())
    };
    assert_eq!((plain(lab, frontend)?, plain(lab, adservice)?), (served(), served()));
    mesh_is_served()?;

    lab.apply("mesh.yaml", MESH_STRICT)?;
    lab.wait_mode("adservice", Mode::STRICT)?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    assert_eq!((plain(lab, frontend)?, plain(lab, adservice)?), (reset(), reset()));
    mesh_is_served()?;

    lab.apply("frontend.yaml", FRONTEND_PERMISSIVE)?;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    assert_eq!((plain(lab, frontend)?, plain(lab, adservice)?), (served(), reset()));
    mesh_is_served()?;

    lab.withdraw("frontend.yaml")?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    assert_eq!((plain(lab, frontend)?, plain(lab, adservice)?), (reset(), reset()));

    lab.withdraw("mesh.yaml")?;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    lab.wait_mode("adservice", Mode::PERMISSIVE)?;
    assert_eq!((plain(lab, frontend)?, plain(lab, adservice)?), (served(), served()));
    Ok(())
}

#[test]
fn a_change_is_in_force_within_a_second() -> Result<()> {
    let scene = Scene::new(&[])?;
    let lab = &scene.lab;
    let mut times = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        lab.apply("mesh.yaml", MESH_STRICT)?;
        lab.wait_mode("frontend", Mode::STRICT)?;
        times.push(start.elapsed());
        let start = Instant::now();
        lab.withdraw("mesh.yaml")?;
        lab.wait_mode("frontend", Mode::PERMISSIVE)?;
        times.push(start.elapsed());
    }
    assert!(times.iter().all(|time| *time < Duration::from_secs(1)), "{times:?}");
    Ok(())
}

#[test]
fn open_connections_when_permissive_becomes_strict() -> Result<()> {
    let scene = Scene::new(&[("frontend.yaml", FRONTEND_PERMISSIVE)])?;
    let lab = &scene.lab;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let (_server, records) = lab.sidecar("frontend", 8080)?;
    let config = tls::config(lab, "loadgenerator", tls::Shape::default())?;
    let mut open = Vec::new();
    for v6 in [false, true] {
        let to = lab.address("frontend", 8080, v6);
        let mut plaintext = lab.connect("sleep", to)?;
        plaintext.set_read_timeout(Some(LIMIT))?;
        tls::get(&mut plaintext, HOST)?;
        let stream = lab.connect("loadgenerator", to)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut secure = tls::start(stream, config.clone(), HOST, tls::Shape::default())?;
        tls::get(&mut secure, HOST)?;
        open.push((plaintext, secure));
    }

    lab.apply("frontend.yaml", &policy("hipstershopv1v2", "frontend", Some(APP), "STRICT", &[]))?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    for (mut plaintext, mut secure) in open {
        let start = Instant::now();
        plaintext.write_all(b"G")?;
        let ending = client::read_to_end(&plaintext, LIMIT)?;
        assert_eq!(ending.outcome, Outcome::Reset, "{ending:?}");
        assert!(start.elapsed() < Duration::from_millis(200), "the reset took {:?}", start.elapsed());
        let record = records.of_peer(plaintext.local_addr()?)?;
        assert_eq!((record.class.as_str(), record.end), ("plaintext", End::Reset), "{record:?}");
        tls::get(&mut secure, HOST)?;
        tls::get(&mut secure, HOST)?;
    }
    assert_eq!(lab.count(Verdict::RESET, Reason::POLICY_CHANGED)?.connections, 2);
    Ok(())
}

#[test]
fn a_port_has_its_own_mode() -> Result<()> {
    let ports = policy("hipstershopv1v2", "frontend", Some(APP), "STRICT", &[(8080, "PERMISSIVE")]);
    let scene = Scene::new(&[("mesh.yaml", MESH_STRICT), ("frontend.yaml", &ports)])?;
    let lab = &scene.lab;
    lab.wait_port_mode("frontend", 8080, Mode::PERMISSIVE)?;
    let (_one, _) = lab.sidecar("frontend", 8080)?;
    let (_other, _) = lab.sidecar("frontend", 8081)?;
    for family in ["-4", "-6"] {
        let one = lab.curl("sleep", &[family, "http://frontend.hipstershopv1v2:8080"])?;
        assert_eq!((one.stdout, one.code), served());
        let other = lab.curl("sleep", &[family, "http://frontend.hipstershopv1v2:8081"])?;
        assert_eq!((other.stdout, other.code), reset());
    }
    Ok(())
}

/// While the file flips between two policies, a reader of it must never meet neither: plaintext to a port that is STRICT
/// under both is reset every time.
#[test]
fn no_connection_meets_half_of_a_policy() -> Result<()> {
    let one = policy("hipstershopv1v2", "frontend", Some(APP), "STRICT", &[(9000, "PERMISSIVE")]);
    let other = policy("hipstershopv1v2", "frontend", Some(APP), "PERMISSIVE", &[(8080, "STRICT")]);
    let scene = Scene::new(&[("frontend.yaml", &one)])?;
    let lab = &scene.lab;
    lab.wait_port_mode("frontend", 9000, Mode::PERMISSIVE)?;
    let (_server, records) = lab.raw_server("frontend", 8080, &[])?;
    let end = Instant::now() + Duration::from_secs(3);
    let mut flips = 0;
    while Instant::now() < end {
        flips += 1;
        lab.apply("frontend.yaml", if flips % 2 == 0 { &one } else { &other })?;
        let mode = if flips % 2 == 0 { Mode::STRICT } else { Mode::PERMISSIVE };
        // Connections all the way to the new policy and a little beyond.
        loop {
            let in_force = lab.endpoint(lab.pod("frontend").v4().into())?.mode == mode;
            let stream = lab.connect("sleep", lab.address("frontend", 8080, false))?;
            let ending = client::exchange(&stream, b"GET / HTTP/1.1\r\n\r\n", usize::MAX, LIMIT)?;
            assert_eq!(ending.outcome, Outcome::Reset, "flip {flips}: {ending:?}");
            if in_force || Instant::now() > end + LIMIT {
                break;
            }
        }
    }
    assert!(flips > 2, "only {flips} flips");
    assert!(records.all()?.iter().all(|record| record.read == 0), "plaintext came through");
    assert!(fs::read_dir(lab.manifests())?.count() > 0);
    Ok(())
}
