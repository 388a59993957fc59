//! What `fleetctl dev` shows when the fleet is up: the listening ports by class, and what to type next.

use std::{env, io::Write};

use fleetsock_proto::{host::Host, listener::Listener, port::PortClass};

use crate::{
    Invocation,
    console::Tone,
    contexts::ContextName,
    failure::Ended,
    record::{Record, Times, View},
    render::{self, Format, Headers, Meta, Selection, Style},
    sanitise::sanitise,
};

/// Columns that are the same in every row here.
const LEFT_OUT: [&str; 2] = ["host", "class"];

/// The listeners of a class.
pub(super) fn class(invocation: &mut Invocation, class: PortClass, ports: &[Listener]) -> Result<(), Ended> {
    let rows: Vec<Listener> = ports.iter().filter(|row| row.class() == class).cloned().collect();
    let heading = match class {
        PortClass::Portless => format!("sockets without a port: {}", rows.len()),
        _ => format!("{class} ports ({}): {}", class.range(), rows.len()),
    };
    let console = &mut invocation.console;
    writeln!(console.out, "\n{}", console.paint.tone(Tone::Heading, &heading))?;
    let clock = invocation.clock.clone();
    let view = View { until: clock.now(), clock, times: Times::Relative };
    let style = Style {
        format: Format::Table,
        headers: Headers::Shown,
        paint: console.paint,
        on_terminal: console.on_terminal,
    };
    let left_out = [&LEFT_OUT[..], &["since"]].concat();
    let mut table = render::renderer(&style, Selection::new(&[], Format::Table, &left_out)?, view)?;
    table.rows(&rows, &mut console.out)?;
    table.finish(&Meta::none(), &mut console.out)?;
    Ok(console.out.flush()?)
}

/// What can be asked now.
pub(super) fn next(invocation: &mut Invocation, host: &Host, context: Option<&ContextName>) -> Result<(), Ended> {
    let program = program();
    let context = context.map_or_else(String::new, |name| format!(" --context {name}"));
    let console = &mut invocation.console;
    writeln!(console.out, "\nA fleet of one host, {}, is up. In a second terminal:", sanitise(&Record::name(host)))?;
    for command in ["ports --class well-known", "sessions --since 10m", "hosts -o wide"] {
        writeln!(console.out, "  {program} {command}{context}")?;
    }
    if let Some(facts) = host.facts.as_ref().filter(|facts| !facts.tier_reason.is_empty()) {
        writeln!(console.out, "The agent runs at tier {}: {}", facts.tier, sanitise(&facts.tier_reason))?;
    }
    writeln!(console.out, "Ctrl-C ends it and cleans up.")?;
    Ok(console.out.flush()?)
}

/// How this program was called, so that it can be called so again.
fn program() -> String {
    env::args().next().filter(|name| name.contains('/')).unwrap_or_else(|| "fleetctl".to_owned())
}
