//! Python bindings of the Tidegate engine: extract, one core call, convert. Nothing is decided here.

mod clock;
mod convert;
mod core;
mod error;
mod feasibility;
mod limiter;
mod optimum;
mod pending;
mod quota;
mod reply;
mod request;
mod request_queue;
mod schedule;
mod scopes;
mod server;
mod shell;
mod state;
mod stream;
mod terms;
mod ticket;

use pyo3::prelude::*;

/// The compiled part of Tidegate. Import `tidegate` instead.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::clock::ManualClock;
    #[pymodule_export]
    use crate::convert::outcome_of_status;
    #[pymodule_export]
    use crate::core::Core;
    #[pymodule_export]
    use crate::feasibility::feasibility;
    #[pymodule_export]
    use crate::limiter::Limiter;
    #[pymodule_export]
    use crate::optimum::{deadline_bound, throughput_bound};
    #[pymodule_export]
    use crate::quota::bound;
    #[pymodule_export]
    use crate::reply::Reply;
    #[pymodule_export]
    use crate::request::Request;
    #[pymodule_export]
    use crate::request_queue::RequestQueue;
    #[pymodule_export]
    use crate::schedule::Schedule;
    #[pymodule_export]
    use crate::server::ReferenceServer;
    #[pymodule_export]
    use crate::stream::Stream;
    #[pymodule_export]
    use crate::terms::Terms;
    #[pymodule_export]
    use crate::ticket::Ticket;

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("version", env!("CARGO_PKG_VERSION"))?;
        module.add("build_profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
        module.add("BYTES_PER_REQUEST", tidegate_core::engine::Engine::BYTES_PER_REQUEST)
    }
}
