//! Servers of other makers that speak TLS, in a pod of the lab: nginx, `openssl s_server`, stunnel, and Envoy as Istio
//! configures it for a STRICT port.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::{Credentials, Running};
use crate::{Lab, poll};

/// The version of Envoy that `cargo xtask setup` fetches.
const ENVOY: &str = "1.40.0";

/// What one server presents, and whom it trusts.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Its certificate and key.
    pub own: Credentials,
    /// The roots by which it verifies its clients, PEM.
    pub roots: PathBuf,
}

impl Tls {
    fn paths(&self) -> [String; 3] {
        [&self.own.certificate, &self.own.key, &self.roots].map(|path| path.display().to_string())
    }
}

impl Lab {
    /// What a pod of this mesh presents and trusts.
    #[must_use]
    pub fn tls(&self, pod: &str) -> Tls {
        Tls { own: self.credentials(pod), roots: self.authority().certificate.clone() }
    }

    /// `openssl s_server`; `verify`: what it makes of its clients.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn openssl(&self, pod: &str, port: u16, tls: &Tls, verify: &[&str]) -> Result<Running> {
        let [certificate, key, roots] = tls.paths();
        let port_text = port.to_string();
        let mut words = vec!["openssl", "s_server", "-accept", &port_text, "-www"];
        words.extend(["-cert", &certificate, "-key", &key, "-CAfile", &roots]);
        // Of the certificate's own file it reads the first one alone.
        let chain = tls.own.chain();
        let chain_text = chain.display().to_string();
        if fs::metadata(&chain).is_ok_and(|meta| meta.len() > 0) {
            words.extend(["-cert_chain", &chain_text]);
        }
        words.extend(verify);
        self.listening(self.spawn(pod, words)?, pod, port)
    }

    /// nginx with this value of `ssl_verify_client`; answers 200. SIGHUP has it read its certificates again, without a
    /// gap.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn nginx(&self, pod: &str, port: u16, tls: &Tls, verify: &str) -> Result<Running> {
        let [certificate, key, roots] = tls.paths();
        let own = self.new_file(&format!("nginx-{pod}"));
        let dir = own.display();
        let text = format!(
            "daemon off; pid {dir}/pid; error_log stderr;\n\
             events {{}}\n\
             http {{ access_log off;\n\
               client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;\n\
               uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;\n\
               server {{ listen {port} ssl; listen [::]:{port} ssl;\n\
                 ssl_certificate {certificate}; ssl_certificate_key {key};\n\
                 ssl_client_certificate {roots}; ssl_verify_client {verify}; ssl_verify_depth 3;\n\
                 location / {{ return 200 ok; }} }} }}\n"
        );
        let file = configuration(&own, "nginx.conf", &text)?;
        self.listening(self.spawn(pod, ["/usr/sbin/nginx", "-c", &file, "-e", "stderr"])?, pod, port)
    }

    /// stunnel in front of `behind`, a port of the pod, with further options.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn stunnel(&self, pod: &str, port: u16, behind: u16, tls: &Tls, further: &str) -> Result<Running> {
        let [certificate, key, roots] = tls.paths();
        let text = format!(
            "foreground = yes\npid =\n[pod]\naccept = :::{port}\nconnect = 127.0.0.1:{behind}\n\
             cert = {certificate}\nkey = {key}\nCAfile = {roots}\n{further}\n"
        );
        let own = self.new_file(&format!("stunnel-{pod}"));
        let file = configuration(&own, "stunnel.conf", &text)?;
        self.listening(self.spawn(pod, ["/usr/bin/stunnel4", &file])?, pod, port)
    }

    /// Envoy with the listener that Istio makes of a STRICT HTTP port: TLS alone, a client certificate of the mesh's
    /// trust domain demanded, the ALPN of Istio's HTTP chains; answers 200.
    ///
    /// # Errors
    /// When it is not installed or does not listen.
    pub fn envoy(&self, pod: &str, port: u16, tls: &Tls) -> Result<Running> {
        let [certificate, key, roots] = tls.paths();
        let text = include_str!("tls_server/envoy.yaml")
            .replace("$PORT", &port.to_string())
            .replace("$CERTIFICATE", &certificate)
            .replace("$KEY", &key)
            .replace("$ROOTS", &roots);
        let own = self.new_file(&format!("envoy-{pod}"));
        let file = configuration(&own, "envoy.yaml", &text)?;
        let program = envoy()?.display().to_string();
        let words = [&program, "-c", &file, "--disable-hot-restart", "--concurrency", "1", "-l", "warn"];
        self.listening(self.spawn(pod, words)?, pod, port)
    }

    /// Waits until a server accepts connections, seen from inside its pod, where nothing is enforced.
    fn listening(&self, mut server: Running, pod: &str, port: u16) -> Result<Running> {
        let mut ended = None;
        let waited = poll::until(&format!("{pod} to listen on {port}"), Duration::from_secs(20), || {
            ended = server.ended()?;
            if ended.is_none() {
                self.connect(pod, SocketAddr::from(([127, 0, 0, 1], port)))?;
            }
            Ok(())
        });
        waited.with_context(|| server.output())?;
        ensure!(ended.is_none(), "`{}` ended with {ended:?}:\n{}", server.command(), server.output());
        Ok(server)
    }
}

fn configuration(own: &Path, name: &str, text: &str) -> Result<String> {
    fs::create_dir_all(own).with_context(|| format!("cannot create {}", own.display()))?;
    let file = own.join(name);
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file.display().to_string())
}

/// Envoy: `ENFORCER_ENVOY`, or the one that `cargo xtask setup` fetched.
fn envoy() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ENFORCER_ENVOY") {
        return Ok(path.into());
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let path = cache.context("neither XDG_CACHE_HOME nor HOME is set")?;
    let path = path.join(format!("enforcer/envoy-{ENVOY}/envoy"));
    ensure!(path.is_file(), "Envoy is not at {}: run cargo xtask setup", path.display());
    Ok(path)
}
