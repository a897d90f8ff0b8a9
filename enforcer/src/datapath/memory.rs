//! What the pinned maps cost, by the kernel's own count.

use std::io;
use std::os::fd::AsFd as _;

use super::fill::memory_bytes;
use super::pin::{self, Pins};
use super::sys;

/// Kernel memory of every pinned map, bytes, the largest first.
///
/// # Errors
/// When the folder or a pin cannot be read.
pub fn of_maps(pins: &Pins) -> io::Result<Vec<(String, u64)>> {
    let mut all = Vec::new();
    for name in pin::names(&pins.maps())? {
        let map = sys::open(&pins.maps().join(&name))?;
        all.push((name, memory_bytes(map.as_fd()).unwrap_or(0)));
    }
    all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Ok(all)
}

/// The sum and the largest ones, in words.
#[must_use]
pub fn in_words(all: &[(String, u64)]) -> String {
    let sum: u64 = all.iter().map(|(_, bytes)| bytes).sum();
    let large: Vec<String> =
        all.iter().take(5).map(|(name, bytes)| format!("{name} {}", mebibytes(*bytes))).collect();
    format!("{} MiB in {} maps, of these {}", mebibytes(sum), all.len(), large.join(", "))
}

/// To one place, rounded down.
fn mebibytes(bytes: u64) -> String {
    format!("{}.{}", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_of_all_and_the_largest_are_named() {
        let map = |name: &str, kib: u64| (name.to_owned(), kib << 10);
        let all = [map("A", 2048), map("B", 1536), map("C", 512), map("D", 4), map("E", 3), map("F", 1024)];
        assert_eq!(in_words(&all), "5.0 MiB in 6 maps, of these A 2.0, B 1.5, C 0.5, D 0.0, E 0.0");
    }
}
