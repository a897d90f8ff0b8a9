//! Pods from a real API server: which are this node's, which addresses they have, and what stays enforced until when.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::policy;
use enforcer_tests::cluster::{KubeScene, NODE_NAME};
use enforcer_tests::lab::NODE;
use enforcer_tests::{Pod, poll};
use kube::api::DeleteParams;
use serde_json::json;

const NAMESPACE: &str = "hipstershopv1v2";
const LIMIT: Duration = Duration::from_secs(10);

fn strict() -> Result<KubeScene> {
    strict_with(&[])
}

fn strict_with(more: &[&str]) -> Result<KubeScene> {
    let scene = KubeScene::with(&["v1"], more)?;
    scene.cluster.apply_yaml(&policy("istio-system", "default", None, "STRICT", &[]))?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    Ok(scene)
}

fn mode(scene: &KubeScene, address: IpAddr) -> Option<Mode> {
    scene.lab.endpoint(address).ok().map(|endpoint| endpoint.mode)
}

fn wait(scene: &KubeScene, address: IpAddr, wanted: Option<Mode>) -> Result<()> {
    poll::until(&format!("{address} to be {wanted:?}"), LIMIT, || {
        let found = mode(scene, address);
        ensure!(found == wanted, "it is {found:?}");
        Ok(())
    })
}

/// How many pods' time without a policy was measured.
fn gaps(scene: &KubeScene) -> Result<u64> {
    let socket = scene.lab.socket().display().to_string();
    let words = ["curl", "-sS", "--unix-socket", &socket, "http://agent/metrics"];
    let text = scene.lab.exec(NODE, words)?.success()?.stdout;
    let count = text.lines().find_map(|line| line.strip_prefix("enforcer_pod_gap_seconds_count "));
    Ok(count.context("no enforcer_pod_gap_seconds")?.trim().parse()?)
}

#[test]
fn pods_of_this_node_at_all_their_addresses() -> Result<()> {
    let mut scene = strict()?;
    // Both addresses of a pod are there already; one gets them late, one has a single one, one is on another node.
    let late = Pod::meshed(NAMESPACE, "late", 30).port(8080);
    let single = Pod::meshed(NAMESPACE, "single", 31);
    let far = Pod::meshed(NAMESPACE, "far", 32);
    scene.cluster.add_pod(&far, "node-b", &far.addresses())?;
    scene.cluster.add_pod(&single, NODE_NAME, &[single.v6().into()])?;
    scene.cluster.add_pod(&late, NODE_NAME, &[])?;
    wait(&scene, single.v6().into(), Some(Mode::STRICT))?;
    assert_eq!(mode(&scene, single.v4().into()), None);

    scene.lab.add_pod(late.clone())?;
    let (_server, _) = scene.lab.sidecar("late", 8080)?;
    let get = |scene: &KubeScene| scene.lab.curl("sleep", &["http://late.hipstershopv1v2:8080"]);
    assert_eq!(get(&scene)?.code, 0, "its policy is not known yet");
    scene.cluster.with(async |client| {
        enforcer_tests::cluster::report(&client, NAMESPACE, "late", &late.addresses()).await
    })?;
    scene.lab.wait_mode("late", Mode::STRICT)?;
    assert_eq!(get(&scene)?.code, 56);
    // The time without it was measured.
    poll::until("the gap of the pod", LIMIT, || {
        ensure!(gaps(&scene)? > 0);
        Ok(())
    })?;

    for address in far.addresses() {
        assert_eq!(mode(&scene, address), None, "a pod of another node");
    }
    // In the node's network namespace: never, whatever its labels say.
    let mut host = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": "host", "labels": {"security.istio.io/tlsMode": "istio"}},
        "spec": {"nodeName": NODE_NAME, "hostNetwork": true, "containers": [{"name": "app", "image": "app"}]},
    });
    host["metadata"]["annotations"] = json!({"a": "b"});
    scene.cluster.apply(&host)?;
    let address: IpAddr = "10.244.0.1".parse()?;
    scene
        .cluster
        .with(async |client| enforcer_tests::cluster::report(&client, NAMESPACE, "host", &[address]).await)?;
    // A pod that was told later is there, so the host's was seen.
    let after = Pod::meshed(NAMESPACE, "after", 33);
    scene.cluster.add_pod(&after, NODE_NAME, &after.addresses())?;
    wait(&scene, after.v4().into(), Some(Mode::STRICT))?;
    assert_eq!(mode(&scene, address), None);
    Ok(())
}

#[test]
fn a_pod_is_enforced_until_its_interface_is_gone() -> Result<()> {
    let mut scene = strict()?;
    let (server, _) = scene.lab.sidecar("frontend", 8080)?;
    let frontend = scene.lab.pod("frontend").clone();
    let address = frontend.v4().into();
    let reset = ("000".to_owned(), 56);
    // Being deleted: it serves on until its grace period is over.
    scene.cluster.delete_with("v1", "Pod", Some(NAMESPACE), "frontend", &DeleteParams::default())?;
    assert_eq!(scene.curl()?, reset);
    // The object is gone, by force, and nobody has told its kubelet.
    scene.cluster.delete_pod(&frontend)?;
    let others = Pod::meshed(NAMESPACE, "other", 40);
    scene.cluster.add_pod(&others, NODE_NAME, &others.addresses())?;
    wait(&scene, others.v4().into(), Some(Mode::STRICT))?;
    assert_eq!(mode(&scene, address), Some(Mode::STRICT));
    assert_eq!(scene.curl()?, reset);
    // Policy of the moment holds for it still.
    scene.cluster.apply_yaml(&policy(NAMESPACE, "default", None, "PERMISSIVE", &[]))?;
    wait(&scene, address, Some(Mode::PERMISSIVE))?;
    scene.cluster.delete_policy(NAMESPACE, "default")?;
    wait(&scene, address, Some(Mode::STRICT))?;

    drop(server);
    scene.lab.remove_pod("frontend")?;
    wait(&scene, address, None)
}

/// Each round another pod gets the address of the one before, whose object may still be there: meshed and STRICT, or
/// outside the mesh. Nobody inherits.
#[test]
fn an_address_that_is_used_again_brings_no_policy_along() -> Result<()> {
    let mut scene = strict()?;
    let mut old: Option<Pod> = None;
    for round in 0..8_u8 {
        let name = format!("round-{round}");
        let meshed = round % 2 == 0;
        let pod = if meshed { Pod::meshed(NAMESPACE, &name, 50) } else { Pod::new(NAMESPACE, &name, 50) };
        // Orders of events that kubelets produce: the old object goes long before, just before, or after the new one
        // has its address; gracefully or not.
        let remove = |scene: &KubeScene, old: &Pod| scene.cluster.delete_pod(old);
        if let Some(old) = &old {
            if round % 4 == 1 {
                let gently = DeleteParams::default();
                scene.cluster.delete_with("v1", "Pod", Some(NAMESPACE), &old.name, &gently)?;
            }
            if round % 4 == 2 {
                remove(&scene, old)?;
            }
            scene.lab.remove_pod(&old.name)?;
        }
        scene.lab.add_pod(pod.clone())?;
        scene.cluster.add_pod(&pod, NODE_NAME, &pod.addresses())?;
        let wanted = meshed.then_some(Mode::STRICT);
        for address in pod.addresses() {
            wait(&scene, address, wanted).with_context(|| format!("round {round}"))?;
        }
        let (_server, _) = scene.lab.sidecar(&name, 8080)?;
        let url = format!("http://{name}.{NAMESPACE}:8080");
        let code = scene.lab.curl("sleep", &[&url])?.code;
        assert_eq!(code, if meshed { 56 } else { 0 }, "round {round}");
        if let (Some(old), true) = (&old, round % 4 != 2) {
            remove(&scene, old)?;
            // What is told after it has been seen, it has been seen too.
            let marker = Pod::meshed(NAMESPACE, &format!("marker-{round}"), 100 + round);
            scene.cluster.add_pod(&marker, NODE_NAME, &marker.addresses())?;
            wait(&scene, marker.v4().into(), Some(Mode::STRICT))?;
            assert_eq!(mode(&scene, pod.v4().into()), wanted, "round {round}, after the old object went");
        }
        old = Some(pod);
    }
    Ok(())
}

/// A client that knocks from before a pod is there: under `--unknown-pods strict` no byte of it arrives, in the time
/// before the pod's policy is known as little as after it.
#[test]
fn no_plaintext_reaches_a_new_pod_under_unknown_pods_strict() -> Result<()> {
    let mut scene = strict_with(&["--unknown-pods", "strict"])?;
    let (new, plain) =
        (Pod::meshed(NAMESPACE, "new", 60).port(8080), Pod::new("noistio", "plain", 61).port(8080));
    let target = new.v4();
    let knock = format!(
        "while :; do curl -s -o /dev/null --connect-timeout 0.2 -m 2 -w '%{{http_code}} %{{exitcode}}\\n' http://{target}:8080; done"
    );
    let knocking =
        (0..3).map(|_| scene.lab.spawn("sleep", ["sh", "-c", &knock])).collect::<Result<Vec<_>>>()?;
    let answers =
        || knocking.iter().flat_map(|one| one.output().lines().map(str::to_owned).collect::<Vec<_>>());
    poll::until("the client to knock", LIMIT, || {
        ensure!(answers().count() > 5);
        Ok(())
    })?;

    scene.lab.add_pod(new.clone())?;
    let (_server, records) = scene.lab.sidecar("new", 8080)?;
    // Refused at the handshake: to the client as if nobody listened.
    poll::until("refusals before the policy is known", LIMIT, || {
        let count = scene.lab.count(Verdict::RESET, Reason::UNKNOWN_POD)?.connections;
        ensure!(count > 5, "{count}");
        Ok(())
    })?;
    assert_eq!(mode(&scene, target.into()), None, "its policy is not known yet");
    scene.cluster.add_pod(&new, NODE_NAME, &new.addresses())?;
    scene.lab.wait_mode("new", Mode::STRICT)?;
    poll::until("resets by its policy", LIMIT, || {
        let count = answers().filter(|answer| answer == "000 56").count();
        ensure!(count > 5, "{count}");
        Ok(())
    })?;
    ensure!(answers().all(|answer| answer.starts_with("000 ")), "something was served");
    drop(knocking);
    let seen = records.all()?;
    let arrived: Vec<_> = seen.iter().filter(|record| record.read > 0 || record.written > 0).collect();
    assert!(arrived.is_empty(), "{arrived:?}");
    assert!(scene.lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections > 0);
    // Its mesh clients are served, and the time without its policy is told as soon as its interface is found.
    poll::until("the gap of the pod", LIMIT, || {
        ensure!(gaps(&scene)? > 0, "no gap was measured");
        Ok(())
    })?;
    assert_eq!(scene.lab.mesh_curl("loadgenerator", &["https://new.hipstershopv1v2:8080"])?.code, 0);

    // A pod outside the mesh opens with the news that it is.
    scene.lab.add_pod(plain.clone())?;
    let (_server, _) = scene.lab.sidecar("plain", 8080)?;
    let get = |scene: &KubeScene| scene.lab.curl("sleep", &["http://plain.noistio:8080"]);
    assert_eq!(get(&scene)?.code, 7);
    scene.cluster.add_pod(&plain, NODE_NAME, &plain.addresses())?;
    poll::until("the pod outside the mesh to be open", LIMIT, || {
        let code = get(&scene)?.code;
        ensure!(code == 0, "curl ended with {code}");
        Ok(())
    })
}

/// What is asked of the API server is answered from its cache, and by a name that is asked for once.
#[test]
fn pods_and_names_are_read_from_the_cache_of_the_api_server() -> Result<()> {
    let mut scene = strict()?;
    let far = Pod::new("noistio", "far", 70);
    scene.lab.add_pod(far.clone())?;
    scene.cluster.add_pod(&far, "node-b", &far.addresses())?;
    let (_server, _) = scene.lab.sidecar("frontend", 8080)?;
    let named = || -> Result<()> {
        let flows = scene.lab.enforcer(&["flows", "-o", "json"])?.success()?.stdout;
        ensure!(flows.contains("\"noistio\"") && flows.contains("\"far\""), "{flows}");
        Ok(())
    };
    let url = format!("http://{}:8080", scene.lab.pod("frontend").v4());
    poll::until("a client of another node to have a name", LIMIT, || {
        assert_eq!(scene.lab.curl("far", &["-4", &url])?.code, 56);
        named()
    })?;
    let query = format!("status.podIP%3D{}", far.v4());
    let asked = scene.cluster.asked(|uri| uri.contains(&query))?;
    assert_eq!(asked.len(), 1, "{asked:?}");
    let lists = scene.cluster.asked(|uri| {
        !uri.contains("watch=")
            && (uri.contains("fieldSelector=spec.nodeName") || uri.starts_with("/api/v1/services?"))
    })?;
    assert!(lists.len() >= 2, "{lists:?}");
    for uri in lists.iter().chain(&asked) {
        assert!(uri.contains("resourceVersion=0") && !uri.contains("limit="), "{uri} is read from the store");
    }
    Ok(())
}
