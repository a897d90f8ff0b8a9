//! JSON schemas of what the subcommands print, made from the types that they print: `docs/schemas/`.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{doctor, endpoints, policy, readiness, status};
use crate::certificate::report::CertificateReport;
use crate::telemetry::record::Record;

/// Each subcommand's schema: file name without extension, and content. That of `flows` is of one line.
#[must_use]
pub fn all() -> Vec<(&'static str, Value)> {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let new = || settings.clone().into_generator();
    let mut all = vec![
        ("status", new().into_root_schema_for::<status::Status>()),
        ("endpoints", new().into_root_schema_for::<Vec<endpoints::Row>>()),
        ("flows", new().into_root_schema_for::<Record>()),
        ("readiness", new().into_root_schema_for::<readiness::Report>()),
        ("certs", new().into_root_schema_for::<CertificateReport>()),
        ("doctor", new().into_root_schema_for::<doctor::Report>()),
    ];
    all.extend(policy::schemas(&settings));
    all.into_iter().map(|(name, schema)| (name, schema.to_value())).collect()
}
