//! From the core's refusals to Python's exceptions; the classes live in `tidegate._errors`.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tidegate_core::engine::ClassError;
use tidegate_core::limiter::LimiterError;

/// An instance of an error class of ours, with its attributes as keywords.
fn instance(py: Python<'_>, class: &str, message: &str, attributes: &[(&str, Py<PyAny>)]) -> PyErr {
    let make = || -> PyResult<Bound<'_, PyAny>> {
        let keywords = PyDict::new(py);
        for (name, value) in attributes {
            keywords.set_item(name, value)?;
        }
        py.import("tidegate._errors")?.getattr(class)?.call((message,), Some(&keywords))
    };
    match make() {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// A wrong option: its name, the value given, the way out.
pub(crate) fn config(option: &str, value: &Bound<'_, PyAny>, way_out: &str) -> PyErr {
    let py = value.py();
    let shown = value.repr().map_or_else(|_| "?".to_owned(), |text| text.to_string());
    let option_name: Py<PyAny> = pyo3::types::PyString::new(py, option).into_any().unbind();
    let attributes = [("option", option_name), ("value", value.clone().unbind())];
    instance(py, "ConfigError", &format!("{option}={shown}: {way_out}"), &attributes)
}

/// No class for a set of backends and a cost.
pub(crate) fn class(py: Python<'_>, error: ClassError, names: &str) -> PyErr {
    match error {
        ClassError::CostExceedsBurst { cost, largest } => cost_exceeds_burst(py, cost, largest, names),
        _ => {
            let none = py.None();
            config("backends", none.bind(py), "the scheduler has no backend; give RateLimitScheduler at least one")
        }
    }
}

fn cost_exceeds_burst(py: Python<'_>, cost: u32, largest: u32, names: &str) -> PyErr {
    let number = |value: u32| value.into_pyobject(py).map_or_else(|_| py.None(), |n| n.into_any().unbind());
    let message = format!(
        "cost={cost}: a limit of {names} never admits more than {largest} at once; lower the cost or raise the limit's amount or burst"
    );
    instance(py, "CostExceedsBurstError", &message, &[("cost", number(cost)), ("burst", number(largest))])
}

/// A limiter's refusal.
#[cold]
pub(crate) fn limiter(py: Python<'_>, error: LimiterError) -> PyErr {
    match error {
        LimiterError::CostExceedsBurst { cost, largest } => cost_exceeds_burst(py, cost, largest, "the limiter"),
        _ => instance(py, "InternalError", "this limiter has stopped after an internal error; please report it", &[]),
    }
}

/// A bug of ours: a panic left the engine in the middle of something.
pub(crate) fn broken() -> PyErr {
    let message = "the engine of this scheduler has stopped after an internal error; please report what was logged before";
    Python::attach(|py| instance(py, "InternalError", message, &[]))
}

/// The scheduler accepts nothing any more.
pub(crate) fn closed(py: Python<'_>) -> PyErr {
    instance(py, "SchedulerClosedError", "the scheduler is closed and accepts no more requests", &[])
}
