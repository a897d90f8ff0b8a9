//! Where ambient reads policies otherwise than `ComposePeerAuthentication`, which sidecars and this project follow.

use enforcer_common::Mode;

use super::{Linter, object};
use crate::object::PeerAuthentication;
use crate::policy::age::NOT_YET;
use crate::policy::compose::selects;

const RULE: &str = "ambient-differs";

impl Linter<'_> {
    /// Whether ambient may hold pods of a namespace: it does as far as shown, or nothing is known.
    fn may_be_ambient(&self, namespace: &str) -> bool {
        let label = self.objects.namespaces.get(namespace).map(|namespace| {
            let mode = namespace.labels.get("istio.io/dataplane-mode");
            mode.is_some_and(|mode| mode == "ambient")
        });
        let mut pods = self.objects.pods.values().filter(|pod| pod.name.namespace == namespace).peekable();
        let unknown = label.is_none() && pods.peek().is_none();
        unknown
            || label == Some(true)
            || pods.any(|pod| {
                let redirection = pod.annotations.get("ambient.istio.io/redirection");
                redirection.is_some_and(|value| value == "enabled")
            })
    }

    fn has_empty_selector(&self, policy: &PeerAuthentication) -> bool {
        self.empty_selectors.contains(&object(policy))
    }

    /// The policies of one namespace.
    pub(super) fn ambient(&mut self, namespace: &str) {
        if !self.may_be_ambient(namespace) {
            return;
        }
        let mesh = self.composer.wide(self.composer.root_namespace()).first().and_then(|policy| policy.mode);
        let wide = self.composer.wide(namespace);
        let own = wide.first().copied();
        let own_mode = own.and_then(|policy| policy.mode);
        let inherited = own_mode.or(mesh) == Some(Mode::STRICT);
        self.wide_ties(namespace);
        let selecting = self.composer.selecting(namespace);
        for (index, policy) in selecting.iter().enumerate() {
            let (earlier, _) = selecting.split_at(index);
            if let Some(winner) = earlier.iter().find(|winner| selects(&winner.selector, &policy.selector)) {
                if winner.created == policy.created {
                    self.tie(winner, policy);
                }
                continue;
            }
            // On pods that both select, ambient takes either one.
            let agree = |other: &PeerAuthentication| {
                other
                    .selector
                    .iter()
                    .all(|(key, value)| policy.selector.get(key).is_none_or(|own| own == value))
            };
            if let Some(winner) = earlier.iter().find(|other| other.created == policy.created && agree(other))
            {
                self.tie(winner, policy);
            }
            let has = |mode| policy.ports.values().any(|entry| *entry == Some(mode));
            let message = match policy.mode {
                None if mesh == Some(Mode::STRICT)
                    && own.is_some()
                    && own_mode.is_none()
                    && has(Mode::PERMISSIVE) =>
                {
                    "ambient leaves these pods open on every port, not on the PERMISSIVE ports alone: it inherits no STRICT from the mesh past a namespace policy without mode; write mtls.mode STRICT here"
                }
                None if own.is_some_and(|policy| self.has_empty_selector(policy))
                    && own_mode == Some(Mode::STRICT)
                    && has(Mode::PERMISSIVE) =>
                {
                    "ambient leaves these pods open on every port: it does not see the namespace's STRICT policy, whose selector is empty; remove that selector, or write mtls.mode STRICT here"
                }
                Some(Mode::PERMISSIVE)
                    if mesh == Some(Mode::STRICT) && own_mode.is_none() && has(Mode::STRICT) =>
                {
                    "ambient leaves the STRICT ports open too under a STRICT mesh policy: write mtls.mode STRICT here with PERMISSIVE port entries, or set the namespace's mode"
                }
                None if inherited && has(Mode::DISABLE) && !has(Mode::PERMISSIVE) && !has(Mode::STRICT) => {
                    "ambient keeps the DISABLE ports STRICT: write PERMISSIVE where plaintext is meant to pass"
                }
                _ => continue,
            };
            self.warn(policy, "spec.portLevelMtls", RULE, message.to_owned());
        }
    }

    /// Policies without selector that are as old as the one that wins.
    fn wide_ties(&mut self, namespace: &str) {
        if let Some((winner, losers)) = self.composer.wide(namespace).split_first() {
            for loser in losers.iter().filter(|loser| loser.created == winner.created) {
                self.tie(winner, loser);
            }
        }
    }

    fn tie(&mut self, winner: &PeerAuthentication, loser: &PeerAuthentication) {
        // Without times both come from files that never met a cluster, where they may differ.
        if winner.created.is_some_and(|created| created != NOT_YET) {
            let message = format!(
                "was created in the same second as {}, and ambient picks either one: remove one",
                winner.name
            );
            self.warn(loser, "metadata.creationTimestamp", RULE, message);
        }
    }

    /// The mesh policy.
    pub(super) fn ambient_mesh(&mut self) {
        let composer = self.composer;
        let root = composer.root_namespace();
        let Some(policy) = self.composer.wide(root).first().copied() else {
            return;
        };
        let mut names = self
            .objects
            .pods
            .keys()
            .map(|name| name.namespace.as_str())
            .chain(self.objects.namespaces.keys().map(String::as_str))
            .peekable();
        let possible = names.peek().is_none() || names.any(|namespace| self.may_be_ambient(namespace));
        if possible {
            self.wide_ties(root);
        }
        if possible && self.has_empty_selector(policy) {
            let message = format!(
                "ambient ignores this mesh policy outside {root}, because its selector is present, though empty: remove the selector"
            );
            self.warn(policy, "spec.selector", RULE, message);
        }
    }
}
