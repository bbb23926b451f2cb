//! The sources of settings, in their order, and the search through them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Knobs, Text};
use crate::cli::ServeArgs;
use crate::limits;

/// Environment variables by name. A variable that is set to nothing counts as not set.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// That of this process. Bytes that are not UTF-8 are replaced, so that such a value fails its check.
    pub fn of_process() -> Self {
        std::env::vars_os().map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned())).collect()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        let pairs = iter.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self(pairs.filter(|(_, value): &(String, String)| !value.is_empty()).collect())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Environment,
    Flags,
}

impl Source {
    /// Higher wins.
    pub fn rank(&self) -> u8 {
        match self {
            Source::File(_) => 1,
            Source::Environment => 2,
            Source::Flags => 3,
        }
    }

    /// The setting as its author wrote it, with its value unless that is a secret.
    fn locate(&self, name: &str, value: Option<&str>) -> String {
        let variable = variable(name);
        match (self, value) {
            (Source::File(path), Some(value)) => format!("{name} = {value} in {}", path.display()),
            (Source::File(path), None) => format!("{name} in {}", path.display()),
            (Source::Environment, Some(value)) => format!("{variable}={value}"),
            (Source::Environment, None) => variable,
            (Source::Flags, Some(value)) => format!("--{name} {value}"),
            (Source::Flags, None) => format!("--{name}"),
        }
    }
}

fn variable(name: &str) -> String {
    format!("QUIPU_{}", name.to_uppercase().replace('-', "_"))
}

/// All sources, the one that wins first, and what was found wrong so far.
pub struct Layers {
    layers: Vec<(Source, Knobs)>,
    pub problems: Vec<String>,
}

type Field = fn(&Knobs) -> &Option<Text>;

impl Layers {
    pub fn gather(args: &ServeArgs, environment: &Environment) -> Self {
        let mut layers =
            vec![(Source::Flags, args.knobs.clone()), (Source::Environment, from_environment(environment))];
        let mut problems = Vec::new();
        let config = args.config.clone().or_else(|| environment.get("QUIPU_CONFIG").map(PathBuf::from));
        if let Some(path) = config {
            match from_file(&path, &mut problems) {
                Ok(knobs) => layers.push((Source::File(path), knobs)),
                Err(reason) => problems.push(format!("config {}: {reason}", path.display())),
            }
        }
        Self { layers, problems }
    }

    /// Who sets it, or nobody.
    pub fn source(&self, field: Field) -> Option<&Source> {
        self.layers.iter().find(|(_, knobs)| field(knobs).is_some()).map(|(source, _)| source)
    }

    /// The value of the highest source, or none if nobody sets it or it is wrong, which is then among the problems.
    pub fn read<T>(&mut self, name: &str, field: Field, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.find(name, field, true, parse)
    }

    /// As `read`, but no message repeats the value.
    pub fn read_secret<T>(
        &mut self,
        name: &str,
        field: Field,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.find(name, field, false, parse)
    }

    fn find<T>(
        &mut self,
        name: &str,
        field: Field,
        show: bool,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (source, text) =
            self.layers.iter().find_map(|(source, knobs)| Some((source, field(knobs).as_ref()?.as_str())))?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.problems.push(format!("{}: {reason}", source.locate(name, show.then_some(text))));
                None
            }
        }
    }
}

/// Names of all settings, from the flags.
fn names() -> Vec<String> {
    let command = <Knobs as clap::Args>::augment_args(clap::Command::new("serve"));
    command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
}

/// Variables with other names are not refused: an orchestrator sets `QUIPU_SERVICE_HOST` and its like by itself.
fn from_environment(environment: &Environment) -> Knobs {
    let table: toml::Table = names()
        .into_iter()
        .filter_map(|name| Some((name.clone(), toml::Value::from(environment.get(&variable(&name))?))))
        .collect();
    table.try_into().expect("every name is a field and every value a text")
}

/// Unknown keys go to `problems`; an error means that the file could not be read at all.
fn from_file(path: &Path, problems: &mut Vec<String>) -> Result<Knobs, String> {
    let bytes = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if bytes > limits::CONFIG_BYTES_MAX {
        return Err(format!("it has {bytes} bytes; a settings file has at most {}", limits::CONFIG_BYTES_MAX));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
    let names = names();
    table.retain(|key, _| {
        let known = names.iter().any(|name| name == key);
        if !known {
            problems.push(format!("{key} in {}: there is no such setting{}", path.display(), suggestion(key, &names)));
        }
        known
    });
    table.try_into().map_err(|e: toml::de::Error| e.to_string())
}

/// `; did you mean X?` when a name is near enough.
fn suggestion(key: &str, names: &[String]) -> String {
    let key = key.to_lowercase().replace('_', "-");
    let nearest = names
        .iter()
        .map(|name| (strsim::jaro_winkler(&key, name), name))
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    nearest
        .map_or_else(|| "; `quipu serve --help` lists them all".into(), |(_, name)| format!("; did you mean {name}?"))
}
