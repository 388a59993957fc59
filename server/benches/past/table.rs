//! All figures of a run in one table.

/// Lines in the order of their measuring.
#[derive(Default)]
pub(crate) struct Table(Vec<[String; 4]>);

impl Table {
    /// A figure that stands by itself.
    pub(crate) fn figure(&mut self, what: &str, measured: String) {
        self.line([what.to_owned(), measured, String::new(), String::new()]);
    }

    /// A figure beside another one of the same run, and what part of it the first is.
    pub(crate) fn beside(&mut self, what: &str, measured: (f64, &str), beside: (&str, f64)) {
        let (figure, unit) = measured;
        let (name, other) = beside;
        let ratio = figure / other;
        let ratio = if ratio < 0.01 { format!("1/{:.0}", 1.0 / ratio) } else { format!("{ratio:.2}") };
        self.line([
            what.to_owned(),
            format!("{} {unit}", digits(figure)),
            format!("{name}: {} {unit}", digits(other)),
            ratio,
        ]);
    }

    pub(crate) fn line(&mut self, line: [String; 4]) {
        eprintln!("{}", line.join(" | "));
        self.0.push(line);
    }

    pub(crate) fn print(&self) {
        println!("\n| what | measured | beside | ratio |\n|---|---|---|---|");
        self.0.iter().for_each(|line| println!("| {} |", line.join(" | ")));
    }
}

/// Three digits are enough.
pub(crate) fn digits(figure: f64) -> String {
    match figure.abs() {
        large if large >= 100.0 => format!("{figure:.0}"),
        medium if medium >= 1.0 => format!("{figure:.1}"),
        _ => format!("{figure:.3}"),
    }
}

/// The middle of some figures, and what 99 of 100 are below.
pub(crate) fn p50_p99(mut figures: Vec<f64>) -> (f64, f64) {
    figures.sort_by(f64::total_cmp);
    let at = |part: f64| figures[((figures.len() - 1) as f64 * part).round() as usize];
    (at(0.5), at(0.99))
}

/// The middle of some figures.
pub(crate) fn median(figures: Vec<f64>) -> f64 {
    p50_p99(figures).0
}
