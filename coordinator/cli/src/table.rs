//! Tables for people.

/// Rows under a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|cell| (*cell).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as the head.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.head.len());
        self.rows.push(cells.into_iter().map(|cell| one_line(&cell)).collect());
    }

    /// The text, columns aligned, two spaces between them.
    pub(crate) fn render(&self, with_head: bool) -> String {
        let mut width: Vec<usize> =
            self.head.iter().map(|cell| if with_head { cell.len() } else { 0 }).collect();
        for row in &self.rows {
            for (width, cell) in width.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in with_head.then_some(&self.head).into_iter().chain(&self.rows) {
            let cells: Vec<String> = row
                .iter()
                .zip(&width)
                .map(|(cell, width)| format!("{cell:<width$}", width = *width))
                .collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Cells and tree lines come from machines: no line breaks and no control characters reach the terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_control_characters_are_kept_out() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec!["a".to_owned(), "rea\u{1b}dy".to_owned()]);
        table.row(vec!["longer".to_owned(), "x".to_owned()]);
        assert_eq!(table.render(true), "NAME    STATE\na       rea dy\nlonger  x\n");
        assert_eq!(table.render(false), "a       rea dy\nlonger  x\n");
    }
}
