//! TLS under STRICT: whatever the hello looks like, the same bytes come through.

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_common::{Reason, Verdict};
use enforcer_tests::client::tls;
use enforcer_tests::{Lab, Scene};
use rustls::{ClientConfig, SupportedProtocolVersion};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

const HOST: &str = "frontend.hipstershopv1v2";
const URL: &str = "https://frontend.hipstershopv1v2:8080";

const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn assert_nothing_refused(lab: &Lab) -> Result<()> {
    for reason in Reason::ALL {
        for verdict in [Verdict::RESET, Verdict::DROP] {
            let counted = lab.count(verdict, *reason)?;
            assert_eq!(counted.packets, 0, "{verdict} {reason}: {counted:?}");
        }
    }
    Ok(())
}

#[test]
fn both_versions_with_curl() -> Result<()> {
    let scene = Scene::strict()?;
    let (_server, _) = scene.lab.sidecar("frontend", 8080)?;
    for family in ["-4", "-6"] {
        for versions in [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3", "--tls-max", "1.3"]] {
            let words: Vec<&str> = [family].into_iter().chain(versions).chain([URL]).collect();
            let output = scene.lab.mesh_curl("loadgenerator", &words)?;
            assert_eq!((output.code, output.stdout.as_str()), (0, "200\n"), "{words:?}: {output:?}");
        }
    }
    assert_nothing_refused(&scene.lab)
}

#[test]
fn hellos_in_pieces_and_hellos_larger_than_a_segment() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let large = tls::Shape { ballast: 12, ..Default::default() };
    assert!(tls::hello(lab, "loadgenerator", HOST, large)?.len() > 1800);
    for v6 in [false, true] {
        for versions in [TLS12, TLS13] {
            for ballast in [0, 12] {
                for piece in [1, 2, 5, 6, 7, 1000, usize::MAX] {
                    let shape = tls::Shape { piece, ballast, versions };
                    let stream = lab.connect("loadgenerator", lab.address("frontend", 8080, v6))?;
                    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                    let config = tls::config(lab, "loadgenerator", shape)?;
                    let mut stream = tls::start(stream, config, HOST, shape)?;
                    let body =
                        tls::get(&mut stream, HOST).with_context(|| format!("IPv6 {v6}: {shape:?}"))?;
                    assert_eq!(body, "hello from frontend\n");
                }
            }
        }
    }
    assert_nothing_refused(lab)
}

#[test]
fn a_hundred_megabytes_arrive_unchanged_both_ways() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let mut bytes = vec![0; 100_000_000];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let (sent, kept, received) = (lab.new_file("sent"), lab.files().join("blob"), lab.new_file("received"));
    fs::write(&sent, &bytes)?;
    let url = format!("{URL}/files/blob");

    let file = sent.display().to_string();
    let put = lab.mesh_curl("loadgenerator", &["-4", "-T", &file, &url])?;
    assert_eq!((put.code, put.stdout.as_str()), (0, "201\n"), "{put:?}");
    assert!(fs::read(&kept).context("the pod has no file")? == bytes, "the pod got other bytes");

    let file = received.display().to_string();
    let get = lab.mesh_curl("loadgenerator", &["-6", "-o", &file, &url])?;
    assert_eq!((get.code, get.stdout.as_str()), (0, "200\n"), "{get:?}");
    assert!(fs::read(&received).context("the client has no file")? == bytes, "the client got other bytes");
    assert_nothing_refused(lab)
}

#[test]
fn five_hundred_at_once() -> Result<()> {
    const CONNECTIONS: usize = 500;
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, records) = lab.sidecar("frontend", 8080)?;
    let config = tls::config(lab, "loadgenerator", tls::Shape::default())?;
    let addresses = [false, true].map(|v6| lab.address("frontend", 8080, v6));
    let failures = lab.inside("loadgenerator", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let requests: Vec<_> = (0..CONNECTIONS)
                .map(|i| tokio::spawn(request(addresses[i % 2], Arc::clone(&config))))
                .collect();
            let mut failures = Vec::new();
            for request in requests {
                if let Err(error) = request.await? {
                    failures.push(format!("{error:#}"));
                }
            }
            Ok::<_, anyhow::Error>(failures)
        })
    })??;
    assert!(failures.is_empty(), "{} failed: {failures:?}", failures.len());
    assert_eq!(records.at_least(CONNECTIONS)?.len(), CONNECTIONS);
    let counted = lab.count(Verdict::ALLOW, Reason::TLS)?;
    assert_eq!(counted.connections, CONNECTIONS as u64, "{counted:?}");
    assert_nothing_refused(lab)
}

async fn request(to: SocketAddr, config: Arc<ClientConfig>) -> Result<()> {
    let stream = tokio::net::TcpStream::connect(to).await.context("connect")?;
    let mut stream =
        TlsConnector::from(config).connect(ServerName::try_from(HOST)?, stream).await.context("TLS")?;
    stream.write_all(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("answer")?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}
