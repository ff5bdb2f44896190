//! Blobs: compression, verification and errors.

use std::fs;
use std::io::{Cursor, Read, Write};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use wharf_images::{Compression, UnpackError};
use wharf_types::{ErrorKind, Failure};

use crate::support::{Rig, Tar, compress, gzip, header, sha256, shown, source};

const ALL: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

fn archive() -> Vec<u8> {
    let noise: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    Tar::new().file("a", "text").content(header(b'0', "noise"), &noise).end()
}

#[test]
fn every_compression_gives_the_same() {
    let rig = Rig::new();
    let archive = archive();
    for compression in ALL {
        let blob = compress(&archive, compression);
        let layer = rig.store.unpack(&source(&archive, &blob), &mut Cursor::new(&blob)).unwrap();
        assert_eq!(*layer.diff_id(), sha256(&archive));
    }
    let blob = with_a_large_window(&archive);
    rig.store.unpack(&source(&archive, &blob), &mut Cursor::new(&blob)).unwrap();
    let layer = rig.one_layer(archive);
    assert_eq!(fs::read_to_string(layer.join("a")).unwrap(), "text");
    assert_eq!(fs::metadata(layer.join("noise")).unwrap().len(), 3_000_000);
}

#[test]
fn several_members_and_frames_are_one_archive() {
    let rig = Rig::new();
    let archive = archive();
    let (one, two) = archive.split_at(1_000_000);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    for (compression, join) in [(Compression::Gzip, Vec::new()), (Compression::Zstd, skippable)] {
        let blob = [compress(one, compression), join, compress(two, compression)].concat();
        rig.store.unpack(&source(&archive, &blob), &mut Cursor::new(&blob)).unwrap();
    }
}

#[test]
fn damage_is_found_in_every_compression() {
    let rig = Rig::new();
    let archive = archive();
    for compression in ALL {
        let blob = compress(&archive, compression);
        let honest = source(&archive, &blob);
        let unpack = |blob: &[u8]| rig.store.unpack(&honest, &mut Cursor::new(blob)).unwrap_err();
        for at in [0, 5, 600, blob.len() / 2, blob.len() - 1] {
            let mut flipped = blob.clone();
            flipped[at] ^= 0x10;
            let error = unpack(&flipped);
            assert!(matches!(error.kind(), ErrorKind::DataLoss | ErrorKind::InvalidArgument), "{error:?}");
        }
        for end in [0, 1, 600, blob.len() - 1] {
            assert!(matches!(unpack(&blob[..end]), UnpackError::Size { .. }), "cut at {end}");
        }
        assert!(matches!(unpack(&[&blob[..], b"x"].concat()), UnpackError::Size { .. }));
    }
    assert_eq!(fs::read_dir(rig.root().join("staging")).unwrap().count(), 0);
}

#[test]
fn what_follows_the_compressed_data_is_an_error() {
    let rig = Rig::new();
    let archive = archive();
    for compression in [Compression::Gzip, Compression::Zstd] {
        for garbage in [&b"garbage that is no member"[..], &[0; 512]] {
            let blob = [&compress(&archive, compression)[..], garbage].concat();
            let result = rig.store.unpack(&source(&archive, &blob), &mut Cursor::new(&blob));
            assert!(matches!(result.unwrap_err(), UnpackError::Decompress { .. }));
        }
    }
}

#[test]
fn cut_compressed_data_of_the_right_size_is_an_error() {
    let rig = Rig::new();
    let archive = archive();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let whole = compress(&archive, compression);
        for end in [0, 3, 20, whole.len() / 2, whole.len() - 1] {
            let blob = &whole[..end];
            let result = rig.store.unpack(&source(&archive, blob), &mut Cursor::new(blob));
            let error = result.unwrap_err();
            // Without its first bytes it is not compressed data.
            let told = matches!(error, UnpackError::Decompress { .. }) || end < 4;
            assert!(told, "{compression:?} cut at {end}: {error:?}");
        }
    }
}

#[test]
fn the_wrong_blob_and_the_wrong_content_are_told_apart() {
    let rig = Rig::new();
    let archive = archive();
    let blob = gzip(&archive);
    let mut other = source(&archive, &blob);
    other.blob_digest = sha256(b"other");
    let error = rig.store.unpack(&other, &mut Cursor::new(&blob)).unwrap_err();
    assert!(matches!(error, UnpackError::BlobDigest { .. }), "{error:?}");
    let mut other = source(&archive, &blob);
    other.diff_id = sha256(b"other");
    let error = rig.store.unpack(&other, &mut Cursor::new(&blob)).unwrap_err();
    assert!(matches!(error, UnpackError::DiffId { .. }), "{error:?}");
    assert!(!rig.store.has_layer(&other.diff_id));
}

#[test]
fn a_layer_may_begin_with_what_compresses_best() {
    let rig = Rig::new();
    let noise: Vec<u8> =
        (0_u64..12_500).flat_map(|n| sha256(&n.to_le_bytes()).hex().to_owned().into_bytes()).collect();
    let zeros = vec![0; 40 << 20];
    let archive =
        Tar::new().content(header(b'0', "zeros"), &zeros).content(header(b'0', "noise"), &noise).end();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let blob = compress(&archive, compression);
        rig.store.unpack(&source(&archive, &blob), &mut Cursor::new(&blob)).unwrap();
    }
}

#[test]
fn bombs_end_early() {
    let rig = Rig::new();
    let zeros = Tar::new().content(header(b'0', "zeros"), &vec![0; 40 << 20]).end();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let blob = compress(&zeros, compression);
        let result = rig.store.unpack(&source(&zeros, &blob), &mut Cursor::new(&blob));
        let error = result.unwrap_err();
        assert!(matches!(error, UnpackError::Limit { limit: 200, .. }), "{}", shown(&error));
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    }
    // Windows of 2 GiB and 128 MiB: the frame's header alone asks for them.
    for size in [0xa8, 0x88] {
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, size, 0x01, 0x00, 0x00];
        let result = rig.store.unpack(&source(b"", &window), &mut Cursor::new(&window));
        assert!(
            matches!(result.unwrap_err(), UnpackError::Window { limit_bytes: 0x400_0000, .. }),
            "{size:x}"
        );
    }
    assert_eq!(fs::read_dir(rig.root().join("staging")).unwrap().count(), 0);
}

/// Returns some bytes and then fails.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() {
            return Err(std::io::Error::other("connection lost"));
        }
        self.0.read(buffer)
    }
}

#[test]
fn a_reader_that_fails_is_the_reason() {
    let rig = Rig::new();
    let archive = archive();
    let blob = gzip(&archive);
    let source = source(&archive, &blob);
    let error = rig.store.unpack(&source, &mut Broken(&blob[..blob.len() / 2])).unwrap_err();
    assert!(shown(&error).contains("connection lost"), "{}", shown(&error));
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[test]
fn the_reserve_of_the_disk_is_kept_but_is_no_more_than_a_part_of_a_small_one() {
    let temp = tempfile::tempdir().unwrap();
    let disk = temp.path().to_owned();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
        let limits = wharf_images::Limits { reserve_bytes: u64::MAX, ..crate::support::limits() };
        let store = wharf_images::Store::open_with(&disk.join("store"), limits).unwrap();
        let archive = Tar::new().end();
        let unpack = || store.unpack(&source(&archive, &archive), &mut Cursor::new(&archive));
        unpack().unwrap();
        fs::write(disk.join("other"), vec![1; 4_050_000]).unwrap();
        assert_eq!(unpack().unwrap_err().kind(), ErrorKind::ResourceExhausted);
        fs::remove_file(disk.join("other")).unwrap();
        // It fits, but not without the reserve, and is smaller than what a large disk is looked at for.
        let archive = Tar::new().content(header(b'0', "large"), &vec![1; 4_050_000]).end();
        let unpacked = store.unpack(&source(&archive, &archive), &mut Cursor::new(&archive));
        assert_eq!(unpacked.unwrap_err().kind(), ErrorKind::ResourceExhausted);
        // What arrives before it is decompressed needs room, too, even if nothing becomes of it.
        let archive = [Tar::new().end(), noise(4_050_000)].concat();
        store.unpack(&source(&archive, &archive), &mut Cursor::new(&archive)).unwrap();
        let blob = with_a_large_window(&archive);
        let unpacked = store.unpack(&source(&archive, &blob), &mut Cursor::new(&blob));
        assert_eq!(unpacked.unwrap_err().kind(), ErrorKind::ResourceExhausted);
    });
    thread.join().unwrap();
}

/// Bytes that cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// Zstandard with a window of 64 MiB.
fn with_a_large_window(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(26).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
