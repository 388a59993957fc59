//! Short connections of a process of their own. Those of this one would not do: a process that another test begins inherits
//! its sockets, and is whoever closes them if it runs its program last.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdout, Command, Stdio},
};

/// A process with a listener, to which it connects when it is told to.
pub(crate) struct Connecting {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) port: u16,
}

impl Connecting {
    pub(crate) fn start() -> Connecting {
        let mut command = Command::new("python3");
        command.args(["-c", include_str!("connecting.py")]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().unwrap().unwrap().parse().unwrap();
        Connecting { child, lines, port }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes so many connections, and returns when they are over.
    pub(crate) fn connect(&mut self, count: usize) {
        self.order(&format!("here {count}"));
    }

    /// The same, each by a thread that ends at once. The first of these was there from the beginning.
    pub(crate) fn connect_by_threads(&mut self, count: usize) {
        self.order(&format!("threads {count}"));
    }

    fn order(&mut self, order: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{order}").unwrap();
        assert_eq!(self.lines.next().unwrap().unwrap(), "done");
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
