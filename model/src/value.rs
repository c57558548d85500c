//! A reading's value.
//!
//! Always holds: a number is finite. Missing values (`null`, `"unknown"`) never become a
//! [`Value`]; they are counted where they are decoded.

/// A number, a boolean or a state text.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A finite number.
    Number(f64),
    /// A boolean, aggregated as 0 or 1.
    Bool(bool),
    /// A state, for example `"open"` renamed by nobody or `"offline"`.
    Text(Box<str>),
}

impl Value {
    /// The value as numeric statistics see it: booleans are 0 or 1, texts are nothing.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Value::Number(n) => Some(*n),
            Value::Bool(b) => Some(f64::from(u8::from(*b))),
            Value::Text(_) => None,
        }
    }

    /// The value as `first` and `last` of an aggregate give it: booleans become numbers.
    pub fn aggregated(self) -> Value {
        match self {
            Value::Bool(b) => Value::Number(f64::from(u8::from(b))),
            other => other,
        }
    }
}
