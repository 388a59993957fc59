//! What the dashboard and the README name is in a scrape of a real server with real agents.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use crate::{fleet::Fleet, network::until, program::Ran};

#[path = "../../../server/tests/it/exposition.rs"]
mod exposition;

/// Asks the admin port of the server, on its own host.
fn get(fleet: &Fleet, path: &str) -> String {
    let script = format!(
        "import urllib.request, urllib.error\ntry:\n    print(urllib.request.urlopen('http://127.0.0.1:5291{path}', \
         timeout=30).read().decode(), end='')\nexcept urllib.error.HTTPError as error:\n    print(error.code, \
         error.read().decode(), end='')"
    );
    let ran = Ran::from(fleet.network.command("server", "python3").args(["-c", &script]).output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.err);
    ran.out
}

/// The names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    text.split(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_')
        .filter(|word| word.starts_with("fleetsock_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// Every expression of the dashboard.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// The part of the README about watching.
fn section() -> String {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (_, rest) = readme.split_once("## Watching the server\n").expect("there is such a section");
    rest.split_once("\n## ").map_or(rest, |(section, _)| section).to_owned()
}

#[test]
fn every_metric_that_the_dashboard_and_the_readme_name_is_in_a_scrape_of_a_real_server() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
    assert_eq!(get(&fleet, "/livez"), "alive\n");
    assert_eq!(get(&fleet, "/readyz"), "ready\n");
    let scrape = |fleet: &Fleet| {
        let text = get(fleet, "/metrics");
        exposition::parse(&text).unwrap_or_else(|problem| panic!("{problem}\n{text}"))
    };
    let found = until("the agent told what it costs", || {
        let found = scrape(&fleet);
        (found.sum("fleetsock_agents_resident_bytes", &[]) > Some(0.0)).then_some(found)
    });
    assert_eq!(found.sum("fleetsock_agents_connected", &[]), Some(1.0));
    assert_eq!(found.sum("fleetsock_hosts", &[("state", "online")]), Some(1.0));
    assert!(found.sum("fleetsock_batches_total", &[("result", "committed")]) >= Some(1.0));
    assert!(found.sum("fleetsock_history_rows_total", &[]) >= Some(1.0));
    assert!(!get(&fleet, "/metrics").contains("web1"), "no host is named");

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana/fleetsock-server.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let expressions = expressions(&dashboard);
    assert!(expressions.len() >= 24, "{expressions:?}");
    let names = found.names();
    for text in expressions.iter().map(String::as_str).chain([section().as_str()]) {
        for metric in metrics(text) {
            assert!(names.contains(metric.as_str()), "{metric} of `{text}` is not in a scrape");
        }
    }
    let shown: BTreeSet<String> = expressions.iter().flat_map(|text| metrics(text)).collect();
    let family = |name: &str| {
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        name.to_owned()
    };
    let shown: BTreeSet<String> = shown.iter().map(|name| family(name)).collect();
    // How many files there are is in the table of their sizes.
    let left_out: Vec<&&str> =
        names.iter().filter(|name| !shown.contains(&family(name)) && **name != "fleetsock_history_files").collect();
    assert!(left_out.is_empty(), "the dashboard does not show {left_out:?}");

    let doctor = fleet.ask(&["doctor"]);
    assert!(doctor.out.contains("it does its work (version "), "{doctor:?}");

    // The agent goes: it is counted as stale when it is.
    fleet.stop_agent("web1");
    until("it is counted as stale", || {
        (scrape(&fleet).sum("fleetsock_hosts", &[("state", "stale")]) == Some(1.0)).then_some(())
    });
}
