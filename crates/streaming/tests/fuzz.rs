//! Throws mutated bytes at the decoders of all that a client sends: none panics, and none takes long or much memory.
//!
//! It begins with the kept corpus under `corpus/`, which `WHARF_BLESS=1` writes anew. A seeded generator mutates it for
//! `WHARF_FUZZ_SECONDS`, 2 if unset; a failure names the bytes.
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "an integration test is nothing but tests"
)]

use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, FlushCompress};
use wharf_streaming::decode;

type Decode = fn(&[u8]) -> Result<usize, String>;

const DECODERS: [(&str, Decode); 3] =
    [("spdy", decode::spdy), ("headers", decode::headers), ("websocket", decode::websocket)];

/// The longest input, in bytes.
const INPUT_LIMIT: usize = 256 * 1024;

/// How long one input may take, on a busy machine without optimization.
const INPUT_TIME: Duration = Duration::from_secs(5);

/// The generator of Steele, Lea and Flood: good enough, and always the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len());
        match random.below(6) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = random.byte(),
            2 => input.truncate(at),
            3 => input.insert(at, random.byte()),
            4 => {
                let end = at + random.below(input.len() - at);
                let part = input[at..end].to_vec();
                let to = random.below(input.len());
                input.splice(to..to, part);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                input.extend(&other[random.below(other.len())..]);
            }
        }
    }
    input.truncate(INPUT_LIMIT);
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// The names and the bytes of what is kept.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let directory = directory(name);
    let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files
}

fn survives(name: &str, decode: Decode, input: &[u8]) {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| decode(input)));
    let shown = || input.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(outcome.is_ok(), "{name} panics at {}", shown());
    assert!(start.elapsed() < INPUT_TIME, "{name} takes {:?} for {}", start.elapsed(), shown());
}

#[test]
fn decoders_survive_mutated_bytes() {
    let seconds = env::var("WHARF_FUZZ_SECONDS").map_or(2, |text| text.parse().unwrap());
    let mut random = Random(1);
    for (name, decode) in DECODERS {
        let corpus: Vec<_> = corpus(name).into_iter().map(|(_, bytes)| bytes).collect();
        let end = Instant::now() + Duration::from_secs(seconds) / 3;
        while Instant::now() < end {
            let mut input = corpus[random.below(corpus.len())].clone();
            mutate(&mut input, &corpus, &mut random);
            survives(name, decode, &input);
        }
    }
}

/// Whether a decoder takes bytes, as the name of their file says.
fn check(name: &str, decode: Decode, file: &str, bytes: &[u8]) {
    let outcome = decode(bytes);
    assert_eq!(outcome.is_ok(), !file.starts_with("bad-"), "{name}/{file}: {outcome:?}");
}

#[test]
fn the_corpus_is_what_its_names_say() {
    let bless = env::var_os("WHARF_BLESS").is_some();
    for (name, decode) in DECODERS {
        for (_, file, bytes) in made().into_iter().filter(|(decoder, ..)| *decoder == name) {
            check(name, decode, file, &bytes);
            if bless {
                fs::create_dir_all(directory(name)).unwrap();
                fs::write(directory(name).join(file), &bytes).unwrap();
            }
        }
        for (file, bytes) in corpus(name) {
            check(name, decode, &file, &bytes);
        }
    }
}

/// The corpus at its beginning: the decoder, the name, which begins with `bad-` if the bytes are an error, and the bytes.
fn made() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let session = blocks(&[&[("streamtype", "error")], &[("streamtype", "data"), ("port", "80")], &[]]);
    let syn_stream = |id: u8, block: &[u8]| control(1, &[&[0, 0, 0, id, 0, 0, 0, 0, 0, 0], block].concat());
    let opened = [syn_stream(1, &session[0]), syn_stream(3, &session[1])].concat();
    let rest =
        [control(6, &[0, 0, 0, 1]), control(3, &[0, 0, 0, 1, 0, 0, 0, 5]), control(4, &[0; 12])].concat();
    let data = [&[0, 0, 0, 3, 0, 0, 0, 5], b"hello".as_slice(), &[0, 0, 0, 3, 1, 0, 0, 0]].concat();
    let prefixed = |blocks: &[Vec<u8>]| {
        let length = |block: &Vec<u8>| u16::try_from(block.len()).unwrap().to_be_bytes();
        blocks.iter().flat_map(|block| [length(block).as_slice(), block].concat()).collect::<Vec<u8>>()
    };
    let zeros = "0".repeat(1 << 20);
    let many: Vec<_> = (0..1100).map(|n| n.to_string()).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "")).collect();
    let masked = |first: u8, payload: &[u8]| {
        [&[first, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0], payload].concat()
    };
    let long = [&[0x82, 0xfe, 1, 0, 1, 2, 3, 4], [7; 256].as_slice()].concat();
    let pieces = [masked(0x02, b"\0he"), masked(0x89, b"ping"), masked(0x80, b"llo")].concat();
    vec![
        ("spdy", "session", [opened, data, rest].concat()),
        ("spdy", "empty", Vec::new()),
        ("spdy", "bad-version", vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        ("spdy", "bad-length", control(6, &[0; 5])),
        ("spdy", "bad-huge", vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        ("headers", "session", prefixed(&session)),
        ("headers", "bad-bomb", prefixed(&blocks(&[&[("a", &zeros)]]))),
        ("headers", "bad-many", prefixed(&blocks(&[&many]))),
        ("headers", "bad-zlib", prefixed(&[b"no zlib".to_vec()])),
        ("websocket", "session", [pieces, long, masked(0x88, &[3, 0xe8])].concat()),
        ("websocket", "bad-unmasked", vec![0x82, 1, 0]),
        ("websocket", "bad-length", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]),
    ]
}

fn control(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0x80, 3, 0, kind, 0, 0, 0, length], payload].concat()
}

/// The header blocks of one connection, compressed.
fn blocks(all: &[&[(&str, &str)]]) -> Vec<Vec<u8>> {
    let mut zlib = Compress::new(Compression::default(), true);
    zlib.set_dictionary(decode::dictionary()).unwrap();
    let word = |number: usize| u32::try_from(number).unwrap().to_be_bytes();
    let mut compress = |headers: &[(&str, &str)]| {
        let mut plain = word(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(word(text.len()));
            plain.extend(text.bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 1024);
        zlib.compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
        block
    };
    all.iter().map(|headers| compress(headers)).collect()
}
