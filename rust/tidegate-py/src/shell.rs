//! The Python half: it waits for what is handed out here, and makes the errors that users see.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// The module `tidegate._waiting`.
pub(crate) fn shell(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static SHELL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let module = SHELL.get_or_try_init(py, || py.import("tidegate._waiting").map(|module| module.into_any().unbind()))?;
    Ok(module.bind(py))
}
