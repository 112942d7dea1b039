//! A limiter and its clock.

use pyo3::prelude::*;
use tidegate_core::limit::{Limit, Margin};
use tidegate_core::limiter::{Limiter as Inner, LimiterError, Turn};

use crate::clock::{Clock, ManualClock};
use crate::convert::{self, Key, seconds};
use crate::error;
use crate::quota::LimitOptions;

/// What `tidegate.Limiter` is made on. See `_core.pyi`.
#[pyclass(frozen, subclass, module = "tidegate._core")]
pub(crate) struct Limiter {
    inner: Inner<Key>,
    clock: Clock,
}

/// Whom an operation admitted, whom it refused, and who is to ask again after how many seconds; None when nobody is concerned.
type Told = Option<(Vec<u64>, Vec<u64>, Option<(u64, f64)>)>;

fn told(turn: Turn) -> Told {
    let told = |turn: Turn| (turn.admitted, turn.refused, turn.next.map(|(waiter, wait)| (waiter, seconds(wait))));
    (turn != Turn::default()).then(|| told(turn))
}

fn declared(py: Python<'_>, limits: &[LimitOptions], clock: &Clock) -> PyResult<Vec<Limit>> {
    limits.iter().map(|limit| limit.declared(py, clock)).collect()
}

#[inline]
fn units(cost: Option<&Bound<'_, PyAny>>) -> PyResult<u32> {
    cost.map_or(Ok(1), convert::cost)
}

fn answer(py: Python<'_>, turn: Result<Turn, LimiterError>) -> PyResult<Told> {
    turn.map(told).map_err(|refused| error::limiter(py, refused))
}

#[pymethods]
impl Limiter {
    #[new]
    #[pyo3(signature = (limits, clock, /))]
    fn new(py: Python<'_>, limits: Vec<LimitOptions>, clock: Option<&Bound<'_, ManualClock>>) -> PyResult<Limiter> {
        let clock = Clock::new(clock.map(Bound::get));
        let inner = Inner::new(&declared(py, &limits, &clock)?, Margin::default());
        Ok(Limiter { inner, clock })
    }

    /// Take a permit for `cost` units now, or leave it: True when it was taken.
    ///
    /// The call never waits, and never overtakes those who wait for the same key. With one limit that has a burst and no key it is one
    /// compare-and-swap. The clocks of the limits start when it returns.
    ///
    /// Args:
    ///     cost: Units, at least 1.
    ///     key: A text or an integer: what has the limits to itself. None is a key like any other.
    ///
    /// Raises:
    ///     CostExceedsBurstError: The cost is larger than a limit can ever hold.
    ///     ConfigError: An argument is out of range.
    ///
    /// Example:
    ///     >>> limiter = Limiter("1/h")
    ///     >>> limiter.try_acquire(), limiter.try_acquire(), limiter.try_acquire(key="other")
    ///     (True, False, True)
    #[pyo3(signature = (cost=None, key=None), text_signature = "($self, cost=1, key=None)")]
    fn try_acquire(&self, py: Python<'_>, cost: Option<&Bound<'_, PyAny>>, key: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let cost = units(cost)?;
        let admitted = match key {
            None => self.inner.try_acquire(self.clock.now(), cost, None),
            Some(_) => self.inner.try_acquire(self.clock.now(), cost, convert::key(key)?),
        };
        admitted.map_err(|refused| error::limiter(py, refused))
    }

    /// Seconds until `acquire` would return, for one who called it now; 0 when it would return at once.
    ///
    /// Those who wait go first and are counted. While bodies of `with` run this is a lower bound: nobody knows when they end.
    ///
    /// Args:
    ///     cost: Units, at least 1.
    ///     key: As in `try_acquire`.
    ///
    /// Raises:
    ///     CostExceedsBurstError: The cost is larger than a limit can ever hold.
    ///     ConfigError: An argument is out of range.
    ///
    /// Example:
    ///     >>> Limiter("1/h").retry_after()
    ///     0.0
    #[pyo3(signature = (cost=None, key=None), text_signature = "($self, cost=1, key=None)")]
    fn retry_after(&self, py: Python<'_>, cost: Option<&Bound<'_, PyAny>>, key: Option<&Bound<'_, PyAny>>) -> PyResult<f64> {
        let (cost, key) = (units(cost)?, convert::key(key)?);
        self.inner.retry_after(self.clock.now(), cost, key).map(seconds).map_err(|refused| error::limiter(py, refused))
    }

    /// Takes a permit whose clocks wait, or leaves it.
    #[pyo3(signature = (cost, key, /))]
    fn _try_hold(&self, py: Python<'_>, cost: u32, key: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let key = convert::key(key)?;
        self.inner.try_hold(self.clock.now(), cost, key).map_err(|refused| error::limiter(py, refused))
    }

    /// Takes a permit whose clocks wait, or stands in line as `waiter`.
    #[pyo3(signature = (waiter, cost, key, /))]
    fn _join(
        &self,
        py: Python<'_>,
        waiter: u64,
        cost: &Bound<'_, PyAny>,
        key: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<(bool, Told)> {
        let (cost, key) = (convert::cost(cost)?, convert::key(key)?);
        let joined = self.inner.join(self.clock.now(), waiter, cost, key);
        joined.map(|(admitted, turn)| (admitted, told(turn))).map_err(|refused| error::limiter(py, refused))
    }

    #[pyo3(signature = (key, /))]
    fn _poll(&self, py: Python<'_>, key: Option<&Bound<'_, PyAny>>) -> PyResult<Told> {
        let key = convert::key(key)?;
        answer(py, self.inner.poll(self.clock.now(), key))
    }

    #[pyo3(signature = (waiter, key, anchored, /))]
    fn _claim(&self, py: Python<'_>, waiter: u64, key: Option<&Bound<'_, PyAny>>, anchored: bool) -> PyResult<Told> {
        let key = convert::key(key)?;
        answer(py, self.inner.claim(self.clock.now(), waiter, key, anchored))
    }

    #[pyo3(signature = (waiter, key, /))]
    fn _leave(&self, py: Python<'_>, waiter: u64, key: Option<&Bound<'_, PyAny>>) -> PyResult<Told> {
        let key = convert::key(key)?;
        answer(py, self.inner.leave(self.clock.now(), waiter, key))
    }

    #[pyo3(signature = (cost, key, /))]
    fn _anchor(&self, py: Python<'_>, cost: u32, key: Option<&Bound<'_, PyAny>>) -> PyResult<Told> {
        let key = convert::key(key)?;
        answer(py, self.inner.anchor(self.clock.now(), cost, key))
    }

    #[pyo3(signature = (limits, /))]
    fn _set_limits(&self, py: Python<'_>, limits: Vec<LimitOptions>) -> PyResult<Vec<Told>> {
        let limits = declared(py, &limits, &self.clock)?;
        let turns = self.inner.set_limits(self.clock.now(), &limits);
        turns.map(|turns| turns.into_iter().map(told).collect()).map_err(|refused| error::limiter(py, refused))
    }
}
