//! Layers with hard links to files of lower layers. Unpacked alone, a layer cannot have such links, so a copy of it is
//! made for one image. The copy has the links, and also the files that they lead to, under their own names. So all the
//! names are one file, as they would be if the layers had been unpacked one over the other.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::chain::{ChainError, ChainLayer, Copies, Found, Links, Lookups, locate};
use crate::relocate::Copy;
use crate::unpack::{Contents, HardLink, LINKS_LIMIT, join, shown};

/// Makes a complete copy of the layer `at` of a chain, bottom first, in an empty directory.
///
/// # Errors
/// NoTarget if a link leads to nothing or to a directory.
pub(crate) fn complete(
    layers: &[ChainLayer],
    at: usize,
    root: &OwnedFd,
    (lookups, copies): (&Lookups, &Copies<'_>),
) -> Result<Contents, ChainError> {
    let layer = &layers[at];
    let no_links = Links::new();
    let mut copy = Copy::new(layer, &no_links, root, copies)?;
    for HardLink { path, target } in &layer.contents.links {
        let found = resolve(&layers[..=at], target, lookups)?.ok_or_else(|| ChainError::NoTarget {
            layer: layer.name.clone(),
            path: shown(path),
            target: shown(target),
        })?;
        if found.layer != at {
            copy.take(&layers[found.layer].root, &found.path, &found.path)?;
        }
        copy.take(&layers[found.layer].root, &found.path, path)?;
    }
    Ok(copy.finish())
}

/// A file in one of several layers.
struct Source {
    layer: usize,
    path: Vec<u8>,
}

/// The file at a path of the layers, bottom first, laid one over the other. Links on the way are followed, with the
/// image as the root.
fn resolve(layers: &[ChainLayer], path: &[u8], lookups: &Lookups) -> Result<Option<Source>, ChainError> {
    let mut here = Vec::new();
    let mut ahead: VecDeque<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                here.truncate(here.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            _ => {}
        }
        let below = join(&here, &name);
        match topmost(layers, &below, lookups)? {
            Some((_, Found::Directory(_))) => here = below,
            Some((_, Found::Link(target))) if !ahead.is_empty() => {
                links += 1;
                if links > LINKS_LIMIT {
                    return Ok(None);
                }
                if target.starts_with(b"/") {
                    here.clear();
                }
                target.split(|byte| *byte == b'/').rev().for_each(|part| ahead.push_front(part.to_vec()));
            }
            Some((layer, Found::File | Found::Link(_))) if ahead.is_empty() => {
                return Ok(Some(Source { layer, path: below }));
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// The topmost layer that has something at a path, if the path's parents are directories.
fn topmost(
    layers: &[ChainLayer],
    path: &[u8],
    lookups: &Lookups,
) -> Result<Option<(usize, Found)>, ChainError> {
    for (at, layer) in layers.iter().enumerate().rev() {
        match locate(&layer.root, path, lookups)? {
            (Found::Nothing, false) => {}
            (Found::Nothing | Found::Other, _) => return Ok(None),
            (found, _) => return Ok(Some((at, found))),
        }
    }
    Ok(None)
}
