//! Lists split into messages that any client accepts, however long the list and whatever is in it.
//!
//! They are for the CRI's calls with a stream of responses, such as StreamContainers. A list in a single response has
//! to fit the limit on a message, [`MESSAGE_LIMIT_BYTES`](wharf_types::limits::MESSAGE_LIMIT_BYTES).

use prost::Message;

/// The longest message, in bytes, unless a single item is longer: a fraction of what clients in all languages accept.
const MESSAGE_BYTES: usize = 1 << 20;

/// The items in order, each once, in parts that fit one message; no part is empty.
pub(crate) fn batches<T: Message>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut batches = Vec::new();
    let mut last_bytes = MESSAGE_BYTES;
    for item in items {
        // An item also takes its tag and its length.
        let bytes = item.encoded_len() + 16;
        last_bytes += bytes;
        match batches.last_mut() {
            Some(batch) if last_bytes <= MESSAGE_BYTES => Vec::push(batch, item),
            _ => {
                batches.push(vec![item]);
                last_bytes = bytes;
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::PodSandbox;

    fn pod(number: usize, bytes: usize) -> PodSandbox {
        let annotations = [("key".to_owned(), "x".repeat(bytes))].into();
        PodSandbox { id: number.to_string(), annotations, ..PodSandbox::default() }
    }

    fn sizes(items: Vec<PodSandbox>) -> Vec<usize> {
        let ids: Vec<_> = items.iter().map(|item| item.id.clone()).collect();
        let batches = batches(items);
        let flat: Vec<_> = batches.iter().flatten().map(|item| item.id.clone()).collect();
        assert_eq!(flat, ids, "each once and in order");
        for batch in batches.iter().filter(|batch| batch.len() > 1) {
            assert!(batch.iter().map(Message::encoded_len).sum::<usize>() <= MESSAGE_BYTES);
        }
        batches.iter().map(Vec::len).collect()
    }

    #[test]
    fn messages_are_cut_by_their_bytes() {
        assert!(sizes(Vec::new()).is_empty());
        assert_eq!(
            sizes((0..70).map(|number| pod(number, 250 << 10)).collect()),
            [4; 17].into_iter().chain([2]).collect::<Vec<_>>()
        );
        assert_eq!(sizes((0..5000).map(|number| pod(number, 10)).collect()).len(), 1);
        assert_eq!(sizes(vec![pod(0, 1), pod(1, 2 << 20), pod(2, 1)]), [1, 1, 1]);
    }
}
