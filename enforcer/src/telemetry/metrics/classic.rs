//! The text format of Prometheus (0.0.4) out of `OpenMetrics`: the two differ in what the comments name, not in the samples.

use std::fmt::Write as _;

/// Rewrites the comments. In the older format a counter's family has the name of its samples, there are no units and no
/// end mark, and an info is a gauge.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut classic = String::with_capacity(text.len());
    let mut help: Option<(&str, &str)> = None;
    for line in text.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some((name, text)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            // Its name depends on the type, which comes next.
            help = Some((name, text));
            continue;
        }
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else {
            classic.push_str(line);
            classic.push('\n');
            continue;
        };
        let (suffix, kind) = match kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            "unknown" => ("", "untyped"),
            kind => ("", kind),
        };
        // Writing to a string cannot fail.
        if let Some((_, text)) = help.take() {
            let _ = writeln!(classic, "# HELP {name}{suffix} {text}");
        }
        let _ = writeln!(classic, "# TYPE {name}{suffix} {kind}");
    }
    classic
}

#[cfg(test)]
mod tests {
    #[test]
    fn comments_name_what_the_samples_are_called() {
        let open = "# HELP a_things Things.\n# TYPE a_things counter\na_things_total{x=\"# TYPE\"} 1\n\
                    # HELP a_build Build.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                    # HELP a_wait_seconds Wait.\n# TYPE a_wait_seconds histogram\n# UNIT a_wait_seconds seconds\n\
                    a_wait_seconds_sum 1\n# EOF\n";
        let classic = "# HELP a_things_total Things.\n# TYPE a_things_total counter\na_things_total{x=\"# TYPE\"} 1\n\
                       # HELP a_build_info Build.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
                       # HELP a_wait_seconds Wait.\n# TYPE a_wait_seconds histogram\na_wait_seconds_sum 1\n";
        assert_eq!(super::from_open_metrics(open), classic);
    }
}
