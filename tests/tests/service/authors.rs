//! The way of docs/authors.md in Python and JavaScript: a new project, built, tested, pushed, bound, choosing shards over
//! HTTP. Tools that are not installed are skipped in plain sight; `make -C plugins tools` installs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use quipu_tests::server::quipu;
use quipu_tests::{Server, until};

/// Where `make -C plugins tools` puts a tool: the folder of any version, since a project names its own.
fn tool(prefix: &str, program: &str) -> Option<PathBuf> {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/quipu-tools");
    let tools = std::env::var_os("QUIPU_TOOLS_DIR").map_or_else(home, PathBuf::from);
    let found = std::fs::read_dir(&tools).ok().and_then(|entries| {
        let matching = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        entries
            .flatten()
            .map(|entry| entry.path())
            .filter(matching)
            .map(|path| path.join(program))
            .find(|it| it.exists())
    });
    if found.is_none() {
        println!("skipped: {program} is not in {}, so no such project is pushed", tools.display());
    }
    found
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn run(program: &Path, dir: &Path, args: &[&str]) {
    let ran = Command::new(program).args(args).current_dir(dir).output().expect("it starts");
    assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// What an author does after the build, with a policy that takes the candidates in turn.
fn from_push_to_choice(component: &Path) {
    let tested = quipu(&["plugin", "test", text(component)]);
    assert_eq!(tested.code, 0, "{tested:?}");
    let server = Server::start();
    for args in [
        &["plugin", "push", "even-share", text(component)][..],
        &["rule", "set", "likes/", "--selection", "even-share", "--selection-config", "50", "--spread", "6"],
    ] {
        let ran = server.quipu(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
    }
    // On a machine that is busy with other tests a call may miss its deadline, and the native choice answers instead.
    let (mut added, mut chosen) = (0, 0);
    until("the policy chose for 50 additions", || {
        added += 1;
        chosen += usize::from(server.add("likes/front-page", 1).expect(200).json()["policy"]["fallback"] == false);
        chosen == 50
    });
    assert_eq!(server.partials("likes/front-page").len(), 6, "it took the candidates in turn");
    assert_eq!(server.total("likes/front-page"), added);
    let refused = server.quipu(&["rule", "set", "x/", "--selection", "even-share", "--selection-config", "many"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("many"), "the guest's own words: {refused:?}");
}

fn new_project(dir: &Path, lang: &str) {
    let ran = quipu(&["plugin", "new", "even-share", "--lang", lang, "--dir", text(dir)]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn a_new_python_policy_chooses_shards() {
    let Some(componentize) = tool("componentize-py-", "bin/componentize-py") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    new_project(dir.path(), "python");
    let args = ["-d", "wit", "-w", "policy", "componentize", "--stub-wasi", "app", "-o", "policy.wasm"];
    run(&componentize, dir.path(), &args);
    from_push_to_choice(&dir.path().join("policy.wasm"));
}

#[test]
fn a_new_javascript_policy_chooses_shards() {
    let Some(componentize) = tool("componentize-qjs-", "node_modules/.bin/componentize-qjs") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    new_project(dir.path(), "js");
    let args =
        ["--sync", "--stub-wasi", "--wit", "wit", "--world", "policy", "--js", "policy.js", "--output", "policy.wasm"];
    run(&componentize, dir.path(), &args);
    from_push_to_choice(&dir.path().join("policy.wasm"));
}
