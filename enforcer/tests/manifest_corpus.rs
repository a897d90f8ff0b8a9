//! The short form of the fuzz target `manifest`: every file of the corpus, cut off at each place and with bytes changed, is
//! parsed without a panic, and quickly.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use enforcer::source::manifest::{merge, parse_file};

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["tests/corpus", "../demo", "../demo/policies"];
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(root.join(folder)).expect("a folder"));
    let files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    assert!(files.len() >= 7, "the corpus is there: {files:?}");
    files
}

fn parse(text: &str) {
    let content = parse_file(Path::new("corpus.yaml"), text);
    let loaded = merge([&content]);
    assert!(content.problems.iter().all(|problem| !problem.message.is_empty()));
    assert!(loaded.problems.len() >= content.problems.len());
}

#[test]
fn damaged_files_are_refused_not_fatal() {
    // A fixed generator: a failure comes again.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % (below as u64)).expect("small")
    };
    for file in files() {
        let bytes = std::fs::read(&file).expect("readable");
        let step = (bytes.len() / 200).max(1);
        for end in (0..=bytes.len()).step_by(step) {
            parse(&String::from_utf8_lossy(&bytes[..end]));
        }
        for _ in 0..200 {
            let mut changed = bytes.clone();
            for _ in 0..=random(4) {
                let at = random(changed.len());
                changed[at] = b"{}[]:-,&*!|>'\"%@`#\n \t\0a0\xff"[random(25)];
            }
            let start = Instant::now();
            parse(&String::from_utf8_lossy(&changed));
            assert!(start.elapsed() < Duration::from_secs(5), "{} damaged takes too long", file.display());
        }
    }
}
