//! Creation times of policies that are yet to be applied.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::object::{ObjectName, Objects};

/// Stands for the time of a policy that does not exist yet: it will be younger than every one that does.
pub const NOT_YET: Timestamp = Timestamp::MAX;

/// Gives policies without a creation time the one that a cluster would: that of the existing policy of the same name, of
/// which `known` tells, else a time after all others. Where nothing has a time, nothing is changed: then the name decides.
pub fn settle(objects: &mut Objects, known: &BTreeMap<ObjectName, Timestamp>) {
    let dated = !known.is_empty() || objects.policies.values().any(|policy| policy.created.is_some());
    for policy in objects.policies.values_mut().filter(|policy| policy.created.is_none()) {
        policy.created = known.get(&policy.name).copied().or(dated.then_some(NOT_YET));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Origin, PeerAuthentication};

    fn objects(policies: &[(&str, Option<Timestamp>)]) -> Objects {
        let policy = |(name, created): &(&str, Option<Timestamp>)| PeerAuthentication {
            name: ObjectName::new("shop", *name),
            created: *created,
            labels: BTreeMap::new(),
            selector: BTreeMap::new(),
            mode: None,
            ports: BTreeMap::new(),
            origin: Origin::default(),
        };
        let policies = policies.iter().map(policy).map(|policy| (policy.name.clone(), policy)).collect();
        Objects { policies, ..Objects::default() }
    }

    #[test]
    fn an_undated_policy_keeps_its_age_or_comes_last() {
        let (old, new) =
            (Timestamp::from_second(1).expect("a time"), Timestamp::from_second(2).expect("a time"));
        let times = |mut objects: Objects, known: &[(&str, Timestamp)]| {
            let known = known.iter().map(|(name, time)| (ObjectName::new("shop", *name), *time)).collect();
            settle(&mut objects, &known);
            objects.policies.values().map(|policy| policy.created).collect::<Vec<_>>()
        };
        let mixed = [("a", None), ("b", Some(new))];
        assert_eq!(times(objects(&mixed), &[]), [Some(NOT_YET), Some(new)]);
        assert_eq!(times(objects(&mixed), &[("a", old)]), [Some(old), Some(new)]);
        let undated = [("a", None), ("b", None)];
        assert_eq!(times(objects(&undated), &[]), [None, None]);
        assert_eq!(times(objects(&undated), &[("c", old)]), [Some(NOT_YET); 2]);
    }
}
