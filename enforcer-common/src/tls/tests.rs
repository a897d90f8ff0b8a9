use super::{Class, classify, client_byte_fits, client_word_fits, pod_byte_fits, pod_word_fits};

#[test]
fn each_byte_has_its_rule() {
    let hello = [0x16, 3, 1, 0x02, 0x00, 1];
    assert_eq!(classify(&hello), Class::Tls);
    for (offset, allowed) in [(0, 1), (1, 1), (2, 5), (3, 64), (4, 256), (5, 1)] {
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
    for stream in [
        &b"G"[..],
        b"PRI * HTTP/2.0",
        b"SSH-2.0-",
        b"\x16\x02",
        b"\x16\x03\x05",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    ] {
        assert_eq!(classify(stream), Class::Plaintext, "{stream:?}");
    }
}

/// Every byte value at every offset, alone and beside bytes that fit: the words agree with the bytes.
#[test]
fn words_agree_with_bytes() {
    for present in 0_u64..64 {
        let mask =
            (0..6).filter(|bit| present >> bit & 1 == 1).fold(0, |mask, bit| mask | 0xff_u64 << (bit * 8));
        for offset in 0_u32..6 {
            for byte in 0..=255_u8 {
                let mut stream = [0x16, 3, 1, 2, 0, 1, 0, 0];
                stream[offset as usize] = byte;
                let word = u64::from_le_bytes(stream);
                let there = present >> offset & 1 == 1;
                assert_eq!(client_word_fits(word, mask), !there || client_byte_fits(offset, byte));
                if offset < 5 {
                    assert_eq!(pod_word_fits(word, mask), !there || pod_byte_fits(offset, byte));
                }
            }
        }
    }
}
