//! Where objects come from: manifest files and folders, the Kubernetes API. Both feed one store.

pub mod document;
pub mod manifest;
pub mod text;
pub mod watch;
