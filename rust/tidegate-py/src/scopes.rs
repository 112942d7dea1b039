//! The scopes of a request, from Python's words and back.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping};

use crate::error;

/// A name and a value.
type Pair = (Box<str>, Box<str>);

/// Names and values; shared by all who hold them, in one word each.
#[derive(Clone, Default)]
pub(crate) struct Scopes(Option<Arc<Box<[Pair]>>>);

impl Scopes {
    /// A mapping of texts, from a user.
    ///
    /// # Errors
    /// `ConfigError` when it is none.
    pub(crate) fn of(value: &Bound<'_, PyAny>) -> PyResult<Scopes> {
        let refuse =
            || error::config("scopes", value, "give a mapping of texts that are not empty, such as {'host': 'example.org'}");
        let mapping = value.cast::<PyMapping>().map_err(|_| refuse())?;
        let mut pairs = Vec::new();
        for item in mapping.items()? {
            let (name, value): (String, String) = item.extract().map_err(|_| refuse())?;
            if name.is_empty() || value.is_empty() {
                return Err(refuse());
            }
            pairs.push((name.into(), value.into()));
        }
        Ok(Scopes((!pairs.is_empty()).then(|| Arc::new(pairs.into()))))
    }

    fn pairs(&self) -> &[Pair] {
        self.0.as_deref().map_or(&[], |pairs| pairs)
    }

    /// As the engine takes them.
    pub(crate) fn borrowed(&self) -> Vec<(&str, &str)> {
        self.pairs().iter().map(|(name, value)| (&**name, &**value)).collect()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.pairs().iter().any(|(known, _)| **known == *name)
    }

    pub(crate) fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        self.pairs().iter().try_for_each(|(name, value)| dict.set_item(&**name, &**value))?;
        Ok(dict)
    }
}
