use std::fs;
use std::future::Future;
use std::time::{Duration, Instant};

use super::{RESCAN, SETTLE, Store, Watch};

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

/// Waits for a change as the agent does: in a `select!` whose other branches win again and again.
async fn changed_among_others(watch: &mut Watch, other: Duration, limit: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        tokio::select! {
            () = watch.changed() => return true,
            () = tokio::time::sleep(other) => {}
        }
    }
    false
}

const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";

/// Each wait is cancelled before it has settled: a change that was told must not get lost by that.
#[test]
fn a_change_is_seen_however_busy_the_caller_is() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let mut watch = Watch::open(&[folder.path().to_owned()]);
        // The periodic look must not be what finds it.
        watch.rescan = Instant::now() + Duration::from_hours(1);
        tokio::time::sleep(Duration::from_millis(20)).await;
        fs::write(folder.path().join("a.yaml"), POLICY).expect("written");
        assert!(changed_among_others(&mut watch, SETTLE / 10, SETTLE * 20).await);
    });
}

#[test]
fn the_periodic_look_comes_however_busy_the_caller_is() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let mut watch = Watch::open(&[folder.path().to_owned()]);
        watch.watcher = None;
        assert!(changed_among_others(&mut watch, Duration::from_millis(5), RESCAN * 2).await);
    });
}

#[test]
fn a_folder_that_vanishes_keeps_its_policies_and_is_followed_when_it_returns() {
    block_on(async {
        let outer = tempfile::tempdir().expect("a folder");
        let folder = outer.path().join("manifests");
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("a.yaml"), POLICY).expect("written");
        let paths = [folder.clone()];
        let (mut store, mut watch) = (Store::new(paths.to_vec()), Watch::open(&paths));
        let loaded = store.reload().expect("the first look");
        assert_eq!(loaded.objects.policies.len(), 1, "{:?}", loaded.problems);

        fs::rename(&folder, outer.path().join("away")).expect("moved");
        watch.changed().await;
        let loaded = store.reload().expect("a vanished folder is told");
        assert_eq!((loaded.objects.policies.len(), loaded.problems.len()), (1, 1));

        fs::create_dir(&folder).expect("made again");
        watch.changed().await;
        let loaded = store.reload().expect("the folder is back, and empty");
        assert_eq!((loaded.objects.policies.len(), loaded.problems.len()), (0, 0));

        // Without the periodic look: the new folder of the same name is watched too.
        watch.rescan = Instant::now() + Duration::from_hours(1);
        fs::write(folder.join("b.yaml"), POLICY).expect("written");
        let told = tokio::time::timeout(Duration::from_secs(1), watch.changed()).await;
        assert!(told.is_ok(), "nobody told of the new file");
        assert_eq!(store.reload().map(|loaded| loaded.objects.policies.len()), Some(1));
    });
}

#[test]
fn a_file_that_is_broken_at_the_start_keeps_what_the_agent_before_had_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let memory = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.yaml");
    let start = || Store::new(vec![folder.path().to_owned()]).with_memory(memory.path().join("kept"));
    let policies = |store: &mut Store| {
        store.reload().map(|loaded| (loaded.objects.policies.len(), loaded.problems.len()))
    };

    fs::write(&file, POLICY).expect("written");
    assert_eq!(policies(&mut start()), Some((1, 0)));

    fs::write(&file, "kind: [").expect("written");
    let mut store = start();
    assert_eq!(policies(&mut store), Some((1, 1)), "the policy stays, and the file is reported");

    // A document that is refused is not the same as one that was taken out.
    fs::write(&file, POLICY.replace("STRICT", "STRICKT")).expect("written");
    assert_eq!(policies(&mut start()), Some((1, 1)));

    fs::remove_file(&file).expect("removed");
    assert_eq!(policies(&mut store), Some((0, 0)), "a file that is gone takes its policy along");
    fs::write(&file, "kind: [").expect("written");
    assert_eq!(policies(&mut start()), Some((0, 1)), "and does not come back by a broken one");
}

#[test]
fn a_file_that_is_renamed_and_broken_at_once_drops_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let mut store = Store::new(vec![folder.path().to_owned()]);
    let mut policies = || store.reload().map(|loaded| (loaded.objects.policies.len(), loaded.problems.len()));
    fs::write(at("a.yaml"), POLICY).expect("written");
    assert_eq!(policies(), Some((1, 0)));
    fs::remove_file(at("a.yaml")).expect("removed");
    fs::write(at("b.yaml"), POLICY.replace("STRICT", "SRTICT")).expect("written");
    assert_eq!(policies(), Some((1, 1)));
    fs::write(at("b.yaml"), POLICY.replace("STRICT", "SCRIPT !")).expect("written");
    assert_eq!(policies(), Some((1, 1)), "and keeps it");
    fs::remove_file(at("b.yaml")).expect("removed");
    assert_eq!(policies(), Some((0, 0)), "a removed file is a removal");
}

#[test]
fn an_emptied_file_keeps_its_policies_over_a_restart_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let memory = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.yaml");
    let start = || Store::new(vec![folder.path().to_owned()]).with_memory(memory.path().join("kept"));
    let policies = |store: &mut Store| {
        store
            .reload()
            .map(|loaded| (loaded.objects.policies.len(), loaded.problems.len(), loaded.warnings.len()))
    };
    fs::write(&file, POLICY).expect("written");
    let mut store = start();
    assert_eq!(policies(&mut store), Some((1, 0, 0)));
    fs::write(&file, "").expect("written");
    assert_eq!(policies(&mut store), Some((1, 1, 0)));
    assert_eq!(policies(&mut start()), Some((1, 1, 0)));
    // A file that never held anything is worth a look, no more.
    fs::write(folder.path().join("b.yaml"), "# later\n").expect("written");
    assert_eq!(policies(&mut start()), Some((1, 1, 1)));
}
