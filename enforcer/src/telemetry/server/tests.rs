use std::io::BufRead as _;

use super::*;
use crate::telemetry::filter;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::names::Remote;
use crate::telemetry::record::{Line, Record, Suppressed};
use crate::telemetry::{Shared, client};

struct Running {
    shared: Arc<Shared>,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    file: SocketFile,
}

impl Running {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("run/agent.sock");
        let options = Options {
            socket: socket.clone(),
            metrics_address: None,
            flow_log_size: 4,
            metrics_workloads: 10,
            bpffs: dir.path().to_owned(),
            certificates: dir.path().join("certificates.json"),
            node: None,
        };
        let shared = Arc::new(Shared::new(4, Remote::new(None, 0)));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let inside = runtime.enter();
        let (listener, file) = bind(&socket).expect("a socket");
        let metrics = Metrics::new(shared.clone(), &options);
        tokio::spawn(unix(listener, Arc::new(Service::new(shared.clone(), metrics))));
        drop(inside);
        Self { shared, dir, runtime, file }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/agent.sock")
    }

    fn ask(&self, target: &str) -> (u16, String) {
        client::ask(&self.socket(), target).expect("an answer")
    }

    fn log(&self, verdict: &'static str) {
        let mut flow = filter::tests::flow();
        flow.verdict = verdict.into();
        self.shared.log.extend([Line::Verdict(flow)]);
    }
}

fn records(body: &str) -> Vec<Record> {
    body.lines().map(|line| serde_json::from_str(line).expect("a record a line")).collect()
}

#[tokio::test]
async fn every_address_means_both_families() {
    let both = listen("[::]:0".parse().expect("an address")).expect("a listener");
    let port = both.local_addr().expect("an address").port();
    for address in ["127.0.0.1", "::1"] {
        tokio::net::TcpStream::connect((address, port)).await.expect(address);
    }
    let one = listen("127.0.0.1:0".parse().expect("an address")).expect("a listener");
    assert!(one.local_addr().expect("an address").is_ipv4());
}

#[test]
fn the_socket_is_for_root_alone_and_goes_with_the_agent() {
    let running = Running::new();
    let mode = fs::metadata(running.socket()).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(bind(&running.socket()), Err(SocketError::InUse(_))), "somebody listens");
    let path = running.socket();
    let Running { dir, runtime, file, .. } = running;
    drop(file);
    assert!(!path.exists());
    drop((runtime, dir));
}

#[test]
fn what_nobody_listens_on_is_replaced() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let (_first, file) = bind(&path).expect("a stale socket is no obstacle");
    // Another one took its place: it stays.
    fs::remove_file(&path).expect("the socket");
    let _second = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    drop(file);
    assert!(path.exists());
}

#[test]
fn health_tells_what_is_missing() {
    let running = Running::new();
    assert_eq!(running.ask("/healthz"), (200, "ok\n".to_owned()));
    let (status, body) = running.ask("/readyz");
    assert_eq!(status, 503);
    assert!(body.starts_with("no policy has been loaded yet"), "{body}");
    assert_eq!(running.ask("/nothing").0, 404);
    let (status, body) = running.ask("/v1/objects");
    assert_eq!(status, 200);
    let objects: crate::object::Objects = serde_json::from_str(&body).expect("objects");
    assert_eq!(objects, crate::object::Objects::default());
}

#[test]
fn recent_records_are_filtered_and_bounded() {
    let running = Running::new();
    for verdict in ["reset", "allow", "reset", "allow", "reset", "allow"] {
        running.log(verdict);
    }
    let ids = |query: &str| {
        let (status, body) = running.ask(&format!("/v1/flows?{query}"));
        assert_eq!(status, 200, "{body}");
        records(&body).iter().map(|record| record.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(""), [2, 3, 4, 5]);
    assert_eq!(ids("verdict=reset"), [2, 4]);
    assert_eq!(ids("verdict=reset&last=1"), [4]);
    assert_eq!(ids("pod=shop/other"), Vec::<u64>::new());
    let (status, body) = running.ask("/v1/flows?port=http");
    assert_eq!((status, body.as_str()), (400, "parameter port: \"http\" is no port number\n"));
}

#[test]
fn a_follower_gets_what_comes() {
    let running = Running::new();
    running.log("reset");
    let mut answer = client::follow(&running.socket(), "/v1/flows?follow=1&last=1").expect("an answer");
    let mut next = || {
        let mut line = String::new();
        answer.read_line(&mut line).expect("a line");
        records(&line).pop().expect("a record").id
    };
    assert_eq!(next(), 0);
    running.log("allow");
    assert_eq!(next(), 1);
    running.shared.log.extend([Line::Suppressed(Suppressed { lost: 2, ..Suppressed::default() })]);
    assert_eq!(next(), 2);
}

#[test]
fn the_public_side_has_no_records() {
    let running = Running::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let options = Options {
        socket: running.socket(),
        metrics_address: None,
        flow_log_size: 0,
        metrics_workloads: 1,
        bpffs: PathBuf::new(),
        certificates: PathBuf::new(),
        node: None,
    };
    let service =
        Arc::new(Service::new(running.shared.clone(), Metrics::new(running.shared.clone(), &options)));
    let address = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, Scope::Public, service.clone()));
            }
        });
        address
    });
    let ask = |request: &str| {
        let mut stream = std::net::TcpStream::connect(address).expect("a connection");
        io::Write::write_all(&mut stream, request.as_bytes()).expect("written");
        let mut answer = String::new();
        io::Read::read_to_string(&mut stream, &mut answer).expect("an answer");
        answer
    };
    assert!(ask("GET /v1/flows HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 404"));
    assert!(ask("GET /v1/objects HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 404"));
    assert!(ask("GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"));
    assert!(ask("POST /healthz HTTP/1.0\r\nContent-Length: 0\r\n\r\n").starts_with("HTTP/1.0 405"));
}
