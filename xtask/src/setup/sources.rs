//! Reads apt's configured sources, in both formats, for where this machine gets its packages from.

use std::fs;
use std::path::Path;

/// One archive that apt is configured with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    /// Address, scheme included.
    pub(crate) uri: String,
    /// Path of the keyring, or the key itself in the deb822 form; `None`: apt's own trusted keys.
    pub(crate) signed_by: Option<String>,
}

impl Source {
    /// The deb822 stanza for one suite of this archive; `types` is `deb`, `deb-src` or both.
    pub(crate) fn stanza(&self, types: &str, suite: &str) -> String {
        let key = self.signed_by.as_ref().map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
        format!("Types: {types}\nURIs: {}\nSuites: {suite}\nComponents: main\n{key}", self.uri)
    }
}

/// The archives for binary packages that serve the component `main`, each once, in apt's order.
pub(crate) fn configured() -> Vec<Source> {
    let etc = Path::new("/etc/apt");
    let mut files: Vec<_> = fs::read_dir(etc.join("sources.list.d"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.sort();
    files.insert(0, etc.join("sources.list"));
    let mut sources: Vec<Source> = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => one_line(&text),
            Some("sources") => deb822(&text),
            _ => Vec::new(),
        };
        for source in found {
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
    }
    sources
}

/// `deb [options] uri suite component…`
fn one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line_entry).collect()
}

fn one_line_entry(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    if let Some(inner) = rest.strip_prefix('[') {
        let (options, after) = inner.split_once(']')?;
        signed_by =
            options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")).map(Into::into);
        rest = after;
    }
    let mut words = rest.split_whitespace();
    let uri = words.next()?.to_owned();
    words.skip(1).any(|component| component == "main").then_some(Source { uri, signed_by })
}

/// Stanzas of `Field: value`, continued on indented lines.
fn deb822(text: &str) -> Vec<Source> {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).flat_map(stanza).collect()
}

fn stanza(lines: &[&str]) -> Vec<Source> {
    let words = |name| field(lines, name).unwrap_or_default();
    let has = |name, word| words(name).split_whitespace().any(|found| found == word);
    if has("Enabled", "no") || !has("Types", "deb") || !has("Components", "main") {
        return Vec::new();
    }
    let signed_by = field(lines, "Signed-By");
    words("URIs")
        .split_whitespace()
        .map(|uri| Source { uri: uri.to_owned(), signed_by: signed_by.clone() })
        .collect()
}

/// The value of a field, its continuation lines as they stand (an embedded key needs them).
fn field(lines: &[&str], name: &str) -> Option<String> {
    let (at, first) = lines.iter().enumerate().find_map(|(at, line)| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some((at, value.trim()))
    })?;
    let mut value = first.to_owned();
    for line in lines[at + 1..].iter().take_while(|line| line.starts_with([' ', '\t'])) {
        value.push('\n');
        value.push_str(line);
    }
    Some(value)
}

#[cfg(test)]
mod tests;
