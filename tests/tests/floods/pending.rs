//! A table of clients with half a hello that is full: whoever comes then waits until there is room.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_common::{Reason, Verdict};
use enforcer_tests::poll;

use crate::{LIMIT, number_of_flows, status, strict};

/// A hello, as far as anybody looks at it, in two halves.
const HALVES: [&[u8]; 2] = [b"\x16\x03\x01", b"\x01\x20\x01\x00\x01\x1c\x03\x03hello"];

#[test]
fn half_a_hello_more_than_there_is_room_for_waits() -> Result<()> {
    const ROOM: usize = 4;
    let (lab, _agent) = strict(&["--map-size", "PENDING=4"])?;
    let (_server, records) = lab.raw_server("frontend", 8080, &["--echo-after", "6"])?;
    let begun = |v6: bool| -> Result<TcpStream> {
        let mut stream = lab.connect("loadgenerator", lab.address("frontend", 8080, v6))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(HALVES[0])?;
        Ok(stream)
    };
    // The pod's stack has the bytes of the first four and not those of the fifth.
    let waiting = |pod: &str| -> Result<usize> {
        let sockets = lab.sockets(pod, 8080)?;
        Ok(sockets.iter().filter(|line| line.split_whitespace().nth(2) == Some("3")).count())
    };
    let mut held: Vec<TcpStream> = (0..ROOM).map(|number| begun(number % 2 == 1)).collect::<Result<_>>()?;
    poll::until("half a hello of each", LIMIT, || {
        ensure!(waiting("loadgenerator")? == 0, "not acknowledged");
        Ok(())
    })?;
    let dropped = || Ok::<_, anyhow::Error>(lab.count(Verdict::DROP, Reason::UNDECIDED)?.packets);
    assert_eq!(dropped()?, 0);
    let mut more = begun(false)?;
    poll::until("the fifth to be dropped, again and again", LIMIT, || {
        ensure!(dropped()? >= 2, "dropped {} times", dropped()?);
        Ok(())
    })?;
    assert_eq!(waiting("loadgenerator")?, 1, "the fifth's bytes are not the pod's");
    assert_eq!(number_of_flows(&lab)?, 0);
    let problems = status(&lab)?["problems"].to_string();
    assert!(problems.contains("map PENDING is nearly full, and clients beyond it"), "{problems}");
    // Those who have their place are judged as ever.
    let mut first = held.remove(0);
    first.write_all(HALVES[1])?;
    let mut heard = vec![0; HALVES.concat().len()];
    first.read_exact(&mut heard).context("the first is not answered")?;
    assert_eq!(heard, HALVES.concat());
    // Which makes room.
    poll::until("the fifth to have its place", LIMIT, || {
        ensure!(waiting("loadgenerator")? == 0, "not acknowledged");
        Ok(())
    })?;
    more.write_all(HALVES[1])?;
    more.read_exact(&mut heard).context("the fifth is not answered")?;
    assert_eq!(heard, HALVES.concat());
    // And plaintext after half a hello is refused, wherever its half stands.
    for mut stream in held {
        stream.write_all(b"plaintext")?;
        let end = stream.read(&mut heard).expect_err("plaintext is answered");
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    }
    drop((first, more));
    poll::until("the records", Duration::from_secs(5), || {
        let records = records.all()?;
        ensure!(records.len() == ROOM + 1, "{records:?}");
        ensure!(
            records.iter().filter(|record| record.read > 5).all(|record| record.class == "tls"),
            "{records:?}"
        );
        Ok(())
    })
}
