//! Replies on their way to one consumer, in the order in which they come or in that of their requests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use tidegate_core::engine::Handle;

use crate::core::Core;
use crate::reply::{Reply, Settled};

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
    waiter: Option<Py<PyAny>>,
}

/// The replies of one `map`.
#[pyclass(frozen, module = "tidegate._core")]
pub(crate) struct Stream {
    core: Py<Core>,
    ordered: bool,
    queue: Mutex<Queue>,
}

impl Stream {
    fn with<T>(&self, act: impl FnOnce(&mut Queue) -> T) -> T {
        act(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// So many more replies are to come.
    pub(crate) fn expect(&self, count: usize) {
        self.with(|queue| queue.outstanding += count as i64);
    }

    pub(crate) fn push(&self, py: Python<'_>, index: u64, item: Item) {
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
    }
}

#[pymethods]
impl Stream {
    #[new]
    fn new(core: Py<Core>, ordered: bool) -> Stream {
        Stream { core, ordered, queue: Mutex::default() }
    }

    /// The next reply, if one is there. The one before it counts as delivered.
    fn pop(&self, py: Python<'_>) -> PyResult<Option<Py<Reply>>> {
        let (had, item) = self.with(|queue| {
            let had = queue.out.take();
            let item = queue.arrived.pop_front();
            queue.out = item.as_ref().and_then(|item| item.held);
            (had, item)
        });
        let core = self.core.get();
        if let Some(had) = had {
            core.deliver(py, had)?;
        }
        item.map(|item| Py::new(py, Reply::new(item.settled, core.now()))).transpose()
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

    /// The consumer has left: the reply that it has counts as delivered; what is pending is cancelled, values that it has not
    /// seen too.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let stream = slf.get();
        let (had, arrived, early, waiter, outstanding) = stream.with(|queue| {
            let (arrived, early) = (std::mem::take(&mut queue.arrived), std::mem::take(&mut queue.early));
            (queue.out.take(), arrived, early, queue.waiter.take(), queue.outstanding)
        });
        let unseen: Vec<Handle> = arrived.iter().chain(early.values()).filter_map(|item| item.held).collect();
        drop((arrived, early, waiter));
        let core = stream.core.get();
        if let Some(had) = had {
            core.deliver(slf.py(), had)?;
        }
        for handle in unseen {
            core.cancel(slf.py(), handle)?;
        }
        // To look for them takes time that grows with all that is pending.
        if outstanding == 0 { Ok(()) } else { core.cancel_for(slf.as_any()) }
    }
}
