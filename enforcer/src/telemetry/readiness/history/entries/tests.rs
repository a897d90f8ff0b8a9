use enforcer_common::{Reason, Verdict};

use super::*;

const SECOND: u64 = 1_000_000_000;

fn seen(class: Class, client: u8, connections: u64, first: u64, last: u64) -> Seen {
    Seen {
        workload: 1,
        port: 80,
        class,
        client: [10, 0, 0, client].into(),
        connections,
        first_ns: first * SECOND,
        last_ns: last * SECOND,
        verdict: Verdict::ALLOW,
        reason: Reason::TLS,
    }
}

fn names(client: u8, name: &str) -> BTreeMap<IpAddr, String> {
    [([10, 0, 0, client].into(), name.to_owned())].into()
}

fn hellos(mesh: u64, other: u64) -> Hellos {
    let mut hellos = Hellos::default();
    for number in 0..mesh + other {
        assert!(hellos.count(1, 80, [10, 0, 0, 9].into(), number < mesh));
    }
    hellos
}

#[test]
fn after_an_address_changed_hands_nobody_is_blamed_for_the_one_before() {
    let mut entries = Entries::default();
    let plain = seen(Class::Plaintext, 9, 2, 1, 99);
    let none = Hellos::default();
    entries.look((90 * SECOND, 100 * SECOND), &names(9, "a/sleep"), &[plain], &none);
    // The address went to another pod, which speaks TLS only.
    let tls = seen(Class::Tls, 9, 5, 105, 109);
    entries.look((100 * SECOND, 110 * SECOND), &names(9, "b/other"), &[plain, tls], &none);
    let name = |entries: &Entries, seen: &Seen| entries.of(seen).and_then(|entry| entry.name.clone());
    assert_eq!(name(&entries, &plain).as_deref(), Some("a/sleep"));
    assert_eq!(name(&entries, &tls).as_deref(), Some("b/other"));
    assert_eq!(entries.named(), 2);
    // Another port of the same client is another entry.
    let other_port = Seen { port: 81, ..tls };
    assert_eq!(name(&entries, &other_port), None);
    entries.look((110 * SECOND, 120 * SECOND), &BTreeMap::new(), &[tls], &none);
    assert_eq!(name(&entries, &plain), None, "forgotten with its map entry");
}

#[test]
fn hellos_belong_to_the_entry_that_they_were_counted_in() {
    let mut entries = Entries::default();
    let (tls, plain) = (seen(Class::Tls, 9, 5, 1, 99), seen(Class::Plaintext, 9, 5, 1, 99));
    entries.look((0, 100 * SECOND), &BTreeMap::new(), &[tls, plain], &hellos(3, 1));
    let of = |entries: &Entries, seen: &Seen| entries.of(seen).map(|entry| entry.hellos);
    assert_eq!(of(&entries, &tls), Some(Tally { mesh: 3, other: 1 }));
    assert_eq!(of(&entries, &plain), Some(Tally::default()));
    // The rest was not read, and never becomes more than there were.
    let more = Seen { connections: 6, ..tls };
    entries.look((100 * SECOND, 110 * SECOND), &BTreeMap::new(), &[more], &hellos(5, 0));
    assert_eq!(of(&entries, &more), Some(Tally { mesh: 6, other: 0 }));
    // Pushed out of the map and back: another entry.
    let again = Seen { connections: 1, first_ns: 111 * SECOND, ..tls };
    entries.look((110 * SECOND, 120 * SECOND), &BTreeMap::new(), &[again], &Hellos::default());
    assert_eq!(of(&entries, &again), Some(Tally::default()));
    assert_eq!(of(&entries, &more), None);
}

#[test]
fn marks_say_how_many_there_were_when() {
    let mut entries = Entries::default();
    let none = Hellos::default();
    let numbers = |entries: &Entries, at: u64| {
        let mut marks = entries.0.values().flat_map(|entry| &entry.marks);
        marks.rfind(|mark| mark.at_ns <= at).map(|mark| mark.connections)
    };
    // One connection a minute for five days.
    for minute in 1..5 * 24 * 60_u64 {
        let client = seen(Class::Plaintext, 9, minute, 1, minute * 60);
        entries.look((0, minute * MINUTE), &BTreeMap::new(), &[client], &none);
    }
    let end = 5 * 24 * 60 - 1;
    let marks = &entries.0.values().next().expect("an entry").marks;
    assert!(marks.len() <= 60 + 48 + 14 + 2, "{}", marks.len());
    assert_eq!(marks.last().map(|mark| mark.connections), Some(end));
    // To the minute for an hour, to the hour for two days, then to six hours: never too few.
    for (ago, most) in [(10, 1), (50, 1), (5 * 60, 61), (30 * 60, 61), (4 * 24 * 60, 361)] {
        let before = numbers(&entries, (end - ago) * MINUTE).expect("a mark");
        let counted = end - before;
        assert!((ago..=ago + most).contains(&counted), "{ago} minutes ago: {counted} counted");
    }
    // What lies beyond the last stretch is remembered as one number.
    let later = end + 40 * 24 * 60;
    let client = seen(Class::Plaintext, 9, end + 1, 1, later * 60);
    entries.look((0, later * MINUTE), &BTreeMap::new(), &[client], &none);
    assert_eq!(numbers(&entries, (later - 60) * MINUTE), Some(end));
}

#[test]
fn marks_are_bounded_and_survive_json() {
    let mut entries = Entries::default();
    let none = Hellos::default();
    for minute in 1..=50_u64 {
        let clients: Vec<Seen> = (0..3000_u32)
            .map(|client| Seen {
                client: IpAddr::from(client.to_be_bytes()),
                ..seen(Class::Tls, 0, minute, 1, minute * 60)
            })
            .collect();
        entries.look((0, minute * MINUTE), &BTreeMap::new(), &clients, &none);
    }
    let marks: usize = entries.0.values().map(|entry| entry.marks.len()).sum();
    assert!(marks <= MOST_MARKS, "{marks}");
    assert!(entries.0.values().all(|entry| entry.marks.last().is_some_and(|mark| mark.connections == 50)));
    let text = serde_json::to_string(&entries).expect("json");
    assert_eq!(serde_json::from_str::<Entries>(&text).expect("its own json"), entries);
}
