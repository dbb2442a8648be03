//! Aligned columns and label-value blocks, as plain text.
//!
//! Cells may come from a guest or an image: control characters are shown, not obeyed.

use crate::terminal_text;

/// Gives the escape sequence that colours a cell of this text.
pub(crate) type Colour = fn(&str) -> &'static str;

/// Rows of cells under headings. Numbers may be aligned to the right.
#[derive(Debug, Default)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
    painted: Option<(usize, Colour)>,
}

impl Table {
    /// Makes a table of these headings; one that starts with `>` is of a column of numbers.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Table {
            headings: headings.iter().map(|h| h.trim_start_matches('>')).collect(),
            right: headings.iter().map(|h| h.starts_with('>')).collect(),
            rows: Vec::new(),
            painted: None,
        }
    }

    /// Paints a column's cells in the colours (escape sequences) that `colour` gives their text.
    pub(crate) fn paint(&mut self, column: usize, colour: Colour) {
        self.painted = Some((column, colour));
    }

    /// Adds a row; an empty cell is shown as `-`.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells
            .into_iter()
            .map(|cell| terminal_text::one_line(&cell))
            .map(|cell| if cell.is_empty() { "-".into() } else { cell })
            .collect();
        row.resize(self.headings.len(), "-".into());
        self.rows.push(row);
    }

    /// Writes it, two spaces between columns, none at the ends of lines.
    pub(crate) fn render(&self) -> String {
        let mut widths: Vec<usize> = self.headings.iter().map(|h| h.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        let headings: Vec<String> = self.headings.iter().map(|h| (*h).to_owned()).collect();
        for (number, row) in std::iter::once(&headings).chain(&self.rows).enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                if column > 0 {
                    line.push_str("  ");
                }
                let padded = if self.right[column] {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
                match self.painted {
                    Some((painted, colour)) if painted == column && number > 0 => {
                        line.push_str(&format!("{}{padded}\x1b[0m", colour(cell)));
                    }
                    _ => line.push_str(&padded),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Labels with values, one a line, the values aligned.
#[derive(Debug, Default)]
pub(crate) struct Block {
    lines: Vec<(String, String)>,
}

impl Block {
    /// Adds a line.
    pub(crate) fn line(&mut self, label: &str, value: impl Into<String>) -> &mut Self {
        self.lines
            .push((label.to_owned(), terminal_text::one_line(&value.into())));
        self
    }

    /// Adds a line for each value; the label stands before the first.
    pub(crate) fn lines(
        &mut self,
        label: &str,
        values: impl IntoIterator<Item = String>,
    ) -> &mut Self {
        for (index, value) in values.into_iter().enumerate() {
            self.line(if index == 0 { label } else { "" }, value);
        }
        self
    }

    /// Adds a line if there is a value.
    pub(crate) fn optional(&mut self, label: &str, value: Option<String>) -> &mut Self {
        match value {
            Some(value) => self.line(label, value),
            None => self,
        }
    }

    /// Writes it.
    pub(crate) fn render(&self) -> String {
        let width = self.lines.iter().map(|(label, _)| label.len()).max();
        let width = width.unwrap_or(0) + 2;
        let mut text = String::new();
        for (label, value) in &self.lines {
            let label = if label.is_empty() {
                String::new()
            } else {
                format!("{label}:")
            };
            text.push_str(format!("{label:<width$}{value}").trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_columns_and_hides_control_characters() {
        let mut table = Table::new(&["NAME", ">CPUS", "IMAGE"]);
        table.row(["web".into(), "2".into(), "debian:12".into()]);
        table.row(["a-long-name".into(), "16".into(), String::new()]);
        table.row(["x".into(), "1".into(), "\x1b[2Jevil\nline".into()]);
        insta::assert_snapshot!(table.render(), @r"
        NAME         CPUS  IMAGE
        web             2  debian:12
        a-long-name    16  -
        x               1  \u{1b}[2Jevil\nline
        ");
    }

    #[test]
    fn blocks_align_values() {
        let mut block = Block::default();
        block.line("name", "web").optional("none", None);
        block.lines("forwards", ["a".to_owned(), "b".to_owned()]);
        assert_eq!(block.render(), "name:     web\nforwards: a\n          b\n");
    }
}
