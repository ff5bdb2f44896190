//! What clients say of their traces.

use wharf_traces::Parent;

use crate::harness::Target;

pub(crate) fn targets() -> Vec<Target> {
    let parents = [
        ("sampled", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("later", "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more"),
        ("bad-zeros", "00-00000000000000000000000000000000-b7ad6b7169203331-01"),
        ("bad-version", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("bad-short", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"),
    ];
    vec![Target::of_text("traceparent", parent, &parents)]
}

/// Checks that what was read is what was written.
fn parent(bytes: &[u8]) -> Result<usize, String> {
    let parent = Parent::parse(bytes).ok_or("no parent")?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let written = format!("-{}-{}-", hex(&parent.trace_id), hex(&parent.span_id));
    assert!(bytes[2..].starts_with(written.as_bytes()), "{bytes:?}");
    Ok(usize::from(parent.is_sampled))
}
