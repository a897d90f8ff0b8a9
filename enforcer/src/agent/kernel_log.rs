//! Debug lines of the kernel programs, on to `tracing`.

use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tracing::{debug, warn};

use crate::datapath::Datapath;

/// Hands a record on.
pub(super) struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        match record.level() {
            log::Level::Error | log::Level::Warn => warn!(target: "kernel", "{}", record.args()),
            _ => debug!(target: "kernel", "{}", record.args()),
        }
    }

    fn flush(&self) {}
}

/// The reader of the lines; `None` while they are switched off.
pub(super) fn open(datapath: &mut Datapath, level: u8) -> Option<EbpfLogger<Lines>> {
    if level == 0 {
        return None;
    }
    match EbpfLogger::init_with_logger(datapath.ebpf_mut(), Lines) {
        Ok(logger) => Some(logger),
        Err(error) => {
            warn!("no debug lines from the kernel: {error}");
            None
        }
    }
}
