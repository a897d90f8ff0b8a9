use super::*;

fn source(uri: &str, signed_by: Option<&str>) -> Source {
    Source { uri: uri.into(), signed_by: signed_by.map(Into::into) }
}

#[test]
fn one_line_entries() {
    let text = "# deb http://commented.test/debian stable main\n\
                deb http://a.test/debian stable main contrib # why\n\
                deb\t[arch=amd64 signed-by=/keys/b.gpg]  https://b.test/debian  stable  main\n\
                deb-src http://c.test/debian stable main\n\
                deb http://d.test/apt cloud tools\n\
                deb [broken http://e.test/debian stable main\n";
    assert_eq!(
        one_line(text),
        [source("http://a.test/debian", None), source("https://b.test/debian", Some("/keys/b.gpg"))]
    );
}

#[test]
fn deb822_stanzas() {
    let text = "Types: deb deb-src\n# a comment inside\nURIs: http://a.test/debian http://b.test/debian\n\
                Suites: stable\n stable-updates\nComponents: main contrib\nsigned-by: /keys/a.gpg\n\n\n\
                Types: deb\nURIs: http://off.test/debian\nComponents: main\nEnabled: no\n\n\
                Types: deb-src\nURIs: http://src.test/debian\nComponents: main\n\n\
                Types: deb\nURIs:\n http://c.test/debian\nSuites: x\nComponents: main\n";
    assert_eq!(
        deb822(text),
        [
            source("http://a.test/debian", Some("/keys/a.gpg")),
            source("http://b.test/debian", Some("/keys/a.gpg")),
            source("http://c.test/debian", None),
        ]
    );
}

#[test]
fn an_embedded_key_keeps_its_lines() {
    let text =
        "Types: deb\nURIs: http://a.test/debian\nComponents: main\nSigned-By:\n -----BEGIN-----\n .\n abc\n";
    assert_eq!(deb822(text), [source("http://a.test/debian", Some("\n -----BEGIN-----\n .\n abc"))]);
}
