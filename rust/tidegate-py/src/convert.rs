//! Between Python's seconds, headers and statuses and the core's types.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::conversion::FromPyObjectOwned;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString};
use tidegate_core::engine::{Answer, BackendId, Outcome};
use tidegate_core::health::Phase;
use tidegate_core::retry_after;
use tidegate_core::time::{Instant, Span};

use crate::error;
use crate::terms::Start;

/// A span in seconds.
#[inline]
pub(crate) fn seconds(span: Span) -> f64 {
    span.as_nanos() as f64 / 1e9
}

/// Seconds as a span, rounded up; nothing for a number that is no span (negative, NaN).
pub(crate) fn span(seconds: f64) -> Option<Span> {
    // `as` saturates: what is beyond 584 years is for ever.
    (seconds >= 0.0).then(|| Span::from_nanos((seconds * 1e9).ceil() as u64))
}

/// Seconds above 0, or a `timedelta`, from a user.
pub(crate) fn timeout(value: &Bound<'_, PyAny>) -> PyResult<Span> {
    positive("timeout", value, "give seconds above 0, a timedelta, or None for no deadline")
}

/// A period, from a user: seconds above 0, or a `timedelta`.
pub(crate) fn interval(value: &Bound<'_, PyAny>) -> PyResult<Span> {
    positive("interval", value, "give seconds above 0, or a timedelta")
}

/// A span above 0, from a user.
fn positive(option: &str, value: &Bound<'_, PyAny>, way_out: &str) -> PyResult<Span> {
    let number = value.call_method0("total_seconds").unwrap_or_else(|_| value.clone());
    let finite = number.extract().ok().filter(|seconds: &f64| seconds.is_finite());
    match finite.and_then(span) {
        Some(span) if span > Span::ZERO && !value.is_instance_of::<PyBool>() => Ok(span),
        _ => Err(error::config(option, value, way_out)),
    }
}

/// A status, from a handler; nothing for a number that is none.
pub(crate) fn status(value: &Bound<'_, PyAny>) -> PyResult<Option<u16>> {
    match integer::<i128>(value) {
        Some(status) => Ok(u16::try_from(status).ok()),
        None => Err(error::config("status", value, "give an integer, such as 200, or None")),
    }
}

/// Seconds that a server asks to wait, or a `timedelta`, from a handler.
pub(crate) fn retry_after(value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let number = value.call_method0("total_seconds").unwrap_or_else(|_| value.clone());
    number.extract().map_err(|_| error::config("retry_after", value, "give seconds, a timedelta, or None"))
}

/// A band, from a user.
pub(crate) fn priority(value: &Bound<'_, PyAny>) -> PyResult<u8> {
    let way_out = "give an integer from 0 (most urgent) to 255; see tidegate.Priority";
    integer(value).ok_or_else(|| error::config("priority", value, way_out))
}

/// Units, from a user.
pub(crate) fn cost(value: &Bound<'_, PyAny>) -> PyResult<u32> {
    integer(value)
        .filter(|&units| units > 0)
        .ok_or_else(|| error::config("cost", value, &format!("give an integer from 1 to {}", u32::MAX)))
}

/// A flow, from a user.
pub(crate) fn flow(value: &Bound<'_, PyAny>) -> PyResult<Option<Box<str>>> {
    text("flow", value, "give a text that is not empty, or None for no flow")
}

/// What a request is known by, from a user.
pub(crate) fn unique(value: &Bound<'_, PyAny>) -> PyResult<Option<Arc<str>>> {
    text("unique", value, "give a text that is not empty, such as the target's address, or None")
}

/// A text that is not empty, or nothing for None.
fn text<T: From<String>>(option: &str, value: &Bound<'_, PyAny>, way_out: &str) -> PyResult<Option<T>> {
    if value.is_none() {
        return Ok(None);
    }
    let text: Option<String> = value.extract().ok().filter(|text: &String| !text.is_empty());
    text.map(|text| Some(text.into())).ok_or_else(|| error::config(option, value, way_out))
}

/// When a request may go, from a user: an instant of the loop's clock, whose place on the engine's `instant` tells; a `timedelta`; a
/// `datetime` with a time zone, whose distance from now `until` tells.
pub(crate) fn start(
    value: &Bound<'_, PyAny>,
    instant: impl Fn(f64) -> Instant,
    until: impl Fn(f64) -> Instant,
) -> PyResult<Start> {
    let number = |value: &Bound<'_, PyAny>| value.extract().ok().filter(|number: &f64| number.is_finite());
    let is_aware = || value.call_method0("utcoffset").is_ok_and(|offset| !offset.is_none());
    let start = if value.is_none() {
        Some(Start::After(Span::ZERO))
    } else if value.is_instance_of::<PyBool>() {
        None
    } else if let Ok(span) = value.call_method0("total_seconds") {
        number(&span).map(|seconds| Start::After(span_or_none(seconds)))
    } else if is_aware() {
        value.call_method0("timestamp").ok().and_then(|unix| number(&unix)).map(|unix| Start::At(until(unix)))
    } else {
        number(value).map(|seconds| Start::At(instant(seconds)))
    };
    let way_out = "give an instant of loop.time(), a timedelta from now, a datetime with a time zone, or None to go at once";
    start.ok_or_else(|| error::config("not_before", value, way_out))
}

/// Seconds as a span; none at all when they are below zero.
pub(crate) fn span_or_none(seconds: f64) -> Span {
    span(seconds).unwrap_or(Span::ZERO)
}

/// What a limiter counts apart, from a user.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Text(Box<str>),
    Number(i128),
}

/// A key, from a user; nothing for None.
#[inline]
pub(crate) fn key(value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Key>> {
    let Some(value) = value else { return Ok(None) };
    let text = value.cast::<PyString>().ok().and_then(|text| text.to_str().ok());
    let key = text.map(|text| Key::Text(text.into())).or_else(|| integer(value).map(Key::Number));
    key.map(Some).ok_or_else(|| error::config("key", value, "give a text or an integer, or None for what all share"))
}

fn integer<'py, T: FromPyObjectOwned<'py>>(value: &Bound<'py, PyAny>) -> Option<T> {
    if value.is_instance_of::<PyBool>() { None } else { value.extract().ok() }
}

/// The places in `known` of the backends that a user names: one name, or several.
pub(crate) fn chosen(known: &[(BackendId, String)], names: &Bound<'_, PyAny>) -> PyResult<Vec<BackendId>> {
    let refuse = |way_out: &str| error::config("backends", names, way_out);
    let listed: Vec<Bound<'_, PyAny>> = if names.is_instance_of::<PyString>() {
        vec![names.clone()]
    } else {
        let all = names.try_iter().and_then(Iterator::collect);
        all.map_err(|_| refuse("give the names of backends, or None for all"))?
    };
    if listed.is_empty() {
        return Err(refuse("give at least one name, or None for all backends"));
    }
    listed.iter().map(|name| named(known, "backends", name)).collect()
}

/// The backend that a user prefers of those named, if any were.
pub(crate) fn preferred(
    known: &[(BackendId, String)],
    chosen: Option<&[BackendId]>,
    name: &Bound<'_, PyAny>,
) -> PyResult<BackendId> {
    let id = named(known, "prefer", name)?;
    if chosen.is_some_and(|chosen| !chosen.contains(&id)) {
        return Err(error::config(
            "prefer",
            name,
            "it is not among the request's backends; name it there too, or leave one of the two out",
        ));
    }
    Ok(id)
}

fn named(known: &[(BackendId, String)], option: &str, name: &Bound<'_, PyAny>) -> PyResult<BackendId> {
    let text: Option<String> = name.extract().ok();
    let found = text.and_then(|text| known.iter().find(|(_, known)| *known == text)).map(|(id, _)| *id);
    found.ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(_, name)| name.as_str()).collect();
        let way_out = format!("there is no such backend; there are {}", names.join(", "));
        error::config(option, name, &way_out)
    })
}

/// The outcome codes of `tidegate.Outcome`.
pub(crate) fn outcome(code: u8) -> Outcome {
    match code {
        0 => Outcome::Ok,
        1 => Outcome::Limited,
        2 => Outcome::Failed,
        _ => Outcome::Neutral,
    }
}

/// The word for where a backend stands.
pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Up => "up",
        Phase::Open { .. } => "open",
        Phase::Probe { .. } => "probe",
        Phase::Ramp { .. } => "ramp",
    }
}

fn code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Ok => 0,
        Outcome::Limited => 1,
        Outcome::Failed => 2,
        Outcome::Neutral => 3,
        Outcome::PutBack => 4,
    }
}

/// What a reply with this status means, when it is not a value: a code of `tidegate.Outcome`.
#[pyfunction]
#[pyo3(signature = (status, headers, /))]
pub(crate) fn outcome_of_status(status: u16, headers: Option<&Bound<'_, PyAny>>) -> u8 {
    code(Outcome::of_status(status, told(headers).is_some()))
}

/// What response headers say. Whatever a server may send, this does not raise.
pub(crate) fn answer(status: Option<u16>, headers: Option<&Bound<'_, PyAny>>, retry_after: Option<f64>) -> Answer {
    let may_tell = matches!(status, None | Some(429 | 503));
    let told = || if may_tell { told(headers) } else { None };
    let clamp = |span: Span| span.min(retry_after::MAX_RETRY_AFTER);
    Answer { status, retry_after: retry_after.and_then(span).map(clamp).or_else(told), is_local: false }
}

fn told(headers: Option<&Bound<'_, PyAny>>) -> Option<Span> {
    let headers = headers?;
    let values = all(headers, "Retry-After");
    if values.is_empty() {
        return None;
    }
    let date = all(headers, "Date").into_iter().next();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Of two conflicting copies the longer wait is the one that cannot be wrong.
    values.iter().filter_map(|value| retry_after::parse(value, date.as_deref(), wall)).max()
}

/// The values of a header: from a mapping that ignores case, a multi-dict, or a plain dictionary in any case.
fn all(headers: &Bound<'_, PyAny>, name: &str) -> Vec<String> {
    let text = |value: &Bound<'_, PyAny>| -> Option<String> {
        if let Ok(bytes) = value.extract::<&[u8]>() {
            return Some(String::from_utf8_lossy(bytes).into_owned());
        }
        value.str().ok().and_then(|text| text.to_str().ok().map(str::to_owned))
    };
    if let Ok(found) = headers.call_method1("getall", (name,))
        && let Ok(values) = found.try_iter()
    {
        return values.flatten().filter_map(|value| text(&value)).collect();
    }
    if let Ok(found) = headers.call_method1("get", (name,))
        && !found.is_none()
    {
        return text(&found).into_iter().collect();
    }
    let mut values = Vec::new();
    if let Ok(items) = headers.call_method0("items")
        && let Ok(items) = items.try_iter()
    {
        for item in items.flatten() {
            if let Ok((key, value)) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()
                && text(&key).is_some_and(|key| key.eq_ignore_ascii_case(name))
            {
                values.extend(text(&value));
            }
        }
    }
    values
}

/// A name that is used as a dictionary key again and again.
pub(crate) fn interned(py: Python<'_>, name: &str) -> Py<PyString> {
    PyString::intern(py, name).unbind()
}
