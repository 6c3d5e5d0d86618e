//! Rules: which documents admit, and what they admit to.

use ipnet::IpNet;
use meshd_proto::NodeName;
use serde_json::Value;

use crate::refusal::{Code, Refusal};

/// Longest text that a template makes.
const LONGEST: usize = 512;
/// Values of a claim that is a list.
const LIST: usize = 1_000;

/// Where a claim is: a JSON pointer (RFC 6901), since names of claims hold points, and some hold slashes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pointer(String);

impl Pointer {
    /// Reads one: `/sub`, `/kubernetes.io/namespace`, `/https:~1~1example.com~1role`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with('/') || text.len() < 2 || text.len() > 200 {
            return Err("a claim is written /NAME or /NAME/NAME, with ~1 for a slash in a name");
        }
        let mut rest = text;
        while let Some((_, after)) = rest.split_once('~') {
            if !after.starts_with(['0', '1']) {
                return Err("in a claim's name ~ is written ~0 and / is written ~1");
            }
            rest = after;
        }
        Ok(Self(text.to_owned()))
    }

    fn find<'a>(&self, claims: &'a Value) -> Option<&'a Value> {
        claims.pointer(&self.0)
    }
}

impl std::fmt::Display for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a claim may be. Types count: `"1"` is not `1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Exactly this text.
    Text(String),
    /// A text that begins so.
    Prefix(String),
    /// Exactly this number.
    Number(i64),
    /// Exactly this.
    Bool(bool),
}

impl Wanted {
    fn is(&self, value: &Value) -> bool {
        match self {
            Self::Text(text) => value.as_str() == Some(text),
            Self::Prefix(start) => value.as_str().is_some_and(|text| text.starts_with(start)),
            Self::Number(number) => value.as_i64() == Some(*number),
            Self::Bool(wanted) => value.as_bool() == Some(*wanted),
        }
    }
}

/// Text with claims in it: `gce-{/google/compute_engine/instance_name}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Claim(Pointer),
}

impl Template {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (claim, behind) = after.split_once('}').ok_or("a { has no }")?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Claim(Pointer::parse(claim)?));
            rest = behind;
        }
        if rest.contains('}') || text.len() > LONGEST {
            return Err("a } has no {, or it is too long");
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| *part != Part::Text(String::new()));
        Ok(Self(parts))
    }

    /// True when the claims decide about it.
    #[must_use]
    pub fn has_claims(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Claim(_)))
    }

    /// The text for these claims.
    pub(super) fn fill(&self, claims: &Value, what: &str) -> Result<String, Refusal> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(fixed) => text.push_str(fixed),
                Part::Claim(pointer) => match pointer.find(claims) {
                    Some(Value::String(value)) if !value.is_empty() => text.push_str(value),
                    Some(Value::Number(number)) if !number.is_f64() => {
                        text.push_str(&number.to_string());
                    }
                    _ => {
                        let why = format!(
                            "the claim {pointer}, which makes {what}, is missing or no text"
                        );
                        return Err(Refusal::new(Code::IdentityRule, why));
                    }
                },
            }
            if text.len() > LONGEST {
                return Err(Refusal::new(Code::IdentityRule, format!("{what} is too long")));
            }
        }
        Ok(text)
    }
}

/// How a node that is admitted is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// As the document says.
    Template(Template),
    /// As it wants, if it begins so.
    Prefix(String),
}

/// One rule of an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// For logs and errors.
    pub name: String,
    /// Every one of these claims must be one of its values; of a claim that is a list, one element must be.
    pub claims: Vec<(Pointer, Vec<Wanted>)>,
    /// The node's name.
    pub naming: Naming,
    /// What the document is about: one machine.
    pub subject: Template,
    /// One subject admits one node at a time, and none any more once its node was revoked.
    pub once: bool,
    /// Granted exactly.
    pub prefixes: Vec<IpNet>,
    /// Within these, what the joiner detects is granted.
    pub allow: Vec<IpNet>,
    /// Of these the joiner may claim single addresses.
    pub pools: Vec<IpNet>,
    /// Groups of the node.
    pub groups: Vec<String>,
}

impl Rule {
    /// The first claim that is not as the rule wants it.
    pub(super) fn misses(&self, claims: &Value) -> Option<&Pointer> {
        let holds = |pointer: &Pointer, wanted: &[Wanted]| match pointer.find(claims) {
            None => false,
            Some(Value::Array(list)) => {
                list.iter().take(LIST).any(|value| wanted.iter().any(|wanted| wanted.is(value)))
            }
            Some(value) => wanted.iter().any(|wanted| wanted.is(value)),
        };
        self.claims.iter().find(|(pointer, wanted)| !holds(pointer, wanted)).map(|(p, _)| p)
    }

    /// Refuses a name that the rule does not give.
    pub(super) fn check_name(
        &self,
        claims: &Value,
        name: &NodeName,
    ) -> Result<(), (Refusal, String)> {
        let fix_rule = || "have the rule for this document corrected on the signer".to_owned();
        match &self.naming {
            Naming::Prefix(start) if name.as_str().starts_with(start) => Ok(()),
            Naming::Prefix(start) => Err((
                Refusal::new(
                    Code::IdentityName,
                    format!("the document admits names that begin with {start}, not {name}"),
                ),
                format!("join with --name {start}…, or set [node] name"),
            )),
            Naming::Template(template) => {
                let made = template.fill(claims, "the node's name").map_err(|r| (r, fix_rule()))?;
                let only = made.to_ascii_lowercase().parse::<NodeName>().map_err(|error| {
                    let why = format!("the document names the node as no node can be: {error}");
                    (Refusal::new(Code::IdentityName, why), fix_rule())
                })?;
                if only == *name {
                    return Ok(());
                }
                let why = format!("the document admits {only}, not {name}");
                let fix = format!("join with --name {only}, or set [node] name = \"{only}\"");
                Err((Refusal::new(Code::IdentityName, why), fix))
            }
        }
    }
}
