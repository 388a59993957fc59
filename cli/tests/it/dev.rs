//! What `fleetctl dev` stands on, as far as it needs neither server nor agent.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use crate::program::{Home, Ran};

#[test]
fn without_server_and_agent_it_says_what_to_build() {
    let home = Home::new();
    let alone = home.path().join("fleetctl");
    // Copied by another process: while a file is open for writing here, a fork of another test could keep it so.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_fleetctl")).arg(&alone).status().unwrap().success());
    let mut command = Command::new(&alone);
    let ran = Ran::from(command.arg("dev").env_clear().env("HOME", home.path()).env("PATH", "/none").output().unwrap());
    let expected = format!(
        "error: fleetsock-server is neither in {} nor in PATH\n  try: cargo build --release --locked\n",
        home.path().display()
    );
    assert_eq!((ran.code, ran.err), (1, expected));
    assert!(!home.path().join(".local").exists(), "nothing is left behind");
}

#[test]
fn a_child_ends_when_its_parent_is_killed() {
    // A shell stands for `fleetctl dev`; its child is `cat`, which would live as long as we keep its input open.
    let script = "\"$0\" --become-child-of $$ sh -c 'echo ready; exec cat'; true";
    let mut parent = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_fleetctl")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = parent.stdin.take().unwrap();
    let mut output = BufReader::new(parent.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    parent.kill().unwrap();
    parent.wait().unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "the output ends because the child did");
    drop(input);
}

#[test]
fn a_child_whose_parent_is_gone_does_not_begin() {
    let home = Home::new();
    let ran = home.run(&["--become-child-of", "1", "echo", "begun"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (1, "", "error: echo: fleetctl dev is gone\n"));
}
