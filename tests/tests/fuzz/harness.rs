//! The corpus, its mutations, and the two tests over all parsers.
//!
//! It starts from the files under `tests/corpus/`, which `WHARF_BLESS=1` rewrites. A seeded generator mutates them for
//! `WHARF_FUZZ_SECONDS` in all, 2 by default; a failure prints the bytes.

use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{images, registry, streaming, traces};

/// Parses bytes, and returns how many things were in them.
type Read = Box<dyn Fn(&[u8]) -> Result<usize, String>>;

/// A parser of bytes from outside.
pub(crate) struct Target {
    /// The name of its directory in the corpus.
    pub(crate) name: &'static str,
    pub(crate) read: Read,
    /// The initial corpus: names, which begin with `bad-` if the bytes are an error, and bytes.
    pub(crate) seeds: Vec<(&'static str, Vec<u8>)>,
}

impl Target {
    pub(crate) fn new(
        name: &'static str,
        read: impl Fn(&[u8]) -> Result<usize, String> + 'static,
        seeds: Vec<(&'static str, Vec<u8>)>,
    ) -> Self {
        Self { name, read: Box::new(read), seeds }
    }

    /// The same for a parser of text.
    pub(crate) fn of_text(
        name: &'static str,
        read: impl Fn(&[u8]) -> Result<usize, String> + 'static,
        seeds: &[(&'static str, &str)],
    ) -> Self {
        let bytes = |(name, text): &(&'static str, &str)| (*name, text.as_bytes().to_vec());
        Self::new(name, read, seeds.iter().map(bytes).collect())
    }
}

fn targets() -> Vec<Target> {
    [streaming::targets(), images::targets(), registry::targets(), traces::targets()]
        .into_iter()
        .flatten()
        .collect()
}

/// The longest input, in bytes.
const INPUT_LIMIT: usize = 256 * 1024;

/// How long one input may take, on a busy machine without optimisation.
const INPUT_TIME: Duration = Duration::from_secs(5);

/// The generator of Steele, Lea and Flood: good enough, and deterministic.
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

/// The names and bytes of the stored corpus.
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

fn survives(target: &Target, input: &[u8]) {
    let (name, start) = (target.name, Instant::now());
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.read)(input)));
    let shown = || input.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(outcome.is_ok(), "{name} panics at {}", shown());
    assert!(start.elapsed() < INPUT_TIME, "{name} takes {:?} for {}", start.elapsed(), shown());
}

#[test]
fn readers_survive_mutated_bytes() {
    let seconds = env::var("WHARF_FUZZ_SECONDS").map_or(2, |text| text.parse().unwrap());
    let targets = targets();
    let share = Duration::from_secs(seconds) / u32::try_from(targets.len()).unwrap();
    let mut random = Random(1);
    for target in targets {
        let corpus: Vec<_> = corpus(target.name).into_iter().map(|(_, bytes)| bytes).collect();
        let end = Instant::now() + share;
        while Instant::now() < end {
            let mut input = corpus[random.below(corpus.len())].clone();
            mutate(&mut input, &corpus, &mut random);
            survives(&target, &input);
        }
    }
}

/// Checks that a parser accepts bytes or not, as the name of their file says.
fn check(target: &Target, file: &str, bytes: &[u8]) {
    let outcome = (target.read)(bytes);
    assert_eq!(outcome.is_ok(), !file.starts_with("bad-"), "{}/{file}: {outcome:?}", target.name);
}

#[test]
fn the_corpus_is_what_its_names_say() {
    let bless = env::var_os("WHARF_BLESS").is_some();
    for target in targets() {
        for (file, bytes) in &target.seeds {
            check(&target, file, bytes);
            if bless {
                fs::create_dir_all(directory(target.name)).unwrap();
                fs::write(directory(target.name).join(file), bytes).unwrap();
            }
        }
        for (file, bytes) in corpus(target.name) {
            check(&target, &file, &bytes);
        }
    }
}
