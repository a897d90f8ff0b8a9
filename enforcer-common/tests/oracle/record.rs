//! Any bytes as a record of the ring buffer: never a panic, and what is read says the same when it is written again. What the fuzz
//! target `event` and the test `oracles` have in common.

use enforcer_common::event::{HEAD_BYTES, Record, decode};

/// # Panics
/// When the decoder is wrong about a record.
pub(crate) fn read(bytes: &[u8]) {
    match decode(bytes) {
        Ok(Record::Verdict(event) | Record::End(event)) => {
            assert!(event.head().len() <= HEAD_BYTES);
            let again = bytemuck::bytes_of(&event);
            assert_eq!(again, &bytes[..again.len()]);
            assert_eq!(decode(again), decode(bytes));
        }
        Ok(Record::Hello(hello)) => {
            assert_eq!(hello.bytes.len(), usize::from(hello.header.len));
            let start = size_of_val(&hello.header);
            assert_eq!(hello.bytes, &bytes[start..start + hello.bytes.len()]);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // What is cut off is refused, and is no other record.
    if let Ok(whole) = decode(bytes) {
        for end in (0..bytes.len()).step_by(7) {
            if let Ok(part) = decode(&bytes[..end]) {
                assert_eq!(part, whole, "{end} bytes of {}", bytes.len());
            }
        }
    }
}
