//! How the programs are made: kube-apiserver and its like from Debian's source package with Debian's Go, the rest
//! unpacked from Debian's binary packages. Nothing is installed, and nothing but the machine's own mirror is asked.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::binaries::Part;
use crate::setup::{apt, sources};
use crate::shell::{command, find, output, run};

/// The release. Later source packages of Debian hold kubectl alone.
pub(super) const VERSION: &str = "1.20.2";

/// The suite with the source of the API server, and with the Go that builds it.
const SUITE: &str = "bookworm";
/// The suite of a kubectl that knows `--subresource` and `create token`.
const KUBECTL_SUITE: &str = "trixie";

/// Packages that are unpacked for a part, as apt names them.
const fn packages(part: Part) -> &'static [&'static str] {
    match part {
        Part::ControlPlane => &["etcd-server/bookworm", "kubectl/trixie"],
        Part::Node => &[
            "containerd/bookworm",
            "runc/bookworm",
            "containernetworking-plugins/bookworm",
            "busybox-static/bookworm",
        ],
    }
}

/// What the compiler needs.
const TOOLCHAIN: [&str; 3] =
    ["golang-1.19-go/bookworm", "golang-1.19-src/bookworm", "golang-github-modern-go-reflect2-dev/bookworm"];

/// Programs that are compiled for a part.
const fn compiled(part: Part) -> &'static [&'static str] {
    match part {
        Part::ControlPlane => &["kube-apiserver"],
        Part::Node => &["kube-controller-manager", "kube-scheduler", "kubelet"],
    }
}

/// Makes the programs of `parts` in `folder`; `work` is for everything in between.
pub(super) fn make(parts: &[Part], work: &Path, folder: &Path) -> Result<()> {
    for tool in ["apt-get", "dpkg-deb", "dpkg-source", "nice"] {
        if find(tool).is_none() {
            bail!(
                "Kubernetes is built from Debian's packages, and `{tool}` is missing: install dpkg-dev on a Debian system"
            );
        }
    }
    let tree = work.join("unpacked");
    fetch(parts, work, &tree)?;
    for part in parts {
        for program in part.programs().iter().filter(|program| !compiled(*part).contains(program)) {
            install(&tree, program, folder)?;
        }
    }
    let go = Go::prepare(work, &tree)?;
    for program in parts.iter().flat_map(|part| compiled(*part)) {
        go.build(program, folder)?;
    }
    Ok(())
}

/// Downloads and unpacks the packages into `tree`, and the source beside it.
fn fetch(parts: &[Part], work: &Path, tree: &Path) -> Result<()> {
    let mut problem = None;
    for source in sources::configured() {
        let stanzas =
            format!("{}\n{}", source.stanza("deb deb-src", SUITE), source.stanza("deb", KUBECTL_SUITE));
        apt::prepare(work, &stanzas)?;
        match output(apt::isolated("apt-get", work).args(["-qq", "update"])) {
            Ok(_) => {
                problem = None;
                break;
            }
            Err(error) => problem = Some(error),
        }
    }
    if let Some(error) = problem {
        return Err(error)
            .with_context(|| format!("no configured source of apt has {SUITE} and {KUBECTL_SUITE}"));
    }
    let wanted = parts.iter().flat_map(|part| packages(*part)).chain(&TOOLCHAIN);
    run(apt::isolated("apt-get", work).args(["-qq", "download"]).args(wanted))?;
    if !work.join("kubernetes").is_dir() {
        let name = format!("kubernetes/{SUITE}");
        run(apt::isolated("apt-get", work).args(["-qq", "--download-only", "source", &name]))?;
        let found = files(work, "dsc")?.pop();
        let description = found.context("apt-get downloaded the source but left no description of it")?;
        // apt checked the hashes.
        let mut unpack = command("dpkg-source");
        output(unpack.current_dir(work).args(["--no-check", "-x"]).arg(description).arg("kubernetes"))?;
    }
    for package in files(work, "deb")? {
        output(command("dpkg-deb").arg("-x").arg(package).arg(tree))?;
    }
    Ok(())
}

/// Copies a program of the unpacked packages.
fn install(tree: &Path, program: &str, folder: &Path) -> Result<()> {
    let name = program.rsplit('/').next().unwrap_or(program);
    let places = ["usr/bin", "usr/sbin", "bin", "usr/lib/cni"];
    let from = places.iter().map(|place| tree.join(place).join(name)).find(|path| path.is_file());
    let from = from.with_context(|| format!("Debian's packages hold no program {name}"))?;
    let to = folder.join(program);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    fs::copy(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

/// The compiler, with the source where it looks for it.
struct Go {
    work: PathBuf,
    tree: PathBuf,
    source: PathBuf,
}

impl Go {
    fn prepare(work: &Path, tree: &Path) -> Result<Self> {
        let source = work.join("gopath/src/k8s.io/kubernetes");
        if !source.is_dir() {
            let parent = source.parent().context("the source has a parent")?;
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            fs::rename(work.join("kubernetes"), &source)
                .context("cannot move the source into the Go path")?;
        }
        // The vendored reflect2 1.0.1 crashes in mapiterinit when compiled by Go 1.18 or later; Debian has 1.0.2.
        let vendored = source.join("vendor/github.com/modern-go");
        output(command("rm").arg("-rf").arg(vendored.join("reflect2")))?;
        let package = tree.join("usr/share/gocode/src/github.com/modern-go/reflect2");
        output(command("cp").arg("-rL").arg(package).arg(&vendored))?;
        let go = Self { work: work.to_owned(), tree: tree.to_owned(), source };
        go.generate()?;
        Ok(go)
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let root = self.tree.join("usr/lib/go-1.19");
        let mut path = root.join("bin").into_os_string();
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_default());
        let mut command = command("nice");
        command.args(["-n", "10"]).arg(program).current_dir(&self.source);
        command.env("PATH", path).env("GOROOT", root);
        command.env("GOPATH", self.work.join("gopath")).env("GOCACHE", self.work.join("gocache"));
        command.envs([("GO111MODULE", "off"), ("GOPROXY", "off"), ("GOFLAGS", ""), ("CGO_ENABLED", "0")]);
        command
    }

    /// Makes the one generated file that the source package lacks.
    fn generate(&self) -> Result<()> {
        const PACKAGE: &str = "k8s.io/kubernetes/pkg/generated/openapi";
        if self.source.join("pkg/generated/openapi/zz_generated.openapi.go").is_file() {
            return Ok(());
        }
        let generator = self.work.join("openapi-gen");
        let mut build = self.command("go");
        run(build.args(["build", "-o"]).arg(&generator).arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen"))?;
        let mut folders = BTreeSet::new();
        for part in ["vendor/k8s.io", "cmd", "pkg", "plugin"] {
            self.marked(&self.source.join(part), &mut folders)?;
        }
        let inputs: Vec<String> =
            folders.iter().map(|folder| format!("k8s.io/kubernetes/{folder}")).collect();
        let report = self.work.join("violations");
        // Hundreds of folders: not shown.
        output(
            self.command(&generator)
                .args(["--logtostderr", "-i", &inputs.join(","), "-p", PACKAGE, "-O", "zz_generated.openapi"])
                .args(["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt", "-r"])
                .arg(&report),
        )?;
        // The source's own check of this step: it holds exactly when the input was what upstream's is.
        let known = self.source.join("api/api-rules/violation_exceptions.list");
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        if read(&report)? != read(&known)? {
            bail!("openapi-gen found other violations than {} lists", known.display());
        }
        Ok(())
    }

    /// Adds the folders below `folder` with a Go file that asks for generated descriptions.
    fn marked(&self, folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
        const NOT: [&str; 4] = ["code-generator", "sample-apiserver", "kube-openapi", "gengo"];
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let kind = entry.file_type().with_context(|| format!("cannot read {}", path.display()))?;
            // The source's own libraries are links to the folder `staging`.
            let linked = kind.is_symlink() && folder.ends_with("vendor/k8s.io") && path.is_dir();
            if kind.is_dir() || linked {
                let foreign = folder.ends_with("vendor/k8s.io") && NOT.contains(&&*name);
                if !foreign && name != "generators" {
                    self.marked(&path, found)?;
                }
            } else if path.extension().is_some_and(|found| found == "go")
                && !name.ends_with("_test.go")
                && !kind.is_symlink()
            {
                let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let mark = b"+k8s:openapi-gen=";
                if text.windows(mark.len()).any(|window| window == mark) {
                    let below = folder.strip_prefix(&self.source).context("the folder is in the source")?;
                    found.insert(below.display().to_string());
                }
            }
        }
        Ok(())
    }

    fn build(&self, program: &str, folder: &Path) -> Result<()> {
        let mut numbers = VERSION.split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        let whole = format!("v{VERSION}");
        let values = [("gitVersion", whole.as_str()), ("gitMajor", major), ("gitMinor", minor)];
        let packages = ["component-base/version", "client-go/pkg/version"];
        let sets = packages.iter().flat_map(|package| {
            values.map(|(name, value)| format!("-X k8s.io/kubernetes/vendor/k8s.io/{package}.{name}={value}"))
        });
        let flags = ["-s".to_owned(), "-w".to_owned()].into_iter().chain(sets).collect::<Vec<_>>().join(" ");
        let (new, place) = (self.work.join(program), folder.join(program));
        let mut build = self.command("go");
        build.args(["build", "-trimpath", "-tags", "providerless dockerless", "-ldflags", &flags, "-o"]);
        run(build.arg(&new).arg(format!("./cmd/{program}")))?;
        fs::rename(&new, &place).with_context(|| format!("cannot write {}", place.display()))
    }
}

/// The files of a folder with this extension, sorted.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|found| found == extension));
    found.sort();
    Ok(found)
}
