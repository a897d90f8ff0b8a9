//! The short form of the fuzz target `flow`: arbitrary conversations, and not one plaintext byte.

#[path = "../src/datapath/tests/model.rs"]
#[expect(dead_code, reason = "shared with the tests that hold the compiled programs against it")]
mod model;
#[path = "oracle/world.rs"]
mod world;

/// Conversations per run, each of up to 600 bytes.
const CONVERSATIONS: u32 = 40_000;

#[test]
fn no_conversation_lets_a_plaintext_byte_pass() {
    // A fixed generator: a failure comes again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    for conversation in 0..CONVERSATIONS {
        let [low, high, ..] = random();
        let length = usize::from(u16::from_le_bytes([low, high])) % 600;
        let mut bytes: Vec<u8> = std::iter::repeat_with(&mut random).flatten().take(length).collect();
        // A handshake to begin with, so that most get somewhere.
        bytes.splice(..0, [low & 1, 0, 0, 1, 1, 1]);
        let played = std::panic::catch_unwind(|| world::play(&bytes));
        assert!(played.is_ok(), "conversation {conversation}: {bytes:?}");
    }
}
