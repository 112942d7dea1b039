//! The record of a request: at most 64 bytes while it waits.

use std::ops::Add;

use crate::queue::{Key, Node, Nodes, Place, Rule};
use crate::time::{Instant, Span};
use crate::wheel::TimerId;

/// Names a request for as long as it is pending, and never another one after it: `generation << 32 | slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(u64);

impl Handle {
    /// The place of the request among those pending; reused once it has ended.
    #[inline]
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    /// As one number.
    #[inline]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// From [`to_bits`](Handle::to_bits).
    #[inline]
    pub const fn from_bits(bits: u64) -> Handle {
        Handle(bits)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The slot is free, or its request has ended and the shell has not been told yet.
    Free,
    /// It is not to go yet.
    Postponed,
    /// In its class queue.
    Queued,
    /// Waits for the end of a backoff, then goes back to its class queue.
    Delayed,
    /// Its attempt cost nothing, and it waits to go back to its class queue.
    Held,
    /// An attempt is running.
    Leased,
    /// A value exists that the consumer has not taken.
    Done,
}

/// What a submitter may ask for besides order and deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Its value stays *done* until `deliver`; otherwise it counts as delivered when the attempt succeeds.
    pub held: bool,
    /// Its only attempt lasts as long as it will: the backend's attempt timeout does not apply, and it is never retried.
    pub lasting: bool,
    /// Its deadline says how urgent it is, and no more: it does not expire.
    pub lenient: bool,
}

/// Spans of blocked time are marked in units of 2^20 ns (1.05 ms): 32 bits then tell apart waits of up to 52 days.
const MARK_SHIFT: u32 = 20;

/// A reading of a backend set's blocked clocks, taken when a request starts to wait.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    limit: u32,
    concurrency: u32,
}

impl Mark {
    pub(super) fn new(limit: Span, concurrency: Span) -> Mark {
        let short = |span: Span| (span.as_nanos() >> MARK_SHIFT) as u32;
        Mark { limit: short(limit), concurrency: short(concurrency) }
    }

    /// Blocked time between `self` and the `later` reading: by limits, by concurrency.
    pub(super) fn until(self, later: Mark) -> (Span, Span) {
        let long = |units: u32| Span::from_nanos(u64::from(units) << MARK_SHIFT);
        (long(later.limit.wrapping_sub(self.limit)), long(later.concurrency.wrapping_sub(self.concurrency)))
    }
}

/// A request. See [`Requests`].
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) node: Node,
    /// When it was accepted, or when the instant came before which it was not to go.
    pub(super) joined_at: Instant,
    /// [`Instant::FAR`] when it has none. See [`expires_at`](Entry::expires_at).
    pub(super) deadline: Instant,
    pub(super) generation: u32,
    pub(super) class: u32,
    pub(super) mark: Mark,
    /// Armed for the deadline, or for the end of a backoff or of being postponed when that comes first.
    pub(super) timer: Option<TimerId>,
    /// Index into [`Requests::histories`], or [`NONE`]: most requests succeed at once and have none.
    history: u32,
    /// The running attempt while leased.
    pub(super) lease: u32,
    pub(super) state: State,
    pub(super) flags: Flags,
}

const _: () = assert!(size_of::<Entry>() <= 64);

impl Entry {
    /// When it ends if it has not ended by itself; [`Instant::FAR`] for never.
    #[inline]
    pub(super) fn expires_at(&self) -> Instant {
        if self.flags.lenient { Instant::FAR } else { self.deadline }
    }
}

const NONE: u32 = u32::MAX;

/// What earlier attempts of a request leave behind, or its being postponed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct History {
    /// It has had an attempt.
    pub(super) attempted: bool,
    /// From its acceptance until it joined its queue.
    pub(super) postponed: Span,
    /// Attempts that failed. One that was rejected by a limit costs none.
    pub(super) failed: u32,
    /// Attempts that failed at no cost, for the backend was known to be down.
    pub(super) free: u32,
    /// Where the last attempt failed.
    pub(super) avoid: Option<Avoid>,
    /// When the wait that follows the last attempt, or being postponed, began.
    pub(super) waiting_since: Instant,
    pub(super) waits: Waits,
}

/// A backend, and which of all accounts, that a request would rather not meet again at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avoid {
    pub(super) backend: u16,
    pub(super) account: u32,
}

/// How long a request has spent on what, up to now. What remains of its age is time in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Every backend that may serve it was blocked, at least one by a limit.
    pub limit: Span,
    /// Every backend that may serve it was at its concurrency cap.
    pub concurrency: Span,
    /// Between a failed attempt and its retry.
    pub backoff: Span,
    /// With an attempt running.
    pub attempt: Span,
}

impl Add for Waits {
    type Output = Waits;

    fn add(self, other: Waits) -> Waits {
        Waits {
            limit: self.limit + other.limit,
            concurrency: self.concurrency + other.concurrency,
            backoff: self.backoff + other.backoff,
            attempt: self.attempt + other.attempt,
        }
    }
}

/// The requests that are pending, by slot.
#[derive(Debug)]
pub(super) struct Requests {
    rule: Rule,
    entries: Vec<Entry>,
    free: Vec<u32>,
    histories: Vec<History>,
    free_histories: Vec<u32>,
}

impl Nodes for Requests {
    #[inline]
    fn node(&self, slot: u32) -> &Node {
        &self.entries[slot as usize].node
    }
    #[inline]
    fn node_mut(&mut self, slot: u32) -> &mut Node {
        &mut self.entries[slot as usize].node
    }
    #[inline]
    fn key(&self, slot: u32) -> Key {
        let entry = &self.entries[slot as usize];
        self.rule.key(entry.node.place(), entry.joined_at, entry.deadline)
    }
}

impl Requests {
    pub(super) fn new(rule: Rule) -> Requests {
        Requests { rule, entries: Vec::new(), free: Vec::new(), histories: Vec::new(), free_histories: Vec::new() }
    }

    #[inline]
    pub(super) fn rule(&self) -> Rule {
        self.rule
    }

    #[inline]
    pub(super) fn insert(&mut self, place: Place, class: u32, joined_at: Instant, deadline: Instant, flags: Flags) -> u32 {
        let entry = |generation| Entry {
            node: Node::new(place),
            joined_at,
            deadline,
            generation,
            class,
            mark: Mark::default(),
            timer: None,
            history: NONE,
            lease: NONE,
            state: State::Queued,
            flags,
        };
        if let Some(slot) = self.free.pop() {
            let place = &mut self.entries[slot as usize];
            *place = entry(place.generation);
            slot
        } else {
            self.entries.push(entry(0));
            (self.entries.len() - 1) as u32
        }
    }

    /// Frees the slot of a request that has ended; its handle names nothing from now on.
    #[inline]
    pub(super) fn remove(&mut self, slot: u32) {
        let entry = &mut self.entries[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.state = State::Free;
        let history = std::mem::replace(&mut entry.history, NONE);
        if history != NONE {
            self.free_histories.push(history);
        }
        self.free.push(slot);
    }

    #[inline]
    pub(super) fn handle(&self, slot: u32) -> Handle {
        Handle((u64::from(self.entries[slot as usize].generation) << 32) | u64::from(slot))
    }

    /// The slot of a request that is pending.
    #[inline]
    pub(super) fn find(&self, handle: Handle) -> Option<u32> {
        let slot = handle.slot();
        let entry = self.entries.get(slot as usize)?;
        let live = entry.state != State::Free && self.handle(slot) == handle;
        live.then_some(slot)
    }

    #[inline]
    pub(super) fn get(&self, slot: u32) -> &Entry {
        &self.entries[slot as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Entry {
        &mut self.entries[slot as usize]
    }

    pub(super) fn is_live(&self, slot: u32) -> bool {
        self.entries.get(slot as usize).is_some_and(|entry| entry.state != State::Free)
    }

    /// The slots of all that are pending.
    pub(super) fn pending(&self) -> Vec<u32> {
        let live = |(slot, entry): (usize, &Entry)| (entry.state != State::Free).then_some(slot as u32);
        self.entries.iter().enumerate().filter_map(live).collect()
    }

    #[inline]
    pub(super) fn history(&self, slot: u32) -> Option<&History> {
        self.histories.get(self.entries[slot as usize].history as usize)
    }

    /// Time since its acceptance.
    #[inline]
    pub(super) fn age(&self, now: Instant, slot: u32) -> Span {
        let postponed = self.history(slot).map_or(Span::ZERO, |history| history.postponed);
        now.since(self.get(slot).joined_at) + postponed
    }

    pub(super) fn history_mut(&mut self, slot: u32) -> &mut History {
        let entry = &mut self.entries[slot as usize];
        if entry.history == NONE {
            entry.history = self.free_histories.pop().unwrap_or_else(|| {
                self.histories.push(History::default());
                (self.histories.len() - 1) as u32
            });
            self.histories[entry.history as usize] = History::default();
        }
        &mut self.histories[entry.history as usize]
    }

    /// Bytes that each waiting request takes; a deadline's timer and what earlier attempts left behind come on top.
    pub(super) const fn bytes_each() -> usize {
        size_of::<Entry>()
    }
}
