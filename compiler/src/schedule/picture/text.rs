//! Pictures as text.

use super::{Picture, TileGrid, basis};
use std::fmt;

/// Columns of a row at most; what they leave out follows the same bits.
const COLUMNS: usize = 7;

impl fmt::Display for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = (self.roles.iter().map(|r| r.name.chars().count()).max()).unwrap_or(0);
        for role in &self.roles {
            writeln!(f, "  role      {:width$}  {}", role.name, role.facts)?;
        }
        for ring in &self.rings {
            let to: Vec<&str> = (ring.to.iter())
                .map(|&i| self.roles[i].name.as_str())
                .collect();
            writeln!(
                f,
                "  ring      {:>width$} ──[ {}: {} x {} bytes ]──▶ {}",
                self.roles[ring.from].name,
                ring.channels.join(" + "),
                ring.slots,
                ring.slot_bytes,
                to.join(", ")
            )?;
        }
        self.tiles.iter().try_for_each(|tile| tile.fmt(f))
    }
}

/// The rows and columns that tell the layout: `t5.2..3` is thread 5 of the role, its registers 2 and 3.
impl fmt::Display for TileGrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  layout    {}{}", self.heading(), self.copies())?;
        if self.layout.is_everywhere() {
            return Ok(());
        }
        let owners = self.owners();
        let (rows, columns) = self.extents();
        let run = self.layout.run().min(columns).max(1);
        let mut shown = basis(columns, run);
        shown.truncate(COLUMNS);
        let span = |first: u64, name: &str| match run {
            1 => format!("{name}{first}"),
            _ => format!("{name}{first}..{}", first + run - 1),
        };
        write!(f, "            {:6}", "")?;
        for &column in &shown {
            write!(f, "{:<11}", span(column, "c"))?;
        }
        writeln!(f)?;
        for row in basis(rows, 1) {
            write!(f, "            {:<6}", format!("r{row}"))?;
            for &column in &shown {
                let cell = owners
                    .get(&(row, column))
                    .map(|o| format!("t{}.{}", o.thread(), span(o.register, "")));
                write!(f, "{:<11}", cell.unwrap_or_default())?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
