//! What may stand in an issuer's file: every key with its bounds, every mistake with what is allowed.

use std::path::PathBuf;

use hyper::Uri;
use ipnet::IpNet;
use meshd_core::{
    address::is_forbidden_prefix,
    limits,
    trust::issuer::{ALGORITHMS, Binding, IssuerTerms, Naming, Pointer, Rule, Template, Wanted},
};
use meshd_proto::NodeName;

use super::{
    GivenClaim, GivenIssuer, GivenPrefix, GivenRule, GivenValue, IssuerFile, KeySource, MOST,
};
use crate::config::{error::ConfigError, layers::clean, parse::duration};

/// Values of a claim.
const MOST_VALUES: usize = 256;
/// Documents are made to be used at once; a cloud's live for a day at most.
const OLDEST_SECONDS: u64 = 7 * 86_400;

/// Collects what is wrong with one file.
pub(super) struct Reader<'a> {
    pub(super) place: &'a str,
    /// SHA-256 of the file.
    pub(super) digest: [u8; 32],
    pub(super) errors: &'a mut Vec<ConfigError>,
    pub(super) failed: bool,
}

impl Reader<'_> {
    fn bad(&mut self, key: &str, value: &str, why: &str, allowed: &str) {
        self.failed = true;
        self.errors.push(ConfigError::BadValue {
            place: self.place.to_owned(),
            key: clean(key, 120),
            value: format!("\"{}\"", clean(value, 80)),
            why: clean(why, 300),
            allowed: allowed.to_owned(),
        });
    }

    pub(super) fn issuer(&mut self, name: &str, given: GivenIssuer) -> Option<IssuerFile> {
        if !is_name(name) {
            self.bad(
                "the file's name",
                name,
                "it names the issuer",
                "1 to 63 letters, digits and -_.",
            );
        }
        if given.issuer.is_empty() || given.issuer.len() > limits::IDENTITY_AUDIENCE {
            let allowed = "the claim iss of its documents, to the letter";
            self.bad("issuer", &given.issuer, "it is empty or too long", allowed);
        }
        let binding = self.binding(&given);
        let algorithms = given.algorithms.unwrap_or_else(|| ALGORITHMS.map(str::to_owned).to_vec());
        if algorithms.is_empty() {
            self.bad("algorithms", "", "none is left", &ALGORITHMS.join(", "));
        }
        for algorithm in algorithms.iter().filter(|one| !ALGORITHMS.contains(&one.as_str())) {
            self.bad("algorithms", algorithm, "it is never taken", &ALGORITHMS.join(", "));
        }
        let max_age = duration(&given.max_age).map(|age| age.as_secs());
        let max_age = max_age.filter(|seconds| (60..=OLDEST_SECONDS).contains(seconds));
        if max_age.is_none() {
            self.bad("max_age", &given.max_age, "it is no such time", "1m to 7d, such as \"1h\"");
        }
        let keys = self.keys(given.jwks_file, given.jwks_url, given.ca_file);
        if given.rule.is_empty() || given.rule.len() > MOST {
            let why = "without rules nobody is admitted, and 64 are the most";
            self.bad("rule", &format!("{} rules", given.rule.len()), why, "[[rule]] for each");
        }
        let rules: Vec<Rule> =
            (1..).zip(given.rule).filter_map(|(number, rule)| self.rule(number, rule)).collect();
        let keys_fresh_seconds = match keys {
            Some(KeySource::File(_)) => limits::IDENTITY_KEYS_FILE_FRESH_SECONDS,
            _ => limits::IDENTITY_KEYS_FRESH_SECONDS,
        };
        let terms = IssuerTerms {
            name: name.to_owned(),
            keys_fresh_seconds,
            issuer: given.issuer,
            binding,
            algorithms,
            max_age_seconds: i64::try_from(max_age?).ok()?,
            rules,
        };
        Some(IssuerFile { terms, keys: keys?, digest: self.digest })
    }

    fn binding(&mut self, given: &GivenIssuer) -> Binding {
        let audience = given.audience.clone().unwrap_or_default();
        match given.binding.as_str() {
            "key" if given.audience.is_none() => {}
            "key" => {
                let why = "with binding = \"key\" the audience is the mesh and the joiner's key";
                self.bad("audience", &audience, why, "no audience, or binding = \"first-use\"");
            }
            "first-use" => {
                let long = audience.len() > limits::IDENTITY_AUDIENCE;
                if given.audience.is_some() && (audience.is_empty() || long) {
                    let allowed = "an audience that nobody else has, or none: meshd:MESH_ID";
                    self.bad("audience", &audience, "it is empty or too long", allowed);
                }
                return Binding::FirstUse { audience };
            }
            other => self.bad(
                "binding",
                other,
                "there is no such choice",
                "\"key\" (documents name the joiner's key) or \"first-use\"",
            ),
        }
        Binding::Key
    }

    fn keys(
        &mut self,
        file: Option<PathBuf>,
        url: Option<String>,
        ca_file: Option<PathBuf>,
    ) -> Option<KeySource> {
        for (key, path) in [("jwks_file", &file), ("ca_file", &ca_file)] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                let path = path.display().to_string();
                self.bad(key, &path, "it does not begin with /", "an absolute path");
            }
        }
        match (file, url) {
            (Some(file), None) if ca_file.is_none() => Some(KeySource::File(file)),
            (Some(_), None) => {
                self.bad("ca_file", "…", "it is for jwks_url", "no ca_file with jwks_file");
                None
            }
            (None, Some(text)) => match url_of(&text) {
                Ok(url) => Some(KeySource::Url { url, ca_file }),
                Err(why) => {
                    self.bad("jwks_url", &text, why, "https://HOST[:PORT]/PATH");
                    None
                }
            },
            (Some(_), Some(text)) => {
                self.bad("jwks_url", &text, "jwks_file is there too", "one of the two");
                None
            }
            (None, None) => {
                let why = "without keys no document can be verified";
                self.bad("jwks_url", "", why, "jwks_url, or jwks_file with the issuer's JWK set");
                None
            }
        }
    }

    fn rule(&mut self, number: u32, given: GivenRule) -> Option<Rule> {
        let before = self.failed;
        self.failed = false;
        let name = given.name.unwrap_or_else(|| format!("rule {number}"));
        let key = |key: &str| format!("rule \"{}\" {key}", clean(&name, 60));
        if name.len() > 63 || name.chars().any(char::is_control) {
            self.bad("rule name", &name, "it is for logs and errors", "at most 63 characters");
        }
        if given.claims.is_empty() {
            let why = "it admits everybody whom the issuer knows, which may be the world";
            self.bad(&key("claims"), "none", why, "one at least, such as \"/sub\" = \"db-1\"");
        }
        let claims: Vec<_> = given
            .claims
            .into_iter()
            .filter_map(|(pointer, values)| self.claim(&key("claims"), &pointer, values))
            .collect();
        let naming = match (given.node_name, given.node_name_prefix) {
            (Some(text), None) => {
                let template = self.template(&key("node_name"), &text);
                if template.as_ref().is_some_and(|template| !template.has_claims()) && !given.once {
                    let why = "all that it admits would have one name";
                    self.bad(&key("node_name"), &text, why, "claims in it, as {/sub}");
                }
                template.map(Naming::Template)
            }
            (None, Some(start)) => {
                // Whatever follows it, it must begin a name.
                let begins = format!("{start}a").parse::<NodeName>().is_ok();
                if !begins || !(1..=62).contains(&start.len()) {
                    let allowed = "1 to 62 lower-case letters, digits, - and ., such as \"db-\"";
                    self.bad(&key("node_name_prefix"), &start, "no name begins like that", allowed);
                }
                Some(Naming::Prefix(start))
            }
            _ => {
                let why = "who is admitted needs a name";
                let allowed = "one of node_name = \"{/CLAIM}\" and node_name_prefix = \"db-\"";
                self.bad(&key("node_name"), "", why, allowed);
                None
            }
        };
        let subject = self.template(&key("subject"), &given.subject);
        if given.once && subject.as_ref().is_some_and(|subject| !subject.has_claims()) {
            let why = "all machines would be one, and only the first be admitted";
            let allowed = "claims in it, as {/sub}, or once = false";
            self.bad(&key("subject"), &given.subject, why, allowed);
        }
        let prefixes = self.prefixes(&key("prefixes"), &given.prefixes);
        let allow = self.prefixes(&key("allow"), &given.allow);
        let pools = self.prefixes(&key("workloads"), &given.workloads);
        if given.groups.len() > limits::GROUPS || !given.groups.iter().all(|group| is_name(group)) {
            let why = "one is no name, or there are more than 16";
            self.bad(&key("groups"), &given.groups.join(", "), why, "letters, digits and -_.");
        }
        let failed = std::mem::replace(&mut self.failed, before);
        self.failed |= failed;
        if failed {
            return None;
        }
        let (naming, subject) = (naming?, subject?);
        let (once, groups) = (given.once, given.groups);
        Some(Rule { name, claims, naming, subject, once, prefixes, allow, pools, groups })
    }

    fn claim(
        &mut self,
        key: &str,
        pointer: &str,
        values: GivenClaim,
    ) -> Option<(Pointer, Vec<Wanted>)> {
        let values = match values {
            GivenClaim::Any(values) => values,
            GivenClaim::One(value) => vec![value],
        };
        if values.is_empty() || values.len() > MOST_VALUES {
            self.bad(key, pointer, "it has no value, or more than 256", "what the claim may be");
        }
        let wanted = values.into_iter().map(|value| match value {
            GivenValue::Text(text) => Wanted::Text(text),
            GivenValue::Number(number) => Wanted::Number(number),
            GivenValue::Bool(value) => Wanted::Bool(value),
            GivenValue::Prefix(GivenPrefix { prefix }) => Wanted::Prefix(prefix),
        });
        let wanted: Vec<Wanted> = wanted.collect();
        if wanted.contains(&Wanted::Prefix(String::new())) {
            self.bad(key, pointer, "every text begins like that", "a prefix that is not empty");
        }
        match Pointer::parse(pointer) {
            Ok(pointer) => Some((pointer, wanted)),
            Err(why) => {
                let allowed = "a JSON pointer, such as \"/sub\" or \"/kubernetes.io/namespace\"";
                self.bad(key, pointer, why, allowed);
                None
            }
        }
    }

    fn template(&mut self, key: &str, text: &str) -> Option<Template> {
        Template::parse(text)
            .map_err(|why| self.bad(key, text, why, "text with claims in it, such as \"{/sub}\""))
            .ok()
    }

    fn prefixes(&mut self, key: &str, texts: &[String]) -> Vec<IpNet> {
        let mut read = Vec::new();
        if texts.len() > limits::ENROL_PREFIXES {
            self.bad(key, &format!("{} prefixes", texts.len()), "64 are the most", "wider ones");
        }
        for text in texts {
            match text.parse::<IpNet>() {
                Ok(prefix) if prefix.addr() != prefix.network() => {
                    let allowed = prefix.trunc().to_string();
                    self.bad(key, text, "it has bits beyond its length", &allowed);
                }
                Ok(prefix) if is_forbidden_prefix(&prefix) => {
                    let why = "it is everything, or holds reserved addresses";
                    self.bad(key, text, why, "the range that pod prefixes are cut from");
                }
                Ok(prefix) => read.push(prefix),
                Err(_) => {
                    self.bad(key, text, "it is not ADDRESS/LENGTH", "such as \"10.244.0.0/16\"");
                }
            }
        }
        read.sort_unstable();
        read.dedup();
        read
    }
}

fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn url_of(text: &str) -> Result<Uri, &'static str> {
    let url: Uri = text.parse().map_err(|_| "it is no address")?;
    if url.scheme_str() != Some("https") {
        return Err("keys that come in the clear could be anybody's");
    }
    let authority = url.authority().ok_or("it has no host")?;
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return Err("it has a user in it, or no host");
    }
    Ok(url)
}
