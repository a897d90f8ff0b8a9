//! Certificates and times as people read them.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::certificate::probe::{Probe, Server};
use crate::certificate::report::Entry;
use crate::certificate::x509::{Certificate, printable};

/// `in 11 h`, `3 d ago`, `now`.
pub(super) fn relative(instant: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_until(instant).as_secs();
    let magnitude = seconds.unsigned_abs();
    let (number, unit) = match magnitude {
        0 => return "now".to_owned(),
        1..120 => (magnitude, "s"),
        120..7_200 => (magnitude / 60, "min"),
        7_200..172_800 => (magnitude / 3_600, "h"),
        172_800..63_072_000 => (magnitude / 86_400, "d"),
        _ => (magnitude / 31_536_000, "years"),
    };
    if seconds > 0 { format!("in {number} {unit}") } else { format!("{number} {unit} ago") }
}

/// `ends in 11 h`, `ended 3 d ago`, `begins in 2 h`.
pub(super) fn validity(certificate: &Certificate, now: Timestamp) -> String {
    if now < certificate.not_before {
        format!("begins {}", relative(certificate.not_before, now))
    } else if now <= certificate.not_after {
        format!("ends {}", relative(certificate.not_after, now))
    } else {
        format!("ended {}", relative(certificate.not_after, now))
    }
}

/// One line of `enforcer certs`.
pub(super) fn row(entry: &Entry, now: Timestamp) -> [String; 13] {
    let server = entry.probe.as_ref().and_then(|probe| probe.server.as_ref());
    let leaf = server.and_then(|server| server.chain.first());
    let of_leaf = |show: &dyn Fn(&Certificate) -> String| leaf.map_or_else(|| "-".to_owned(), show);
    let state = entry.history.state.to_string() + if entry.history.blocked { " (blocked)" } else { "" };
    [
        format!("{}/{}", entry.namespace, entry.pod),
        entry.address.to_string(),
        entry.port.to_string(),
        state,
        entry.history.since.map_or_else(|| "-".to_owned(), |since| relative(since, now)),
        of_leaf(&|leaf| dash(leaf.subject.clone())),
        of_leaf(&|leaf| dash(printable(&leaf.uris.join(" ")))),
        of_leaf(&|leaf| dash(leaf.issuer.clone())),
        of_leaf(&|leaf| validity(leaf, now)),
        of_leaf(&|leaf| leaf.key.clone()),
        server.and_then(|server| server.version.clone()).unwrap_or_else(|| "-".to_owned()),
        dash(entry.probe.as_ref().map(clients).unwrap_or_default()),
        dash(entry.findings().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    ]
}

/// What each client got, one line each.
fn clients(probe: &Probe) -> String {
    let lines = probe.clients.iter().map(|result| format!("{}: {}", result.name(), result.outcome));
    lines.collect::<Vec<_>>().join("\n")
}

/// The whole of one check, one fact per line.
pub(super) fn page(probe: &Probe, now: Timestamp) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{:<31}{value}", format!("{name}:"));
    };
    if let Some(server) = &probe.server {
        for (number, certificate) in server.chain.iter().enumerate() {
            certificate_lines(&mut line, number, certificate, now);
        }
        handshake_lines(&mut line, server);
    }
    for result in &probe.clients {
        line(&result.name(), &result.outcome.to_string());
    }
    text
}

fn certificate_lines(
    line: &mut dyn FnMut(&str, &str),
    number: usize,
    certificate: &Certificate,
    now: Timestamp,
) {
    if number == 0 {
        line("subject", &dash(certificate.subject.clone()));
        line("SPIFFE ID", &dash(printable(&certificate.uris.join(" "))));
        if !certificate.dns_names.is_empty() {
            line("DNS names", &printable(&certificate.dns_names.join(" ")));
        }
        line("issuer", &dash(certificate.issuer.clone()));
    } else {
        line("intermediate", &dash(certificate.subject.clone()));
    }
    line("validity", &format!("{} ({})", validity(certificate, now), certificate.not_after));
    line("key", &certificate.key);
}

fn handshake_lines(line: &mut dyn FnMut(&str, &str), server: &Server) {
    let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    line("TLS version", &known(&server.version));
    line("cipher suite", &known(&server.cipher_suite));
    line("key exchange", &known(&server.group));
    line("ALPN", &known(&server.alpn));
    line("mesh ALPN", if server.mesh_hello { "accepted" } else { "refused; checked without it" });
    let asks = match &server.asks_for {
        None => "no".to_owned(),
        Some(names) if names.is_empty() => "yes".to_owned(),
        Some(names) => format!("yes, of {}", names.join("; ")),
    };
    line("asks for certificate", &asks);
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_largest_sensible_unit() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().expect("an instant");
        let cases = [
            (0, "now"),
            (1, "in 1 s"),
            (119, "in 119 s"),
            (120, "in 2 min"),
            (11 * 3600 + 59, "in 11 h"),
            (3 * 86_400, "in 3 d"),
            (10 * 31_536_000, "in 10 years"),
            (-90, "90 s ago"),
            (-7_200, "2 h ago"),
        ];
        for (seconds, text) in cases {
            let instant = now + jiff::SignedDuration::from_secs(seconds);
            assert_eq!(relative(instant, now), text);
        }
    }
}
