//! Takes the DWARF sections out of the eBPF object: three quarters of it, and the kernel reads only BTF. And the number that tells
//! crates of one name apart out of the names of symbols: it depends on the folder that the object was built in.
//!
//! A dropped section keeps its place in the section table as an empty one, so that every index elsewhere in the
//! file (symbols, relocations, links) stays what it was.

use std::collections::BTreeMap;
use std::ops::Range;

const HEADER: usize = 64;
const SECTION_HEADER: usize = 64;
const SYMBOL: usize = 24;
const SHT_SYMTAB: usize = 2;
const SHT_NOBITS: u32 = 8;

/// The object without debug sections; `None` when it is no little-endian 64-bit ELF file or its tables lie.
pub(crate) fn strip(object: &[u8]) -> Option<Vec<u8>> {
    // Magic, class 64 bits, little endian.
    if !object.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = number(object, 0x28, 8)?;
    let count = number(object, 0x3c, 2)?;
    let section = |index: usize| {
        let start = table.checked_add(index.checked_mul(SECTION_HEADER)?)?;
        object.get(start..start.checked_add(SECTION_HEADER)?)
    };
    let names_index = number(object, 0x3e, 2)?;
    let mut names = Names::of(object.get(content(section(names_index)?)?)?);

    let mut sections = Vec::new();
    for index in 0..count {
        let mut header = section(index)?.to_vec();
        let name = number(&header, 0, 4)?;
        if [b".debug_".as_slice(), b".rel.debug_"].iter().any(|prefix| names.starts_with(name, prefix)) {
            sections.push((vec![0; SECTION_HEADER], Vec::new()));
            continue;
        }
        let mut bytes = object.get(content(&header)?)?.to_vec();
        names.keep(&mut header)?;
        // Symbols and sections have one table of names, as LLVM writes it.
        if number(&header, 4, 4)? == SHT_SYMTAB && number(&header, 0x28, 4)? == names_index {
            for symbol in bytes.chunks_exact_mut(SYMBOL) {
                names.keep(symbol)?;
            }
        }
        sections.push((header, bytes));
    }
    sections.get_mut(names_index)?.1 = names.kept;

    let mut stripped = object.get(..HEADER)?.to_vec();
    let mut headers = Vec::new();
    for (mut header, bytes) in sections {
        if header.iter().any(|byte| *byte != 0) {
            stripped.resize(stripped.len().next_multiple_of(number(&header, 0x30, 8)?.max(1)), 0);
            header[0x18..0x20].copy_from_slice(&u64::try_from(stripped.len()).ok()?.to_le_bytes());
            if number(&header, 4, 4)? != usize::try_from(SHT_NOBITS).ok()? {
                header[0x20..0x28].copy_from_slice(&u64::try_from(bytes.len()).ok()?.to_le_bytes());
            }
        }
        stripped.extend(bytes);
        headers.push(header);
    }
    stripped.resize(stripped.len().next_multiple_of(8), 0);
    let table = u64::try_from(stripped.len()).ok()?;
    stripped[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    stripped.extend(headers.concat());
    Some(stripped)
}

/// The table of names, while it is written anew.
struct Names<'a> {
    old: &'a [u8],
    kept: Vec<u8>,
    /// Where names went.
    moved: BTreeMap<usize, u32>,
}

impl<'a> Names<'a> {
    fn of(old: &'a [u8]) -> Self {
        Self { old, kept: vec![0], moved: BTreeMap::from([(0, 0)]) }
    }

    fn starts_with(&self, at: usize, prefix: &[u8]) -> bool {
        self.old.get(at..).is_some_and(|name| name.starts_with(prefix))
    }

    /// Takes the name over that an entry of a table begins with.
    fn keep(&mut self, entry: &mut [u8]) -> Option<()> {
        let at = number(entry, 0, 4)?;
        let new = if let Some(known) = self.moved.get(&at) {
            *known
        } else {
            let name = self.old.get(at..)?.split(|byte| *byte == 0).next()?;
            let new = u32::try_from(self.kept.len()).ok()?;
            self.kept.extend(anonymous(name));
            self.kept.push(0);
            self.moved.insert(at, new);
            new
        };
        entry.get_mut(..4)?.copy_from_slice(&new.to_le_bytes());
        Some(())
    }
}

/// A mangled name without the disambiguators of its crates, which are optional: `Cs` and digits up to `_` become `C`
/// (<https://doc.rust-lang.org/rustc/symbol-mangling/v0.html#crate-root>).
fn anonymous(name: &[u8]) -> Vec<u8> {
    let mut left = name;
    let mut kept = Vec::new();
    while name.starts_with(b"_R") {
        let Some(at) = left.windows(2).position(|pair| pair == b"Cs") else { break };
        let (before, rest) = left.split_at(at);
        kept.extend_from_slice(before);
        let digits = rest.iter().skip(2).take_while(|byte| byte.is_ascii_alphanumeric()).count();
        let is_crate =
            rest.get(2 + digits) == Some(&b'_') && rest.get(3 + digits).is_some_and(u8::is_ascii_digit);
        let (taken, after) = rest.split_at(if is_crate { 3 + digits } else { 2 });
        kept.extend_from_slice(if is_crate { b"C" } else { taken });
        left = after;
    }
    kept.extend_from_slice(left);
    kept
}

/// Where a section's content lies in the file.
fn content(header: &[u8]) -> Option<Range<usize>> {
    let start = number(header, 0x18, 8)?;
    let empty = number(header, 4, 4)? == usize::try_from(SHT_NOBITS).ok()?;
    let size = if empty { 0 } else { number(header, 0x20, 8)? };
    Some(start..start.checked_add(size)?)
}

/// A little-endian number of `size` bytes at `at`.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let mut value = [0; 8];
    value[..size].copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
    usize::try_from(u64::from_le_bytes(value)).ok()
}
