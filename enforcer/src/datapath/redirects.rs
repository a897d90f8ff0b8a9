//! Whether a loaded program can redirect packets: its code is asked for and looked through for calls of the helpers that
//! do so. The kernel shows a call as the distance from `__bpf_call_base`, which only `/proc/kallsyms` makes a name of.

use std::collections::BTreeSet;
use std::fs;
use std::sync::OnceLock;

use super::sys;

/// Without one of these a program cannot answer `TC_ACT_REDIRECT` with effect.
const HELPERS: [&str; 4] = ["bpf_redirect", "bpf_redirect_peer", "bpf_redirect_neigh", "bpf_clone_redirect"];
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_FUNC_tail_call`, which is shown as its number.
const TAIL_CALL: i32 = 12;

/// `None` where it cannot be told: the code or the kernel's symbols may not be read, or it goes on in other programs.
pub(super) fn redirects(program: u32) -> Option<bool> {
    let code = sys::program_code(program).ok().filter(|code| !code.is_empty())?;
    judge(&code, helpers()?)
}

/// The helpers as calls show them.
fn helpers() -> Option<&'static BTreeSet<i32>> {
    static FOUND: OnceLock<Option<BTreeSet<i32>>> = OnceLock::new();
    FOUND.get_or_init(|| offsets(&fs::read_to_string("/proc/kallsyms").ok()?)).as_ref()
}

fn offsets(symbols: &str) -> Option<BTreeSet<i32>> {
    let (mut base, mut addresses) = (None, Vec::new());
    for line in symbols.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if name == "__bpf_call_base" || HELPERS.contains(&name) {
            // All zeros: this process may not know.
            let address = u64::from_str_radix(address, 16).ok().filter(|address| *address != 0)?;
            if name == "__bpf_call_base" { base = Some(address) } else { addresses.push(address) }
        }
    }
    let base = base?;
    let offset = |address: u64| i32::try_from(address.wrapping_sub(base).cast_signed()).ok();
    addresses.into_iter().map(offset).collect()
}

/// `code`: instructions of eight bytes (`struct bpf_insn`): code, registers, offset, immediate.
fn judge(code: &[u8], helpers: &BTreeSet<i32>) -> Option<bool> {
    let mut unknown = false;
    for instruction in code.chunks_exact(8) {
        let [CALL, registers, _, _, immediate @ ..] = instruction else { continue };
        // Source register 0: a helper; others are functions of the program itself or of the kernel.
        if registers >> 4 != 0 {
            continue;
        }
        let Ok(immediate) = <[u8; 4]>::try_from(immediate).map(i32::from_ne_bytes) else { continue };
        if helpers.contains(&immediate) {
            return Some(true);
        }
        unknown |= matches!(immediate, 0 | TAIL_CALL);
    }
    (!unknown).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOLS: &str = "ffffffff81000000 T __bpf_call_base\nffffffff81000100 T bpf_redirect\n\
                           ffffffff80ffff00 T bpf_redirect_peer\nffffffff81000200 t other\n";

    fn call(registers: u8, immediate: i32) -> Vec<u8> {
        let mut code = vec![CALL, registers, 0, 0];
        code.extend(immediate.to_ne_bytes());
        code
    }

    #[test]
    fn calls_are_told_by_their_distance() {
        let helpers = offsets(SYMBOLS).expect("symbols");
        assert_eq!(helpers, BTreeSet::from([0x100, -0x100]));
        let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
        for (code, expected) in [
            (exit.to_vec(), Some(false)),
            (call(0, 0x200), Some(false)),
            (call(0, 0x100), Some(true)),
            (call(0, -0x100), Some(true)),
            // A function of its own at that distance is no helper.
            (call(0x10, 0x100), Some(false)),
            (call(0, TAIL_CALL), None),
            (call(0, 0), None),
            ([call(0, 0), call(0, 0x100)].concat(), Some(true)),
        ] {
            assert_eq!(judge(&code, &helpers), expected, "{code:?}");
        }
    }

    #[test]
    fn hidden_symbols_are_no_symbols() {
        assert_eq!(offsets("0000000000000000 T __bpf_call_base\n0000000000000000 T bpf_redirect\n"), None);
        assert_eq!(offsets(""), None);
    }
}
