use std::io::Read as _;

use super::*;

fn image() -> Archived {
    let image = Image {
        name: "localhost/thing:1",
        title: "thing",
        entrypoint: &["/bin/thing"],
        command: &["run"],
        path: "/bin",
        compression: Compression::best(),
    };
    let entries = vec![
        Entry::file("usr/bin/thing", 0o755, b"program".to_vec()),
        Entry::link("bin", "usr/bin"),
        Entry::directory("tmp"),
    ];
    image.write(entries).expect("an image")
}

/// Path and content of everything in a tar.
fn contents(archive: &[u8]) -> Vec<(String, Header, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("a tar");
    entries
        .map(|entry| {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            (path, entry.header().clone(), content)
        })
        .collect()
}

fn blob(files: &[(String, Header, Vec<u8>)], digest: &str) -> Vec<u8> {
    let path = format!("blobs/{}", digest.replace(':', "/"));
    let found = files.iter().find(|(name, ..)| *name == path);
    found.expect("the blob is in the archive").2.clone()
}

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("json")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

#[test]
fn the_same_entries_give_the_same_bytes() {
    assert_eq!(digest(&image().archive), digest(&image().archive));
}

#[test]
fn index_manifest_config_and_layer_point_at_each_other() {
    let image = image();
    let files = contents(&image.archive);
    let file = |name: &str| &files.iter().find(|(path, ..)| path == name).expect("a file").2;
    let listed = parsed(file("index.json"))["manifests"][0].clone();
    assert_eq!(text(&listed["digest"]), image.manifest);
    assert_eq!(listed["annotations"]["io.containerd.image.name"], "localhost/thing:1");

    let manifest = parsed(&blob(&files, &image.manifest));
    let config = blob(&files, text(&manifest["config"]["digest"]));
    let layer = blob(&files, text(&manifest["layers"][0]["digest"]));
    assert_eq!(manifest["layers"][0]["size"], layer.len());
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(layer.as_slice()).read_to_end(&mut plain).expect("gzip");
    assert_eq!(text(&parsed(&config)["rootfs"]["diff_ids"][0]), digest(&plain));
    assert_eq!(parsed(&config)["config"]["Entrypoint"][0], "/bin/thing");

    let docker = parsed(file("manifest.json"));
    assert_eq!(docker[0]["RepoTags"][0], "localhost/thing:1");
    for path in [&docker[0]["Config"], &docker[0]["Layers"][0]] {
        assert!(files.iter().any(|(name, ..)| name == text(path)), "{path} is not in the archive");
    }
}

#[test]
fn a_layer_is_sorted_dateless_and_has_every_parent() {
    let entries = vec![Entry::file("b/c/file", 0o640, vec![1]), Entry::link("a", "b")];
    let files = contents(&tar(entries).expect("a tar"));
    let paths: Vec<&str> = files.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(paths, ["a", "b/", "b/c/", "b/c/file"]);
    for (path, header, _) in &files {
        assert_eq!(header.mtime().expect("a time"), 0, "{path}");
        assert_eq!((header.uid().expect("uid"), header.gid().expect("gid")), (0, 0), "{path}");
    }
    assert_eq!(files.last().map(|(_, header, _)| header.mode().expect("a mode")), Some(0o640));
}
