//! The configuration as it was written, so that it can be kept and read again after the files have changed.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Config,
    error::{ConfigError, ConfigErrors},
    layers,
};

/// All layers as they were given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// Place and text of the file and its drop-ins, in their order.
    files: Vec<(String, String)>,
    /// `MESHD_SECTION__KEY`, sorted.
    environment: Vec<(String, String)>,
}

/// From what the configuration in force was read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// At the start of the daemon.
    started: Texts,
    /// At the last reload: only what can change at run time counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reloaded: Option<Texts>,
}

impl Texts {
    /// Reads all layers, see [`Config::load`]: what they say, and what that means. What cannot be read is left out of
    /// the texts.
    pub fn read(
        file: &Path,
        drop_ins: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> (Self, Result<Config, ConfigErrors>) {
        let mut errors = Vec::new();
        let files = layers::texts_of(file, drop_ins, &mut errors);
        let environment: Vec<(OsString, OsString)> =
            environment.into_iter().filter(|(name, _)| is_ours(name)).collect();
        let given = environment.iter().filter_map(|(name, value)| {
            Some((name.to_str()?.to_owned(), value.to_str()?.to_owned()))
        });
        let mut texts = Self { files, environment: given.collect() };
        texts.environment.sort();
        let config = texts.config_under(environment, errors);
        (texts, config)
    }

    /// What they mean.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn config(&self) -> Result<Config, ConfigErrors> {
        let environment = self.environment.iter();
        let environment = environment.map(|(name, value)| (name.into(), value.into())).collect();
        self.config_under(environment, Vec::new())
    }

    fn config_under(
        &self,
        environment: Vec<(OsString, OsString)>,
        mut errors: Vec<ConfigError>,
    ) -> Result<Config, ConfigErrors> {
        let mut found: Vec<layers::Layer> = self
            .files
            .iter()
            .filter_map(|(place, text)| layers::from_text(place, text, &mut errors))
            .collect();
        found.extend(layers::from_environment(environment, &mut errors));
        Config::from_layers(&found, errors)
    }

    /// Tells these texts from others, also where some of them could not be read.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (name, text) in self.files.iter().chain(&self.environment) {
            for part in [name, text] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part.as_bytes());
            }
        }
        HEXLOWER.encode(&hash.finalize())
    }

    /// The state directory as far as that can be told: of texts that are wrong elsewhere too, for there lies what ran
    /// before.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        let mut found = Config::default().node.state_dir;
        let absolute = |text: &str| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
        for (_, text) in &self.files {
            let given = match text.parse::<toml::Table>() {
                Ok(table) => given_in(table.get("node")),
                // The line may be sound where the file is not.
                Err(_) => text
                    .lines()
                    .filter(|line| line.trim_start().starts_with("state_dir"))
                    .filter_map(|line| line.trim().parse::<toml::Table>().ok())
                    .find_map(|table| given_in(Some(&table.into()))),
            };
            found = given.as_deref().and_then(absolute).unwrap_or(found);
        }
        let variable = self.environment.iter().find(|(name, _)| name == STATE_DIR);
        variable.and_then(|(_, value)| absolute(value)).unwrap_or(found)
    }
}

const STATE_DIR: &str = "MESHD_NODE__STATE_DIR";

fn given_in(section: Option<&toml::Value>) -> Option<String> {
    section?.get("state_dir")?.as_str().map(str::to_owned)
}

fn is_ours(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(layers::PREFIX) && name.contains("__"))
}

impl Origin {
    /// At a start.
    #[must_use]
    pub fn of(started: Texts) -> Self {
        Self { started, reloaded: None }
    }

    /// After a reload.
    #[must_use]
    pub fn reload(&self, texts: Texts) -> Self {
        Self { started: self.started.clone(), reloaded: Some(texts) }
    }

    /// What was read last.
    #[must_use]
    pub fn newest(&self) -> &Texts {
        self.reloaded.as_ref().unwrap_or(&self.started)
    }

    /// The configuration in force.
    ///
    /// # Errors
    /// Everything that is wrong; what was in force once is only wrong for another version of this program.
    pub fn config(&self) -> Result<Config, ConfigErrors> {
        let mut config = self.started.config()?;
        if let Some(reloaded) = &self.reloaded {
            config.apply_live(reloaded.config()?);
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(files: &[&str], environment: &[(&str, &str)]) -> Texts {
        let files = files.iter().enumerate();
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        Texts {
            files: files.map(|(n, text)| (format!("{n}.toml"), (*text).to_owned())).collect(),
            environment: environment.iter().map(own).collect(),
        }
    }

    #[test]
    fn what_was_read_is_the_same_when_read_again_without_the_files() {
        let home = tempfile::tempdir().unwrap();
        let (file, drop_ins) = (home.path().join("m.toml"), home.path().join("conf.d"));
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::write(&file, "[node]\nzone = \"a\"\n[wireguard]\nport = 1000\n").unwrap();
        std::fs::write(drop_ins.join("1.toml"), "[wireguard]\nport = 2000\n").unwrap();
        let environment =
            [("MESHD_GOSSIP__PROFILE", "wan"), ("MESHD_SOCKET", "/s"), ("PATH", "/bin")];
        let environment = environment.map(|(name, value)| (name.into(), value.into()));
        let (texts, config) = Texts::read(&file, &drop_ins, environment);
        let config = config.unwrap();
        assert_eq!((config.wireguard.port, config.node.zone.as_str()), (2000, "a"));
        assert_eq!(texts.environment, [("MESHD_GOSSIP__PROFILE".into(), "wan".into())]);
        std::fs::remove_file(&file).unwrap();
        let kept = serde_json::to_string(&texts).unwrap();
        let kept: Texts = serde_json::from_str(&kept).unwrap();
        assert_eq!((kept.config().unwrap(), kept.fingerprint()), (config, texts.fingerprint()));
    }

    #[test]
    fn in_force_is_the_start_and_what_a_reload_could_change() {
        let origin = Origin::of(texts(&["[node]\nzone = \"a\"\n[wireguard]\nport = 1000\n"], &[]));
        let newer = texts(&["[node]\nzone = \"b\"\n[wireguard]\nport = 2000\n"], &[]);
        let origin = origin.reload(newer.clone());
        let config = origin.config().unwrap();
        assert_eq!((config.wireguard.port, config.node.zone.as_str()), (1000, "b"));
        assert_eq!(origin.newest(), &newer);
    }

    #[test]
    fn each_part_makes_another_fingerprint() {
        let all = [
            texts(&[], &[]),
            texts(&["a"], &[]),
            texts(&["a", ""], &[]),
            texts(&["", "a"], &[]),
            texts(&["a"], &[("A", "b")]),
            texts(&["a"], &[("A", "c")]),
        ];
        let prints: std::collections::BTreeSet<String> =
            all.iter().map(Texts::fingerprint).collect();
        assert_eq!(prints.len(), all.len());
    }

    #[test]
    fn the_state_directory_is_found_in_texts_that_are_broken() {
        let default = Config::default().node.state_dir;
        for (files, environment, want) in [
            (&[][..], &[][..], default.to_str().unwrap()),
            (&["[node]\nstate_dir = \"/a\""], &[], "/a"),
            (&["[node]\nstate_dir = \"/a\"", "[node]\nstate_dir = \"/b\"\nx = 1"], &[], "/b"),
            (&["[node\nstate_dir = \"/a\"\nzone = "], &[], "/a"),
            (&["[node]\nstate_dir = \"a\""], &[], default.to_str().unwrap()),
            (&["[node]\nstate_dir = \"/a\""], &[(STATE_DIR, "/c")], "/c"),
        ] {
            assert_eq!(texts(files, environment).state_dir(), Path::new(want), "{files:?}");
        }
    }
}
