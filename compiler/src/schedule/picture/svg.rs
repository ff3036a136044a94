//! Pictures as SVG: roles as bars one below the other, rings as arrows from bar to bar with their slots, layouts as grids coloured by lane.

use super::{Picture, RingArrow, TileGrid};
use svg::Document;
use svg::node::element::{Group, Line, Polygon, Rectangle, Style, Text};

const MARGIN: u64 = 16;
const BAR: u64 = 34;
/// Between two bars: room for slots and what is said of a ring.
const GAP: u64 = 96;
const RING: u64 = 170;
const CELL: (u64, u64) = (17, 15);
const HEADING: u64 = 30;
/// Elements of a layout that are drawn; the rest repeats them.
const SHOWN: (u64, u64) = (16, 32);
/// Of lanes: neighbours differ.
const COLOURS: [&str; 8] = [
    "#f9c6c0", "#fbe0a9", "#e6f0ae", "#bfe8bd", "#b8e6e0", "#bcd8f4", "#d2c8f2", "#f2c6e6",
];
/// Slots that are drawn one by one.
const MOST_SLOTS: u32 = 16;

impl Picture {
    /// The whole picture as an SVG document.
    pub fn svg(&self) -> String {
        let grids: Vec<_> = self
            .tiles
            .iter()
            .filter(|t| !t.layout.is_everywhere())
            .collect();
        let network_height = bar_at(self.roles.len()) - HEADING - GAP + MARGIN;
        let grid_height =
            |tile: &TileGrid| HEADING + tile.extents().0.min(SHOWN.0) * CELL.1 + MARGIN;
        let heights: u64 = grids.iter().map(|tile| grid_height(tile)).sum();
        let width = self.width();
        let height = HEADING + network_height + heights + MARGIN;
        let mut document = Document::new()
            .set("viewBox", (0, 0, width, height))
            .set("width", width)
            .set("height", height)
            .set("font-family", "monospace")
            .set("font-size", 12)
            .add(Style::new(
                "text{fill:#222}.small{font-size:8px}.note{fill:#555;font-size:11px}",
            ))
            .add(rectangle((0, 0), (width, height), "#ffffff"))
            .add(label((MARGIN, 20), &self.title).set("font-weight", "bold"))
            .add(self.network(width));
        let mut y = HEADING + network_height;
        for tile in grids {
            document = document.add(grid(tile, y));
            y += grid_height(tile);
        }
        let mut text = document.to_string();
        text.push('\n');
        text
    }

    fn width(&self) -> u64 {
        let rings = self.rings.len() as u64 * RING;
        let grid = SHOWN.1 * CELL.0;
        2 * MARGIN + rings.max(grid + 60)
    }

    fn network(&self, width: u64) -> Group {
        let mut group = Group::new();
        for (i, role) in self.roles.iter().enumerate() {
            let y = bar_at(i);
            group = group
                .add(rectangle((MARGIN, y), (width - 2 * MARGIN, BAR), "#dbe7f3").set("rx", 4))
                .add(label(
                    (MARGIN + 10, y + 21),
                    &format!("{}: {}", role.name, role.facts),
                ));
        }
        for (i, ring) in self.rings.iter().enumerate() {
            group = group.add(arrows(ring, MARGIN + i as u64 * RING + 24));
        }
        group
    }
}

fn bar_at(role: usize) -> u64 {
    HEADING + role as u64 * (BAR + GAP)
}

/// A ring's slots below (or above) the role that fills it, and a line to each role that reads it.
fn arrows(ring: &RingArrow, x: u64) -> Group {
    let mut group = Group::new();
    for &to in &ring.to {
        let down = to > ring.from;
        let (start, end) = match down {
            true => (bar_at(ring.from) + BAR, bar_at(to)),
            false => (bar_at(ring.from), bar_at(to) + BAR),
        };
        let tip = if down { end.saturating_sub(8) } else { end + 8 };
        let line = Line::new()
            .set("x1", x)
            .set("x2", x)
            .set("y1", start)
            .set("y2", tip)
            .set("stroke", "#444")
            .set("stroke-width", 2);
        let head = Polygon::new()
            .set(
                "points",
                format!("{},{tip} {},{tip} {x},{end}", x - 5, x + 5),
            )
            .set("fill", "#444");
        group = group.add(line).add(head);
    }
    let reads_below = ring.to.iter().any(|&to| to > ring.from);
    let top = match reads_below {
        true => bar_at(ring.from) + BAR + 8,
        false => bar_at(ring.from) - GAP + 8,
    };
    for slot in 0..ring.slots.min(MOST_SLOTS) {
        let at = (x + 8 + u64::from(slot) * 8, top);
        group = group.add(rectangle(at, (7, 12), "#f2c879").set("stroke", "#b98a2c"));
    }
    let facts = format!("{} x {} B", ring.slots, ring.slot_bytes);
    group = group.add(label((x + 8, top + 26), &facts).set("class", "note"));
    for (i, names) in ring.channels.chunks(2).enumerate().take(4) {
        let at = (x + 8, top + 40 + i as u64 * 13);
        group = group.add(label(at, &names.join(" + ")).set("class", "note"));
    }
    group
}

/// The first rows and columns; a cell is a run of neighbours in one thread.
fn grid(tile: &TileGrid, y: u64) -> Group {
    let run = tile.layout.run().min(tile.extents().1).max(1);
    let what = match run {
        1 => "the thread",
        _ => "thread and first register",
    };
    let cut = match tile.extents() {
        (rows, columns) if rows > SHOWN.0 || columns > SHOWN.1 => ", the first of them",
        _ => "",
    };
    let heading = format!(
        "{}: {what} of each element{cut}{}",
        tile.heading(),
        tile.copies()
    );
    let mut group = Group::new().add(label((MARGIN, y + 18), &heading));
    let owners = tile.owners();
    let (rows, columns) = tile.extents();
    let columns = columns.min(SHOWN.1);
    for row in 0..rows.min(SHOWN.0) {
        for column in (0..columns).step_by(run as usize) {
            let Some(owner) = owners.get(&(row, column)) else {
                continue;
            };
            let at = (MARGIN + column * CELL.0, y + HEADING + row * CELL.1);
            let size = (run.min(columns - column) * CELL.0, CELL.1);
            let colour = COLOURS[owner.lane as usize % COLOURS.len()];
            let name = match run {
                1 => owner.thread().to_string(),
                _ => format!("{}.{}", owner.thread(), owner.register),
            };
            group = group
                .add(rectangle(at, size, colour).set("stroke", "#fff"))
                .add(label((at.0 + 2, at.1 + 11), &name).set("class", "small"));
        }
    }
    group
}

fn rectangle(at: (u64, u64), size: (u64, u64), fill: &str) -> Rectangle {
    Rectangle::new()
        .set("x", at.0)
        .set("y", at.1)
        .set("width", size.0)
        .set("height", size.1)
        .set("fill", fill)
}

fn label(at: (u64, u64), text: &str) -> Text {
    Text::new(text).set("x", at.0).set("y", at.1)
}
