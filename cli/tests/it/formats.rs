//! What each format writes, letter by letter, and the names that are a contract.

mod past;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use fleetctl::{
    clock::Clock,
    console::Paint,
    record::{Record, View, period::Period},
    render::{self, Format, Headers, Meta, Selection, Style, sorting::Sorting},
};
use fleetsock_proto::{
    answer::{AnswerMeta, Cover, Gap, GapReason},
    audit::AuditRow,
    host::{BootId, Host, HostFacts, HostId, HostState, Tier, Warning},
    listener::Listener,
    owner::Owner,
    session::{OtherEnd, Session},
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketState},
    tcp::TcpCounts,
    time::Timestamp,
    token::{Operator, OperatorCertificate, Role},
};
use jiff::tz::TimeZone;

/// 2026-11-24T10:03:11.123Z.
fn now() -> Timestamp {
    Timestamp::from_micros(1_795_514_591_123_456)
}

fn ago(seconds: u64) -> Timestamp {
    now().minus(Duration::from_secs(seconds))
}

fn owner(pid: u32, process: &str) -> Owner {
    Owner {
        pid,
        started_at: Some(ago(7_500)),
        process: process.to_owned(),
        exe: format!("/usr/sbin/{process}"),
        uid: 33,
        user: "www-data".to_owned(),
        container: String::new(),
        unit: format!("{process}.service"),
        command_line: String::new(),
    }
}

fn listener(host: &str, port: u16) -> Listener {
    Listener {
        host_id: HostId::from_array([1; 16]),
        host: host.to_owned(),
        host_state: HostState::Online,
        protocol: Protocol::Tcp,
        family: Family::Ipv4,
        address: IpAddr::from([0, 0, 0, 0]).into(),
        port,
        netns: 4_026_531_840,
        netns_name: String::new(),
        owner_known: OwnerKnown::Exact,
        owners: vec![owner(812, "nginx"), owner(813, "nginx")],
        opened_at: ago(7_500),
        opened_known: Known::Event,
        closed: None,
    }
}

/// A plain row, one of a stale host with a hostile process name and an IPv6 address, one without owner or name.
fn listeners() -> Vec<Listener> {
    let plain = listener("web1", 443);
    let hostile = Listener {
        host_state: HostState::Stale,
        family: Family::Dual,
        address: "2001:db8:1:2:3:4:5:6".parse::<IpAddr>().unwrap().into(),
        owners: vec![Owner {
            container: "3f2a9c01d4e5".to_owned(),
            user: String::new(),
            ..owner(7, "a\u{1b}[31m,\"b|\u{202e}")
        }],
        opened_known: Known::FirstSeen,
        ..listener("web3", 8080)
    };
    let nameless = Listener {
        protocol: Protocol::Udp,
        address: IpAddr::from([127, 0, 0, 1]).into(),
        owners: Vec::new(),
        owner_known: OwnerKnown::Denied,
        opened_at: ago(200),
        opened_known: Known::BetweenWalks,
        ..listener("web1", 61_001)
    };
    vec![plain, hostile, nameless]
}

fn session() -> Session {
    Session {
        host_id: HostId::from_array([1; 16]),
        host: "db1".to_owned(),
        host_state: HostState::Online,
        protocol: Protocol::Tcp,
        family: Family::Ipv4,
        direction: Direction::In,
        local: "10.0.0.2:5432".parse().unwrap(),
        peer: "10.0.0.7:41000".parse().unwrap(),
        peer_host: "web1".to_owned(),
        state: SocketState::Established,
        netns: 4_026_531_840,
        netns_name: String::new(),
        owner_known: OwnerKnown::Listener,
        owners: vec![owner(99, "postgres")],
        opened_at: ago(600),
        opened_known: Known::Event,
        closed: None,
        bytes_sent: 0,
        bytes_received: 1_200,
        other_end: Some(Box::new(OtherEnd {
            host_id: HostId::from_array([2; 16]),
            host: "web1".to_owned(),
            netns: 4_026_531_840,
            owner_known: OwnerKnown::Exact,
            owner: Some(owner(4_711, "gunicorn")),
        })),
    }
}

fn sessions() -> Vec<Session> {
    let short = Session {
        direction: Direction::Out,
        local: "[2001:db8::1]:50000".parse().unwrap(),
        peer: "[2001:db8::2]:443".parse().unwrap(),
        peer_host: String::new(),
        owner_known: OwnerKnown::Unknown,
        owners: Vec::new(),
        opened_known: Known::BetweenWalks,
        opened_at: ago(60),
        closed: Some((ago(57), Known::BetweenWalks)),
        other_end: None,
        ..session()
    };
    let lost = Session {
        opened_known: Known::FirstSeen,
        opened_at: ago(90_000),
        closed: Some((ago(3_600), Known::Lost)),
        owner_known: OwnerKnown::Closer,
        ..session()
    };
    vec![session(), short, lost]
}

fn host() -> Host {
    Host {
        host_id: HostId::from_array([1; 16]),
        name: "web1".to_owned(),
        state: HostState::Online,
        last_seen_at: Some(ago(4)),
        enrolled_at: Some(ago(90_000)),
        facts: Some(HostFacts {
            name: "web1".to_owned(),
            os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
            kernel: "6.1.0".to_owned(),
            arch: "x86_64".to_owned(),
            boot_id: BootId::from_array([2; 16]),
            addresses: vec!["10.0.0.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            ephemeral_ports: Some("32768-60999".parse().unwrap()),
            agent_version: "0.1.0".to_owned(),
            tier: Tier::T1,
            tier_reason: "no CAP_PERFMON".to_owned(),
            netns: 4_026_531_840,
        }),
        labels: BTreeMap::from([("site".to_owned(), "berlin".to_owned())]),
        listeners: 12,
        sessions_open: 340,
        losses: 0,
        agent_cpu_millipercent: 250,
        agent_rss_bytes: 9 << 20,
        clock_offset_us: -1_500,
        warning: None,
        tcp_counts: Some(TcpCounts { time_wait: 1_204, syn_received: 3, bound: None }),
        proved_at: Some(ago(120)),
    }
}

fn meta() -> AnswerMeta {
    AnswerMeta {
        as_of: now(),
        since: Some(ago(600)),
        hosts_total: 2,
        hosts_stale: vec!["web3".to_owned()],
        hosts_stale_total: 1,
        stale_after: Duration::from_secs(90),
        gaps: vec![Gap {
            host: "web3".to_owned(),
            host_id: HostId::from_array([3; 16]),
            since: ago(100),
            until: None,
            reason: GapReason::AgentDown,
            batches_lost: 0,
        }],
        gaps_total: 1,
        ..AnswerMeta::default()
    }
}

fn view(format: Format) -> View {
    View { clock: Clock::at(now(), TimeZone::UTC), times: format.times(), until: now() }
}

fn written<T: Record>(format: Format, columns: &[&str], headers: Headers, rows: &[T]) -> String {
    let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
    let style = Style { format, headers, paint: Paint::Plain, on_terminal: false };
    let selection = Selection::new(&columns, format, &[]).unwrap();
    let mut renderer = render::renderer(&style, selection, view(format)).unwrap();
    let mut out = Vec::new();
    // In two chunks, as they may arrive.
    let (first, second) = rows.split_at(rows.len().min(1));
    renderer.rows(first, &mut out).unwrap();
    renderer.rows(second, &mut out).unwrap();
    renderer.finish(&Meta::of_answer(&meta()), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Compares with a file in `expected/`; with UPDATE_EXPECTED set, writes it instead, to be read and committed.
fn check<T: Record>(format: Format, columns: &[&str], rows: &[T], file: &str) {
    let written = written(format, columns, Headers::Shown, rows);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/expected").join(file);
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(path, written).unwrap();
        return;
    }
    assert_eq!(written, std::fs::read_to_string(path).unwrap(), "{format:?} wrote:\n{written}");
}

#[test]
fn ports_as_a_table() {
    check(Format::Table, &[], &listeners(), "ports.txt");
    check(Format::Wide, &[], &listeners(), "ports-wide.txt");
}

#[test]
fn sessions_as_a_table() {
    check(Format::Table, &[], &sessions(), "sessions.txt");
    check(Format::Wide, &[], &sessions(), "sessions-wide.txt");
}

#[test]
fn hosts_as_a_table() {
    check(Format::Table, &[], &[host()], "hosts.txt");
    check(Format::Wide, &[], &[host()], "hosts-wide.txt");
}

fn warned() -> Host {
    let text = "a second machine uses its identity, from 10.0.0.9".to_owned();
    Host { name: "web2".to_owned(), warning: Some(Warning { text, at: ago(30) }), ..host() }
}

#[test]
fn a_host_that_somebody_should_look_at_has_a_mark_and_a_wide_table_says_why() {
    let table = written(Format::Table, &["host", "state"], Headers::Hidden, &[host(), warned()]);
    assert_eq!(table, "web1  online\nweb2  online !\n");
    assert_eq!(host().marks().legend(), None);
    assert!(warned().marks().legend().unwrap().contains("! somebody should look at it"));
    let wide = written(Format::Wide, &["warning"], Headers::Hidden, &[warned()]);
    assert_eq!(wide, "a second machine uses its identity, from 10.0.0.9 (2026-11-24 10:02:41.123)\n");
    let json = written(Format::Jsonl, &["warning", "warned_at"], Headers::Shown, &[warned()]);
    assert_eq!(
        json,
        "{\"warning\":\"a second machine uses its identity, from 10.0.0.9\",\"warned_at\":\"2026-11-24T10:02:41.123Z\"}\n"
    );
}

#[test]
fn the_audit_log_and_operators_as_tables_and_for_machines() {
    let row = |number, actor: &str, action: &str, detail: &str, rows| AuditRow {
        number,
        at: ago(60),
        actor: actor.to_owned(),
        address: if actor == "local" { String::new() } else { "10.0.0.9".to_owned() },
        action: action.to_owned(),
        detail: detail.to_owned(),
        rows,
        hash: [0xab; 32],
    };
    let rows = [
        row(8, "operator/viewer/alice", "list ports", "--host web*", Some(412)),
        row(7, "local", "revoke host", "web3: stolen\u{1b}[31m", None),
    ];
    check(Format::Table, &[], &rows, "audit.txt");
    check(Format::Jsonl, &[], &rows, "audit.jsonl");
    let certificate = |name: &str, role, revoked_at| OperatorCertificate {
        operator: Operator::new(name, role).unwrap(),
        serial: vec![0x40, 1, 2],
        issued_at: ago(90_000),
        expires_at: now().plus(Duration::from_secs(86_400 * 3)),
        revoked_at,
    };
    let certificates = [certificate("alice", Role::Admin, None), certificate("bob", Role::Viewer, Some(ago(5)))];
    check(Format::Table, &[], &certificates, "operators.txt");
    check(Format::Jsonl, &[], &certificates, "operators.jsonl");
}

fn periods() -> Vec<Period> {
    let period = |since, until, reason: Option<GapReason>, batches_lost| Period {
        host: "web1".to_owned(),
        host_id: HostId::from_array([1; 16]),
        since: ago(since),
        until: ago(until),
        cover: reason.map_or(Cover::Observed, GapReason::cover),
        reason,
        batches_lost,
    };
    vec![
        period(90_000, 7_200, Some(GapReason::Expired), 0),
        period(7_200, 600, None, 0),
        period(600, 590, Some(GapReason::KernelLoss), 0),
        period(590, 0, Some(GapReason::SpoolFull), 12),
    ]
}

#[test]
fn periods_of_coverage_as_a_table_and_for_machines() {
    check(Format::Table, &[], &periods(), "coverage.txt");
    check(Format::Wide, &[], &periods(), "coverage-wide.txt");
    check(Format::Jsonl, &[], &periods(), "coverage.jsonl");
    check(Format::Csv, &[], &periods(), "coverage.csv");
    check_names::<Period>("host host_id since until cover reason duration_ms batches_lost");
}

#[test]
fn ports_for_machines() {
    // Hostile names have tests of their own; a file that holds them would harm whoever reads it.
    let rows = [listeners().swap_remove(0), listeners().swap_remove(2)];
    check(Format::Json, &[], &rows, "ports.json");
    check(Format::Jsonl, &[], &rows, "ports.jsonl");
    check(Format::Csv, &[], &rows, "ports.csv");
    check(Format::Yaml, &["host", "port", "process", "owners"], &rows, "ports.yaml");
}

#[test]
fn sessions_and_hosts_for_machines() {
    check(Format::Json, &[], &sessions(), "sessions.json");
    check(Format::Json, &[], &[host()], "hosts.json");
    check(Format::Csv, &[], &[host()], "hosts.csv");
}

#[test]
fn yaml_says_what_json_says_whatever_names_processes_have() {
    let json: serde_json::Value =
        serde_json::from_str(&written(Format::Json, &[], Headers::Shown, &listeners())).unwrap();
    let yaml: serde_json::Value =
        serde_saphyr::from_str(&written(Format::Yaml, &[], Headers::Shown, &listeners())).unwrap();
    assert_eq!(yaml, json);
    let lines = written(Format::Jsonl, &[], Headers::Shown, &listeners());
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json["items"], serde_json::Value::from(lines));
}

#[test]
fn ports_for_documents_and_loops() {
    let columns = ["host", "port", "process"];
    assert_eq!(
        written(Format::Markdown, &columns, Headers::Shown, &listeners()),
        "| HOST | PORT | PROCESS |\n| --- | ---: | --- |\n| web1 | 443 | nginx[812] +1 |\n\
         | web3 (stale) | 8080 | a\\\\u{1b}[31m,\"b\\|\\\\u{202e}[7] |\n| web1 | 61001 | (denied) |\n",
    );
    assert_eq!(
        written(Format::Tsv, &["host", "port"], Headers::Shown, &listeners()),
        "host\tport\nweb1\t443\nweb3\t8080\nweb1\t61001\n"
    );
    assert_eq!(
        written(Format::Name, &[], Headers::Shown, &listeners()),
        "web1/tcp/0.0.0.0:443\nweb3/tcp/[2001:db8:1:2:3:4:5:6]:8080\nweb1/udp/127.0.0.1:61001\n",
    );
}

#[test]
fn an_empty_answer_has_the_shape_of_its_format() {
    let none: [Listener; 0] = [];
    let object = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let json = object(written(Format::Json, &[], Headers::Shown, &none));
    assert_eq!(json["items"], serde_json::json!([]));
    assert_eq!(json["meta"]["hosts_total"], 2);
    assert_eq!(written(Format::Csv, &["host", "port"], Headers::Shown, &none), "host,port\n");
    assert!(written(Format::Yaml, &[], Headers::Shown, &none).starts_with("items: []\nmeta:\n"));
    for format in [Format::Table, Format::Jsonl, Format::Name, Format::Markdown] {
        assert_eq!(written(format, &[], Headers::Shown, &none), "");
    }
}

#[test]
fn headers_are_left_out_when_asked() {
    assert_eq!(written(Format::Csv, &["port"], Headers::Hidden, &listeners()), "443\n8080\n61001\n");
    assert!(written(Format::Table, &["host"], Headers::Hidden, &listeners()).starts_with("web1"));
}

#[test]
fn a_column_stands_for_its_fields_in_machine_formats() {
    let text = written(Format::Csv, &["local", "where", "pid"], Headers::Shown, &sessions()[..1]);
    assert_eq!(text, "local_address,local_port,container,unit,netns_name,pid\n10.0.0.2,5432,,postgres.service,,99\n");
}

#[test]
fn raw_names_stay_raw_in_machine_formats() {
    let json = written(Format::Jsonl, &["process"], Headers::Shown, &listeners()[1..2]);
    let row: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(row["process"], "a\u{1b}[31m,\"b|\u{202e}");
    let csv = written(Format::Csv, &["process"], Headers::Hidden, &listeners()[1..2]);
    assert_eq!(csv, "\"a\u{1b}[31m,\"\"b|\u{202e}\"\n");
}

#[test]
fn rows_are_sorted_by_value_and_not_by_letters() {
    let sorted = |keys: &[&str]| {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let rows = Sorting::<Listener>::parse(&keys).unwrap().unwrap().sort(listeners(), &view(Format::Table));
        rows.iter().map(|row| row.port).collect::<Vec<_>>()
    };
    assert_eq!(sorted(&["port"]), [443, 8080, 61_001]);
    assert_eq!(sorted(&["-port"]), [61_001, 8080, 443]);
    assert_eq!(sorted(&["host", "-port"]), [61_001, 443, 8080]);
    assert_eq!(sorted(&["address"]), [443, 61_001, 8080], "0.0.0.0, 127.0.0.1, then IPv6");
    assert_eq!(sorted(&["-pid"]), [443, 8080, 61_001], "what is not known comes last");
    assert!(Sorting::<Listener>::parse(&[]).unwrap().is_none());
}

/// The names of the contract: adding is allowed, renaming is not.
fn check_names<T: Record>(contract: &str) {
    let fields: Vec<&str> = T::fields().iter().map(|field| field.name).collect();
    let contract: Vec<&str> = contract.split_whitespace().collect();
    assert_eq!(fields[..contract.len()], contract);
    for column in T::columns() {
        assert!(column.fields.iter().all(|name| fields.contains(name)), "{}: {:?}", column.name, column.fields);
    }
}

#[test]
fn fields_keep_their_names() {
    check_names::<Host>(
        "host host_id state last_seen_at os kernel arch boot_id addresses agent_version tier tier_reason labels \
         listeners sessions_open losses agent_cpu_percent agent_rss_bytes",
    );
    check_names::<Listener>(
        "host host_id protocol family address port class service service_source scope netns pid process exe user \
         owners owner_known container unit opened_at opened_known closed_at",
    );
    check_names::<Session>(
        "host host_id protocol family direction local_address local_port peer_address peer_port peer_host \
         peer_process service class state netns pid process exe user owner_known container unit opened_at \
         opened_known closed_at closed_known duration_ms bytes_sent bytes_received",
    );
    check_names::<AuditRow>("number at actor address action detail rows hash");
    check_names::<OperatorCertificate>("operator role state issued_at expires_at revoked_at serial");
    let none: [Listener; 0] = [];
    let json: serde_json::Value = serde_json::from_str(&written(Format::Json, &[], Headers::Shown, &none)).unwrap();
    let names: Vec<&str> = json["meta"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names[..7], ["as_of", "since", "until", "hosts_total", "hosts_stale", "gaps", "truncated"]);
}
