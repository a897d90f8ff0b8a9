//! Records as lines for people.

use comfy_table::Table;

use crate::cli::output;
use crate::telemetry::record::{Flow, Line, Record};

const HEADINGS: [&str; 9] =
    ["TIME", "EVENT", "CLIENT", "POD", "CLASS", "VERDICT", "REASON", "POLICY", "DETAIL"];
/// Widths of the columns when lines come one by one; longer words push the rest of their line.
const WIDTHS: [usize; 9] = [12, 7, 36, 36, 9, 11, 19, 28, 0];

/// The table for records that are all there.
pub(super) fn table() -> Table {
    output::table(HEADINGS)
}

/// The headings for records that come one by one.
pub(super) fn heading() -> String {
    pad(&HEADINGS.map(str::to_owned))
}

/// One record for a stream.
pub(super) fn line(record: &Record) -> String {
    pad(&cells(record))
}

fn pad(cells: &[String; 9]) -> String {
    let padded: Vec<_> = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:<width$}")).collect();
    padded.join("  ").trim_end().to_owned()
}

/// One record.
pub(super) fn cells(record: &Record) -> [String; 9] {
    let time = record.line.time().strftime("%H:%M:%S%.3f").to_string();
    let (event, flow) = match &record.line {
        Line::Verdict(flow) => ("verdict", flow),
        Line::End(flow) => ("end", flow),
        Line::Suppressed(gap) => {
            let parts = [
                ("records suppressed", gap.suppressed),
                ("pieces of hellos suppressed", gap.hellos_suppressed),
                ("events lost", gap.lost),
                ("records overwritten", gap.missed),
            ];
            let parts: Vec<_> = parts
                .iter()
                .filter(|(_, count)| *count > 0)
                .map(|(word, count)| format!("{count} {word}"))
                .collect();
            let mut cells = std::array::from_fn(|_| "-".to_owned());
            cells[0] = time;
            "missing".clone_into(&mut cells[1]);
            cells[8] = format!("{} here; the counters have every connection", parts.join(", "));
            return cells;
        }
    };
    [
        time,
        event.to_owned(),
        flow.client.label(),
        flow.pod.label(),
        flow.class.to_string(),
        flow.verdict.to_string(),
        flow.reason.to_string(),
        policy(flow),
        detail(flow, event == "end"),
    ]
}

fn policy(flow: &Flow) -> String {
    match (&flow.policy, &flow.level) {
        (Some(policy), Some(level)) => format!("{policy} ({level})"),
        (Some(policy), None) => policy.to_string(),
        _ => "-".to_owned(),
    }
}

fn detail(flow: &Flow, ended: bool) -> String {
    let mut parts: Vec<String> = Vec::new();
    parts.extend(flow.protocol.as_ref().map(ToString::to_string));
    parts.extend(flow.sni.as_ref().map(|name| format!("sni {name}")));
    if !flow.alpn.is_empty() {
        parts.push(format!("alpn {}", flow.alpn.join(",")));
    }
    if ended {
        parts.push(format!("{} B in, {} B out", flow.bytes_to_pod, flow.bytes_from_pod));
        parts.extend(flow.duration_seconds.map(|seconds| format!("{seconds:.3} s")));
    } else if !flow.remedy.is_empty() {
        parts.push(flow.remedy.to_string());
    }
    if parts.is_empty() { "-".to_owned() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::filter::tests::flow;
    use crate::telemetry::record::Suppressed;

    #[test]
    fn a_reset_reads_as_a_sentence() {
        let line = line(&Record { id: 1, line: Line::Verdict(flow()) });
        let words: Vec<_> = line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(
            words,
            [
                "00:00:10.000",
                "verdict",
                "legacy/sleep:4000",
                "shop/web:8080",
                "plaintext",
                "reset",
                "PLAINTEXT",
                "istio-system/default (mesh)",
                "http/1; Give it a certificate."
            ]
        );
        assert_eq!(heading().split_whitespace().count(), 9);
    }

    #[test]
    fn an_end_says_how_much_and_how_long() {
        let mut flow = flow();
        (flow.bytes_from_pod, flow.duration_seconds) = (1234, Some(1.5));
        flow.sni = Some("web.shop".into());
        flow.alpn = vec!["istio-peer-exchange".into(), "istio".into()];
        let cells = cells(&Record { id: 1, line: Line::End(flow) });
        assert_eq!(
            cells[8],
            "http/1; sni web.shop; alpn istio-peer-exchange,istio; 80 B in, 1234 B out; 1.500 s"
        );
    }

    #[test]
    fn what_is_missing_is_counted() {
        let gap = Suppressed { suppressed: 7, missed: 2, ..Suppressed::default() };
        let cells = cells(&Record { id: 1, line: Line::Suppressed(gap) });
        assert_eq!(
            cells[8],
            "7 records suppressed, 2 records overwritten here; the counters have every connection"
        );
    }
}
