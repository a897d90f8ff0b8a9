//! How objects look as JSON, where a derive is not enough: modes by their names, maps by name as lists.

use super::{ConfigMap, Namespace, ObjectName, PeerAuthentication, Pod, Service};

/// An object that is kept by its name.
pub(super) trait Named {
    /// What it is kept by.
    type Name: Ord;
    /// Its name.
    fn name(&self) -> Self::Name;
}

impl Named for Namespace {
    type Name = String;

    fn name(&self) -> String {
        self.name.clone()
    }
}

macro_rules! named {
    ($($kind:ident),*) => {$(
        impl Named for $kind {
            type Name = ObjectName;

            fn name(&self) -> ObjectName {
                self.name.clone()
            }
        }
    )*};
}
named!(Pod, PeerAuthentication, Service, ConfigMap);

/// A map by name as a list of its values, which know their names.
pub(super) mod list {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Named;

    pub(in super::super) fn serialize<V: Named + Serialize, S: Serializer>(
        map: &BTreeMap<V::Name, V>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map.values())
    }

    pub(in super::super) fn deserialize<'de, V: Named + Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<V::Name, V>, D::Error> {
        let values = Vec::<V>::deserialize(from)?;
        Ok(values.into_iter().map(|value| (value.name(), value)).collect())
    }
}

fn parse(name: &str) -> Option<enforcer_common::Mode> {
    use enforcer_common::Mode::{DISABLE, PERMISSIVE, STRICT};
    [DISABLE, PERMISSIVE, STRICT].into_iter().find(|mode| mode.name() == name)
}

/// A mode by its name.
pub(super) mod mode {
    use enforcer_common::Mode;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(in super::super) fn serialize<S: Serializer>(mode: &Option<Mode>, to: S) -> Result<S::Ok, S::Error> {
        mode.map(Mode::name).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Mode>, D::Error> {
        let Some(name) = Option::<String>::deserialize(from)? else { return Ok(None) };
        super::parse(&name).map(Some).ok_or_else(|| D::Error::custom(format!("{name:?} is no mode")))
    }
}

/// Modes by port.
pub(super) mod modes {
    use std::collections::BTreeMap;

    use enforcer_common::Mode;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    type Ports = BTreeMap<u16, Option<Mode>>;

    pub(in super::super) fn serialize<S: Serializer>(ports: &Ports, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(ports.iter().map(|(port, mode)| (port, mode.map(Mode::name))))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Ports, D::Error> {
        let names = BTreeMap::<u16, Option<String>>::deserialize(from)?;
        let mode = |name: String| {
            super::parse(&name).ok_or_else(|| D::Error::custom(format!("{name:?} is no mode")))
        };
        names.into_iter().map(|(port, name)| Ok((port, name.map(mode).transpose()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use crate::object::{ObjectName, Objects};
    use crate::source::manifest;

    const TEXT: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, creationTimestamp: 2026-01-02T03:04:05Z, labels: {app: web}}
spec: {containers: [{name: web, ports: [{containerPort: 8080}]}]}
status: {podIP: 10.0.0.1}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}, 9090: {}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
";

    #[test]
    fn objects_come_back_from_json_as_they_were() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("all.yaml");
        std::fs::write(&file, TEXT)?;
        let loaded = manifest::load_paths(&[PathBuf::from(&file)]);
        assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
        let objects = loaded.objects;
        assert_eq!((objects.pods.len(), objects.policies.len(), objects.services.len()), (1, 1, 1));
        let json = serde_json::to_string(&objects)?;
        assert_eq!(serde_json::from_str::<Objects>(&json)?, objects);
        let value: serde_json::Value = serde_json::from_str(&json)?;
        assert_eq!(value["policies"][0]["mode"], "STRICT");
        assert_eq!(value["policies"][0]["ports"]["8080"], "PERMISSIVE");
        assert_eq!(value["pods"][0]["name"]["name"], "web");
        assert!(serde_json::from_str::<Objects>(&json.replace("PERMISSIVE", "LOOSE")).is_err());
        assert!(objects.pods.contains_key(&ObjectName::new("shop", "web")));
        Ok(())
    }
}
