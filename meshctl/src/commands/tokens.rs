//! `token create`, `token list` and `token revoke`.

use std::{cmp::Reverse, io::Write as _, path::Path, time::Duration};

use meshd_proto::control::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest};

use super::{list, short_list};
use crate::{
    cli::{Token, TokenCreate},
    connection::{CHANGE, LOOK, connect},
    failure::Failure,
    output::{Output, remark},
    table::{Cell, Table},
    text::{age, count, moment, safe},
    views::{NewTokenView, TokenView},
};

const TTL: Duration = Duration::from_secs(3600);
const IDENTITY_TTL: Duration = Duration::from_secs(365 * 86_400);

pub(crate) async fn run(socket: &Path, output: Output, verb: Token) -> Result<(), Failure> {
    match verb {
        Token::Create(arguments) => create(socket, output, arguments).await,
        Token::List => show_list(socket, output).await,
        Token::Revoke { id } => revoke(socket, output, id).await,
    }
}

async fn revoke(socket: &Path, output: Output, id: String) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let reply = client.revoke_token(RevokeTokenRequest { id }).await?.into_inner();
    let token = TokenView::from(reply.info.unwrap_or_default());
    output.print(&token, |_, to| {
        let used = count(u64::from(token.used), "host stays", "hosts stay");
        writeln!(to, "token {} admits nobody any more; {used} that joined with it", token.id)
    })
}

async fn create(socket: &Path, output: Output, arguments: TokenCreate) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    // A token that is no secret need not be short-lived, nor be one for each host.
    let (usual_ttl, usual_uses) = match arguments.identity {
        None => (TTL, 1),
        Some(_) => (IDENTITY_TTL, 0),
    };
    let ttl = arguments.ttl.unwrap_or(usual_ttl);
    let request = CreateTokenRequest {
        node_name: arguments.node.unwrap_or_default(),
        prefixes: arguments.prefixes,
        allow: arguments.allow,
        workloads: arguments.workloads,
        groups: arguments.groups,
        seeds: arguments.seeds,
        ttl_seconds: ttl.as_secs(),
        // 0: as many as the daemon allows.
        uses: arguments.uses.unwrap_or(usual_uses),
        identity: arguments.identity.unwrap_or_default(),
    };
    let reply = client.create_token(request).await?.into_inner();
    let token =
        NewTokenView { token: safe(&reply.token), info: reply.info.unwrap_or_default().into() };
    if !output.is_for_programs() {
        let info = &token.info;
        let who = info.node.as_ref().map(|node| format!(" by {node}")).unwrap_or_default();
        remark(&format!(
            "token {} can be used{who} {} within {}, until {}",
            info.id,
            if info.uses == 1 { "once".to_owned() } else { format!("{} times", info.uses) },
            age(ttl.as_secs()),
            info.expires_at,
        ));
        let granted = [
            ("grants", &info.prefixes),
            ("grants what is found inside", &info.allow),
            ("grants single addresses of workloads inside", &info.workloads),
        ];
        for (what, prefixes) in granted.into_iter().filter(|(_, prefixes)| !prefixes.is_empty()) {
            remark(&format!("  it {what} {}", list(prefixes)));
        }
        if let Some(issuer) = &info.identity {
            remark(&format!(
                "  it is no secret: it admits only with an identity document of {issuer}, whose rules say the rest"
            ));
            remark(match &info.audience {
                Some(_) => "  documents are bound to the first host that shows them",
                None => "  documents must be for each host's own audience",
            });
            remark(
                "on the other host: meshctl join TOKEN --identity-audience, then meshctl join TOKEN --identity FILE",
            );
            return print(output, &token);
        }
        if info.prefixes.is_empty() && info.allow.is_empty() && info.workloads.is_empty() {
            remark(
                "  it grants no prefixes: for a host with pods, give --allow CIDR or --prefix CIDR",
            );
        }
        remark(
            "on the other host: meshctl join -, and paste it (`join TOKEN` works too, and shows it in `ps`)",
        );
    }
    print(output, &token)
}

fn print(output: Output, token: &NewTokenView) -> Result<(), Failure> {
    output.print(token, |_, to| {
        to.extend(token.token.as_bytes());
        to.push(b'\n');
        Ok(())
    })
}

async fn show_list(socket: &Path, output: Output) -> Result<(), Failure> {
    let mut client = connect(socket, Some(LOOK)).await?;
    let reply = client.list_tokens(ListTokensRequest {}).await?.into_inner();
    let mut tokens: Vec<TokenView> = reply.tokens.into_iter().map(TokenView::from).collect();
    tokens.sort_by(|a, b| order(a).cmp(&order(b)));
    if tokens.is_empty() && !output.is_for_programs() {
        remark("no tokens; make one with `meshctl token create`");
        return Ok(());
    }
    output.print(&tokens, |paint, to| table(&tokens, output.is_wide()).print(paint, to))?;
    let usable = tokens.iter().filter(|token| token.state == "usable").count();
    if output.is_for_programs() {
        return Ok(());
    }
    let usable = u64::try_from(usable).unwrap_or(u64::MAX);
    remark(&format!("{} can still be used", count(usable, "token", "tokens")));
    Ok(())
}

/// What can still be used first, and of each kind what lasts longest.
fn order(token: &TokenView) -> (bool, Reverse<&str>) {
    (token.state != "usable", Reverse(&token.expires_at))
}

fn table(tokens: &[TokenView], wide: bool) -> Table {
    let mut header = vec!["ID", "STATE", "USED", "EXPIRES", "NODE", "GRANTS"];
    if wide {
        header.extend(["ALLOWS", "WORKLOADS", "GROUPS", "IDENTITY"]);
    }
    let mut table = Table::new(header);
    for token in tokens {
        // The beginning is as good: `token revoke` takes it.
        let id = if wide { &*token.id } else { token.id.get(..12).unwrap_or(&token.id) };
        let mut row = vec![
            Cell::text(id),
            Cell::state(&token.state),
            Cell::number(format!("{}/{}", token.used, token.uses)),
            Cell::text(moment(&token.expires_at, wide)),
            Cell::text(token.node.clone().unwrap_or_else(|| "any".to_owned())),
            Cell::text(if wide { short_list(&token.prefixes, true) } else { grants(token) }),
        ];
        if wide {
            row.extend([
                Cell::text(short_list(&token.allow, true)),
                Cell::text(short_list(&token.workloads, true)),
                Cell::text(short_list(&token.groups, true)),
                Cell::text(token.identity.clone().unwrap_or_else(|| "-".to_owned())),
            ]);
        }
        table.row(row);
    }
    table
}

/// What a token gives, as far as a column holds it.
fn grants(token: &TokenView) -> String {
    match (&token.prefixes[..], &token.allow[..], &token.identity) {
        ([], [], Some(issuer)) => format!("by {issuer}"),
        ([], [], None) if token.workloads.is_empty() => "-".to_owned(),
        ([], [], None) => format!("each in {}", short_list(&token.workloads, false)),
        ([], allow, _) => format!("in {}", short_list(allow, false)),
        (prefixes, _, _) => short_list(prefixes, false),
    }
}
