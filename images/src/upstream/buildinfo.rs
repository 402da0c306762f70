//! Reading which Go modules a program was compiled from. Go writes the list into every program; the format is that of
//! `debug/buildinfo` in Go's library (since Go 1.18). Works for downloaded programs too, without Go.

use serde::{Deserialize, Serialize};

/// Starts the block.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Bytes before the strings: magic, pointer size, flags, padding.
const HEADER_BYTES: usize = 32;
/// Where the flags are.
const FLAGS_OFFSET: usize = 15;
/// The flag that says that the strings follow the header.
const FLAG_INLINE: u8 = 2;
/// Bytes that mark each end of the list of modules.
const SENTINEL_BYTES: usize = 16;

/// A Go module inside a program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GoModule {
    /// Module path; `stdlib` for Go's own library.
    pub path: String,
    /// Version with leading `v`; Go's own version for `stdlib`.
    pub version: String,
    /// Its `h1:` sum, where the program has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum: Option<String>,
}

/// The modules of a program; none when it is not a Go program.
pub(crate) fn modules(program: &[u8]) -> Vec<GoModule> {
    let Some((go_version, info)) = find(program) else { return Vec::new() };
    let mut modules = vec![GoModule { path: "stdlib".to_owned(), version: go_version.to_owned(), sum: None }];
    for line in info.lines() {
        let mut fields = line.split('\t');
        let kind = fields.next();
        let (Some(path), Some(version)) = (fields.next(), fields.next()) else { continue };
        let sum = fields.next().filter(|sum| !sum.is_empty()).map(str::to_owned);
        let module = GoModule { path: path.to_owned(), version: version.to_owned(), sum };
        match kind {
            // The main module is our own recipe, at no version.
            Some("mod") if version == "(devel)" => {}
            Some("mod" | "dep") => modules.push(module),
            // What is really compiled in, in place of the line before.
            Some("=>") => {
                modules.pop();
                modules.push(module);
            }
            _ => {}
        }
    }
    modules
}

/// The Go version and the text of the list.
fn find(program: &[u8]) -> Option<(&str, &str)> {
    let mut from = 0;
    while let Some(at) = find_bytes(&program[from..], MAGIC) {
        let start = from + at;
        // The linker aligns the block; the same bytes elsewhere are a program that reads such blocks.
        if start.is_multiple_of(16)
            && let Some(found) = parse(&program[start..])
        {
            return Some(found);
        }
        from = start + MAGIC.len();
    }
    None
}

fn parse(block: &[u8]) -> Option<(&str, &str)> {
    if block.get(FLAGS_OFFSET)? & FLAG_INLINE == 0 {
        return None;
    }
    let (version, rest) = string(block.get(HEADER_BYTES..)?)?;
    let (info, _) = string(rest)?;
    let info = info.get(SENTINEL_BYTES..info.len().checked_sub(SENTINEL_BYTES)?)?;
    Some((std::str::from_utf8(version).ok()?, std::str::from_utf8(info).ok()?))
}

/// A string with its length in front as a base-128 number, and what follows it.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0_usize;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return bytes[index + 1..].split_at_checked(length);
        }
    }
    None
}

fn find_bytes(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + haystack[from..].iter().position(|byte| *byte == needle[0])?;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(go_version: &str, info: &str) -> Vec<u8> {
        let mut bytes = b"\x7fELF            ".to_vec();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[8, FLAG_INLINE]);
        bytes.resize(16 + HEADER_BYTES, 0);
        let info = format!("{}{info}{}", "<".repeat(SENTINEL_BYTES), ">".repeat(SENTINEL_BYTES));
        for text in [go_version, &info] {
            let length = text.len();
            assert!(length < 128 * 128);
            bytes.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    fn module(path: &str, version: &str, sum: Option<&str>) -> GoModule {
        GoModule { path: path.to_owned(), version: version.to_owned(), sum: sum.map(str::to_owned) }
    }

    #[test]
    fn lines_become_modules() {
        let info = "path\texample.com/cmd\nmod\tkeelson.internal/upstream/x\t(devel)\t\n\
                    dep\ta.example/m\tv1.2.3\th1:aaa=\ndep\tb.example/m\tv0.0.0\n\
                    =>\tb.example/m\tv0.37.2\th1:bbb=\nbuild\t-trimpath=true\n";
        let expected = [
            module("stdlib", "go1.26.8", None),
            module("a.example/m", "v1.2.3", Some("h1:aaa=")),
            module("b.example/m", "v0.37.2", Some("h1:bbb=")),
        ];
        assert_eq!(modules(&program("go1.26.8", info)), expected);
    }

    #[test]
    fn what_is_no_go_program_has_no_modules_and_every_cut_is_harmless() {
        assert_eq!(modules(b"#!/bin/sh\n"), []);
        let whole = program("go1.26.8", "dep\ta.example/m\tv1.2.3\n");
        for length in 0..whole.len() {
            assert_eq!(modules(&whole[..length]), [], "cut at {length}");
        }
    }
}
