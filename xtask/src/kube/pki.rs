//! Keys and certificates of a control plane, made by openssl: one authority, EC P-256 keys in PKCS#8.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::shell::{command, output};

const DAYS: &str = "3650";

/// Names that every API server answers to beside its address; 10.96.0.1 is the Service `kubernetes`.
const SERVER_NAMES: &str = "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
                            IP:127.0.0.1,IP:10.96.0.1";

/// The folder of the keys.
pub(crate) struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// Opens the folder, with the authority, the key of service account tokens and the server's certificate made when
    /// they are not there.
    pub(crate) fn open(folder: &Path, address: IpAddr) -> Result<Self> {
        let pki = Self { folder: folder.to_owned() };
        if pki.path("apiserver.crt").is_file() {
            return Ok(pki);
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        pki.key("ca")?;
        output(
            command("openssl")
                .args(["req", "-x509", "-new", "-days", DAYS, "-subj", "/CN=test-kube-ca", "-key"])
                .arg(pki.path("ca.key"))
                .arg("-out")
                .arg(pki.path("ca.crt"))
                .args(["-addext", "basicConstraints=critical,CA:TRUE"])
                .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]),
        )?;
        pki.key("sa")?;
        output(
            command("openssl")
                .args(["pkey", "-pubout", "-in"])
                .arg(pki.path("sa.key"))
                .arg("-out")
                .arg(pki.path("sa.pub")),
        )?;
        pki.issue("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", None)?;
        pki.issue("apiserver", "/CN=kube-apiserver", Some(&format!("{SERVER_NAMES},IP:{address}")))?;
        Ok(pki)
    }

    /// A file of the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn key(&self, name: &str) -> Result<()> {
        output(
            command("openssl")
                .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"])
                .arg(self.path(&format!("{name}.key"))),
        )?;
        Ok(())
    }

    /// Makes `NAME.key` and `NAME.crt`: a server's with alternative names, else a client's, whose subject is the user
    /// and groups that the API server knows it by.
    pub(crate) fn issue(&self, name: &str, subject: &str, server_names: Option<&str>) -> Result<()> {
        let file = |extension: &str| self.path(&format!("{name}.{extension}"));
        self.key(name)?;
        let usage = match server_names {
            Some(names) => format!("extendedKeyUsage=serverAuth\nsubjectAltName={names}\n"),
            None => "extendedKeyUsage=clientAuth\n".to_owned(),
        };
        let text = format!("basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n{usage}");
        fs::write(file("ext"), text).with_context(|| format!("cannot write {}", file("ext").display()))?;
        let request = file("csr");
        output(
            command("openssl")
                .args(["req", "-new", "-subj", subject, "-key"])
                .arg(file("key"))
                .arg("-out")
                .arg(&request),
        )?;
        output(
            command("openssl")
                .args(["x509", "-req", "-days", DAYS, "-CAcreateserial", "-CA"])
                .arg(self.path("ca.crt"))
                .arg("-CAkey")
                .arg(self.path("ca.key"))
                .arg("-in")
                .arg(request)
                .arg("-extfile")
                .arg(file("ext"))
                .arg("-out")
                .arg(file("crt")),
        )?;
        Ok(())
    }

    /// Writes a kubeconfig for a client certificate, which is issued when it is not there; everything is embedded.
    pub(crate) fn kubeconfig(&self, name: &str, subject: &str, server: &str, to: &Path) -> Result<()> {
        let file = |extension: &str| self.path(&format!("{name}.{extension}"));
        if !file("crt").is_file() {
            self.issue(name, subject, None)?;
        }
        let encoded = |path: &Path| -> Result<String> {
            let text = output(command("openssl").args(["base64", "-A", "-in"]).arg(path))?;
            Ok(text.trim().to_owned())
        };
        let (authority, certificate, key) =
            (encoded(&self.path("ca.crt"))?, encoded(&file("crt"))?, encoded(&file("key"))?);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"{server}\", certificate-authority-data: {authority}}}}}]\n\
             users: [{{name: test, user: {{client-certificate-data: {certificate}, client-key-data: {key}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
        );
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(to).with_context(|| format!("cannot write {}", to.display()))?;
        std::io::Write::write_all(&mut file, text.as_bytes())
            .with_context(|| format!("cannot write {}", to.display()))
    }
}
