//! The lab itself, without any enforcement: if this fails, no other suite says anything.

use anyhow::Result;
use enforcer_tests::lab::Topology;
use enforcer_tests::record::End;
use enforcer_tests::{Lab, Pod};

#[test]
fn both_clients_are_served_over_both_families_and_topologies() -> Result<()> {
    for topology in [Topology::Routed, Topology::Bridge] {
        let lab = Lab::with(topology, Pod::cast())?;
        let (_frontend, records) = lab.sidecar("frontend", 8080)?;
        for family in ["-4", "-6"] {
            let plain = lab.curl("sleep", &[family, "http://frontend.hipstershopv1v2:8080"])?;
            assert_eq!((plain.code, plain.stdout.as_str()), (0, "200\n"), "{plain:?}");
            let mesh = lab.mesh_curl("loadgenerator", &[family, "https://frontend.hipstershopv1v2:8080"])?;
            assert_eq!((mesh.code, mesh.stdout.as_str()), (0, "200\n"), "{mesh:?}");
        }
        let records = records.at_least(4)?;
        assert_eq!(records.iter().filter(|record| record.class == "tls").count(), 2);
        assert!(records.iter().all(|record| record.end == End::Eof && record.read > 0), "{records:?}");
    }
    Ok(())
}
