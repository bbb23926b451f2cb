//! Printing: tables and sentences for people, the server's JSON for machines.

use std::io::Write;

use serde_json::{Value, json};

use super::error::Error;

#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    pub json: bool,
    /// Standard output is a terminal: numbers get thousands separators.
    pub terminal: bool,
    pub colour: bool,
    pub colour_errors: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Colour {
    Bold = 1,
    Red = 31,
    Green = 32,
}

pub struct Output<'a> {
    pub style: Style,
    out: Box<dyn Write + 'a>,
    err: Box<dyn Write + 'a>,
}

impl<'a> Output<'a> {
    pub fn new(style: Style, out: Box<dyn Write + 'a>, err: Box<dyn Write + 'a>) -> Self {
        Self { style, out, err }
    }

    /// The server's JSON on one line. JSON has no line breaks inside strings, so those that are there are only layout.
    pub fn json(&mut self, text: &str) -> Result<(), Error> {
        self.line(&text.trim().replace(['\n', '\r'], " "))
    }

    pub fn line(&mut self, text: &str) -> Result<(), Error> {
        writeln!(self.out, "{text}")?;
        Ok(self.out.flush()?)
    }

    /// For people, on standard error; `--json` has none of it.
    pub fn note(&mut self, text: &str) {
        if !self.style.json {
            // Nobody is left to be told of a failure on standard error.
            let _ = writeln!(self.err, "{text}");
        }
    }

    /// The state of long work on one line that is written over, on a terminal only; an empty text clears it.
    pub fn progress(&mut self, text: &str) {
        if self.style.terminal && !self.style.json {
            // As in `note`.
            let _ = write!(self.err, "\r\x1b[K{text}").and_then(|()| self.err.flush());
        }
    }

    pub fn error(&mut self, error: &Error) {
        if matches!(error, Error::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe) {
            return;
        }
        let text = if self.style.json {
            let problem = match error {
                Error::Refused(problem) => Some(problem),
                _ => None,
            };
            json!({
                "code": error.code(),
                "detail": problem.map_or_else(|| error.to_string(), |problem| problem.detail.clone()),
                "status": problem.map(|problem| problem.status),
                "request_id": problem.map(|problem| problem.request_id.clone()),
                "outcome": if error.outcome_unknown() { "unknown" } else { "not_applied" },
            })
            .to_string()
        } else {
            format!("{} {error}", paint(self.style.colour_errors, Colour::Red, "error:"))
        };
        let _ = writeln!(self.err, "{text}");
    }

    pub fn paint(&self, colour: Colour, text: &str) -> String {
        paint(self.style.colour, colour, text)
    }

    /// An integer as people read it, on terminals only; other texts as they are.
    pub fn number(&self, digits: &str) -> String {
        if self.style.terminal { group_thousands(digits) } else { digits.to_owned() }
    }

    /// Aligned columns under their names; a column that is empty everywhere is left out.
    pub fn table(&mut self, columns: &[Column], rows: &[Vec<String>]) -> Result<(), Error> {
        self.rows(columns, rows, true)
    }

    /// As `table`; a page after the first has no names.
    pub fn rows(&mut self, columns: &[Column], rows: &[Vec<String>], names: bool) -> Result<(), Error> {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
        let shown: Vec<usize> =
            (0..columns.len()).filter(|&at| rows.is_empty() || rows.iter().any(|row| !row[at].is_empty())).collect();
        let widths: Vec<usize> = (0..columns.len())
            .map(|at| rows.iter().map(|row| row[at].chars().count()).chain([columns[at].name.len()]).max().unwrap_or(0))
            .collect();
        let layout = |cell: &dyn Fn(usize) -> String| -> String {
            let cells = shown.iter().map(|&at| match columns[at].right {
                true => format!("{:>1$}", cell(at), widths[at]),
                false => format!("{:<1$}", cell(at), widths[at]),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        if names {
            let header = layout(&|at| columns[at].name.to_owned());
            self.line(&self.paint(Colour::Bold, &header))?;
        }
        rows.iter().try_for_each(|row| self.line(&layout(&|at| row[at].clone())))
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Column {
    name: &'static str,
    right: bool,
}

pub const fn left(name: &'static str) -> Column {
    Column { name, right: false }
}

pub const fn right(name: &'static str) -> Column {
    Column { name, right: true }
}

fn paint(colours: bool, colour: Colour, text: &str) -> String {
    if colours { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
}

/// Control characters of ids and messages must not reach a terminal.
pub fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

fn group_thousands(digits: &str) -> String {
    let unsigned = digits.strip_prefix('-').unwrap_or(digits);
    if unsigned.is_empty() || !unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return digits.to_owned();
    }
    let mut grouped = digits[..digits.len() - unsigned.len()].to_owned();
    for (at, digit) in unsigned.chars().enumerate() {
        if at > 0 && (unsigned.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A member of the server's answer as a text: nothing when it is missing or null.
pub fn text(value: &Value, member: &str) -> String {
    match &value[member] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// An exact total: `value_str` has all digits, `value` may have lost some beyond 64 bits.
pub fn total(value: &Value) -> String {
    Some(text(value, "value_str")).filter(|digits| !digits.is_empty()).unwrap_or_else(|| text(value, "value"))
}

/// The elements of a list in the server's answer.
pub fn items<'v>(value: &'v Value, member: &str) -> &'v [Value] {
    value[member].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (digits, expected) in [
            ("0", "0"),
            ("-999", "-999"),
            ("1000", "1,000"),
            ("-1234567", "-1,234,567"),
            ("170141183460469231731687303715884105727", "170,141,183,460,469,231,731,687,303,715,884,105,727"),
            ("", ""),
            ("-", "-"),
        ] {
            assert_eq!(group_thousands(digits), expected);
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\x1b[31mé\n"), "a\\u{1b}[31mé\\n");
    }

    #[test]
    fn totals_beyond_64_bits_keep_their_digits() {
        let answer = json!({"value": 1.8446744073709552e19, "value_str": "18446744073709551617"});
        assert_eq!(total(&answer), "18446744073709551617");
        assert_eq!(total(&json!({"value": 5})), "5");
    }
}
