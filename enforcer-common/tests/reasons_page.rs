//! `docs/reasons.md` is generated from the table of reasons; `UPDATE_DOCS=1` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use enforcer_common::Reason;

fn page() -> String {
    let mut page = "# Reasons\n\nEach verdict has one of these reasons; the word is the same in the maps, in metrics, in json and in tables.\nThis page is generated from `enforcer-common/src/reason.rs` (`UPDATE_DOCS=1 cargo test -p enforcer-common`).\n\n| reason | number | what happened | what to do |\n|---|---|---|---|\n".to_owned();
    for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::NONE) {
        writeln!(page, "| `{reason}` | {} | {} | {} |", *reason as u32, reason.summary(), reason.remedy())
            .expect("a string");
    }
    page
}

#[test]
fn the_page_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reasons.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, page()).expect("docs/reasons.md can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found,
        page(),
        "docs/reasons.md differs from the table: run UPDATE_DOCS=1 cargo test -p enforcer-common"
    );
}

#[test]
fn every_reason_says_what_happened_and_what_to_do() {
    for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::NONE) {
        for text in [reason.summary(), reason.remedy()] {
            assert!(text.len() > 20 && text.ends_with('.'), "{reason}: {text:?}");
        }
    }
}
