//! Columns as Go's `text/tabwriter` aligns them, on which kubectl's tables and descriptions rest.
//!
//! A cell ends with a tab; what follows a line's last tab is no cell and is never padded. A column is a run of
//! consecutive lines that have a cell there, and is as wide as its widest cell plus the padding.

use std::iter::repeat_n;

/// An aligner.
#[derive(Debug, Clone)]
pub struct Tabs {
    min_width: usize,
    padding: usize,
    /// The widest each column has been, where that is to be kept from one call to the next.
    remembered: Option<Vec<usize>>,
}

impl Tabs {
    /// As `kubectl get` prints: columns keep their width from one call to the next.
    pub fn table() -> Tabs {
        Tabs { min_width: 6, padding: 3, remembered: Some(Vec::new()) }
    }

    /// As `kubectl describe` prints.
    pub fn description() -> Tabs {
        Tabs { min_width: 0, padding: 2, remembered: None }
    }

    /// Aligns a text.
    pub fn align(&mut self, text: &str) -> String {
        let lines: Vec<Vec<&str>> = text.split('\n').map(|line| line.split('\t').collect()).collect();
        let mut out = String::with_capacity(text.len() * 2);
        self.block(&lines, 0, lines.len(), &mut Vec::new(), &mut out);
        // `split` sees a last, empty line behind the last newline.
        out.pop();
        out
    }

    fn block(
        &mut self,
        lines: &[Vec<&str>],
        mut from: usize,
        to: usize,
        widths: &mut Vec<usize>,
        out: &mut String,
    ) {
        let column = widths.len();
        let has = |line: &Vec<&str>| column + 1 < line.len();
        let mut at = from;
        while at < to {
            if !has(&lines[at]) {
                at += 1;
                continue;
            }
            write(&lines[from..at], widths, out);
            from = at;
            let mut width = self.min_width;
            while at < to && has(&lines[at]) {
                width = width.max(lines[at][column].chars().count() + self.padding);
                at += 1;
            }
            widths.push(self.remember(column, width));
            self.block(lines, from, at, widths, out);
            widths.pop();
            from = at;
        }
        write(&lines[from..to], widths, out);
    }

    fn remember(&mut self, column: usize, width: usize) -> usize {
        let Some(widths) = &mut self.remembered else { return width };
        if widths.len() <= column {
            widths.resize(column + 1, 0);
        }
        widths[column] = widths[column].max(width);
        widths[column]
    }
}

fn write(lines: &[Vec<&str>], widths: &[usize], out: &mut String) {
    for line in lines {
        for (at, cell) in line.iter().enumerate() {
            out.push_str(cell);
            if let Some(width) = widths.get(at) {
                out.extend(repeat_n(' ', width.saturating_sub(cell.chars().count())));
            }
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_the_last_is_not_padded() {
        let text = Tabs::table().align("NAME\tA\tAGE\nweb-long\tx\t1s\n");
        assert_eq!(text, "NAME       A     AGE\nweb-long   x     1s\n");
    }

    #[test]
    fn a_column_ends_where_a_line_has_no_cell() {
        let text = Tabs::description().align("Name:\tx\nLong heading:\nA:\tb\n  Inner:\ty\tz\n");
        assert_eq!(text, "Name:  x\nLong heading:\nA:        b\n  Inner:  y  z\n");
    }

    #[test]
    fn a_table_keeps_its_widths() {
        let mut tabs = Tabs::table();
        assert_eq!(tabs.align("long-name\tb\n"), "long-name   b\n");
        assert_eq!(tabs.align("a\tb\n"), "a           b\n");
    }
}
