//! A QR code for a terminal, dark or light.

use qrcode::{EcLevel, QrCode, types::QrError};

use crate::failure::Failure;

/// Light modules around the code (ISO/IEC 18004 wants four).
const QUIET: usize = 4;
/// White on black, whatever the terminal's own colours are: light modules are drawn, dark ones left out.
const BEGIN: &str = "\u{1b}[40;37;1m";
const END: &str = "\u{1b}[0m";

/// `text` as half blocks, two rows of modules a line. `terminal`: with the colours that it needs; without, whoever shows it must
/// do so light on dark. `columns`: how many a screen has that would break its lines.
pub(crate) fn code(text: &str, terminal: bool, columns: Option<usize>) -> Result<String, Failure> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).map_err(|error| {
        let why = match error {
            QrError::DataTooLong => format!("{} characters do not fit into one", text.len()),
            other => other.to_string(),
        };
        let fix = "print the file without --qr and copy it; the mesh has many prefixes";
        Failure::local("there is no QR code for this device", why, fix)
    })?;
    let side = code.width();
    let modules = code.to_colors();
    let light = |row: usize, column: usize| {
        let inside = |at: usize| at.checked_sub(QUIET).filter(|at| *at < side);
        match (inside(row), inside(column)) {
            (Some(row), Some(column)) => modules[row * side + column] == qrcode::Color::Light,
            _ => true,
        }
    };
    let whole = side + 2 * QUIET;
    if let Some(columns) = columns.filter(|columns| *columns < whole) {
        return Err(Failure::local(
            "the QR code was not shown",
            format!("it needs {whole} columns, and the terminal has {columns}"),
            "widen the terminal or make its letters smaller, and do it again; nothing was thrown away",
        ));
    }
    let mut out = String::new();
    for row in (0..whole).step_by(2) {
        if terminal {
            out.push_str(BEGIN);
        }
        for column in 0..whole {
            out.push(match (light(row, column), row + 1 < whole && light(row + 1, column)) {
                (true, true) => '\u{2588}',
                (true, false) => '\u{2580}',
                (false, true) => '\u{2584}',
                (false, false) => ' ',
            });
        }
        if terminal {
            out.push_str(END);
        }
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a camera sees: a pixel a module, dark or not.
    fn seen(code: &str) -> Vec<Vec<bool>> {
        let mut rows = Vec::new();
        for line in code.lines() {
            let line = line.trim_start_matches(BEGIN).trim_end_matches(END);
            let upper = line.chars().map(|c| !matches!(c, '\u{2588}' | '\u{2580}')).collect();
            let lower = line.chars().map(|c| !matches!(c, '\u{2588}' | '\u{2584}')).collect();
            rows.extend([upper, lower]);
        }
        rows
    }

    fn decoded(code: &str) -> String {
        const SCALE: usize = 4;
        let rows = seen(code);
        let (width, height) = (rows[0].len() * SCALE, rows.len() * SCALE);
        let dark = |x: usize, y: usize| if rows[y / SCALE][x / SCALE] { 0 } else { 255 };
        let mut image = rqrr::PreparedImage::prepare_from_greyscale(width, height, dark);
        let grids = image.detect_grids();
        assert_eq!(grids.len(), 1);
        grids[0].decode().unwrap().1
    }

    #[test]
    fn a_camera_reads_what_was_printed() {
        for length in [1, 60, 400, 1_200] {
            let text: String =
                "[Interface]\nPrivateKey = abc=\n".chars().cycle().take(length).collect();
            for terminal in [false, true] {
                let code = code(&text, terminal, None).unwrap();
                assert_eq!(decoded(&code), text);
                assert_eq!(code.contains('\u{1b}'), terminal);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let error = code(&"x".repeat(5_000), false, None).unwrap_err().to_string();
        assert!(error.contains("5000 characters") && error.contains("without --qr"), "{error}");
    }
    #[test]
    fn a_code_whose_lines_would_wrap_is_not_shown() {
        let text = "x".repeat(300);
        let whole = code(&text, true, Some(1_000)).unwrap();
        let columns = whole
            .lines()
            .next()
            .unwrap()
            .chars()
            .filter(|c| "\u{2588}\u{2580}\u{2584} ".contains(*c))
            .count();
        assert_eq!(code(&text, true, Some(columns)).unwrap(), whole);
        let error = code(&text, true, Some(columns - 1)).unwrap_err().to_string();
        let want = format!("needs {columns} columns, and the terminal has {}", columns - 1);
        assert!(error.contains(&want), "{error}");
    }

    /// Whether it fits is looked at with other letters in the place of the keys.
    #[test]
    fn keys_make_no_code_larger_than_as_many_small_letters() {
        let of = |key: &str| {
            let text = format!("[Interface]\nPrivateKey = {key}\nAllowedIPs = 10.0.0.0/8\n");
            QrCode::with_error_correction_level(text, EcLevel::L).unwrap().width()
        };
        for key in ["A", "7", "/", "aB"] {
            let key = key.repeat(44).chars().take(44).collect::<String>();
            assert!(of(&key) <= of(&"x".repeat(44)), "{key}");
        }
    }
}
