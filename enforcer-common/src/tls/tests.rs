use super::{Class, classify};

#[test]
fn each_byte_has_its_rule() {
    let hello = [0x16, 3, 1, 0x02, 0x00, 1];
    assert_eq!(classify(&hello), Class::Tls);
    for (offset, allowed) in [(0, 1), (1, 1), (2, 5), (3, 64 + 1), (4, 256), (5, 1)] {
        let fitting = (0..=255_u8)
            .filter(|byte| {
                let mut stream = hello;
                stream[offset] = *byte;
                classify(&stream) == Class::Tls
            })
            .count();
        assert_eq!(fitting, allowed, "offset {offset}");
    }
}

#[test]
fn length_is_one_to_two_to_the_fourteenth() {
    for length in 0..=u16::MAX {
        let [high, low] = length.to_be_bytes();
        let expected = if (1..=1 << 14).contains(&length) { Class::Tls } else { Class::Plaintext };
        assert_eq!(classify(&[0x16, 3, 3, high, low, 1]), expected, "length {length}");
    }
}

#[test]
fn every_prefix_of_a_hello_is_incomplete_and_never_plaintext() {
    let hello = [0x16, 3, 1, 0x07, 0x3c, 1, 0, 7, 0x38];
    for end in 0..6 {
        assert_eq!(classify(&hello[..end]), Class::Incomplete);
    }
    for end in 6..=hello.len() {
        assert_eq!(classify(&hello[..end]), Class::Tls);
    }
}

#[test]
fn plaintext_is_seen_at_its_first_wrong_byte() {
    for stream in [&b"G"[..], b"PRI * HTTP/2.0", b"SSH-2.0-", b"\x16\x02", b"\x16\x03\x05", b"\x00\x00\x00\x08\x04\xd2\x16\x2f"] {
        assert_eq!(classify(stream), Class::Plaintext, "{stream:?}");
    }
}
