//! Where words go: answers to standard output, everything about them to standard error.

use std::io::{self, BufWriter, IsTerminal, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};

use crate::{failure::Failure, sanitise::sanitise};

/// What a piece of text tells, for those who see colour; it is never the only sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// Above a column.
    Heading,
    /// Less certain, or less important.
    Faint,
    /// Worth a look.
    Warning,
    /// Wrong.
    Bad,
    /// As it should be.
    Good,
}

/// Whether escape sequences for colour are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// They are.
    Coloured,
    /// They are not.
    Plain,
}

impl Paint {
    fn of(choice: ColorChoice) -> Paint {
        if choice == ColorChoice::Never { Paint::Plain } else { Paint::Coloured }
    }

    /// `text` in a tone.
    pub fn tone(self, tone: Tone, text: &str) -> String {
        let mut toned = String::new();
        self.add(tone, text, &mut toned);
        toned
    }

    /// Adds `text` in a tone to a line.
    pub fn add(self, tone: Tone, text: &str, line: &mut String) {
        if self == Paint::Plain || tone == Tone::Plain {
            line.push_str(text);
            return;
        }
        let style = match tone {
            Tone::Plain => Style::new(),
            Tone::Heading => Style::new().bold(),
            Tone::Faint => Style::new().dimmed(),
            Tone::Warning => AnsiColor::Yellow.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Good => AnsiColor::Green.on_default(),
        };
        line.push_str(&format!("{style}{text}{style:#}"));
    }
}

/// Whether what is not asked for is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chatter {
    /// How fresh an answer is, what a mark means, what is being done.
    On,
    /// Errors only.
    Off,
}

/// Standard output and standard error.
pub struct Console {
    /// Standard output, buffered: flush it when somebody should read.
    pub out: BufWriter<io::StdoutLock<'static>>,
    /// Colour on standard output.
    pub paint: Paint,
    /// Whether standard output is a terminal.
    pub on_terminal: bool,
    notes: Paint,
    chatter: Chatter,
    /// Whether standard error is a terminal.
    notes_on_terminal: bool,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("paint", &self.paint).field("chatter", &self.chatter).finish_non_exhaustive()
    }
}

impl Console {
    /// The console of this process. `Auto` follows NO_COLOR, CLICOLOR_FORCE and whether it is a terminal.
    pub fn new(colour: ColorChoice, chatter: Chatter) -> Console {
        colour.write_global();
        let stdout = io::stdout();
        Console {
            paint: Paint::of(AutoStream::choice(&stdout)),
            on_terminal: stdout.is_terminal(),
            notes: Paint::of(AutoStream::choice(&io::stderr())),
            out: BufWriter::with_capacity(64 * 1024, stdout.lock()),
            chatter,
            notes_on_terminal: io::stderr().is_terminal(),
        }
    }

    /// Says something about an answer, unless `-q` was given.
    pub fn note(&self, text: &str) {
        if self.chatter == Chatter::On {
            tell(&self.notes.tone(Tone::Faint, &harmless(text)));
        }
    }

    /// Shows how far something is, in place of what was shown before; an empty text takes that away. For people only.
    pub fn progress(&self, text: &str) {
        if self.chatter == Chatter::On && self.notes_on_terminal {
            // Progress that cannot be shown is not missed.
            drop(write!(io::stderr(), "\r\u{1b}[K{}", sanitise(text)));
        }
    }

    /// Says what went wrong and what to type next.
    pub fn fail(&self, failure: &Failure, causes: Causes) {
        let label = self.notes.tone(Tone::Bad, "error:");
        tell(&format!("{label} {}", harmless(&failure.message)));
        if causes == Causes::Shown {
            for cause in &failure.causes {
                tell(&format!("  because: {}", harmless(cause)));
            }
        }
        if let Some(hint) = &failure.hint {
            tell(&format!("  {} {}", self.notes.tone(Tone::Good, "try:"), harmless(hint)));
        }
    }
}

/// Text that may hold names from elsewhere, line by line.
fn harmless(text: &str) -> String {
    text.split('\n').map(sanitise).collect::<Vec<_>>().join("\n")
}

/// Whether the causes beneath an error are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Causes {
    /// `-v`.
    Shown,
    /// Only the error itself.
    Hidden,
}

/// Writes a line to standard error.
pub fn tell(line: &str) {
    // It is the last place there is; when it is closed too, the exit code remains.
    drop(writeln!(io::stderr(), "{line}"));
}
