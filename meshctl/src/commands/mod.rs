//! A module per noun; each function is a verb.

pub(crate) mod membership;
pub(crate) mod peers;
pub(crate) mod ping;
pub(crate) mod status;
pub(crate) mod tokens;

/// The first texts of a list with room for about two, and how many there are beyond.
fn short_list(texts: &[String], wide: bool) -> String {
    match texts {
        [] => "-".to_owned(),
        _ if wide => texts.join(","),
        [one] => one.clone(),
        [one, rest @ ..] => format!("{one} +{}", rest.len()),
    }
}

/// Texts on one line, `none` if there are none.
fn list(texts: &[String]) -> String {
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}
