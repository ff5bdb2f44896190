//! Room for downloads: some that all pulls share, and one of each pull's own.
//!
//! A registry may send each layer just fast enough not to be given up, for hours. So the downloads that all pulls share
//! may all be taken by such registries. Because each pull has one that no other can take, it goes on all the same. A
//! pull that began when none of these was left gets the next that comes free, unless it has another download by then.
//!
//! One registry's pulls have no more of these than are left for those of others. What all share, one registry may have
//! alone; of several that wait, the one that has the fewest gets the next. Registries are told apart by their names, of
//! which one may have many: so a shared download that is very slow is given up for a pull that has no download at all
//! (`blob`). One is given up for each such pull, and the pull gets the next that comes free.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use wharf_types::lock::lock;

use crate::config::Limits;

/// How many pulls have a download of their own at a time; more pulls than that share the rest. A kubelet pulls one
/// image at a time, or, if it is told to, one for each pod that waits for one. A download takes three threads, 1 MiB
/// for what has arrived, and what its compression needs: up to 8 MiB, or more that is limited for all together.
const OWN_LIMIT: usize = 64;

/// The room of all pulls.
#[derive(Debug)]
pub(crate) struct Room {
    state: Arc<Mutex<State>>,
    shared_limit: usize,
}

/// What a pull has: a clone for its own download, for each shared one, and for one that was given up for it.
type Tally = Arc<()>;

/// The room of one pull.
#[derive(Debug)]
pub(crate) struct Places {
    /// Of these downloads the pull has so many at a time.
    of_pull: Arc<Semaphore>,
    /// The one that no other pull can take.
    own: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
    registry: Arc<str>,
    tally: Tally,
    _owner: Option<Held>,
}

/// Room for one download, as long as this exists.
#[derive(Debug)]
pub(crate) struct Place {
    _of_pull: OwnedSemaphorePermit,
    _own: Option<OwnedSemaphorePermit>,
    shared: Option<Held>,
}

#[derive(Debug)]
struct State {
    /// Pulls with a download of their own.
    owners: Taken,
    /// Shared downloads.
    shared: Taken,
    /// Who waits for a shared one, the longest first. Nobody does while one is free.
    waiting: VecDeque<Waiting>,
}

/// What is taken of something that is limited, by registry.
#[derive(Debug)]
struct Taken {
    free: usize,
    of_each: HashMap<Arc<str>, usize>,
}

#[derive(Debug)]
struct Waiting {
    registry: Arc<str>,
    /// Of its pull.
    tally: Weak<()>,
    /// Set once a download is given up for it, or its turn has come.
    granted: Option<Tally>,
    turn: oneshot::Sender<Held>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Owner,
    Shared,
}

/// One that a registry has taken, as long as this exists.
#[derive(Debug)]
struct Held {
    state: Arc<Mutex<State>>,
    registry: Arc<str>,
    kind: Kind,
    /// `None` if the pull has ended.
    tally: Option<Tally>,
}

impl Room {
    pub(crate) fn new(limits: &Limits) -> Self {
        let shared_limit = limits.layers_in_all.clamp(1, Semaphore::MAX_PERMITS);
        let [owners, shared] = [OWN_LIMIT, shared_limit].map(|free| Taken { free, of_each: HashMap::new() });
        let state = Mutex::new(State { owners, shared, waiting: VecDeque::new() });
        Self { state: Arc::new(state), shared_limit }
    }

    /// The most downloads at a time.
    pub(crate) fn limit(&self) -> usize {
        self.shared_limit.saturating_add(OWN_LIMIT)
    }

    /// Room for a pull from this registry that has so many downloads at a time.
    pub(crate) fn of_pull(&self, limits: &Limits, registry: &str) -> Places {
        let (state, registry) = (&self.state, Arc::from(registry));
        let has_own = lock(state).owners.take_at_most_half(&registry);
        let tally = Tally::default();
        let limit = limits.layers_per_pull.clamp(1, Semaphore::MAX_PERMITS);
        Places {
            of_pull: Arc::new(Semaphore::new(limit)),
            own: Arc::new(Semaphore::new(usize::from(has_own))),
            state: Arc::clone(state),
            _owner: has_own.then(|| Held::new(state, &registry, Kind::Owner, Some(Arc::clone(&tally)))),
            registry,
            tally,
        }
    }
}

impl Place {
    /// Whether a pull waits for it that has no download at all, and whose registry has fewer. Then this download must
    /// end, because none other is given up for that pull. Beside fewer pulls than have one of their own, a slow link is
    /// no reason to give up anything.
    pub(crate) fn must_go(&self) -> bool {
        let Some(held) = self.shared.as_ref().filter(|held| matches!(held.kind, Kind::Shared)) else {
            return false;
        };
        let mut state = lock(&held.state);
        state.forget_gone();
        let State { shared, waiting, .. } = &mut *state;
        let has_more = |waiting: &Waiting| shared.of(&waiting.registry) < shared.of(&held.registry);
        let waiting = waiting.iter_mut().find(|waiting| waiting.has_nothing() && has_more(waiting));
        waiting.is_some_and(Waiting::grant)
    }
}

impl Places {
    /// Room for a download, if there is some now.
    pub(crate) fn try_take(&self) -> Option<Place> {
        let now = |room: &Arc<Semaphore>| Arc::clone(room).try_acquire_owned().ok();
        let of_pull = now(&self.of_pull)?;
        let own = now(&self.own);
        let shared = if own.is_none() { Some(self.try_share()?) } else { None };
        Some(Place { _of_pull: of_pull, _own: own, shared })
    }

    /// Room for a download, as soon as there is some; `None` never, because no room is closed.
    pub(crate) async fn take(&self) -> Option<Place> {
        let wait = |room: &Arc<Semaphore>| Arc::clone(room).acquire_owned();
        let of_pull = wait(&self.of_pull).await.ok()?;
        let (own, shared) = tokio::select! {
            biased;
            own = wait(&self.own) => (Some(own.ok()?), None),
            shared = self.share() => (None, Some(shared?)),
        };
        Some(Place { _of_pull: of_pull, _own: own, shared })
    }

    fn try_share(&self) -> Option<Held> {
        let mut state = lock(&self.state);
        state.shared.take(&self.registry).then(|| self.held(Kind::Shared))
    }

    async fn share(&self) -> Option<Held> {
        let turn = {
            let mut state = lock(&self.state);
            if state.shared.take(&self.registry) {
                return Some(self.held(Kind::Shared));
            }
            let has_nothing = Arc::strong_count(&self.tally) == 1;
            if has_nothing && state.owners.take_at_most_half(&self.registry) {
                return Some(self.held(Kind::Owner));
            }
            let (turn, come) = oneshot::channel();
            let (registry, tally) = (Arc::clone(&self.registry), Arc::downgrade(&self.tally));
            state.waiting.push_back(Waiting { registry, tally, granted: None, turn });
            come
        };
        turn.await.ok()
    }

    fn held(&self, kind: Kind) -> Held {
        Held::new(&self.state, &self.registry, kind, Some(Arc::clone(&self.tally)))
    }
}

impl Waiting {
    /// Whether only the pull itself has its tally.
    fn has_nothing(&self) -> bool {
        self.tally.strong_count() == 1
    }

    fn grant(&mut self) -> bool {
        self.granted = self.granted.take().or_else(|| self.tally.upgrade());
        self.granted.is_some()
    }
}

impl State {
    /// Who gets the shared download that came free: before others those for whom one is given up, and of all whose
    /// registry has the fewest, who waits longest.
    fn next(&mut self) -> Option<Waiting> {
        self.forget_gone();
        if self.shared.free == 0 {
            return None;
        }
        let all = self.waiting.iter().enumerate();
        let order = |waiting: &Waiting| (waiting.granted.is_none(), self.shared.of(&waiting.registry));
        let (at, _) = all.min_by_key(|(_, waiting)| order(waiting))?;
        let mut next = self.waiting.remove(at)?;
        next.grant();
        self.shared.take(&next.registry).then_some(next)
    }

    /// Who gets the download that came free and that nobody can take away: of the pulls without any, who waits longest
    /// and has a registry that leaves enough to others.
    fn next_owner(&mut self) -> Option<Waiting> {
        self.forget_gone();
        let Self { owners, waiting, .. } = self;
        let at = waiting.iter().position(|waiting| {
            let has_none = waiting.has_nothing() || waiting.granted.is_some();
            has_none && owners.take_at_most_half(&waiting.registry)
        })?;
        let mut next = waiting.remove(at)?;
        next.grant();
        Some(next)
    }

    fn forget_gone(&mut self) {
        self.waiting.retain(|waiting| !waiting.turn.is_closed());
    }
}

impl Taken {
    fn of(&self, registry: &Arc<str>) -> usize {
        self.of_each.get(registry).copied().unwrap_or(0)
    }

    /// Takes one, if one is free.
    fn take(&mut self, registry: &Arc<str>) -> bool {
        let has_one = self.free > 0;
        if has_one {
            self.free -= 1;
            *self.of_each.entry(Arc::clone(registry)).or_default() += 1;
        }
        has_one
    }

    /// The same, but a registry gets no more than it leaves to others.
    fn take_at_most_half(&mut self, registry: &Arc<str>) -> bool {
        self.of(registry) < self.free && self.take(registry)
    }

    fn give_back(&mut self, registry: &Arc<str>) {
        self.free += 1;
        if let Some(count) = self.of_each.get_mut(registry) {
            *count -= 1;
        }
        self.of_each.retain(|_registry, count| *count > 0);
    }
}

impl Held {
    fn new(state: &Arc<Mutex<State>>, registry: &Arc<str>, kind: Kind, tally: Option<Tally>) -> Self {
        Self { state: Arc::clone(state), registry: Arc::clone(registry), kind, tally }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        match self.kind {
            Kind::Owner => state.owners.give_back(&self.registry),
            Kind::Shared => state.shared.give_back(&self.registry),
        }
        // Its pull may have nothing else, and then waits for whatever is free.
        drop(self.tally.take());
        let mut turns: Vec<_> =
            std::iter::from_fn(|| state.next_owner()).map(|next| (Kind::Owner, next)).collect();
        turns.extend(std::iter::from_fn(|| state.next()).map(|next| (Kind::Shared, next)));
        drop(state);
        for (kind, Waiting { registry, granted, turn, .. }) in turns {
            if turn.send(Self::new(&self.state, &registry, kind, granted)).is_err() {
                tracing::trace!("nobody waits for it any more, so it came free again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn limits(layers_per_pull: usize, layers_in_all: usize) -> Limits {
        Limits { layers_per_pull, layers_in_all, ..Limits::default() }
    }

    fn take_all(places: &Places) -> Vec<Place> {
        std::iter::from_fn(|| places.try_take()).collect()
    }

    #[tokio::test]
    async fn each_pull_has_one_of_its_own_beside_the_shared_ones() {
        let limits = limits(4, 3);
        let room = Room::new(&limits);
        let [first, second, third] = [(); 3].map(|()| room.of_pull(&limits, "a"));
        let mut of_first = take_all(&first);
        let of_second = take_all(&second);
        assert_eq!((of_first.len(), of_second.len()), (4, 1));
        let own = third.take().await.unwrap();
        assert!(third.try_take().is_none());
        // One that is shared, which the pull that waits longest gets.
        let mut waiting = std::pin::pin!(third.take());
        assert!(waiting.as_mut().now_or_never().is_none());
        of_first.pop();
        let shared = waiting.await.unwrap();
        drop((own, shared));
        assert_eq!(take_all(&third).len(), 2);
    }

    #[tokio::test]
    async fn a_pull_has_so_many_and_may_wait_for_its_own() {
        let limits = limits(2, 9);
        let room = Room::new(&limits);
        let places = room.of_pull(&limits, "a");
        let mut taken = take_all(&places);
        assert_eq!(taken.len(), 2);
        let mut waiting = std::pin::pin!(places.take());
        assert!(waiting.as_mut().now_or_never().is_none());
        taken.clear();
        waiting.await.unwrap();
    }

    #[test]
    fn so_many_pulls_have_one_of_their_own() {
        let limits = limits(1, 1);
        let room = Room::new(&limits);
        let pulls: Vec<_> = (0..=OWN_LIMIT).map(|n| room.of_pull(&limits, &n.to_string())).collect();
        let mut taken: Vec<_> = pulls.iter().filter_map(Places::try_take).collect();
        assert_eq!((taken.len(), room.limit()), (OWN_LIMIT + 1, OWN_LIMIT + 1));
        let late = room.of_pull(&limits, "late");
        assert!(late.try_take().is_none());
        taken.pop();
        assert!(late.try_take().is_some(), "it shares");
        drop(pulls);
        assert!(room.of_pull(&limits, "late").try_take().is_some());
    }

    #[tokio::test]
    async fn a_pull_without_any_wants_the_shared_ones_of_registries_that_have_more() {
        let limits = limits(1, 2);
        let room = Room::new(&limits);
        let pulls: Vec<_> = (0..=OWN_LIMIT + 1).map(|n| room.of_pull(&limits, &n.to_string())).collect();
        let taken: Vec<_> = pulls.iter().filter_map(Places::try_take).collect();
        assert_eq!(taken.len(), OWN_LIMIT + 2);
        let same = room.of_pull(&limits, &(OWN_LIMIT + 1).to_string());
        let mut waiting = Box::pin(same.take());
        assert!((&mut waiting).now_or_never().is_none());
        let wanted = || taken.iter().filter(|place| place.must_go()).count();
        assert_eq!(wanted(), 0, "it has as many as the other one");
        let late = room.of_pull(&limits, "late");
        let mut late = Box::pin(late.take());
        assert!((&mut late).now_or_never().is_none());
        assert!(!taken[0].must_go(), "it is of the pull's own");
        assert!(taken[OWN_LIMIT..].iter().all(|place| place.shared.is_some()));
        assert_eq!(wanted(), 1, "of the shared ones, one for each pull");
        drop(late);
        assert_eq!(wanted(), 0);
    }

    #[tokio::test]
    async fn one_place_is_given_up_for_a_pull_and_that_pull_gets_it() {
        let limits = limits(3, 3);
        let room = Room::new(&limits);
        let owners: Vec<_> = (0..OWN_LIMIT).map(|n| room.of_pull(&limits, &n.to_string())).collect();
        let own: Vec<_> = owners.iter().map(|pull| pull.own.try_acquire().unwrap()).collect();
        let [slow, none] = ["slow", "none"].map(|registry| room.of_pull(&limits, registry));
        let mut of_slow = take_all(&slow);
        let waiting = [&owners[0], &none, &none, &none].map(|pull| Box::pin(pull.take()));
        let [mut owner, mut first, mut second, mut third] = waiting;
        for wait in [&mut owner, &mut first, &mut second, &mut third] {
            assert!(wait.now_or_never().is_none());
        }
        let gives_way = |of_slow: &[Place]| of_slow.iter().map(Place::must_go).collect::<Vec<_>>();
        assert_eq!(gives_way(&of_slow), [true, false, false], "one for each pull that has none");
        of_slow.remove(0);
        let of_none = (&mut first).now_or_never().flatten().expect("it went to the one that waits longest");
        assert_eq!(gives_way(&of_slow), [false, false], "the pull has a download now");
        drop(of_none);
        let of_owner = owner.now_or_never().flatten().expect("nothing was given up for the others");
        assert_eq!(gives_way(&of_slow), [true, false]);
        // Whoever a place was given up for is gone.
        drop(second);
        assert_eq!(gives_way(&of_slow), [true, false], "the pull's other one has no place yet");
        drop((of_slow, of_owner, own));
        third.now_or_never().flatten().unwrap();
        assert_eq!(lock(&room.state).shared.free, 3);
    }

    #[tokio::test]
    async fn a_pull_without_any_gets_an_own_one_that_comes_free_and_keeps_it() {
        let limits = limits(3, 1);
        let room = Room::new(&limits);
        let mut owners: Vec<_> = (0..OWN_LIMIT).map(|n| room.of_pull(&limits, &n.to_string())).collect();
        let own: Vec<_> = owners.iter().map(|pull| pull.own.try_acquire().unwrap()).collect();
        let [slow, late, last] = ["slow", "late", "last"].map(|registry| room.of_pull(&limits, registry));
        let shared = slow.try_take().unwrap();
        let mut waits = Box::pin(late.take());
        assert!((&mut waits).now_or_never().is_none());
        drop(own);
        owners.pop();
        let its_own = (&mut waits).now_or_never().flatten().expect("one has come free");
        let mut second = Box::pin(last.take());
        assert!((&mut second).now_or_never().is_none(), "each of the others has its own");
        assert!(!its_own.must_go(), "nobody takes that away");
        assert!(shared.must_go());
        drop(its_own);
        let its_own = (&mut second).now_or_never().flatten().expect("it is free again");
        assert!(!its_own.must_go());
        drop((its_own, shared));
        assert_eq!(lock(&room.state).owners.free, 1);
        let third = Box::pin(late.take()).now_or_never().flatten().unwrap();
        let fourth = Box::pin(last.take()).now_or_never().flatten().expect("it is free at once");
        drop((third, fourth, owners));
        let state = lock(&room.state);
        assert_eq!((state.owners.free, state.shared.free), (OWN_LIMIT, 1));
    }

    #[tokio::test]
    async fn a_pull_that_has_nothing_left_waits_for_no_shared_one_while_own_ones_are_free() {
        let limits = limits(3, 2);
        let room = Room::new(&limits);
        let owners: Vec<_> = (0..OWN_LIMIT).map(|n| room.of_pull(&limits, &n.to_string())).collect();
        let [one, other] = ["reg", "reg"].map(|registry| room.of_pull(&limits, registry));
        let (slow, ends) = (one.try_take().unwrap(), other.try_take().unwrap());
        let (mut first, mut second) = (Box::pin(one.take()), Box::pin(other.take()));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        drop(owners);
        assert!((&mut second).now_or_never().is_none(), "it has another one");
        drop(ends);
        let shared = first.now_or_never().flatten().expect("what came free");
        let own = second.now_or_never().flatten().expect("its pull had nothing any more");
        assert!(!own.must_go());
        drop((slow, shared, own));
        let state = lock(&room.state);
        assert_eq!((state.owners.free, state.shared.free), (OWN_LIMIT, 2));
    }

    #[test]
    fn one_registry_leaves_places_to_others() {
        let limits = limits(2, 3);
        let room = Room::new(&limits);
        let pulls_of = |registry| (0..80).map(|_| room.of_pull(&limits, registry)).collect::<Vec<_>>();
        let taken_by = |pulls: &[Places]| pulls.iter().flat_map(take_all).collect::<Vec<_>>();
        let slow = pulls_of("slow");
        let of_slow = taken_by(&slow);
        assert_eq!(of_slow.len(), OWN_LIMIT / 2 + 3, "alone it has all shared ones");
        let (other, third) = (pulls_of("other"), pulls_of("third"));
        assert_eq!([&other, &third].map(|pulls| taken_by(pulls).len()), [OWN_LIMIT / 4, OWN_LIMIT / 8]);
        drop((slow, of_slow));
        let again = room.of_pull(&limits, "third");
        assert_eq!(take_all(&again).len(), 2);
        drop((other, third, again));
        assert!(lock(&room.state).owners.of_each.is_empty() && lock(&room.state).shared.of_each.is_empty());
    }

    #[tokio::test]
    async fn what_comes_free_goes_to_the_registry_that_has_the_fewest() {
        let limits = limits(4, 4);
        let room = Room::new(&limits);
        let slow = [(); 40].map(|()| room.of_pull(&limits, "slow"));
        let mut taken: Vec<_> = slow.iter().flat_map(take_all).collect();
        assert_eq!(taken.len(), OWN_LIMIT / 2 + 4);
        // Those of the slow registry wait first, and the very first is given up.
        let other = room.of_pull(&limits, "other");
        let waiting = [&slow[37], &slow[38], &slow[39], &other, &other, &other];
        let [mut gone, mut first, mut second, mut one, mut two, mut three] =
            waiting.map(|pull| Box::pin(pull.share()));
        for wait in [&mut gone, &mut first, &mut second, &mut one, &mut two, &mut three] {
            assert!(wait.now_or_never().is_none());
        }
        drop(gone);
        assert!(!taken.iter().any(Place::must_go), "each of these pulls has one of its own");
        // The first pull has its own and three that are shared.
        drop(taken.drain(1..3));
        let of_other = [&mut one, &mut two].map(|wait| wait.now_or_never().flatten().unwrap());
        assert!((&mut first).now_or_never().is_none() && (&mut three).now_or_never().is_none());
        taken.remove(1);
        let of_slow = (&mut first).now_or_never().flatten().unwrap();
        assert!((&mut second).now_or_never().is_none() && (&mut three).now_or_never().is_none());
        drop(of_other);
        let rest = [second, three].map(|wait| wait.now_or_never().flatten().unwrap());
        drop((of_slow, rest));
        assert_eq!(lock(&room.state).shared.free, 3);
    }
}
