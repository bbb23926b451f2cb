//! Reads the text of `/metrics` strictly: a line that is no sample and no comment is an error.

use std::collections::BTreeMap;

pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(samples.map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line:?}"))).collect())
    }

    /// The value of a metric without labels.
    #[track_caller]
    pub fn value(&self, name: &str) -> f64 {
        let found = self.0.iter().find(|sample| sample.name == name && sample.labels.is_empty());
        found.unwrap_or_else(|| panic!("no metric {name}")).value
    }

    /// The sum of a family over all samples that carry these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |sample: &&Sample| {
            labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|other| other == value))
        };
        self.0.iter().filter(|sample| sample.name == name).filter(carries).map(|sample| sample.value).sum()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = match line.split_once('{') {
        Some((name, rest)) => (name, Some(rest)),
        None => (line.split(' ').next()?, None),
    };
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':') {
        return None;
    }
    let (labels, value) = match rest {
        None => (BTreeMap::new(), line.strip_prefix(name)?),
        Some(rest) => {
            let (labels, value) = rest.rsplit_once('}')?;
            let pairs = labels.split(',').filter(|pair| !pair.is_empty());
            let pairs = pairs.map(|pair| {
                let (label, value) = pair.split_once('=')?;
                Some((label.to_owned(), value.strip_prefix('"')?.strip_suffix('"')?.to_owned()))
            });
            (pairs.collect::<Option<_>>()?, value)
        }
    };
    Some(Sample { name: name.to_owned(), labels, value: value.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read() {
        let metrics =
            Metrics::parse("# HELP a b\na_total 3\nb{x=\"1\",y=\"sha256:0\"} 0.5\nb{x=\"2\",y=\"\"} 2\n# EOF\n");
        assert_eq!(metrics.value("a_total"), 3.0);
        assert_eq!(metrics.sum("b", &[]), 2.5);
        assert_eq!(metrics.sum("b", &[("x", "2")]), 2.0);
    }

    #[test]
    fn what_is_no_sample_is_none() {
        for line in ["", "a", "a b", "a{x} 1", "a{x=\"1\" 2", "a-b 1"] {
            assert!(sample(line).is_none(), "{line:?}");
        }
    }
}
