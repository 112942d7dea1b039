//! The targets of a collector, and what begins their polls.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySequence, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use tidegate_core::collector::{Collector, Distribution, Ended, Overrun, Poll, key_of};
use tidegate_core::time::{Instant, Span};

use crate::convert::{self, seconds};
use crate::core::Core;
use crate::error;
use crate::stream::Stream;
use crate::terms::Terms;

/// A target that was added, and its options if it has any of its own.
struct Own {
    target: Py<PyAny>,
    options: Option<Py<PyAny>>,
}

struct Plan {
    collector: Collector,
    /// Targets that are not in the sequence, by slot.
    own: HashMap<u32, Own>,
}

/// When which target of a collector is polled. Targets that were given as a sequence stay there, and are asked for when they are due.
#[pyclass(frozen, module = "tidegate._core")]
pub(crate) struct Schedule {
    core: Py<Core>,
    targets: Py<PySequence>,
    /// Gives what a target is known by; the target itself without it.
    key: Option<Py<PyAny>>,
    plan: Mutex<Plan>,
}

/// A target, its interval in seconds, and its own options.
type Entry = (Py<PyAny>, f64, Option<Py<PyAny>>);

/// A poll, its target, and the terms on which it goes.
pub(crate) type Begun = (Poll, Py<PyAny>, Py<Terms>);

impl Schedule {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key_of(&self, target: &Bound<'_, PyAny>) -> PyResult<u64> {
        let key = match &self.key {
            Some(key) => key.bind(target.py()).call1((target,))?,
            None => target.clone(),
        };
        if let Ok(text) = key.cast::<PyString>()
            && let Ok(text) = text.to_str()
        {
            return Ok(key_of(text.as_bytes()));
        }
        if let Ok(bytes) = key.cast::<PyBytes>() {
            return Ok(key_of(bytes.as_bytes()));
        }
        Ok(key_of(key.repr()?.to_string_lossy().as_bytes()))
    }

    fn target(&self, py: Python<'_>, slot: u32) -> PyResult<Own> {
        if let Some(Own { target, options }) = self.plan().own.get(&slot) {
            return Ok(Own { target: target.clone_ref(py), options: options.as_ref().map(|options| options.clone_ref(py)) });
        }
        Ok(Own { target: self.targets.bind(py).get_item(slot as usize)?.unbind(), options: None })
    }

    /// A poll has ended, and perhaps another one of the same target is due.
    pub(crate) fn ended(&self, py: Python<'_>, slot: u32, how: Ended, waited: Span) -> PyResult<()> {
        let core = self.core.get();
        let now = core.now();
        let next = {
            let mut plan = self.plan();
            plan.collector.ended(now, slot, how, waited);
            if plan.collector.has_due() || plan.collector.is_over() { Some(now) } else { plan.collector.next_wake() }
        };
        next.map_or(Ok(()), |next| core.alarm_by(py, next))
    }

    /// The polls that are due, at most so many and as far as there is room: their places are taken.
    fn take(&self, py: Python<'_>, now: Instant, most: usize) -> PyResult<Vec<Poll>> {
        let mut polls: Vec<Poll> = {
            let mut plan = self.plan();
            std::iter::from_fn(|| plan.collector.take_due(now)).take(most).collect()
        };
        let room = self.core.get().reserve(py, polls.len());
        self.give_back(polls.split_off(*room.as_ref().unwrap_or(&0)));
        room.map(|_| polls)
    }

    fn give_back(&self, polls: Vec<Poll>) {
        let mut plan = self.plan();
        polls.into_iter().rev().for_each(|poll| plan.collector.give_back(poll));
    }

    /// Each poll with its target and the terms on which it goes.
    fn begun(&self, polls: &[Poll], shared: Option<&Bound<'_, Terms>>, own: &Bound<'_, PyAny>) -> PyResult<Vec<Begun>> {
        let py = own.py();
        // First, since `own` may take targets out.
        let targets = polls.iter().map(|poll| self.target(py, poll.target)).collect::<PyResult<Vec<_>>>()?;
        let on_terms = |(&poll, Own { target, options }): (&Poll, Own)| {
            let terms = match (shared, options) {
                (Some(terms), None) => terms.clone().unbind(),
                (_, options) => own.call1((&target, options))?.cast_into::<Terms>()?.unbind(),
            };
            Ok((poll, target, terms))
        };
        polls.iter().zip(targets).map(on_terms).collect()
    }
}

#[pymethods]
impl Schedule {
    /// Of a sequence of targets, each known by what `key` gives and polled once an `interval`: seconds, or a function of the target.
    #[new]
    #[pyo3(signature = (core, targets, key, interval, overrun, spread, /))]
    fn new(
        core: Py<Core>,
        targets: &Bound<'_, PySequence>,
        key: Option<Py<PyAny>>,
        interval: &Bound<'_, PyAny>,
        overrun: &str,
        spread: bool,
    ) -> PyResult<Schedule> {
        let overrun = match overrun {
            "skip" => Overrun::Skip,
            "all" => Overrun::All,
            "delay" => Overrun::Delay,
            _ => Overrun::Coalesce,
        };
        let plan = Mutex::new(Plan { collector: Collector::new(overrun, spread), own: HashMap::new() });
        let schedule = Schedule { core, targets: targets.clone().unbind(), key, plan };
        let shared = if interval.is_callable() { None } else { Some(convert::interval(interval)?) };
        let count = targets.len()?;
        schedule.plan().collector.reserve(count);
        for index in 0..count {
            let target = targets.get_item(index)?;
            let period = match shared {
                Some(period) => period,
                None => convert::interval(&interval.call1((&target,))?)?,
            };
            let key = schedule.key_of(&target)?;
            let added = schedule.plan().collector.add(Instant::ORIGIN, key, period);
            if let Err(twice) = added {
                let way_out =
                    format!("it is there twice, at {} and {index}; give each target once, or tell them apart by key=", twice.of);
                return Err(error::config("targets", &target, &way_out));
            }
        }
        Ok(schedule)
    }

    /// One more target, with its options if it has any of its own.
    #[pyo3(signature = (target, interval, options, /))]
    fn add(&self, target: &Bound<'_, PyAny>, interval: &Bound<'_, PyAny>, options: Option<Py<PyAny>>) -> PyResult<()> {
        let (key, period) = (self.key_of(target)?, convert::interval(interval)?);
        let core = self.core.get();
        let next = {
            let mut plan = self.plan();
            match plan.collector.add(core.now(), key, period) {
                Ok(slot) => plan.own.insert(slot, Own { target: target.clone().unbind(), options }),
                Err(_) => {
                    drop(plan);
                    return Err(error::config(
                        "target",
                        target,
                        "it is collected already; remove it first, or tell them apart by key=",
                    ));
                }
            };
            plan.collector.next_wake()
        };
        next.map_or(Ok(()), |next| core.alarm_by(target.py(), next))
    }

    /// Takes a target out; false when there is none like it.
    #[pyo3(signature = (target, /))]
    fn remove(&self, target: &Bound<'_, PyAny>) -> PyResult<bool> {
        let key = self.key_of(target)?;
        let (slot, unused) = {
            let mut plan = self.plan();
            let slot = plan.collector.remove(key);
            (slot, slot.and_then(|slot| plan.own.remove(&slot)))
        };
        drop(unused);
        Ok(slot.is_some())
    }

    /// How many slots there are.
    fn slots(&self) -> u32 {
        self.plan().collector.slots()
    }

    /// The target in a slot, its interval in seconds and its own options; nothing when there is none.
    #[pyo3(signature = (slot, /))]
    fn entry(&self, py: Python<'_>, slot: u32) -> PyResult<Option<Entry>> {
        let Some(period) = self.plan().collector.period(slot) else { return Ok(None) };
        let Own { target, options } = self.target(py, slot)?;
        Ok(Some((target, seconds(period), options)))
    }

    /// Begins.
    fn start(&self) {
        let core = self.core.get();
        let now = core.now();
        self.plan().collector.start(now, core.unix_origin());
    }

    fn pause(&self) {
        self.plan().collector.pause();
    }

    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core.get();
        let next = {
            let mut plan = self.plan();
            plan.collector.resume(core.now());
            plan.collector.next_wake()
        };
        next.map_or(Ok(()), |next| core.alarm_by(py, next))
    }

    fn stop(&self) {
        self.plan().collector.stop();
    }

    /// Stops, and is told of no poll any more.
    fn abandon(&self) {
        self.plan().collector.abandon();
    }

    /// Whether it was stopped and no poll runs.
    fn is_over(&self) -> bool {
        self.plan().collector.is_over()
    }

    /// Begins polls that are due, at most `most` and as far as there is room; how many. They go on the terms `shared`, or on what `own` gives for
    /// a target and its own options.
    #[pyo3(signature = (stream, shared, own, most, runner=None, /))]
    fn turn(
        &self,
        stream: &Bound<'_, Stream>,
        shared: Option<&Bound<'_, Terms>>,
        own: &Bound<'_, PyAny>,
        most: usize,
        runner: Option<Py<PyAny>>,
    ) -> PyResult<usize> {
        let py = own.py();
        let core = self.core.get();
        let now = core.now();
        let polls = self.take(py, now, most)?;
        let begun = match self.begun(&polls, shared, own) {
            Ok(begun) => begun,
            Err(error) => {
                core.vacate(polls.len());
                self.give_back(polls);
                return Err(error);
            }
        };
        core.poll(py, now, begun, stream, runner.as_ref())?;
        let next = {
            let plan = self.plan();
            if plan.collector.has_due() { None } else { plan.collector.next_wake() }
        };
        next.map_or(Ok(()), |next| core.alarm_by(py, next))?;
        Ok(polls.len())
    }

    /// Whether polls wait to begin.
    fn has_due(&self) -> bool {
        self.plan().collector.has_due()
    }

    fn __len__(&self) -> usize {
        self.plan().collector.len()
    }

    /// `(planned, delivered, failed, expired, cancelled, running, coalesced, skipped)`, then lag and age, each
    /// `(count, mean, p50, p90, p99, max)` in seconds.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let (counts, lag, age) = {
            let plan = self.plan();
            let statistics = plan.collector.statistics();
            (statistics.counts(), statistics.lag(), statistics.age())
        };
        let row = |Distribution { count, mean, p50, p90, p99, max }: Distribution| {
            (count, seconds(mean), seconds(p50), seconds(p90), seconds(p99), seconds(max))
        };
        let ended = (counts.delivered, counts.failed, counts.expired, counts.cancelled);
        (
            (counts.planned, ended.0, ended.1, ended.2, ended.3, counts.running, counts.coalesced, counts.skipped),
            row(lag),
            row(age),
        )
            .into_pyobject(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.targets)?;
        visit.call(&self.key)?;
        // As in `Core`: nothing is garbage while another thread is in here.
        self.plan.try_lock().map_or(Ok(()), |plan| {
            plan.own.values().try_for_each(|Own { target, options }| visit.call(target).and_then(|()| visit.call(options)))
        })
    }
}
