//! A table of the pods' own connections that is full: the idle ones make room.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result, bail};
use enforcer_common::{Reason, Verdict};
use enforcer_tests::Lab;
use enforcer_tests::client::{self, Outcome};
use enforcer_tests::flood::raise_open_files;

use crate::{LIMIT, strict};

/// Entries that the table has, and connections that are opened beside those that are looked at.
const ROOM: &str = "OUTBOUND=1024";
const OTHERS: usize = 3000;
const PORT: u16 = 9000;

/// Both ends of a connection that the frontend opened: its own, and that of a server which nobody enforces.
type Ends = (TcpStream, TcpStream);

fn open(lab: &Lab, server: &TcpListener) -> Result<Ends> {
    let pod = lab.connect("frontend", lab.address("sleep", PORT, false))?;
    let (other, _) = server.accept().context("nobody came")?;
    other.set_nodelay(true)?;
    Ok((pod, other))
}

/// The same many times, each looked at by `work` before the next.
fn open_many(lab: &Lab, server: &TcpListener, mut work: impl FnMut(usize, Ends) + Send) -> Result<()> {
    let to = lab.address("sleep", PORT, false);
    lab.inside("frontend", || {
        for number in 0..OTHERS {
            let pod = TcpStream::connect(to)?;
            work(number, (pod, server.accept()?.0));
        }
        Ok(())
    })?
}

fn there_and_back((pod, other): &Ends) -> Result<()> {
    for (mut from, mut to) in [(pod, other), (other, pod)] {
        from.write_all(b"plain")?;
        let mut heard = [0; 5];
        to.set_read_timeout(Some(LIMIT))?;
        to.read_exact(&mut heard).context("it does not get through")?;
        assert_eq!(&heard, b"plain");
    }
    Ok(())
}

fn stage() -> Result<(Lab, enforcer_tests::lab::Running, TcpListener)> {
    raise_open_files(20_000)?;
    let (lab, agent) = strict(&["--map-size", ROOM])?;
    let server = lab.inside("sleep", || TcpListener::bind(("0.0.0.0", PORT)))??;
    Ok((lab, agent, server))
}

/// Says something at one end and reads at the other: whether the connection is known still. If not, both ends hear of it.
fn is_known(mut from: &TcpStream, mut to: &TcpStream) -> Result<bool> {
    from.write_all(b"again")?;
    to.set_read_timeout(Some(LIMIT))?;
    match to.read(&mut [0; 16]) {
        Ok(5) => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {
            assert_eq!(client::read_to_end(from, LIMIT)?.outcome, Outcome::Reset, "one end was not told");
            Ok(false)
        }
        other => bail!("neither read nor reset: {other:?}"),
    }
}

#[test]
fn idle_connections_of_a_pod_make_room_for_its_others() -> Result<()> {
    const LOOKED_AT: usize = 600;
    let (lab, _agent, server) = stage()?;
    let busy = open(&lab, &server)?;
    let mut held = Vec::new();
    let mut result = Ok(());
    open_many(&lab, &server, |number, ends| {
        held.push(ends);
        if number % 50 == 0 && result.is_ok() {
            result = there_and_back(&busy).context(format!("beside {number} others"));
        }
    })?;
    result.context("who speaks is forgotten")?;
    there_and_back(&busy)?;
    there_and_back(held.last().context("none")?)?;
    assert_eq!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections, 0);
    // Who was silent may be forgotten, whichever end says something: none of what was said is read then.
    let mut lost = 0;
    for (number, (pod, other)) in held.iter().take(LOOKED_AT).enumerate() {
        let (from, to) = if number % 2 == 0 { (pod, other) } else { (other, pod) };
        lost += u64::from(!is_known(from, to).with_context(|| format!("number {number}"))?);
    }
    println!("{lost} of the first {LOOKED_AT} of {OTHERS} idle connections were forgotten");
    assert!(lost >= LOOKED_AT as u64 / 2, "{lost} were forgotten; the table holds more than it can");
    assert_eq!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections, lost);
    Ok(())
}

#[test]
fn short_connections_of_a_pod_push_out_none_of_its_idle_ones() -> Result<()> {
    let (lab, _agent, server) = stage()?;
    let idle: Vec<Ends> = (0..20).map(|_| open(&lab, &server)).collect::<Result<_>>()?;
    open_many(&lab, &server, |_, (pod, other)| {
        // The server's FIN is there before the pod's is sent.
        drop(other);
        let _ = (&pod).read(&mut [0; 1]);
    })?;
    for ends in &idle {
        there_and_back(ends)?;
    }
    assert_eq!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections, 0);
    Ok(())
}
