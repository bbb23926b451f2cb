//! From the text of a setting to its value. Errors say what would be right; the caller says where the text came from.

use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::limits;

/// A value as it was written. Strings, numbers and booleans of a file become their text; other values too, which then
/// fail the check of their setting.
#[derive(Clone, Deserialize)]
#[serde(from = "toml::Value")]
pub struct Text(String);

impl Text {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<toml::Value> for Text {
    fn from(value: toml::Value) -> Self {
        Self(match value {
            toml::Value::String(text) => text,
            other => other.to_string(),
        })
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// A token. It is compared, sent, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Digits, which `_` may group.
pub fn integer(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let digits = text.trim().replace('_', "");
    match digits.parse::<u64>() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(format!("must be an integer from {} to {}", range.start(), range.end())),
    }
}

/// A whole number with its unit: ms, s, m, h or d.
pub fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let millis_per_unit = match text[digits..].trim() {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let value = text[..digits].parse::<u64>().ok().zip(millis_per_unit).and_then(|(n, unit)| n.checked_mul(unit));
    match value.map(Duration::from_millis) {
        Some(value) if range.contains(&value) => Ok(value),
        Some(_) => Err(format!("must be from {} to {}", show_duration(*range.start()), show_duration(*range.end()))),
        None => Err("must be a whole number with its unit: ms, s, m, h or d, as in 30s or 24h".into()),
    }
}

/// In the largest unit that divides it.
fn show_duration(value: Duration) -> String {
    let millis = value.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None if millis == 0 => "0s".into(),
        None => format!("{millis}ms"),
    }
}

/// `HOST:PORT`. A host name that has several addresses gives an IPv4 one, as `localhost` means to most clients.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    const WANTED: &str = "must be HOST:PORT, as in 127.0.0.1:8080 or [::1]:8080";
    let (host, port) = text.rsplit_once(':').ok_or(WANTED)?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(WANTED.into());
    }
    let found: Vec<SocketAddr> =
        text.to_socket_addrs().map_err(|e| format!("{WANTED}; {host:?} has no address ({e})"))?.collect();
    found.iter().find(|a| a.is_ipv4()).or(found.first()).copied().ok_or_else(|| WANTED.into())
}

pub fn path(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("must not be empty".into()),
        _ if text.contains('\0') => Err("must not contain a zero byte".into()),
        _ => Ok(PathBuf::from(text)),
    }
}

pub fn node_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match text.len() {
        1..=limits::NODE_ID_BYTES_MAX if text.chars().all(allowed) => Ok(text.into()),
        _ => Err(format!("must be 1 to {} of the characters A-Z a-z 0-9 . _ -", limits::NODE_ID_BYTES_MAX)),
    }
}

pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("must be on or off".into()),
    }
}

pub fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.into()),
        Err(e) => Err(format!("must be a level (error, warn, info, debug, trace) or MODULE=LEVEL,…: {e}")),
    }
}

/// What fits into an `Authorization` header.
/// Keys with commas between them.
pub fn public_keys(text: &str) -> Result<Vec<String>, String> {
    let keys: Vec<String> = text.split(',').map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()).collect();
    crate::policy::Trust::new(&keys).map_err(|why| why.to_string())?;
    Ok(keys)
}

pub fn token(text: &str) -> Result<Secret, String> {
    match text.len() {
        1..=limits::TOKEN_BYTES_MAX if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(Secret(text.into())),
        _ => Err(format!("must be 1 to {} visible ASCII characters without spaces", limits::TOKEN_BYTES_MAX)),
    }
}

pub fn token_file(text: &str) -> Result<Secret, String> {
    let path: &Path = Path::new(text);
    let bytes = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if bytes > limits::TOKEN_FILE_BYTES_MAX {
        return Err(format!("it has {bytes} bytes; a token file has at most {}", limits::TOKEN_FILE_BYTES_MAX));
    }
    let content = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    token(content.trim()).map_err(|reason| format!("its content {reason}"))
}
