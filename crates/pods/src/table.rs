//! The table of the node's pods and containers, which finds them by id or by a unique prefix of one.
//!
//! It is the one owner of who is listed. It also knows the pods that are not listed and yet own something, those being
//! made or undone: what belongs to one of them is nobody else's to remove.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;

use wharf_planner::{ContainerKey, PodKey};
use wharf_tasks::Joins;
use wharf_types::{ContainerId, PodId};

use crate::container::{Container, InPod};
use crate::error::Error;
use crate::lock::RwLock;
use crate::pod::Pod;

/// All pods and containers, and whose their names are. A lookup costs the same with a thousand others.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Locked for a lookup or a change of rows, and never while anything is made.
    rows: RwLock<Rows>,
    /// The calls that make pods, by name: a name is taken from its call to the pod's removal.
    pod_calls: Joins<PodKey, Result<PodId, Error>>,
    /// The same for containers.
    container_calls: Joins<ContainerKey, Result<ContainerId, Error>>,
    last_created_ns: AtomicI64,
}

#[derive(Debug, Default)]
struct Rows {
    pods: BTreeMap<PodId, Arc<Pod>>,
    /// The pod of each container.
    containers: BTreeMap<ContainerId, PodId>,
    /// Pods that are being made or undone: what they have belongs to them, although they are not listed.
    unlisted: BTreeSet<PodId>,
    /// Pods of an earlier daemon that have yet to be undone.
    left_behind: Vec<LeftBehind>,
}

/// A pod of an earlier daemon that nobody can use.
#[derive(Debug)]
pub(crate) struct LeftBehind {
    pub(crate) pod: Arc<Pod>,
    pub(crate) containers: Vec<ContainerId>,
}

impl Table {
    /// Makes a pod, unless one of this name is being made or is there: then that is the result.
    pub(crate) async fn make_pod<F>(&self, key: PodKey, make: impl FnOnce() -> F) -> Result<PodId, Error>
    where
        F: Future<Output = Result<PodId, Error>> + Send + 'static,
    {
        self.pod_calls.run(key, make).await
    }

    /// Makes a container, unless one of this name is being made or is there: then that is the result.
    pub(crate) async fn make_container<F>(
        &self,
        key: ContainerKey,
        make: impl FnOnce() -> F,
    ) -> Result<ContainerId, Error>
    where
        F: Future<Output = Result<ContainerId, Error>> + Send + 'static,
    {
        self.container_calls.run(key, make).await
    }

    /// How many pods and containers are being made.
    pub(crate) fn in_the_making(&self) -> usize {
        self.pod_calls.in_flight() + self.container_calls.in_flight()
    }

    /// A time later than all that were returned before, even if the clock stands still or is set back.
    pub(crate) fn creation_time(&self) -> i64 {
        let now = wharf_sys::clock::now_ns();
        let next = |last: i64| Some(now.max(last + 1));
        self.last_created_ns.fetch_update(Relaxed, Relaxed, next).map_or(now, |last| now.max(last + 1))
    }

    /// Makes every later pod and container newer than one of an earlier daemon, to which the clock may have been ahead:
    /// the kubelet takes the newest for the one that counts.
    pub(crate) fn was_created(&self, created_at_ns: i64) {
        self.last_created_ns.fetch_max(created_at_ns, Relaxed);
    }

    /// All pods, sorted by id.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.rows.read().pods.values().cloned().collect()
    }

    /// The pod with an id, or with a unique prefix of one.
    pub(crate) fn pod(&self, id: &str) -> Result<Arc<Pod>, Error> {
        let rows = self.rows.read();
        let (_id, pod) = find("pod sandbox", id, &rows.pods)?;
        Ok(Arc::clone(pod))
    }

    /// The container with an id, or with a unique prefix of one, and its pod.
    pub(crate) fn container(&self, id: &str) -> Result<InPod, Error> {
        let missing = || Error::NotFound { what: "container", id: id.to_owned() };
        let rows = self.rows.read();
        let (container, pod) = find("container", id, &rows.containers)?;
        let (container, pod) = (container.clone(), rows.pods.get(pod).cloned());
        drop(rows);
        let pod = pod.ok_or_else(missing)?;
        let container = pod.container(container.as_str()).ok_or_else(missing)?;
        Ok((pod, container))
    }

    /// Whether a pod is listed.
    pub(crate) fn has(&self, id: &PodId) -> bool {
        self.rows.read().pods.contains_key(id)
    }

    /// Reserves the id of a pod that is being made or left alone: what belongs to it is nobody else's.
    pub(crate) fn reserve(&self, id: PodId) {
        self.rows.write().unlisted.insert(id);
    }

    /// Releases the id of an unlisted pod of which nothing is left.
    pub(crate) fn release(&self, id: &PodId) {
        self.rows.write().unlisted.remove(id);
    }

    /// Lists a complete pod.
    pub(crate) fn insert(&self, pod: Arc<Pod>) {
        let mut rows = self.rows.write();
        rows.unlisted.remove(pod.id());
        rows.pods.insert(pod.id().clone(), pod);
    }

    /// Lists a pod that an earlier daemon made.
    pub(crate) fn insert_found(&self, pod: Arc<Pod>) {
        if let Ok(key) = PodKey::of(&pod.config()) {
            self.pod_calls.remember(key, pod.id().clone());
        }
        self.insert(pod);
    }

    /// Removes a pod of which nothing is left.
    pub(crate) fn remove(&self, pod: &Pod) {
        if let Ok(key) = PodKey::of(&pod.config()) {
            self.pod_calls.free(&key);
        }
        self.rows.write().pods.remove(pod.id());
    }

    /// Keeps a pod of an earlier daemon until it is undone.
    pub(crate) fn leave_behind(&self, left: LeftBehind) {
        let mut rows = self.rows.write();
        rows.unlisted.insert(left.pod.id().clone());
        rows.left_behind.push(left);
    }

    /// Takes the pods that are to be undone; the caller must do that.
    pub(crate) fn take_left_behind(&self) -> Vec<LeftBehind> {
        std::mem::take(&mut self.rows.write().left_behind)
    }

    /// The pods that own something: all that are listed, being made, left alone, or to be undone.
    pub(crate) fn owners(&self) -> HashSet<PodId> {
        let rows = self.rows.read();
        rows.pods.keys().chain(&rows.unlisted).cloned().collect()
    }

    /// The same without those that are to be undone: they have nothing that a new pod could use.
    pub(crate) fn lasting_owners(&self) -> HashSet<PodId> {
        let mut owners = self.owners();
        for left in &self.rows.read().left_behind {
            owners.remove(left.pod.id());
        }
        owners
    }

    /// Lists a container.
    pub(crate) fn insert_container(&self, pod: &Pod, container: &Arc<Container>) {
        self.rows.write().containers.insert(container.id().clone(), pod.id().clone());
        pod.insert(Arc::clone(container));
    }

    /// Lists a container that an earlier daemon made under this name.
    pub(crate) fn insert_found_container(&self, pod: &Pod, key: ContainerKey, container: &Arc<Container>) {
        self.container_calls.remember(key, container.id().clone());
        self.insert_container(pod, container);
    }

    /// Unlists a container; returns false if it was not listed.
    pub(crate) fn remove_container(&self, pod: &Pod, container: &Container) -> bool {
        let known = self.rows.write().containers.remove(container.id()).is_some();
        pod.forget(container.id());
        if known && let Ok(key) = container.with_record(|record| ContainerKey::of(pod.id(), &record.config)) {
            self.container_calls.free(&key);
        }
        known
    }
}

/// The only row whose id has this prefix. Ids are sorted, so all rows with the prefix are side by side.
fn find<'a, K, V>(what: &'static str, id: &str, rows: &'a BTreeMap<K, V>) -> Result<(&'a K, &'a V), Error>
where
    K: Ord + std::borrow::Borrow<str>,
{
    let from = (Bound::Included(id), Bound::Unbounded);
    let mut found = rows.range::<str, _>(from).take_while(|(key, _)| (*key).borrow().starts_with(id));
    let missing = || Error::NotFound { what, id: id.to_owned() };
    let first = found.next().filter(|_| !id.is_empty()).ok_or_else(missing)?;
    if found.next().is_some() {
        let problem = format!("{id:?} is the beginning of several ids: give more of it");
        return Err(Error::invalid("id", problem));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(byte: u8) -> Arc<Pod> {
        Arc::new(Pod::new(PodId::from_random([byte; 32]), Default::default(), String::new(), 0))
    }

    #[test]
    fn a_row_is_found_by_any_unique_beginning() {
        let rows = BTreeMap::from(["aa1", "ab1", "ab2", "b"].map(|id| (id.to_owned(), ())));
        let found = |id| find("pod sandbox", id, &rows).map(|(id, ())| id.as_str());
        for (id, expected) in [("aa1", "aa1"), ("aa", "aa1"), ("ab2", "ab2"), ("b", "b")] {
            assert_eq!(found(id).unwrap(), expected);
        }
        for missing in ["", "ac", "aa11", "c", "a\u{10ffff}"] {
            assert!(matches!(found(missing), Err(Error::NotFound { .. })), "{missing:?}");
        }
        for vague in ["a", "ab"] {
            assert!(matches!(found(vague), Err(Error::Invalid { .. })), "{vague:?}");
        }
    }

    #[test]
    fn a_pod_is_listed_once_it_is_whole_and_owns_its_things_before_and_after() {
        let (table, pod) = (Table::default(), pod(1));
        table.reserve(pod.id().clone());
        assert!(table.pods().is_empty() && !table.has(pod.id()));
        assert!(table.owners().contains(pod.id()));
        table.insert(Arc::clone(&pod));
        assert!(table.has(pod.id()) && table.owners().contains(pod.id()));
        assert_eq!(table.pod(pod.id().short()).unwrap().id(), pod.id());
        table.remove(&pod);
        assert!(table.pods().is_empty() && table.owners().is_empty());
    }

    #[test]
    fn what_is_left_behind_is_handed_out_once_and_owns_its_things_until_it_is_gone() {
        let (table, pod) = (Table::default(), pod(1));
        table.leave_behind(LeftBehind { pod: Arc::clone(&pod), containers: vec![] });
        assert!(table.owners().contains(pod.id()) && !table.lasting_owners().contains(pod.id()));
        assert_eq!(table.take_left_behind().len(), 1);
        assert!(table.take_left_behind().is_empty());
        assert!(table.owners().contains(pod.id()), "somebody is about to undo it");
        table.release(pod.id());
        assert!(table.owners().is_empty());
    }
}
