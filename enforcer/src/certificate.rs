//! To come: certificate.
