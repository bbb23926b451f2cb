//! Precedence, ranges, and that everything wrong is told together.

use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

fn resolve(flags: &[&str], environment: &[(&str, &str)]) -> Result<Settings, Invalid> {
    let cli = Cli::try_parse_from(["quipu", "serve"].iter().chain(flags)).unwrap_or_else(|e| panic!("{e}"));
    let Command::Serve(args) = cli.command else { panic!("not serve") };
    Settings::resolve(&args, &environment.iter().copied().collect())
}

fn valid(flags: &[&str], environment: &[(&str, &str)]) -> Settings {
    resolve(flags, environment).unwrap_or_else(|e| panic!("{e}"))
}

fn problems(flags: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
    resolve(flags, environment).expect_err("something is wrong").problems().to_vec()
}

fn file(content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), content).expect("written");
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("UTF-8")
}

#[test]
fn nothing_needs_to_be_set() {
    let settings = valid(&[], &[("HOME", "/home/ana")]);
    assert_eq!(settings.listen, "0.0.0.0:8080".parse().expect("an address"));
    assert_eq!(settings.data_dir, PathBuf::from("./quipu-data"));
    assert_eq!(settings.cache_dir, PathBuf::from("/home/ana/.cache/quipu"));
    assert_eq!((settings.shards, settings.policies, settings.resident_counters), (12, true, 4_000_000));
    assert_eq!(settings.idempotency_window, Duration::from_secs(86_400));
    assert_eq!(settings.plugin_bytes_max, 64 << 20);
    assert_eq!(settings.drain_timeout, Duration::from_secs(20));
    assert!(settings.workers >= 1 && !settings.node_id.is_empty());
    assert_eq!((settings.admin_token, settings.compat_shard_listen), (None, None));
}

#[test]
fn flags_beat_environment_beats_file_beats_default() {
    let file = file("shards = 3\nworkers = 3\nlog = \"debug\"\npolicies = false\n");
    let environment = [("QUIPU_CONFIG", path(&file)), ("QUIPU_SHARDS", "4"), ("QUIPU_WORKERS", "4")];
    let settings = valid(&["--shards", "5"], &environment);
    assert_eq!((settings.shards, settings.workers), (5, 4));
    assert_eq!((settings.log.as_str(), settings.policies), ("debug", false));
    assert_eq!(settings.data_dir, PathBuf::from("./quipu-data"));
}

#[test]
fn the_largest_plugin_is_given_in_mib() {
    assert_eq!(valid(&["--plugin-size-mib", "256"], &[]).plugin_bytes_max, 256 << 20);
    for wrong in ["0", "257", "64MiB"] {
        let problems = problems(&["--plugin-size-mib", wrong], &[]);
        assert!(problems[0].contains("plugin-size-mib"), "{problems:?}");
    }
}

#[test]
fn port_is_honoured_unless_listen_was_given_more_directly() {
    let file = file("listen = \"127.0.0.1:1000\"");
    let config = ["--config", path(&file)];
    let listen = |flags: &[&str], environment: &[(&str, &str)]| valid(flags, environment).listen.to_string();
    assert_eq!(listen(&[], &[("PORT", "9000")]), "0.0.0.0:9000");
    assert_eq!(listen(&config, &[("PORT", "9000")]), "127.0.0.1:9000");
    assert_eq!(listen(&config, &[]), "127.0.0.1:1000");
    assert_eq!(listen(&[], &[("PORT", "9000"), ("QUIPU_LISTEN", "127.0.0.1:2000")]), "127.0.0.1:2000");
    assert_eq!(listen(&["--listen", "127.0.0.1:0"], &[("PORT", "9000")]), "127.0.0.1:0");
    assert_eq!(listen(&["--listen", "localhost:80"], &[]), "127.0.0.1:80");
    assert!(problems(&[], &[("PORT", "tcp://10.0.0.1:80")])[0].starts_with("PORT=tcp://10.0.0.1:80: must be"));
}

#[test]
fn everything_wrong_is_named_together() {
    let file = file("shard = 3\nworkers = [1]\nfrobnicate = 1\n");
    let flags = [
        "--config",
        path(&file),
        "--shards",
        "0",
        "--listen",
        "nowhere",
        "--idempotency-window",
        "24",
        "--log",
        "a=b=c",
    ];
    let environment = [
        ("QUIPU_POLICIES", "maybe"),
        ("QUIPU_NODE_ID", "a b"),
        ("QUIPU_DRAIN_TIMEOUT", "11m"),
        ("QUIPU_ADMIN_TOKEN", "two words"),
        ("QUIPU_RESIDENT_COUNTERS", "-1"),
    ];
    let error = resolve(&flags, &environment).expect_err("wrong");
    let text = error.to_string();
    for expected in [
        "12 settings are wrong:\n",
        "shard in ",
        "did you mean shards?",
        "frobnicate in ",
        "workers = [1] in ",
        "--shards 0: must be an integer from 1 to 4096",
        "--listen nowhere: must be HOST:PORT",
        "--idempotency-window 24: must be a whole number with its unit",
        "--log a=b=c: must be a level",
        "QUIPU_POLICIES=maybe: must be on or off",
        "QUIPU_NODE_ID=a b: must be 1 to 63",
        "QUIPU_DRAIN_TIMEOUT=11m: must be from 0s to 10m",
        "QUIPU_ADMIN_TOKEN: must be",
        "QUIPU_RESIDENT_COUNTERS=-1: must be an integer from 1000",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    assert!(!text.contains("two words"), "a token is never shown: {text}");
}

#[test]
fn an_overridden_value_is_not_checked() {
    assert_eq!(valid(&["--shards", "3"], &[("QUIPU_SHARDS", "none")]).shards, 3);
}

#[test]
fn a_file_that_is_not_there_or_not_toml_is_one_problem() {
    assert!(problems(&["--config", "/nonexistent/quipu.toml"], &[])[0].starts_with("config /nonexistent/quipu.toml: "));
    let file = file("shards = \n");
    let found = problems(&["--config", path(&file)], &[]);
    assert!(found.len() == 1 && found[0].contains("line 1"), "{found:?}");
}

#[test]
fn foreign_variables_do_not_matter() {
    let environment = [
        ("ETCD_ENDPOINTS", "http://etcd:2379"),
        ("SERVICE_TYPE", "shard"),
        ("POD_IP", "10.0.0.7"),
        ("QUIPU_SERVICE_HOST", "10.0.0.1"),
        ("QUIPU_PORT", "tcp://10.0.0.1:80"),
        ("QUIPU_SHARDS", ""),
        ("HOME", "/root"),
    ];
    assert_eq!(valid(&[], &environment), valid(&[], &[("HOME", "/root")]));
}

#[test]
fn the_token_comes_from_the_higher_source() {
    let token = file("  from-file\n");
    let settings = valid(&["--admin-token-file", path(&token)], &[("QUIPU_ADMIN_TOKEN", "from-environment")]);
    assert_eq!(settings.admin_token.as_ref().map(Secret::expose), Some("from-file"));
    let settings = valid(&["--admin-token", "from-flag"], &[("QUIPU_ADMIN_TOKEN_FILE", path(&token))]);
    assert_eq!(settings.admin_token.as_ref().map(Secret::expose), Some("from-flag"));
    assert!(!format!("{settings:?}").contains("from-flag"));
    let both = problems(&["--admin-token", "t", "--admin-token-file", path(&token)], &[]);
    assert_eq!(both, ["admin-token and admin-token-file: give one of them, not both"]);
    let empty = file("\n");
    assert!(problems(&["--admin-token-file", path(&empty)], &[])[0].contains("its content must be 1 to 512"));
}

#[test]
fn ports_of_shards_must_fit_and_not_meet_the_main_one() {
    let demo = ["--shards", "3", "--listen", "127.0.0.1:4000", "--compat-shard-listen", "127.0.0.1:3000"];
    assert_eq!(valid(&demo, &[]).compat_shard_listen, Some("127.0.0.1:3000".parse().expect("an address")));
    let meeting = ["--shards", "3", "--listen", "0.0.0.0:3002", "--compat-shard-listen", "127.0.0.1:3000"];
    assert!(problems(&meeting, &[])[0].contains("its ports 3000-3002 include that of listen"));
    let beyond = ["--shards", "3", "--compat-shard-listen", "127.0.0.1:65534"];
    assert!(problems(&beyond, &[])[0].contains("would need port 65536"));
    let free = ["--shards", "3", "--listen", "127.0.0.1:0", "--compat-shard-listen", "127.0.0.1:0"];
    assert_eq!(valid(&free, &[]).compat_shard_listen.map(|a| a.port()), Some(0));
}

#[test]
fn times_have_units() {
    for (text, millis) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("0s", 0), ("1 m", 60_000)] {
        let settings = valid(&["--drain-timeout", text], &[]);
        assert_eq!(settings.drain_timeout, Duration::from_millis(millis), "{text}");
    }
    for text in ["", "5", "s", "1.5s", "-1s", "5w", "99999999999999999999s", "18446744073709551615d"] {
        let problem = &problems(&[&format!("--drain-timeout={text}")], &[])[0];
        assert!(problem.contains("whole number with its unit"), "{text}: {problem}");
    }
}
