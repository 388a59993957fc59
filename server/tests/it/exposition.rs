//! Reads OpenMetrics text and says what is wrong with it, as `promtool check metrics` would (OpenMetrics 1.0).

use std::collections::{BTreeMap, BTreeSet};

/// A series of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// A scrape that was read.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    pub(crate) samples: Vec<Sample>,
    types: BTreeMap<String, String>,
}

impl Exposition {
    /// The sum of a name's series that have these labels; none when there is none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let is_meant = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        };
        self.samples.iter().filter(is_meant).map(|sample| sample.value).reduce(|a, b| a + b)
    }

    /// The names of all series.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.samples.iter().map(|sample| sample.name.as_str()).collect()
    }
}

/// Reads a scrape whole.
pub(crate) fn parse(text: &str) -> Result<Exposition, String> {
    let mut read = Exposition::default();
    let (mut family, mut seen, mut helped) = (String::new(), BTreeSet::new(), BTreeSet::new());
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end with # EOF")?;
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let (kind, rest) = comment.split_once(' ').ok_or_else(|| format!("`{line}`"))?;
            let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
            match kind {
                "HELP" if helped.insert(name.to_owned()) && !value.is_empty() => family = name.to_owned(),
                "TYPE" if family == name && read.types.insert(name.to_owned(), value.to_owned()).is_none() => {}
                "UNIT" if family == name && name.ends_with(&format!("_{value}")) => {}
                _ => return Err(format!("`{line}` is out of place")),
            }
            continue;
        }
        let sample = sample(line)?;
        let kind = read.types.get(&family).ok_or_else(|| format!("`{line}` has no type"))?;
        let suffix = sample.name.strip_prefix(&family).ok_or_else(|| format!("`{line}` is not of {family}"))?;
        let fits = match kind.as_str() {
            "counter" => suffix == "_total" && sample.value >= 0.0,
            "gauge" => suffix.is_empty(),
            "info" => suffix == "_info" && sample.value == 1.0,
            "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
            _ => false,
        };
        if !fits {
            return Err(format!("`{line}` is no sample of a {kind}"));
        }
        if !seen.insert((sample.name.clone(), sample.labels.clone())) {
            return Err(format!("`{line}` is there twice"));
        }
        read.samples.push(sample);
    }
    histograms(&read)?;
    Ok(read)
}

fn is_name(name: &str) -> bool {
    name.chars()
        .enumerate()
        .all(|(at, sign)| sign == '_' || sign.is_ascii_lowercase() || (at > 0 && sign.is_ascii_digit()))
        && !name.is_empty()
}

fn sample(line: &str) -> Result<Sample, String> {
    let wrong = || format!("`{line}` is no sample");
    let (series, value) = line.rsplit_once(' ').ok_or_else(wrong)?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        value => value.parse().map_err(|_| wrong())?,
    };
    let (name, labels) = match series.split_once('{') {
        None => (series, BTreeMap::new()),
        Some((name, rest)) => (name, pairs(rest.strip_suffix('}').ok_or_else(wrong)?).ok_or_else(wrong)?),
    };
    if !is_name(name) || !labels.keys().all(|key| is_name(key)) {
        return Err(wrong());
    }
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// `a="x",b="y"`. None of our values has a quote or a backslash.
fn pairs(text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for pair in text.split("\",") {
        let (key, value) = pair.split_once("=\"")?;
        let value = value.strip_suffix('"').unwrap_or(value);
        if value.contains(['"', '\\', '\n']) || labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return None;
        }
    }
    Some(labels)
}

/// Buckets grow, end with +Inf, and the last one is the count.
fn histograms(read: &Exposition) -> Result<(), String> {
    for (family, _) in read.types.iter().filter(|(_, kind)| *kind == "histogram") {
        let of = |suffix: &str| {
            let name = format!("{family}{suffix}");
            read.samples.iter().filter(move |sample| sample.name == name).collect::<Vec<_>>()
        };
        let buckets = of("_bucket");
        let bound = |sample: &&Sample| sample.labels["le"].parse::<f64>().unwrap_or(f64::INFINITY);
        let grows = buckets.windows(2).all(|two| bound(&two[0]) < bound(&two[1]) && two[0].value <= two[1].value);
        let last = buckets.last().filter(|last| last.labels["le"] == "+Inf");
        let count = of("_count").first().map(|sample| sample.value);
        if !grows || of("_sum").len() != 1 || last.map(|last| last.value) != count || count.is_none() {
            return Err(format!("the histogram {family} is not one: {buckets:?}"));
        }
    }
    Ok(())
}

#[test]
fn what_is_not_openmetrics_is_found() {
    let good = "# HELP a_seconds x.\n# TYPE a_seconds gauge\n# UNIT a_seconds seconds\na_seconds{b=\"c\"} 1.5\n# EOF\n";
    assert_eq!(parse(good).unwrap().sum("a_seconds", &[("b", "c")]), Some(1.5));
    for (what, from, to) in [
        ("no end", "# EOF\n", ""),
        ("no help", "# HELP a_seconds x.\n", ""),
        ("no type", "# TYPE a_seconds gauge\n", ""),
        ("a counter without _total", "gauge", "counter"),
        ("another unit", "UNIT a_seconds seconds", "UNIT a_seconds bytes"),
        ("a value that is none", "1.5", "much"),
        ("a label that is none", "b=\"c\"", "B=\"c\""),
        ("a series twice", "a_seconds{b=\"c\"} 1.5\n", "a_seconds{b=\"c\"} 1.5\na_seconds{b=\"c\"} 2\n"),
        ("a name of another family", "a_seconds{b=\"c\"}", "c_seconds{b=\"c\"}"),
    ] {
        let bad = good.replace(from, to);
        assert!(bad != good && parse(&bad).is_err(), "{what}: {bad}");
    }
}
