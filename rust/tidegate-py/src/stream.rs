//! Replies on their way to one consumer, in the order in which they come or in that of their requests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use tidegate_core::engine::Handle;
use tidegate_core::time::Instant;

use crate::core::Core;
use crate::reply::{Reply, Settled};
use crate::schedule::Schedule;

/// A reply, and the request to be counted as delivered when the consumer has had it.
pub(crate) struct Item {
    pub(crate) settled: Settled,
    pub(crate) held: Option<Handle>,
}

#[derive(Default)]
struct Queue {
    arrived: VecDeque<Item>,
    /// Those that came before their turn, by index.
    early: BTreeMap<u64, Item>,
    /// Index of the next in turn.
    next: u64,
    /// Requests whose replies are to come. Below zero for a moment when one comes before its request is counted.
    outstanding: i64,
    /// The one that the consumer has and has not come back from.
    out: Option<Handle>,
    /// The same, of those that it took at once. Apart, since a single one needs no memory.
    batch: Vec<Handle>,
    waiter: Option<Py<PyAny>>,
}

/// What a consumer has had: the one, and those that it took at once.
type Had = (Option<Handle>, Vec<Handle>);

impl Queue {
    /// Takes out what the consumer has come back from.
    fn had(&mut self) -> Had {
        (self.out.take(), std::mem::take(&mut self.batch))
    }
}

/// The replies of one `map`, or of a collector.
#[pyclass(frozen, module = "tidegate._core")]
pub(crate) struct Stream {
    core: Py<Core>,
    ordered: bool,
    /// Of the collector; it is told of each poll that ends.
    schedule: Option<Py<Schedule>>,
    queue: Mutex<Queue>,
}

impl Stream {
    fn with<T>(&self, act: impl FnOnce(&mut Queue) -> T) -> T {
        act(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn deliver(&self, py: Python<'_>, (one, batch): Had) -> PyResult<()> {
        if one.is_none() && batch.is_empty() {
            return Ok(());
        }
        self.core.get().deliver(py, one.into_iter().chain(batch))
    }

    /// So many more replies are to come.
    pub(crate) fn expect(&self, count: usize) {
        self.with(|queue| queue.outstanding += count as i64);
    }

    pub(crate) fn push(&self, py: Python<'_>, index: u64, item: Item) -> PyResult<()> {
        let Settled { ended, planned, ended_at, waits, .. } = item.settled;
        let waiter = self.with(|queue| {
            queue.outstanding -= 1;
            if self.ordered {
                queue.early.insert(index, item);
                while let Some(item) = queue.early.remove(&queue.next) {
                    queue.next += 1;
                    queue.arrived.push_back(item);
                }
            } else {
                queue.arrived.push_back(item);
            }
            if queue.arrived.is_empty() { None } else { queue.waiter.take() }
        });
        if let Some(waiter) = waiter {
            // One whose task was cancelled meanwhile refuses.
            let _ = waiter.call_method1(py, "set_result", (py.None(),));
        }
        let Some(schedule) = &self.schedule else { return Ok(()) };
        let waited = ended_at.since(planned) - waits.attempt - waits.backoff;
        schedule.get().ended(py, index as u32, ended, waited)
    }

    fn reply(&self, item: Item) -> Reply {
        let (core, planned) = (self.core.get(), item.settled.planned);
        let reply = Reply::new(item.settled, core.now());
        if planned < Instant::FAR { reply.scheduled_for(core.loop_time(planned)) } else { reply }
    }
}

#[pymethods]
impl Stream {
    #[new]
    #[pyo3(signature = (core, ordered, schedule=None, /))]
    fn new(core: Py<Core>, ordered: bool, schedule: Option<Py<Schedule>>) -> Stream {
        Stream { core, ordered, schedule, queue: Mutex::default() }
    }

    /// The next reply, if one is there. Those before it count as delivered.
    fn pop(&self, py: Python<'_>) -> PyResult<Option<Py<Reply>>> {
        let (had, item) = self.with(|queue| {
            let had = queue.had();
            let item = queue.arrived.pop_front();
            queue.out = item.as_ref().and_then(|item| item.held);
            (had, item)
        });
        self.deliver(py, had)?;
        item.map(|item| Py::new(py, self.reply(item))).transpose()
    }

    /// The next replies, as many as are there, at most so many. Those before them count as delivered.
    #[pyo3(signature = (most, /))]
    fn pop_batch(&self, py: Python<'_>, most: usize) -> PyResult<Vec<Py<Reply>>> {
        let (had, items) = self.with(|queue| {
            let count = most.min(queue.arrived.len());
            let had = queue.had();
            let items: Vec<Item> = queue.arrived.drain(..count).collect();
            queue.batch.extend(items.iter().filter_map(|item| item.held));
            (had, items)
        });
        self.deliver(py, had)?;
        items.into_iter().map(|item| Py::new(py, self.reply(item))).collect()
    }

    /// A future that is resolved when a reply is there.
    #[pyo3(signature = (future, /))]
    fn wait(&self, future: Py<PyAny>) {
        let replaced = self.with(|queue| queue.waiter.replace(future));
        drop(replaced);
    }

    /// Wakes the consumer to look again.
    fn nudge(&self, py: Python<'_>) {
        if let Some(waiter) = self.with(|queue| queue.waiter.take()) {
            let _ = waiter.call_method1(py, "set_result", (py.None(),));
        }
    }

    /// The consumer has left: the replies that it has count as delivered, unless it could do nothing with them; what is pending is
    /// cancelled, values that it has not seen too.
    #[pyo3(signature = (accepted=true, /))]
    fn close(slf: &Bound<'_, Self>, accepted: bool) -> PyResult<()> {
        let stream = slf.get();
        let (had, arrived, early, waiter, outstanding) = stream.with(|queue| {
            let (arrived, early) = (std::mem::take(&mut queue.arrived), std::mem::take(&mut queue.early));
            (queue.had(), arrived, early, queue.waiter.take(), queue.outstanding)
        });
        let mut unseen: Vec<Handle> = arrived.iter().chain(early.values()).filter_map(|item| item.held).collect();
        drop((arrived, early, waiter));
        let core = stream.core.get();
        if accepted {
            stream.deliver(slf.py(), had)?;
        } else {
            let (one, batch) = had;
            unseen.extend(one.into_iter().chain(batch));
        }
        for handle in unseen {
            core.cancel(slf.py(), handle)?;
        }
        // To look for them takes time that grows with all that is pending.
        if outstanding == 0 { Ok(()) } else { core.cancel_for(slf.as_any()) }
    }

    /// Functions and targets of a collector may refer to it: a circle.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.schedule)?;
        // As in `Core`: nothing is garbage while another thread is in here.
        self.queue.try_lock().map_or(Ok(()), |queue| {
            visit.call(&queue.waiter)?;
            queue.arrived.iter().chain(queue.early.values()).try_for_each(|item| item.settled.traverse(&visit))
        })
    }
}
