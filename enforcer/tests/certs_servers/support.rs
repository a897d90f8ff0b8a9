//! A mesh CA, and real servers on loopback that present its certificates.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use enforcer::certificate::bundle::TrustBundle;
use enforcer::certificate::client;
use enforcer::certificate::finding::{Client, Outcome};
use enforcer::certificate::forbidden::ForbiddenClients;
use enforcer::certificate::probe::{Probe, Request, Settings, probe};
use enforcer::certificate::spiffe::{Expected, SpiffeId};
use enforcer::certificate::state::{State, judge};
use enforcer::certificate::target::istio_server_name;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls_pki_types::DnsName;

/// The identity of the servers.
pub(crate) const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A mesh CA with an intermediate, as files.
pub(crate) struct Mesh {
    pub dir: tempfile::TempDir,
    intermediate: Issuer<'static, KeyPair>,
    intermediate_pem: String,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2120, 1, 1));
    params
}

impl Mesh {
    /// A new CA; `root.pem` in its folder, and `client.pem`, `client.key` of a client of the mesh.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (root, intermediate) = (authority("mesh root"), authority("mesh intermediate"));
        let key = KeyPair::generate().expect("a key");
        let root_pem = root.self_signed(&key).expect("a root").pem();
        let root = Issuer::new(root, key);
        let key = KeyPair::generate().expect("a key");
        let intermediate_pem = intermediate.signed_by(&key, &root).expect("signed").pem();
        std::fs::write(dir.path().join("root.pem"), root_pem).expect("written");
        let mesh = Self { dir, intermediate: Issuer::new(intermediate, key), intermediate_pem };
        mesh.issue("client", |params| {
            params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/client")];
        });
        mesh
    }

    /// Path of a file in the CA's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Issues `NAME.pem` (with the intermediate) and `NAME.key`, an ECDSA certificate of the web server unless changed.
    pub(crate) fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        self.issue_for(name, &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key"), change);
    }

    /// The same with a key that the openssl command makes, such as `ED25519` or `RSA`.
    pub(crate) fn issue_by_openssl(&self, name: &str, algorithm: &str) {
        let made = Command::new("openssl")
            .args(["genpkey", "-algorithm", algorithm])
            .stderr(Stdio::null())
            .output()
            .expect("openssl runs; cargo xtask setup installs it");
        let key = KeyPair::from_pem(&String::from_utf8(made.stdout).expect("PEM")).expect("a key");
        self.issue_for(name, &key, |_| {});
    }

    fn issue_for(&self, name: &str, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(ID)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (date_time_ymd(2021, 1, 1), date_time_ymd(2119, 1, 1));
        change(&mut params);
        let leaf = params.signed_by(key, &self.intermediate).expect("signed");
        std::fs::write(self.path(&format!("{name}.chain")), &self.intermediate_pem).expect("written");
        let chain = format!("{}{}", leaf.pem(), self.intermediate_pem);
        std::fs::write(self.path(&format!("{name}.pem")), chain).expect("written");
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("written");
    }

    /// Checks a server against this mesh, with its client certificate.
    pub(crate) fn check(&self, address: SocketAddr, settings: &Settings) -> Checked {
        self.run(address, settings, &[], true, false)
    }

    /// The same as the end of a tunnel.
    pub(crate) fn check_tunnel(&self, address: SocketAddr, settings: &Settings) -> Checked {
        self.run(address, settings, &[], true, true)
    }

    /// The same without a certificate of the mesh.
    pub(crate) fn check_as_stranger(&self, address: SocketAddr, settings: &Settings) -> Checked {
        self.run(address, settings, &[], false, false)
    }

    /// The same with clients that ask for these names.
    pub(crate) fn check_with(&self, address: SocketAddr, settings: &Settings, names: &[&str]) -> Checked {
        self.run(address, settings, names, true, false)
    }

    fn run(
        &self,
        address: SocketAddr,
        settings: &Settings,
        names: &[&str],
        with_client: bool,
        tunnel: bool,
    ) -> Checked {
        let bundle = TrustBundle::from_file(&self.path("root.pem")).expect("a bundle");
        let forbidden = ForbiddenClients::generate(None, Timestamp::now()).expect("certificates");
        let mesh_client = client::load(&self.path("client.pem"), &self.path("client.key")).expect("a client");
        let expected = Expected::exactly(ID.parse::<SpiffeId>().expect("an identity"));
        let server_name = istio_server_name(8080, "web", "shop", "cluster.local");
        let names = names.iter().map(|name| DnsName::try_from((*name).to_owned()).expect("a name"));
        let names: Vec<_> = names.collect();
        let request = Request {
            address,
            server_name: server_name.as_ref(),
            names: &names,
            tunnel,
            bundle: Some(&bundle),
            expected: Some(&expected),
            forbidden: &forbidden,
            mesh_client: with_client.then_some(&mesh_client),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let started = Instant::now();
        let probe = runtime.block_on(probe(request, settings));
        Checked { state: judge(&probe.findings), probe, took: started.elapsed() }
    }
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// The outcome of one check.
#[derive(Debug)]
pub(crate) struct Checked {
    pub state: State,
    pub probe: Probe,
    pub took: Duration,
}

impl Checked {
    /// Fails unless this is the state.
    #[track_caller]
    pub(crate) fn is(&self, state: State) -> &Self {
        assert_eq!(self.state, state, "{:#?}", self.probe);
        self
    }

    /// What one client got.
    pub(crate) fn outcome(&self, client: Client) -> &Outcome {
        let found = self.probe.clients.iter().find(|result| result.client == client);
        &found.unwrap_or_else(|| panic!("no result for {client}: {:#?}", self.probe)).outcome
    }

    /// Fails unless exactly these of the clients were accepted.
    #[track_caller]
    pub(crate) fn accepted(&self, clients: &[Client]) -> &Self {
        for result in &self.probe.clients {
            let accepted = matches!(result.outcome, Outcome::Accepted(_));
            assert_eq!(accepted, clients.contains(&result.client), "{}: {:#?}", result.client, self.probe);
        }
        self
    }
}

/// Settings for tests: short waits.
pub(crate) fn settings() -> Settings {
    Settings {
        timeout: Duration::from_secs(5),
        alert_wait: Duration::from_millis(300),
        patience: Duration::from_secs(1),
        ..Settings::default()
    }
}

/// A server process; ends with this value.
pub(crate) struct Server {
    pub address: SocketAddr,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free port on loopback.
pub(crate) fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// Starts a server that must listen on `address` soon.
pub(crate) fn start(program: &str, address: SocketAddr, dir: &Path, arguments: &[&str]) -> Server {
    let log = dir.join(format!("{}.log", address.port()));
    let output = std::fs::File::create(&log).expect("a log file");
    let child = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        // s_server ends a connection when its own input ends.
        .stdin(Stdio::piped())
        .stdout(output.try_clone().expect("a second handle"))
        .stderr(output)
        .spawn()
        .unwrap_or_else(|error| panic!("{program} cannot be started ({error}): run cargo xtask setup"));
    let mut server = Server { address, child };
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        let ended = server.child.try_wait().expect("a process");
        let text = || std::fs::read_to_string(&log).unwrap_or_default();
        assert!(ended.is_none(), "{program} ended at once: {}", text());
        assert!(started.elapsed() < Duration::from_secs(20), "{program} does not listen: {}", text());
        std::thread::sleep(Duration::from_millis(20));
    }
    server
}

/// nginx with this `ssl_verify_client`, TLS versions and certificate name.
pub(crate) fn nginx(mesh: &Mesh, verify: &str, protocols: &str, name: &str) -> Server {
    let text = format!(
        "ssl_certificate $DIR/{name}.pem; ssl_certificate_key $DIR/{name}.key;\n\
         ssl_client_certificate $DIR/root.pem; ssl_verify_depth 3; ssl_protocols {protocols};\n\
         server {{ listen $ADDRESS ssl; ssl_verify_client {verify}; location / {{ return 200 ok; }} }}"
    );
    nginx_of(mesh, &text)
}

/// nginx with one value of `ssl_verify_client`, and another one for clients that ask for this name.
pub(crate) fn nginx_by_name(mesh: &Mesh, verify: &str, name: &str, verify_by_name: &str) -> Server {
    let server = |further: &str, verify: &str| {
        format!(
            "server {{ listen $ADDRESS ssl {further}; ssl_verify_client {verify}; location / {{ return 200 ok; }} }}\n"
        )
    };
    let text = format!(
        "ssl_certificate $DIR/server.pem; ssl_certificate_key $DIR/server.key;\n\
         ssl_client_certificate $DIR/root.pem; ssl_verify_depth 3;\n{}{}",
        server("default_server", verify),
        server(&format!("; server_name {name}"), verify_by_name)
    );
    nginx_of(mesh, &text)
}

fn nginx_of(mesh: &Mesh, http: &str) -> Server {
    let address = free_port();
    let dir = mesh.dir.path().display();
    let port = address.port();
    let http = http.replace("$ADDRESS", &address.to_string()).replace("$DIR", &dir.to_string());
    let text = format!(
        "daemon off; master_process off; pid {dir}/nginx-{port}.pid; error_log stderr;\n\
         events {{}}\n\
         http {{ access_log off;\n\
           client_body_temp_path {dir}/a-{port}; proxy_temp_path {dir}/b-{port}; fastcgi_temp_path {dir}/c-{port};\n\
           uwsgi_temp_path {dir}/d-{port}; scgi_temp_path {dir}/e-{port};\n{http}\n}}\n"
    );
    let file = mesh.path(&format!("nginx-{port}.conf"));
    std::fs::write(&file, text).expect("written");
    let file = file.to_str().expect("UTF-8");
    start("/usr/sbin/nginx", address, mesh.dir.path(), &["-c", file, "-e", "stderr"])
}

/// Envoy as Istio configures it for a TCP port, in front of `behind`. `insist`: a certificate of the mesh is demanded; else
/// any is taken, and none. `version`: that of TLS.
pub(crate) fn envoy_tcp(mesh: &Mesh, behind: SocketAddr, insist: bool, version: &str) -> Server {
    let address = free_port();
    let trust = if insist { "VERIFY_TRUST_CHAIN" } else { "ACCEPT_UNTRUSTED" };
    let text = include_str!("envoy_tcp.yaml")
        .replace("$PORT", &address.port().to_string())
        .replace("$BEHIND", &behind.port().to_string())
        .replace("$INSIST", &insist.to_string())
        .replace("$TRUST", trust)
        .replace("$VERSION", version);
    let file = format!("envoy-{}.yaml", address.port());
    std::fs::write(mesh.path(&file), text).expect("written");
    let program = envoy().display().to_string();
    let arguments = ["-c", &file, "--disable-hot-restart", "--concurrency", "1", "-l", "warn"];
    start(&program, address, mesh.dir.path(), &arguments)
}

/// Envoy: `ENFORCER_ENVOY`, or the one that `cargo xtask setup` fetched.
fn envoy() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let path = set("ENFORCER_ENVOY")
        .or_else(|| Some(cache()?.join("enforcer/envoy-1.40.0/envoy")))
        .expect("HOME or XDG_CACHE_HOME");
    assert!(path.is_file(), "Envoy is not at {}: run cargo xtask setup", path.display());
    path
}

/// `openssl s_server` with the certificate of this name and further arguments.
pub(crate) fn s_server(mesh: &Mesh, name: &str, further: &[&str]) -> Server {
    s_server_at(mesh, free_port(), name, further)
}

/// The same at a given address.
pub(crate) fn s_server_at(mesh: &Mesh, address: SocketAddr, name: &str, further: &[&str]) -> Server {
    let (listen, certificate, key) = (address.to_string(), format!("{name}.pem"), format!("{name}.key"));
    let chain = format!("{name}.chain");
    let mut arguments = vec![
        "s_server",
        "-accept",
        &listen,
        "-cert",
        &certificate,
        "-cert_chain",
        &chain,
        "-key",
        &key,
        "-CAfile",
        "root.pem",
        "-quiet",
    ];
    arguments.extend(further);
    start("openssl", address, mesh.dir.path(), &arguments)
}

/// stunnel in front of a port at which nobody listens, with these further options.
pub(crate) fn stunnel(mesh: &Mesh, further: &str) -> Server {
    stunnel_at(mesh, "127.0.0.1", SocketAddr::from(([127, 0, 0, 1], 1)), further)
}

/// stunnel in front of this application.
pub(crate) fn stunnel_before(mesh: &Mesh, behind: SocketAddr, further: &str) -> Server {
    stunnel_at(mesh, "127.0.0.1", behind, further)
}

/// The same on every IPv4 address of the machine.
pub(crate) fn stunnel_anywhere(mesh: &Mesh, behind: SocketAddr, further: &str) -> Server {
    stunnel_at(mesh, "0.0.0.0", behind, further)
}

fn stunnel_at(mesh: &Mesh, listen: &str, behind: SocketAddr, further: &str) -> Server {
    let address = free_port();
    let port = address.port();
    let text = format!(
        "foreground = yes\npid =\n[web]\naccept = {listen}:{port}\nconnect = {behind}\ncert = server.pem\n\
         key = server.key\nCAfile = root.pem\n{further}\n"
    );
    let file = format!("stunnel-{port}.conf");
    std::fs::write(mesh.path(&file), text).expect("written");
    start("/usr/bin/stunnel4", address, mesh.dir.path(), &[&file])
}
