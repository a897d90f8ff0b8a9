//! To come: policy.
