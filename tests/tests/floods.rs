//! Floods and full tables: judged TLS connections live, `FLOWS` holds nothing that did not shake hands and speak TLS, and
//! whatever is full has its fixed verdict and counter.

#[path = "floods/flows.rs"]
mod flows;
#[path = "floods/outbound.rs"]
mod outbound;
#[path = "floods/pending.rs"]
mod pending;
#[path = "floods/resets.rs"]
mod resets;
#[path = "floods/ring.rs"]
mod ring;
#[path = "floods/syns.rs"]
mod syns;

use std::time::Duration;

use anyhow::Result;
use enforcer_common::Mode;
use enforcer_tests::Lab;
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::client::tls;
use enforcer_tests::lab::Running;
use serde_json::Value;

const HOST: &str = "frontend.hipstershopv1v2";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const RUNNING: &str = "agent is running";
const LIMIT: Duration = Duration::from_secs(20);

fn strict(arguments: &[&str]) -> Result<(Lab, Running)> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let mut agent = lab.start_agent(arguments)?;
    agent.wait_for_output(RUNNING)?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    Ok((lab, agent))
}

fn number_of_flows(lab: &Lab) -> Result<usize> {
    Ok(lab.flows()?.len())
}

fn status(lab: &Lab) -> Result<Value> {
    Ok(serde_json::from_str(&lab.enforcer(&["status", "-o", "json"])?.stdout)?)
}

fn secure(lab: &Lab, limit: Duration) -> Result<tls::Stream> {
    let stream = lab.connect("loadgenerator", lab.address("frontend", 8080, false))?;
    stream.set_read_timeout(Some(limit))?;
    let config = tls::config(lab, "loadgenerator", tls::Shape::default())?;
    tls::start(stream, config, HOST, tls::Shape::default())
}
