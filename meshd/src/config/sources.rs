//! Where the configuration and what lies beside it are.

use std::path::{Path, PathBuf};

use super::{Config, ConfigErrors, DEFAULT_DROP_INS, Texts};

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The main file.
    pub file: PathBuf,
    /// The directory of drop-ins.
    pub drop_ins: PathBuf,
}

impl Sources {
    /// `file`, and `conf.d` beside it.
    #[must_use]
    pub fn of(file: PathBuf) -> Self {
        let drop_ins =
            file.parent().map_or_else(|| PathBuf::from(DEFAULT_DROP_INS), |dir| dir.join("conf.d"));
        Self { file, drop_ins }
    }

    /// The directory of an identity that was issued off-line: `identity`, beside the main file.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.file.parent().unwrap_or(Path::new(".")).join("identity")
    }

    /// The directory of issuers of identity documents.
    #[must_use]
    pub fn issuers(&self) -> PathBuf {
        self.drop_ins.with_file_name("issuers.d")
    }

    /// Reads all layers.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        self.read().1
    }

    /// Reads all layers: what they say, and what that means.
    pub fn read(&self) -> (Texts, Result<Config, ConfigErrors>) {
        Texts::read(&self.file, &self.drop_ins, std::env::vars_os())
    }
}
