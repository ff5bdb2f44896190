//! What clients of exec, attach and port-forward send.

use flate2::{Compress, Compression, FlushCompress};
use wharf_streaming::decode;

use crate::harness::Target;

pub(crate) fn targets() -> Vec<Target> {
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
    let spdy = vec![
        ("session", [opened, data, rest].concat()),
        ("empty", Vec::new()),
        ("bad-version", vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        ("bad-length", control(6, &[0; 5])),
        ("bad-huge", vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
    ];
    let headers = vec![
        ("session", prefixed(&session)),
        ("bad-bomb", prefixed(&blocks(&[&[("a", &zeros)]]))),
        ("bad-many", prefixed(&blocks(&[&many]))),
        ("bad-zlib", prefixed(&[b"no zlib".to_vec()])),
    ];
    let websocket = vec![
        ("session", [pieces, long, masked(0x88, &[3, 0xe8])].concat()),
        ("bad-unmasked", vec![0x82, 1, 0]),
        ("bad-length", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]),
    ];
    vec![
        Target::new("spdy", decode::spdy, spdy),
        Target::new("headers", decode::headers, headers),
        Target::new("websocket", decode::websocket, websocket),
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
