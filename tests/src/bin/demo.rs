//! The walk-through, played in a lab: every command with its literal output, every answer checked.

use std::io::{self, BufRead as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use enforcer_common::Mode;
use enforcer_tests::Lab;
use enforcer_tests::lab::{NODE, Output, Running, demo_dir, quote};
use enforcer_tests::record::{Record, Records};

const FRONTEND: &str = "frontend.hipstershopv1v2:8080";
const ADSERVICE: &str = "adservice.hipstershopv1v2:9555";
const RESET: &str = "curl: (56) Recv failure: Connection reset by peer";

/// Plays the walk-through in a lab of network namespaces; exits with 1 when a step differs
#[derive(Parser)]
struct Cli {
    /// Leave the lab up at the end until Enter is pressed
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let start = Instant::now();
    match play(&Cli::parse()) {
        Ok(()) => {
            println!("\nEvery step came out as it must ({:.1} s).", start.elapsed().as_secs_f32());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = io::stdout().flush();
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(cli: &Cli) -> Result<()> {
    let lab = Lab::new()?;
    let mut walk = Walk::start(&lab)?;

    walk.title("No policy: everybody is served");
    walk.served(FRONTEND)?;
    walk.served(ADSERVICE)?;
    walk.mesh_client_is_served()?;

    walk.title("Mesh-wide STRICT: plaintext is reset, mutual TLS is not touched");
    walk.apply("mesh-strict.yaml")?;
    walk.in_force(&[("frontend", Mode::STRICT), ("adservice", Mode::STRICT)])?;
    walk.reset(FRONTEND)?;
    walk.reset(ADSERVICE)?;
    walk.mesh_client_is_served()?;

    walk.title("frontend PERMISSIVE: plaintext reaches it again, and only it");
    walk.apply("frontend-permissive.yaml")?;
    walk.in_force(&[("frontend", Mode::PERMISSIVE), ("adservice", Mode::STRICT)])?;
    walk.served(FRONTEND)?;
    walk.reset(ADSERVICE)?;
    walk.mesh_client_is_served()?;

    walk.title("What was dropped, and why");
    walk.report()?;

    walk.title("What the servers saw");
    walk.servers()?;

    if cli.keep {
        println!("\nThe lab is up; its namespaces: ");
        for member in lab.pods().iter().map(|pod| pod.name.as_str()).chain([NODE]) {
            println!("  {}", lab.namespace(member));
        }
        println!("Press Enter to remove it.");
        io::stdin().lock().read_line(&mut String::new())?;
    }
    Ok(())
}

/// One pod that serves.
struct Server {
    pod: &'static str,
    _process: Running,
    records: Records,
    /// Connections of plaintext clients so far, and whether each was to be served.
    plaintext: Vec<(Record, bool)>,
    /// Connections so far.
    seen: usize,
}

struct Walk<'a> {
    lab: &'a Lab,
    // Servers and agent end before the lab does.
    servers: Vec<Server>,
    _agent: Running,
    step: usize,
}

impl<'a> Walk<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        println!("The lab: every pod is a network namespace of its own, behind a veth pair.");
        for pod in lab.pods() {
            let mesh = if pod.is_meshed() { "in the mesh" } else { "outside the mesh" };
            let [v4, v6] = pod.addresses();
            println!("  {:<34} {v4}  {v6}  {mesh}", format!("{}/{}", pod.namespace, pod.name));
        }
        println!();
        for file in ["namespaces.yaml", "pods.yaml"] {
            copy(lab, Path::new(file))?;
        }
        let mut servers = Vec::new();
        for (pod, port) in [("frontend", 8080), ("adservice", 9555)] {
            let (process, records) = lab.sidecar(pod, port)?;
            servers.push(Server { pod, _process: process, records, plaintext: Vec::new(), seen: 0 });
        }
        let mut agent = lab.start_agent(&[])?;
        println!("$ {} &", agent.command());
        lab.wait_enforcing(&mut agent)?;
        Ok(Self { lab, servers, _agent: agent, step: 0 })
    }

    fn title(&mut self, text: &str) {
        self.step += 1;
        println!("\n== {}. {text}\n", self.step);
    }

    fn apply(&self, file: &str) -> Result<()> {
        let path = Path::new("policies").join(file);
        print!("{}", std::fs::read_to_string(demo_dir().join(&path))?);
        copy(self.lab, &path)
    }

    fn in_force(&self, modes: &[(&str, Mode)]) -> Result<()> {
        let start = Instant::now();
        for (pod, mode) in modes {
            self.lab.wait_mode(pod, *mode)?;
        }
        println!("  (in force after {} ms)\n", start.elapsed().as_millis());
        Ok(())
    }

    /// The client outside the mesh gets 200.
    fn served(&mut self, server: &str) -> Result<()> {
        let output = self.plain_curl(server)?;
        self.check(&output, "200\n", "", 0)?;
        self.note_plaintext(server, true)
    }

    /// The client outside the mesh is reset.
    fn reset(&mut self, server: &str) -> Result<()> {
        let output = self.plain_curl(server)?;
        self.check(&output, "000\n", RESET, 56)?;
        self.note_plaintext(server, false)
    }

    fn plain_curl(&self, server: &str) -> Result<Output> {
        let url = format!("http://{server}");
        let words = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}\\n", &url];
        show(self.lab, "sleep", &words)
    }

    fn mesh_client_is_served(&mut self) -> Result<()> {
        for server in [FRONTEND, ADSERVICE] {
            let url = format!("https://{server}");
            let certificate = self.lab.mesh_arguments("loadgenerator");
            let mut words = vec!["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}\\n"];
            words.extend(certificate.iter().map(String::as_str));
            words.push(&url);
            let output = show(self.lab, "loadgenerator", &words)?;
            self.check(&output, "200\n", "", 0)?;
            let record = self.server(server)?.next_record()?;
            ensure!(record.class == "tls", "{server} did not see TLS of the mesh client: {record:?}");
        }
        Ok(())
    }

    fn check(&self, output: &Output, stdout: &str, stderr: &str, code: i32) -> Result<()> {
        let differs = output.stdout != stdout || output.stderr.trim_end() != stderr || output.code != code;
        if differs {
            bail!(
                "step {}: `{}` must print {stdout:?} and {stderr:?} and exit with {code}",
                self.step,
                output.command
            );
        }
        Ok(())
    }

    fn server(&mut self, name: &str) -> Result<&mut Server> {
        let found = self.servers.iter_mut().find(|server| name.starts_with(server.pod));
        found.ok_or_else(|| anyhow::anyhow!("nobody serves {name}"))
    }

    fn note_plaintext(&mut self, server: &str, permitted: bool) -> Result<()> {
        let server = self.server(server)?;
        let record = server.next_record()?;
        server.plaintext.push((record, permitted));
        Ok(())
    }

    fn report(&self) -> Result<()> {
        let places = self.lab.places();
        let program = enforcer_tests::agent::enforcer_binary()?.display().to_string();
        let mut words = vec![program.as_str(), "status"];
        words.extend(places.iter().map(String::as_str));
        let status = show(self.lab, NODE, &words)?;
        ensure!(status.code == 0, "step {}: status must exit with 0", self.step);
        for (map, words) in [
            ("ENDPOINTS", &["\"mode\": \"STRICT\"", "\"mode\": \"PERMISSIVE\""][..]),
            ("COUNTERS", &["\"PLAINTEXT\"", "\"RESET\"", "\"TLS\""][..]),
        ] {
            let path = self.lab.map_path(map)?.display().to_string();
            let dump = show(self.lab, NODE, &["bpftool", "map", "dump", "pinned", &path])?;
            ensure!(dump.code == 0, "step {}: bpftool must exit with 0", self.step);
            for word in words {
                ensure!(dump.stdout.contains(word), "step {}: the dump of {map} must show {word}", self.step);
            }
        }
        Ok(())
    }

    fn servers(&self) -> Result<()> {
        for server in &self.servers {
            for (record, served) in &server.plaintext {
                let policy = if *served { "permitted" } else { "STRICT" };
                println!(
                    "  {:<10} plaintext client, {policy:<9}: read {:>3} bytes, wrote {:>3}, ended with {:?}",
                    server.pod, record.read, record.written, record.end
                );
                if *served {
                    ensure!(record.read > 0, "{} read nothing of a permitted request", server.pod);
                } else {
                    let nothing = record.read == 0 && record.written == 0;
                    ensure!(nothing, "{} got plaintext under STRICT: {record:?}", server.pod);
                    ensure!(
                        record.end == enforcer_tests::record::End::Reset,
                        "the socket of {} was not reset: {record:?}",
                        server.pod
                    );
                }
            }
        }
        println!("  Not one byte of plaintext arrived under STRICT.");
        Ok(())
    }
}

impl Server {
    /// The record of the connection after the last one that was asked for.
    fn next_record(&mut self) -> Result<Record> {
        let all = self.records.at_least(self.seen + 1)?;
        ensure!(
            all.len() == self.seen + 1,
            "{} saw more connections than there were requests: {all:?}",
            self.pod
        );
        self.seen = all.len();
        all.into_iter().next_back().ok_or_else(|| anyhow::anyhow!("no record"))
    }
}

/// Copies a file of the demo into the watched folder.
fn copy(lab: &Lab, file: &Path) -> Result<()> {
    let (from, to) = (demo_dir().canonicalize()?.join(file), lab.manifests());
    println!("$ cp {} {}/", Path::new("demo").join(file).display(), to.display());
    enforcer_tests::lab::run("cp", [from, to])?.success()?;
    Ok(())
}

/// Runs a command in the lab and prints it with everything it says.
fn show(lab: &Lab, member: &str, words: &[&str]) -> Result<Output> {
    let command = lab.command(member, words);
    let line: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()))
        .collect();
    println!("$ {}", line.join(" "));
    let output = lab.exec(member, words)?;
    print!("{}{}", output.stdout, output.stderr);
    println!("  (exit code {})", output.code);
    Ok(output)
}
