//! Errors as Python raises them.

use std::any::Any;

use lensmith::Error;
use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

pyo3::create_exception!(
    lensmith,
    LensmithError,
    PyException,
    "What the engine refuses, or what went wrong while it worked. `kind` says which: the name of the engine's error, such \
     as \"InvalidArgument\", \"Shape\", \"NonFinite\", \"Io\" or \"Diverged\"; \"Closed\" for an engine that was closed, \
     \"Fork\" for a GPU after a fork, \"Panic\" for a fault of lensmith itself."
);

/// The engine's error as a [`LensmithError`].
pub fn raise(error: Error) -> PyErr {
    let kind = match &error {
        Error::Io { .. } => "Io",
        Error::Format { .. } => "Format",
        Error::MissingTensor { .. } => "MissingTensor",
        Error::WrongDtype { .. } => "WrongDtype",
        Error::Shape { .. } => "Shape",
        Error::NonFinite { .. } => "NonFinite",
        Error::TooFew { .. } => "TooFew",
        Error::InvalidArgument { .. } => "InvalidArgument",
        Error::Exists { .. } => "Exists",
        Error::Refused { .. } => "Refused",
        Error::WrongCheckpoint { .. } => "WrongCheckpoint",
        Error::Mismatch { .. } => "Mismatch",
        Error::Changed { .. } => "Changed",
        Error::Incomplete { .. } => "Incomplete",
        Error::Busy { .. } => "Busy",
        Error::Interrupted => "Interrupted",
        Error::Device { .. } => "Device",
        Error::Diverged { .. } => "Diverged",
    };
    let message = match &error {
        Error::InvalidArgument { field, expected, found } => {
            format!("{}: expected {expected}, found {found}", argument(field))
        }
        other => other.to_string(),
    };
    // Hints name fields between backticks.
    let pieces = message.split('`').enumerate().map(|(i, piece)| match i % 2 {
        1 => format!("`{}`", argument(piece)),
        _ => piece.to_string(),
    });
    with_kind(kind, pieces.collect())
}

/// The argument of a Python function that sets a field of the engine's options.
fn argument(field: &str) -> &str {
    match field {
        "pairs_per_seed" => "fold",
        "vae.batch" | "reward.batch" => "batch_size",
        "reward.updates" => "epochs or steps",
        other => ["vae.", "reward."].iter().find_map(|of| other.strip_prefix(of)).unwrap_or(other),
    }
}

/// A [`LensmithError`] of a kind.
pub fn with_kind(kind: &str, message: String) -> PyErr {
    let error = LensmithError::new_err(message);
    Python::attach(|py| {
        let _ = error.value(py).setattr("kind", kind);
    });
    error
}

/// What a panic said.
pub fn panicked(payload: Box<dyn Any + Send>) -> PyErr {
    let text = payload.downcast_ref::<&str>().map(|text| text.to_string());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
    with_kind("Panic", format!("lensmith failed in a way that it should not: {text}"))
}

/// A value of the right type that cannot be used.
pub fn value(message: impl Into<String>) -> PyErr {
    PyValueError::new_err(message.into())
}

/// A value of a wrong type.
pub fn wrong_type(message: impl Into<String>) -> PyErr {
    PyTypeError::new_err(message.into())
}

/// Figures as JSON.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("figures are plain data")
}

/// Settings from JSON.
pub fn settings<T: DeserializeOwned>(text: &str) -> PyResult<T> {
    serde_json::from_str(text).map_err(|error| with_kind("InvalidArgument", error.to_string()))
}
