//! Counts what is visited, in tests of this crate alone: of how much more that is when there is more of everything.

#[cfg(test)]
pub(crate) use counted::{add, taken};

/// So many more things were visited.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn add(_count: usize) {}

#[cfg(test)]
mod counted {
    use std::cell::Cell;

    thread_local! {
        static STEPS: Cell<u64> = const { Cell::new(0) };
    }

    pub(crate) fn add(count: usize) {
        STEPS.set(STEPS.get() + count as u64);
    }

    /// How many there were since this was last called on this thread.
    pub(crate) fn taken() -> u64 {
        STEPS.replace(0)
    }
}
