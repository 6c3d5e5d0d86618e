//! Finds the layers and merges them: files, drop-ins, environment.

use std::{
    ffi::OsString,
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use ::config::{FileFormat, Format, Map, Source, Value, ValueKind};

use super::{
    error::{ConfigError, nearest},
    schema::{SECTIONS, Values, keys},
};

/// More than any sane configuration; a device or a log given by mistake is not read to its end.
pub(super) const LARGEST_FILE: u64 = 1 << 20;
/// Drop-ins read at most.
const MOST_DROP_INS: usize = 1_000;
/// Errors shown per layer.
const MOST_ERRORS: usize = 20;
pub(super) const PREFIX: &str = "MESHD_";

/// What one file or the environment says: only known sections and keys.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) values: Values,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        Ok(self
            .values
            .iter()
            .map(|(section, values)| {
                let table: Map<String, Value> =
                    values.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
                (section.clone(), Value::new(None, table))
            })
            .collect())
    }
}

/// Where `section.key` has its value from: the last layer that gives it one.
pub(super) fn place_of(found: &[Layer], key: &str) -> Option<String> {
    let (section, key) = key.split_once('.')?;
    let value = found.iter().rev().find_map(|layer| layer.values.get(section)?.get(key))?;
    Some(value.origin()?.trim_start_matches(super::given::FROM_ENVIRONMENT).to_owned())
}

/// The file and its drop-ins: the place of each, and its text.
pub(super) fn texts_of(
    file: &Path,
    drop_ins: &Path,
    errors: &mut Vec<ConfigError>,
) -> Vec<(String, String)> {
    let mut paths = vec![file.to_owned()];
    match drop_in_files(drop_ins) {
        Ok(found) => paths.extend(found),
        Err(error) => errors.push(unreadable(drop_ins, &error)),
    }
    let mut texts = Vec::new();
    for path in paths {
        match read_bounded(&path) {
            Ok(Some(text)) => texts.push((path.display().to_string(), text)),
            Ok(None) => {}
            Err(error) => errors.push(unreadable(&path, &error)),
        }
    }
    texts
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    ConfigError::Unreadable { path: path.to_owned(), why: error.to_string() }
}

/// `*.toml`, sorted by name; hidden files are somebody's editor's.
pub(super) fn drop_in_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
        if found.len() > MOST_DROP_INS {
            return Err(io::Error::other(format!("more than {MOST_DROP_INS} drop-ins")));
        }
    }
    found.sort();
    Ok(found)
}

fn read_bounded(path: &Path) -> io::Result<Option<String>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

/// One TOML text; `place` is how errors name it.
pub(super) fn from_text(place: &str, text: &str, errors: &mut Vec<ConfigError>) -> Option<Layer> {
    let place = place.to_owned();
    let root = match FileFormat::Toml.parse(Some(&place), text) {
        Ok(root) => root,
        Err(error) => {
            // The parser shows the line with a marker below it; one line is enough here.
            let why: Vec<String> =
                error.to_string().lines().map(str::trim).map(str::to_owned).collect();
            let why = [why.first(), why.last()].into_iter().flatten().cloned();
            let mut why: Vec<String> = why.collect();
            why.dedup();
            errors.push(ConfigError::Syntax { place, why: clean(&why.join(": "), 300) });
            return None;
        }
    };
    let mut mistakes = Vec::new();
    let mut values = Values::new();
    let mut sections: Vec<(String, Value)> = root.into_iter().collect();
    sections.sort_by(|a, b| a.0.cmp(&b.0));
    for (section, value) in sections {
        if !SECTIONS.contains(&section.as_str()) {
            mistakes.push(unknown_section(&place, &section));
            continue;
        }
        let ValueKind::Table(table) = value.kind else {
            mistakes.push(ConfigError::BadValue {
                place: place.clone(),
                key: section.clone(),
                value: clean(&value.to_string(), 60),
                why: "it is a section".to_owned(),
                allowed: format!("[{section}] and its keys below it"),
            });
            continue;
        };
        let mut entries: Vec<(String, Value)> = table.into_iter().collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (key, value) in entries {
            if keys(&section).contains(&key.as_str()) {
                values.entry(section.clone()).or_default().insert(key, value);
            } else {
                mistakes.push(unknown_key(&place, &section, &key));
            }
        }
    }
    mistakes.truncate(MOST_ERRORS);
    errors.extend(mistakes);
    Some(Layer { values })
}

/// `MESHD_SECTION__KEY`. Other variables, as meshctl's `MESHD_SOCKET`, are not ours.
pub(super) fn from_environment(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    errors: &mut Vec<ConfigError>,
) -> Option<Layer> {
    let mut values = Values::new();
    let mut variables: Vec<(String, OsString)> = environment
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .collect();
    variables.sort();
    for (name, value) in variables {
        let Some((section, key)) = name.strip_prefix(PREFIX).and_then(|n| n.split_once("__"))
        else {
            continue;
        };
        let place = clean(&name, 80);
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        if !SECTIONS.contains(&section.as_str()) {
            errors.push(unknown_section(&place, &section));
        } else if !keys(&section).contains(&key.as_str()) {
            errors.push(unknown_key(&place, &section, &key));
        } else if let Ok(value) = value.into_string() {
            let origin = format!("{}{place}", super::given::FROM_ENVIRONMENT);
            values
                .entry(section)
                .or_default()
                .insert(key, Value::new(Some(&origin), ValueKind::String(value)));
        } else {
            errors.push(ConfigError::BadValue {
                place,
                key: format!("{section}.{key}"),
                value: "(binary)".to_owned(),
                why: "it is not UTF-8 text".to_owned(),
                allowed: "text".to_owned(),
            });
        }
    }
    if values.is_empty() { None } else { Some(Layer { values }) }
}

/// The layers on top of one another, later ones winning key by key.
pub(super) fn merge(layers: &[Layer]) -> Result<Values, ConfigError> {
    let failed = |error: ::config::ConfigError| ConfigError::Syntax {
        place: "the merged configuration".to_owned(),
        why: clean(&error.to_string(), 300),
    };
    let mut builder = ::config::Config::builder();
    for layer in layers {
        builder = builder.add_source(layer.clone());
    }
    let merged = builder.build().and_then(|merged| merged.collect()).map_err(failed)?;
    let mut values = Values::new();
    for (section, value) in merged {
        let table = value.into_table().map_err(failed)?;
        values.insert(section, table.into_iter().collect());
    }
    Ok(values)
}

fn unknown_section(place: &str, section: &str) -> ConfigError {
    ConfigError::UnknownSection {
        place: place.to_owned(),
        section: clean(section, 60),
        allowed: SECTIONS.join(", "),
        fix: suggestion(section, SECTIONS),
    }
}

fn unknown_key(place: &str, section: &str, key: &str) -> ConfigError {
    ConfigError::UnknownKey {
        place: place.to_owned(),
        section: section.to_owned(),
        key: clean(key, 60),
        allowed: keys(section).join(", "),
        fix: suggestion(key, keys(section)),
    }
}

fn suggestion(given: &str, known: &[&str]) -> String {
    nearest(given, known)
        .map_or_else(|| "remove it".to_owned(), |name| format!("did you mean {name}?"))
}

/// Short, on one line, and with nothing in it that a terminal obeys.
pub(super) fn clean(text: &str, most: usize) -> String {
    let mut short: String = text
        .chars()
        .take(most)
        .flat_map(|c| {
            let shown: Box<dyn Iterator<Item = char>> = if c.is_control() {
                Box::new(c.escape_default())
            } else {
                Box::new([c].into_iter())
            };
            shown
        })
        .collect();
    if text.chars().nth(most).is_some() {
        short.push('…');
    }
    short
}
