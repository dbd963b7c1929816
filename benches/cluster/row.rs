//! Figures in words: percentiles, and one row of the table.

use std::time::Duration;

/// One row of the table.
pub struct Row {
    /// Which budget.
    pub name: &'static str,
    /// What was measured.
    pub what: String,
    /// What Troupe needed.
    pub troupe: String,
    /// What the bare limit or a peer needed in the same run.
    pub beside: String,
    /// What it has to be.
    pub budget: String,
    /// Whether it is.
    pub met: bool,
}

impl Row {
    /// As a line of Markdown.
    pub fn print(&self) {
        let Row { name, what, troupe, beside, budget, met } = self;
        let met = if *met { "yes" } else { "**no**" };
        println!("| {name} | {what} | {troupe} | {beside} | {budget} | {met} |");
    }
}

/// The head of the table that rows belong to, and where it was made.
pub fn print_header() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    eprintln!("{cores} cores, load before: {}", load.split(' ').take(3).collect::<Vec<_>>().join(" "));
    println!("| row | what | Troupe | beside, same run | budget | met |");
    println!("|---|---|---|---|---|---|");
}

/// Durations of one thing, measured again and again.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// One more.
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The time within which this share of all was done: 0.5 is the median.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        let at = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(at.saturating_sub(1).min(last)).copied().unwrap_or_default()
    }

    /// The median.
    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// The mean: of few, a ratio of means moves less than one of medians.
    pub fn mean(&self) -> Duration {
        let count = u32::try_from(self.len()).unwrap_or(u32::MAX).max(1);
        self.0.iter().sum::<Duration>() / count
    }

    /// `p50 12.3 ms, p99 45.6 ms (n=100)`; of few, the largest instead of a percentile that is none.
    pub fn text(&self) -> String {
        let (worst, at) = if self.len() >= 100 { ("p99", 0.99) } else { ("max", 1.0) };
        format!("p50 {}, {worst} {} (n={})", ms(self.median()), ms(self.quantile(at)), self.len())
    }
}

impl Extend<Duration> for Times {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, times: I) {
        self.0.extend(times);
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Times {
        Times(times.into_iter().collect())
    }
}

/// `12.3 ms`, `1.23 s`.
pub fn ms(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    if millis >= 1000.0 { format!("{:.2} s", millis / 1000.0) } else { format!("{millis:.1} ms") }
}

/// `12.3 MiB` of KiB.
pub fn mib(kib: f64) -> String {
    format!("{:.1} MiB", kib / 1024.0)
}
