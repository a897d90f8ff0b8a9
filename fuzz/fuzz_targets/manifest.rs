//! Any text as a manifest file: no panic, no hang, no memory without bound, in the parser and in all that reads policies.

#![no_main]

use std::collections::BTreeSet;

use enforcer::object::Map;
use enforcer::policy::compose::Composer;
use enforcer::policy::diff::{Side, diff};
use enforcer::policy::explain::explain;
use enforcer::policy::lint::lint;
use enforcer::source::manifest::{merge, parse_file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let content = parse_file("input.yaml".as_ref(), text);
    assert!(!content.unreadable || content.objects.is_empty());
    let last = content.clone();
    // Nothing that was in force is dropped, and a good file is what it says.
    let kept = content.over(&last);
    assert!(kept.objects.len() >= last.objects.len());
    assert!(!kept.is_good() || kept.objects.len() == last.objects.len());
    let _ = enforcer::source::text::lines(text);
    let loaded = merge([&last]);
    let objects = &loaded.objects;
    let composer = Composer::new(objects.policies.values(), "istio-system", None);
    for problem in
        lint(objects, &composer, &BTreeSet::new()).iter().chain(&loaded.problems).chain(&loaded.warnings)
    {
        assert!(!problem.to_string().is_empty());
    }
    for pod in objects.pods.values() {
        let explanation = explain(objects, &composer, &pod.name.namespace, &pod.labels, None);
        for ruling in &explanation.rulings {
            assert!(!ruling.outcome.to_string().is_empty());
        }
        // An override equal to the default is none.
        assert!(explanation.effective.ports.values().all(|mode| *mode != explanation.effective.default));
    }
    let _ = explain(objects, &composer, "default", &Map::new(), Some(80));
    let side = Side { objects, composer: &composer };
    assert!(diff(side, side).changes.is_empty());
});
