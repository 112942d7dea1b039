//! Where `now` comes from: the monotonic clock, or one that moves when told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{self, UNIX_EPOCH};

use pyo3::prelude::*;
use tidegate_core::time::{Instant, Span};

use crate::convert;

/// The engine's clock, in nanoseconds since the scheduler was made.
pub(crate) enum Clock {
    /// Its origin, and the Unix time of that.
    Monotonic(time::Instant, time::Duration),
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub(crate) fn new(manual: Option<&ManualClock>) -> Clock {
        match manual {
            None => Clock::Monotonic(time::Instant::now(), UNIX_EPOCH.elapsed().unwrap_or_default()),
            Some(clock) => Clock::Manual(clock.nanos.clone()),
        }
    }

    /// One that stands at its origin.
    pub(crate) fn at_its_origin() -> Clock {
        Clock::Manual(Arc::default())
    }

    #[inline]
    pub(crate) fn now(&self) -> Instant {
        match self {
            // 584 years fit.
            Clock::Monotonic(origin, _) => Instant::from_nanos(origin.elapsed().as_nanos() as u64),
            // ORDERING: Relaxed; the number stands for itself.
            Clock::Manual(nanos) => Instant::from_nanos(nanos.load(Ordering::Relaxed)),
        }
    }

    /// Unix time of its origin, in nanoseconds; 0 on a clock that moves when told.
    pub(crate) fn unix_origin(&self) -> u64 {
        match self {
            Clock::Monotonic(_, unix) => u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX),
            Clock::Manual(_) => 0,
        }
    }

    /// The instant of a Unix time, in seconds, by the wall clock as it is now set; its own time on a clock that moves when told.
    pub(crate) fn at_unix(&self, seconds: f64) -> Instant {
        let wall = || UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64());
        match self {
            Clock::Monotonic(..) => self.now() + convert::span_or_none(seconds - wall()),
            Clock::Manual(_) => Instant::ORIGIN + convert::span_or_none(seconds),
        }
    }

    /// The first instant that lies a multiple of `period` after the Unix epoch; after its origin on a clock that moves when told.
    pub(crate) fn boundary(&self, period: Span) -> Instant {
        match self {
            Clock::Monotonic(_, unix) => {
                let period = u128::from(period.as_nanos()).max(1);
                Instant::from_nanos((period - unix.as_nanos() % period) as u64)
            }
            Clock::Manual(_) => Instant::ORIGIN,
        }
    }
}

/// The number behind `tidegate.testing.ManualClock`.
#[pyclass(frozen, subclass, module = "tidegate._core")]
pub(crate) struct ManualClock {
    nanos: Arc<AtomicU64>,
}

#[pymethods]
impl ManualClock {
    #[new]
    fn new() -> ManualClock {
        ManualClock { nanos: Arc::new(AtomicU64::new(0)) }
    }

    /// Seconds since the clock was made.
    fn time(&self) -> f64 {
        convert::seconds(Span::from_nanos(self.nanos.load(Ordering::Relaxed)))
    }

    /// Nanoseconds since the clock was made.
    fn time_ns(&self) -> u64 {
        self.nanos.load(Ordering::Relaxed)
    }

    /// Moves to an instant, in nanoseconds; never back.
    fn _move_to(&self, nanos: u64) {
        self.nanos.fetch_max(nanos, Ordering::Relaxed);
    }
}
