//! A pod whose record is lost: its namespace shows its addresses, and the present configuration takes the place of the
//! one with which it was added. So it keeps its addresses, and its DEL is run.

use super::result::{ADDRESS_LIMIT, made_of};
use super::{Cni, CniError, Record, file_name};
use crate::link::Address;
use crate::netlink::{Family, Socket};
use crate::{Attachment, INTERFACE, PodAddresses, link, netns};

impl Cni {
    /// Finds the addresses of a pod whose record is lost, and makes the record anew. `None` if it has no addresses.
    pub(crate) fn adopt(&self, pod: &Attachment<'_>) -> Result<Option<PodAddresses>, CniError> {
        let inside = netns::inside(pod.netns, || Socket::open(Family::Route))??;
        let Some(link) = link::get(&inside, INTERFACE)? else { return Ok(None) };
        let found = link::addresses(&inside, link.index, ADDRESS_LIMIT)?;
        if found.is_empty() {
            return Ok(None);
        }
        // Something there cannot be read now, or by this release, and is left alone.
        let is_lost = self.store.saved_at(&file_name(pod.id)).is_none();
        let renewed = if is_lost { self.renew(pod, &found) } else { Ok(()) };
        if let Err(error) = renewed {
            let error = wharf_types::chain(&error);
            tracing::warn!(pod = %pod.id, error, "a pod's CNI record is lost: no plugin will be told of the pod's end");
        }
        Ok(Some(PodAddresses { ips: found.iter().map(|address| address.ip).collect() }))
    }

    fn renew(&self, pod: &Attachment<'_>, addresses: &[Address]) -> Result<(), CniError> {
        let network = self.current()?.ok_or_else(|| self.none())?;
        let result = Some(made_of(addresses, &network.version, pod.pin));
        self.save(pod.id, &Record { result, ..Record::of(&network, pod)? })?;
        let network = &network.name;
        tracing::warn!(pod = %pod.id, network, "a pod's lost CNI record is made anew from the present configuration");
        Ok(())
    }
}
