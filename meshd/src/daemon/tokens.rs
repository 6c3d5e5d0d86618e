//! Join tokens, made by a signer.

use std::net::SocketAddr;

use ipnet::IpNet;
use meshd_core::{
    limits,
    trust::{self, Signer, TokenId, TokenParams},
};
use meshd_proto::control::{CreateTokenReply, CreateTokenRequest, RevokeTokenReply, TokenInfo};

use super::{
    clock, enrolment, requests::not_a_signer, resolve::with_port, running::Running, status::rfc3339,
};
use crate::{control::ControlError, state::StateDir};

/// Letters of an id with which a token is revoked.
const SHORTEST_ID: usize = 4;
/// Life of a token unless asked otherwise.
const TTL_SECONDS: i64 = 3600;

/// A token as `token list` shows it.
pub(super) fn info(token: &trust::TokenInfo) -> TokenInfo {
    let text = |prefixes: &[IpNet]| prefixes.iter().map(ToString::to_string).collect();
    TokenInfo {
        id: token.terms.id.to_string(),
        node_name: token.terms.node_name.as_ref().map(ToString::to_string).unwrap_or_default(),
        prefixes: text(&token.terms.prefixes),
        allow: text(&token.terms.allow),
        workloads: text(&token.terms.pools),
        groups: token.terms.groups.clone(),
        expires_at: rfc3339(token.terms.expires_at).unwrap_or_default(),
        uses: token.terms.uses,
        used: u32::try_from(token.used).unwrap_or(u32::MAX),
        state: token.state.as_str().to_owned(),
        identity: token.terms.identity.as_ref().map(|identity| identity.issuer.clone()),
        audience: token.terms.identity.as_ref().and_then(|identity| identity.audience.clone()),
    }
}

/// Prefixes as typed: bits beyond the length are an error, since they are a slip.
pub(super) fn prefixes(texts: &[String], what: &str) -> Result<Vec<IpNet>, ControlError> {
    texts
        .iter()
        .map(|text| {
            let bad = |why: String, fix: &str| {
                let shown: String = text.chars().take(80).collect();
                ControlError::new(
                    "bad_request",
                    format!("{what} {shown:?} cannot be used"),
                    why,
                    fix,
                )
            };
            let prefix: IpNet = text.parse().map_err(|_| {
                bad("it is not ADDRESS/LENGTH".to_owned(), "write e.g. 10.1.0.0/16")
            })?;
            if prefix.addr() == prefix.network() {
                Ok(prefix)
            } else {
                Err(bad(
                    "it has bits beyond its length".to_owned(),
                    &format!("write {}", prefix.trunc()),
                ))
            }
        })
        .collect()
}

fn no_such_issuer(name: &str, known: &[&str]) -> ControlError {
    let shown: String = name.chars().take(80).collect();
    let there = if known.is_empty() { "there is none".to_owned() } else { known.join(", ") };
    ControlError::new(
        "issuer_not_found",
        "cannot make a token",
        format!("this host has no issuer {shown:?}; it has: {there}"),
        "write issuers.d/NAME.toml beside conf.d, check it with `meshd check`, and reload meshd",
    )
}

fn find(signer: &Signer, id: &TokenId) -> Option<TokenInfo> {
    signer.tokens(clock::unix()).find(|token| token.terms.id == *id).map(|token| info(&token))
}

impl Running {
    /// `token create`: on disk before it is shown.
    pub(super) fn create_token(
        &mut self,
        request: &CreateTokenRequest,
        own_endpoints: &[SocketAddr],
        state: &StateDir,
    ) -> Result<CreateTokenReply, ControlError> {
        let signer = self.signer.as_mut().ok_or_else(|| not_a_signer("make a token"))?;
        let node_name = match request.node_name.as_str() {
            "" => None,
            name => Some(name.parse().map_err(|error: meshd_proto::NameError| {
                ControlError::new(
                    "bad_request",
                    "cannot make a token",
                    error.to_string(),
                    "give another --node",
                )
            })?),
        };
        let seeds = if request.seeds.is_empty() {
            own_endpoints.iter().map(ToString::to_string).collect()
        } else {
            request.seeds.iter().map(|seed| with_port(seed)).collect()
        };
        let issuer = match request.identity.as_str() {
            "" => None,
            name => Some(self.identities.issuers().terms(name).cloned().ok_or_else(|| {
                let names: Vec<&str> = self.identities.issuers().names().collect();
                no_such_issuer(name, &names)
            })?),
        };
        // A token that is no secret need not be short-lived.
        let (usual_ttl, usual_uses) = match issuer {
            None => (TTL_SECONDS, 1),
            Some(_) => (limits::TOKEN_SECONDS, limits::TOKEN_USES),
        };
        let usual_uses = if node_name.is_some() { 1 } else { usual_uses };
        let ttl = match request.ttl_seconds {
            0 => usual_ttl,
            seconds => i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        let params = TokenParams {
            node_name,
            prefixes: prefixes(&request.prefixes, "--prefix")?,
            allow: prefixes(&request.allow, "--allow")?,
            pools: prefixes(&request.workloads, "--workloads")?,
            groups: request.groups.clone(),
            seeds,
            ttl_seconds: ttl,
            uses: if request.uses == 0 { usual_uses } else { request.uses },
            issuer,
        };
        let now = clock::unix();
        let failed = |refusal: trust::EnrolRefusal| {
            ControlError::new(
                refusal.refusal.code.as_str(),
                "cannot make a token",
                refusal.refusal.detail,
                refusal.fix,
            )
        };
        let (token, entry) = signer.create_token(params, now, &mut rand::rng()).map_err(failed)?;
        let id = token.terms().id;
        enrolment::record(signer, &[entry], state).map_err(failed)?;
        Ok(CreateTokenReply { token: token.encode().to_string(), info: find(signer, &id) })
    }

    /// `token revoke`: on disk before it is answered.
    pub(super) fn revoke_token(
        &mut self,
        start: &str,
        state: &StateDir,
    ) -> Result<RevokeTokenReply, ControlError> {
        let signer = self.signer.as_mut().ok_or_else(|| not_a_signer("revoke a token"))?;
        let now = clock::unix();
        let all = signer.tokens(now).map(|token| token.terms.id);
        let meant: Vec<_> = all.filter(|id| id.to_string().starts_with(start)).collect();
        // A whole token that was pasted here is a secret.
        let shown: String = start.chars().take(12).collect();
        let failed = |code: &'static str, why: String, fix: &str| {
            ControlError::new(code, format!("cannot revoke token {shown:?}"), why, fix)
        };
        let id = match meant.as_slice() {
            _ if start.len() < SHORTEST_ID => {
                let why = format!("{SHORTEST_ID} letters of the id are the fewest");
                return Err(failed("bad_request", why, "`meshctl token list` shows the ids"));
            }
            [id] => *id,
            [] => {
                let why = "this host has made no token with that id".to_owned();
                let fix = "`meshctl token list` shows those that it has made";
                return Err(failed("token_unknown", why, fix));
            }
            several => {
                let why = format!("{} tokens begin like that", several.len());
                return Err(failed("bad_request", why, "give more of the id"));
            }
        };
        let refused = |refusal: trust::EnrolRefusal| {
            failed(refusal.refusal.code.as_str(), refusal.refusal.detail, &refusal.fix)
        };
        if let Some(entry) = signer.revoke_token(&id, now).map_err(refused)? {
            enrolment::record(signer, &[entry], state).map_err(refused)?;
        }
        Ok(RevokeTokenReply { info: find(signer, &id) })
    }
}
