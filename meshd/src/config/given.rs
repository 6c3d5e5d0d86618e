//! A value as a layer gave it: from TOML by type, from the environment by what the key wants.

use ::config::{FileFormat, Format, Value, ValueKind};

use super::{error::ConfigError, layers::clean};

/// Marks the origin of a value that came as text and has to be read as what the key wants.
pub(super) const FROM_ENVIRONMENT: &str = "environment variable ";

/// Why a value cannot be used.
pub(super) enum Refused {
    /// What is wrong, and what is allowed.
    Bad { why: String, allowed: &'static str },
    /// Planned; and what works now.
    NotBuilt { allowed: &'static str },
}

pub(super) type Reading<T> = Result<T, Refused>;

pub(super) fn bad<T>(why: impl Into<String>, allowed: &'static str) -> Reading<T> {
    Err(Refused::Bad { why: why.into(), allowed })
}

/// A value as it was written.
pub(super) struct Given<'a> {
    kind: &'a ValueKind,
    from_environment: bool,
}

/// Reads `value` with `read` and puts key, place and value into the error.
pub(super) fn value<T>(
    key: &str,
    value: &Value,
    read: fn(&Given<'_>) -> Reading<T>,
) -> Result<T, ConfigError> {
    let origin = value.origin().unwrap_or("configuration");
    let given = Given { kind: &value.kind, from_environment: origin.starts_with(FROM_ENVIRONMENT) };
    read(&given).map_err(|refused| {
        let place = origin.trim_start_matches(FROM_ENVIRONMENT).to_owned();
        let (key, value) = (key.to_owned(), clean(&written(&value.kind), 80));
        match refused {
            Refused::Bad { why, allowed } => {
                let why = clean(&why, 300);
                ConfigError::BadValue { place, key, value, why, allowed: allowed.to_owned() }
            }
            Refused::NotBuilt { allowed } => {
                ConfigError::NotBuilt { place, key, value, allowed: allowed.to_owned() }
            }
        }
    })
}

/// As TOML would have it.
fn written(kind: &ValueKind) -> String {
    match kind {
        ValueKind::String(text) => format!("\"{text}\""),
        ValueKind::Array(list) => {
            let list: Vec<String> = list.iter().take(20).map(|v| written(&v.kind)).collect();
            format!("[{}]", list.join(", "))
        }
        ValueKind::Table(_) => "{…}".to_owned(),
        other => other.to_string(),
    }
}

impl Given<'_> {
    pub(super) fn text(&self, allowed: &'static str) -> Reading<&str> {
        match self.kind {
            ValueKind::String(text) => Ok(text.trim()),
            _ => bad("it is not text in quotes", allowed),
        }
    }

    pub(super) fn number(&self, low: u32, high: u32, allowed: &'static str) -> Reading<u32> {
        let number = match self.kind {
            ValueKind::I64(number) => Some(i128::from(*number)),
            ValueKind::U64(number) => Some(i128::from(*number)),
            ValueKind::I128(number) => Some(*number),
            ValueKind::U128(number) => i128::try_from(*number).ok(),
            ValueKind::String(text) if self.from_environment => {
                let text = text.trim();
                match text.strip_prefix("0x") {
                    Some(hex) => u32::from_str_radix(hex, 16).ok().map(i128::from),
                    None => text.parse().ok(),
                }
            }
            _ => None,
        };
        let Some(number) = number else { return bad("it is not a whole number", allowed) };
        match u32::try_from(number) {
            Ok(number) if (low..=high).contains(&number) => Ok(number),
            _ => bad("it is out of range", allowed),
        }
    }

    pub(super) fn port(&self, high: u16, allowed: &'static str) -> Reading<u16> {
        let number = self.number(1, u32::from(high), allowed)?;
        u16::try_from(number).or_else(|_| bad("it is out of range", allowed))
    }

    pub(super) fn switch(&self, allowed: &'static str) -> Reading<bool> {
        match self.kind {
            ValueKind::Boolean(on) => Ok(*on),
            ValueKind::String(text) if self.from_environment => match text.trim() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => bad("it is neither true nor false", allowed),
            },
            _ => bad("it is neither true nor false", allowed),
        }
    }

    /// A list of texts; in the environment `a,b`, or as TOML has it.
    pub(super) fn list(&self, allowed: &'static str) -> Reading<Vec<String>> {
        match self.kind {
            ValueKind::Array(list) => texts(list, allowed),
            ValueKind::String(text) if self.from_environment => {
                if !text.trim_start().starts_with('[') {
                    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                    return Ok(parts.map(str::to_owned).collect());
                }
                // A line break would end the list and begin further keys.
                let parsed = FileFormat::Toml.parse(None, &format!("list = {}", text.trim()));
                match parsed.ok().as_ref().map(|root| (root.len(), root.get("list"))) {
                    Some((1, Some(Value { kind: ValueKind::Array(list), .. }))) => {
                        texts(list, allowed)
                    }
                    _ => bad("it is not a list", allowed),
                }
            }
            _ => bad("it is not a list", allowed),
        }
    }

    pub(super) fn is_auto(&self) -> bool {
        matches!(self.kind, ValueKind::String(text) if text.trim() == "auto")
    }

    /// One of the built words, or one that is planned.
    pub(super) fn word<T: Copy>(
        &self,
        built: &[(&str, T)],
        planned: &[&str],
        allowed: &'static str,
    ) -> Reading<T> {
        let text = self.text(allowed)?;
        if let Some((_, value)) = built.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        if planned.contains(&text) {
            return Err(Refused::NotBuilt { allowed });
        }
        bad("there is no such choice", allowed)
    }
}

fn texts(list: &[Value], allowed: &'static str) -> Reading<Vec<String>> {
    list.iter()
        .map(|value| match &value.kind {
            ValueKind::String(text) => Ok(text.trim().to_owned()),
            _ => bad("the list holds something that is not text in quotes", allowed),
        })
        .collect()
}

/// Reads every element, naming the first that cannot be.
pub(super) fn each<T, E: std::fmt::Display>(
    given: &Given<'_>,
    most: usize,
    allowed: &'static str,
    read: impl Fn(&str) -> Result<T, E>,
) -> Reading<Vec<T>> {
    let list = given.list(allowed)?;
    if list.len() > most {
        return bad(format!("the list is longer than {most}"), allowed);
    }
    list.iter()
        .map(|text| {
            read(text).or_else(|why| bad(format!("\"{}\": {why}", clean(text, 80)), allowed))
        })
        .collect()
}
