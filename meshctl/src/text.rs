//! Words, sizes and times for people, and the rule that nothing from outside steers a terminal.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use meshd_core::now::UnixTime;

/// `text` with everything escaped that a terminal could obey or that could reorder a line.
pub(crate) fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        // Beside the control characters: marks and overrides of writing direction, line separators.
        let steers = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if steers {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// [`safe`] for each.
pub(crate) fn safe_all(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| safe(text)).collect()
}

/// [`safe`], with nothing for the empty text.
pub(crate) fn known(text: &str) -> Option<String> {
    Some(safe(text)).filter(|text| !text.is_empty())
}

/// Bytes as `wg` shows them: `512 B`, `1.46 KiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Two digits behind the point are shown; a double has fifteen.
    #[allow(clippy::cast_precision_loss)]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.995 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// Seconds in the largest two units: `42s`, `3m 10s`, `2h 5m`, `4d 2h`.
pub(crate) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let pair = |big: u64, unit: &str, small: u64, smaller: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit} {small}{smaller}") }
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => pair(minutes, "m", seconds % 60, "s"),
        3_600..86_400 => pair(hours, "h", minutes % 60, "m"),
        _ => pair(days, "d", hours % 24, "h"),
    }
}

/// `0.62 ms`.
pub(crate) fn round_trip(ms: f64) -> String {
    format!("{ms:.2} ms")
}

/// `1 peer`, `2 peers`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A number and `s`, `m`, `h`, `d` or `w`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "use a number and s, m, h, d or w, such as 30m, 1h or 7d".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    match number.checked_mul(unit) {
        Some(seconds) if (1..=10 * 365 * 86_400).contains(&seconds) => {
            Ok(Duration::from_secs(seconds))
        }
        _ => Err("use a time from 1s to 3650d".to_owned()),
    }
}

/// How long ago something was: a duration, or a time as RFC 3339 has it.
pub(crate) fn parse_since(text: &str) -> Result<Duration, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    since(text, now)
}

fn since(text: &str, now: UnixTime) -> Result<Duration, String> {
    let Some(at) = UnixTime::from_rfc3339(text) else {
        let use_this = |why| format!("{why}; or a time such as 2026-01-31T12:00:00Z");
        return parse_duration(text).map_err(use_this);
    };
    match u64::try_from(now.since(at)) {
        Ok(seconds) => Ok(Duration::from_secs(seconds.max(1))),
        Err(_) => Err("that time has not come yet".to_owned()),
    }
}

/// A time for people: the date is as good without its letters, and mostly without its seconds.
pub(crate) fn moment(time: &str, seconds: bool) -> String {
    let plain = time.trim_end_matches('Z').replacen('T', " ", 1);
    match plain.get(..16) {
        Some(short) if !seconds => short.to_owned(),
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let text = safe("a\u{1b}[31m\u{9b}b\r\n\t\u{202e}\u{7f}ä");
        assert_eq!(text, "a\\u{1b}[31m\\u{9b}b\\r\\n\\t\\u{202e}\\u{7f}ä");
    }

    #[test]
    fn sizes_and_ages_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1_500_000, "1.43 MiB"),
            (1 << 20, "1.00 MiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (u64::MAX, "16.00 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (190, "3m 10s"), (7_500, "2h 5m"), (86_400, "1d")]
        {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse_duration("90m"), Ok(Duration::from_secs(5_400)));
        for bad in ["", "1", "h", "1y", "0s", "-1h", "99999999999999999999h", "1h1m", "99999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn since_is_an_age_or_a_time() {
        let now = UnixTime::from_rfc3339("2026-01-01T00:10:00Z").unwrap();
        assert_eq!(since("90m", now), Ok(Duration::from_secs(5_400)));
        assert_eq!(since("2026-01-01T00:00:00Z", now), Ok(Duration::from_secs(600)));
        assert_eq!(since("2026-01-01T02:00:00+02:00", now), Ok(Duration::from_secs(600)));
        assert!(since("2026-01-01T00:10:01Z", now).is_err());
        assert!(since("yesterday", now).unwrap_err().contains("2026-01-31T12:00:00Z"));
    }
}
