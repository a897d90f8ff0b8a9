use super::*;
use crate::object::ObjectName;

fn pod(name: &str, labels: &[(&str, &str)]) -> Pod {
    Pod {
        name: ObjectName::new("shop", name),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..Pod::default()
    }
}

#[test]
fn workloads_are_named_as_their_controllers_are() {
    for (name, labels, workload) in [
        ("web-6d4cf56db6-x7k2p", &[("pod-template-hash", "6d4cf56db6")][..], "web"),
        ("web-v2-6d4cf56db6-x7k2p", &[("pod-template-hash", "6d4cf56db6")], "web-v2"),
        ("by-hand", &[("pod-template-hash", "6d4cf56db6")], "by-hand"),
        (
            "db-0",
            &[("statefulset.kubernetes.io/pod-name", "db-0"), ("controller-revision-hash", "db-5d")],
            "db",
        ),
        (
            "log-agent-qw8rt",
            &[("controller-revision-hash", "7c9"), ("pod-template-generation", "1")],
            "log-agent",
        ),
        ("backup-28391-abcde", &[("job-name", "backup-28391")], "backup-28391"),
        ("sync-28391040-abcde", &[("batch.kubernetes.io/job-name", "sync-28391040")], "sync"),
        ("-28391040-abcde", &[("job-name", "-28391040")], "-28391040"),
        ("sync-2839104a-abcde", &[("job-name", "sync-2839104a")], "sync-2839104a"),
        ("frontend", &[("app", "frontend.shop.svc.cluster.local")], "frontend"),
    ] {
        assert_eq!(workload_name(&pod(name, labels)), workload, "{name}");
    }
}

#[test]
fn a_job_is_a_cron_jobs_only_when_its_time_fits() {
    // The minute 28391040 is 2023-12-25T00:00:00Z.
    for (made, workload) in [
        ("2023-12-25T00:00:01Z", "sync"),
        ("2023-12-24T23:59:30Z", "sync"),
        ("2023-12-27T00:00:00Z", "sync"),
        ("2023-12-24T12:00:00Z", "sync-28391040"),
        ("2024-03-01T00:00:00Z", "sync-28391040"),
    ] {
        let created = Some(made.parse().expect("a time"));
        let pod = Pod { created, ..pod("sync-28391040-abcde", &[("job-name", "sync-28391040")]) };
        assert_eq!(workload_name(&pod), workload, "{made}");
    }
}

#[test]
fn addresses_of_the_host_and_of_finished_pods_are_nobodys() {
    let address: IpAddr = "10.0.0.1".parse().expect("an address");
    let mut objects = Objects::default();
    let mut web = Pod { addresses: vec![address], ..pod("web", &[]) };
    objects.pods.insert(web.name.clone(), web.clone());
    assert_eq!(Index::new(&objects).get(address).map(|found| &*found.pod), Some("web"));
    web.host_network = true;
    objects.pods.insert(web.name.clone(), web.clone());
    assert_eq!(Index::new(&objects).get(address), None);
    objects.pods.insert(web.name.clone(), Pod { host_network: false, finished: true, ..web });
    assert_eq!(Index::new(&objects).get(address), None);
}

#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<IpAddr>>>);

impl Lookup for Asked {
    fn request(&self, address: IpAddr) -> bool {
        let mut asked = self.0.lock().expect("no thread panicked");
        asked.push(address);
        asked.len() < 20
    }
}

#[test]
fn remote_pods_are_asked_for_once_and_bounded() {
    let asked = Asked::default();
    let remote = Remote::new(Some(Box::new(asked.clone())), 2);
    let address = |number: u8| IpAddr::from([10, 1, 0, number]);
    let now = Instant::now();
    let identity = Identity::of(&pod("far", &[]));
    assert_eq!(remote.get(address(1), now), None);
    assert_eq!(remote.get(address(1), now), None);
    remote.learn(address(1), Some(identity.clone()), now);
    assert_eq!(remote.get(address(1), now), Some(identity.clone()));
    assert_eq!(remote.peek(address(1), now), Some(identity.clone()));
    // No pod: known as that.
    assert_eq!(remote.get(address(2), now), None);
    remote.learn(address(2), None, now);
    // Full: neither asked for nor learned.
    assert_eq!(remote.get(address(3), now), None);
    remote.learn(address(3), Some(identity), now);
    assert_eq!(remote.peek(address(3), now), None);
    let asks = || asked.0.lock().expect("no thread panicked").clone();
    assert_eq!(asks(), [address(1), address(2)]);
    // What is old makes room, and is asked for again.
    let later = now + KEEP;
    assert_eq!(remote.get(address(3), later), None);
    assert_eq!(remote.get(address(1), later), None);
    assert_eq!(asks(), [address(1), address(2), address(3), address(1)]);
}

#[test]
fn a_name_is_kept_while_it_is_asked_for_again() {
    let asked = Asked::default();
    let remote = Remote::new(Some(Box::new(asked.clone())), 9);
    let asks = || asked.0.lock().expect("no thread panicked").len();
    let address = IpAddr::from([10, 1, 0, 1]);
    let (start, far) = (Instant::now(), Identity::of(&pod("far", &[])));
    remote.get(address, start);
    remote.learn(address, Some(far.clone()), start);
    assert_eq!(remote.get(address, start + KEEP), Some(far.clone()), "the API server is slow");
    assert_eq!(asks(), 2);
    remote.unanswered(address, start + KEEP);
    assert_eq!(remote.get(address, start + KEEP), Some(far.clone()), "and away");
    // Not for ever.
    assert_eq!(remote.get(address, start + KEEP_OLD), None);
    let later = start + KEEP_OLD;
    remote.learn(address, Some(far.clone()), later);
    assert_eq!(remote.get(address, later), Some(far));
    remote.get(address, later + KEEP);
    remote.learn(address, None, later + KEEP);
    assert_eq!(remote.get(address, later + KEEP), None, "it is nobody's now");
}

#[test]
fn a_record_does_not_take_the_name_of_a_later_owner() {
    let remote = Remote::new(Some(Box::new(Asked::default())), 9);
    let address = IpAddr::from([10, 1, 0, 1]);
    let start = Instant::now() + Duration::from_hours(1);
    let (one, two) = (Identity::of(&pod("one", &[])), Identity::of(&pod("two", &[])));
    remote.get(address, start);
    remote.learn(address, Some(one.clone()), start);
    let soon = Duration::from_secs(20);
    assert_eq!(remote.peek(address, start.checked_sub(soon).expect("a time")), Some(one.clone()));
    assert_eq!(remote.peek(address, start + soon), Some(one.clone()));
    assert_eq!(
        remote.peek(address, start.checked_sub(KEEP).expect("a time")),
        None,
        "long before it was asked for"
    );
    // It stays the pod's: records from the time between are its own.
    let later = start + KEEP * 3;
    remote.get(address, later);
    remote.learn(address, Some(one.clone()), later);
    assert_eq!(remote.peek(address, start + KEEP), Some(one));
    remote.get(address, later + KEEP);
    remote.learn(address, Some(two.clone()), later + KEEP);
    assert_eq!(remote.peek(address, start), None);
    assert_eq!(remote.peek(address, later + KEEP), Some(two));
}

#[test]
fn nobody_is_asked_for_again_soon_once_and_then_rarely() {
    let asked = Asked::default();
    let asks = || asked.0.lock().expect("no thread panicked").len();
    let remote = Remote::new(Some(Box::new(asked.clone())), 9);
    let address = IpAddr::from([203, 0, 113, 7]);
    let mut now = Instant::now();
    remote.get(address, now);
    remote.learn(address, None, now);
    now += KEEP_NOBODY_YET / 2;
    remote.get(address, now);
    assert_eq!(asks(), 1);
    now += KEEP_NOBODY_YET;
    remote.get(address, now);
    assert_eq!(asks(), 2, "a pod may have got the address meanwhile");
    remote.learn(address, None, now);
    now += KEEP_NOBODY * 9 / 10;
    remote.get(address, now);
    assert_eq!(asks(), 2);
    now += KEEP_NOBODY / 5;
    remote.get(address, now);
    assert_eq!(asks(), 3);
    remote.unanswered(address, now);
    remote.get(address, now + KEEP_UNANSWERED / 2);
    assert_eq!(asks(), 3);
    remote.get(address, now + KEEP_UNANSWERED);
    assert_eq!(asks(), 4);
}

#[test]
fn what_no_pod_can_have_is_not_asked_for_and_a_full_queue_forgets_nothing() {
    let asked = Asked::default();
    let asks = || asked.0.lock().expect("no thread panicked").len();
    let remote = Remote::new(Some(Box::new(asked.clone())), 99);
    let now = Instant::now();
    for text in [
        "127.0.0.1",
        "169.254.7.127",
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "ff02::1",
        "::",
    ] {
        remote.get(text.parse().expect("an address"), now);
    }
    assert_eq!(asks(), 0);
    for number in 0..25 {
        remote.get(IpAddr::from([10, 1, 0, number]), now);
    }
    assert_eq!(asks(), 25);
    // Those that found no place are asked for again; the others wait for their answer.
    for number in 0..25 {
        remote.get(IpAddr::from([10, 1, 0, number]), now);
    }
    assert_eq!(asks(), 25 + 6);
}

#[test]
fn without_a_lookup_nothing_is_kept() {
    let remote = Remote::new(None, 2);
    assert_eq!(remote.get(IpAddr::from([10, 0, 0, 1]), Instant::now()), None);
    assert_eq!(remote.peek(IpAddr::from([10, 0, 0, 1]), Instant::now()), None);
}
