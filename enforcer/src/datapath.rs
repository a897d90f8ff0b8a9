//! To come: datapath.
