//! The short forms of the fuzz targets `classifier`, `flow` and `event`: arbitrary bytes against what must hold for all.

#[path = "../src/datapath/tests/model.rs"]
#[expect(dead_code, reason = "shared with the tests that hold the compiled programs against it")]
mod model;
#[path = "oracle/opening.rs"]
mod opening;
#[cfg(feature = "user")]
#[path = "oracle/record.rs"]
mod record;
#[path = "oracle/world.rs"]
mod world;

/// A fixed generator: a failure comes again.
fn generator() -> impl FnMut() -> [u8; 8] {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    }
}

/// Plays inputs of up to `longest` bytes behind `opening`.
fn play(inputs: u32, longest: usize, opening: &[u8], play: fn(&[u8])) {
    let mut random = generator();
    for input in 0..inputs {
        let [low, high, ..] = random();
        let length = usize::from(u16::from_le_bytes([low, high])) % longest;
        let noise = std::iter::repeat_with(&mut random).flatten().take(length);
        let bytes: Vec<u8> = opening.iter().copied().chain(noise).collect();
        let played = std::panic::catch_unwind(|| play(&bytes));
        assert!(played.is_ok(), "input {input}: {bytes:?}");
    }
}

#[test]
fn no_conversation_lets_a_plaintext_byte_pass() {
    // With a handshake to begin with, so that most get somewhere; under SYN cookies and without.
    for cookies in [0, 1] {
        play(12_000, 600, &[cookies, 0, 0, 1, 1, 1], world::play);
    }
}

#[test]
fn the_classifier_knows_the_grammar() {
    let hello = [22, 3, 1, 1, 0, 1];
    for known in 0..=hello.len() {
        for shape in [0x00, 0x02, 0x15, 0xff] {
            play(2_000, 12, &[&[shape], &hello[..known]].concat(), opening::judge);
        }
    }
}

#[cfg(feature = "user")]
#[test]
fn any_bytes_are_a_record_or_an_error() {
    for kind in 0..6 {
        play(4_000, 600, &[kind, 0, 0, 0], record::read);
    }
}
