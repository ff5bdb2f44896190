//! One-time tokens: 128 random bits, valid for one use within one minute. Whoever has the URL has the grant, so a token
//! is never logged.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use wharf_types::lock::lock;

use crate::error::Error;
use crate::grant::Grant;

/// How long a token is valid.
const LIFE: Duration = Duration::from_mins(1);

/// How many unused tokens there may be.
pub(crate) const PENDING_LIMIT: usize = 1000;

/// The issued and unused tokens, oldest first.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<VecDeque<Pending>>);

struct Pending {
    issued: Instant,
    token: String,
    grant: Grant,
}

impl Tokens {
    /// Issues a token.
    pub(crate) fn issue(&self, grant: Grant, now: Instant) -> Result<String, Error> {
        let random = wharf_sys::random::bytes().map_err(|source| Error::Random { source })?;
        let token = URL_SAFE_NO_PAD.encode(&random[..16]);
        let mut pending = self.unexpired(now);
        if pending.len() >= PENDING_LIMIT {
            return Err(Error::TooManyPending { pending: pending.len() });
        }
        pending.push_back(Pending { issued: now, token: token.clone(), grant });
        Ok(token)
    }

    /// Redeems a token. `None` if it is unknown, used, expired, or for another path than `path`.
    pub(crate) fn redeem(&self, path: &str, token: &str, now: Instant) -> Option<Grant> {
        let mut pending = self.unexpired(now);
        let at = pending.iter().position(|pending| pending.token == token)?;
        let grant = pending.remove(at)?.grant;
        (grant.path() == path).then_some(grant)
    }

    fn unexpired(&self, now: Instant) -> MutexGuard<'_, VecDeque<Pending>> {
        let mut all = lock(&self.0);
        while all.pop_front_if(|oldest| now.saturating_duration_since(oldest.issued) >= LIFE).is_some() {}
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::PortForwardGrant;
    use wharf_types::{ErrorKind, Failure, PodId};

    fn grant() -> Grant {
        Grant::PortForward(PortForwardGrant { pod: PodId::from_random([7; 32]), ports: Vec::new() })
    }

    #[test]
    fn a_token_is_good_once_and_for_its_kind() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(grant(), now).unwrap();
        assert_eq!(token.len(), 22);
        assert_eq!(tokens.redeem("portforward", &token, now), Some(grant()));
        assert_eq!(tokens.redeem("portforward", &token, now), None);
        let token = tokens.issue(grant(), now).unwrap();
        assert_eq!(tokens.redeem("exec", &token, now), None);
        assert_eq!(tokens.redeem("portforward", "unknown", now), None);
    }

    #[test]
    fn a_token_expires_after_a_minute() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let (first, second) = (tokens.issue(grant(), now).unwrap(), tokens.issue(grant(), now).unwrap());
        assert!(tokens.redeem("portforward", &first, now + LIFE - Duration::from_millis(1)).is_some());
        assert!(tokens.redeem("portforward", &second, now + LIFE).is_none());
    }

    #[test]
    fn a_thousand_tokens_may_wait() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        for _ in 0..PENDING_LIMIT {
            tokens.issue(grant(), now).unwrap();
        }
        assert_eq!(tokens.issue(grant(), now).unwrap_err().kind(), ErrorKind::ResourceExhausted);
        assert!(tokens.issue(grant(), now + LIFE).is_ok());
    }
}
