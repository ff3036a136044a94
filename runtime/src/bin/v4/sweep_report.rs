//! What a sweep measured, as tables, as JSON and as a Chrome trace.
//!
//! Needs: timelines whose sections are those of `model/cost.rs`. Keeps: every figure is computed from what was measured and from the costs.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tessera::model::config::{Config, LayerKind};
use tessera::model::cost::{Call, Cost, SECTIONS, Section, cost};
use tessera::model::{Model, ModelError};
use tessera_device::Span;

/// Operations per second of e4m3 products that an H100 of the kind measured here reaches.
const FP8_PEAK: f64 = 1449e12;

/// The middle one, the least and the most of several rounds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// Of at least one.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        Spread {
            median: values[values.len() / 2],
            least: values[0],
            most: values[values.len() - 1],
        }
    }
}

/// One thing that was measured several times: a step, or a whole prompt.
pub struct Measured {
    pub seconds: Spread,
    /// That it computes.
    pub tokens: usize,
    pub calls: Vec<Call>,
    pub cache_bytes: usize,
}

pub struct Report<'a> {
    whole: &'a Config,
    /// Bytes per second of a copy.
    copy: Option<f64>,
    values: Vec<Value>,
    head: String,
    about: Value,
}

/// A section of all layers of one kind, or of the model.
#[derive(Default)]
struct Row {
    seconds: f64,
    layers: usize,
    cost: Cost,
}

type Key = (Option<LayerKind>, Section);

impl<'a> Report<'a> {
    pub fn new(model: &Model, name: &str, whole: &'a Config, copy: Option<f64>) -> Report<'a> {
        let config = model.config();
        let device = model.device();
        let kinds: Vec<&str> = config.layers.iter().map(|kind| kind_name(*kind)).collect();
        let mut head = format!(
            "model    {name}, {} of {} layers ({}), random weights of {:.2} GB\ndevice   {device}\n",
            config.layers.len(),
            whole.layers.len(),
            runs(&kinds),
            model.weight_bytes() as f64 / 1e9
        );
        if let Some(copy) = copy {
            head += &format!("memory   a copy reads and writes {:.0} GB/s\n", copy / 1e9);
        }
        Report {
            whole,
            copy,
            values: Vec::new(),
            head,
            about: json!({
                "preset": name, "layers": config.layers.len(), "of": whole.layers.len(),
                "device": device.to_string(), "weight_bytes": model.weight_bytes(),
                "copy_bytes_per_s": copy,
            }),
        }
    }

    pub fn print_head(&self) {
        print!("{}", self.head);
    }

    /// What could not be measured: too little memory is said and passed over, anything else ends the sweep.
    pub fn failed(&mut self, what: String, why: &ModelError, as_json: bool) -> Result<(), String> {
        let text = why.to_string();
        if !text.contains("has no memory for") {
            return Err(format!("{what}: {text}"));
        }
        match as_json {
            true => self.values.push(json!({ "what": what, "failed": text })),
            false => println!("\n{what}: {text}"),
        }
        Ok(())
    }

    pub fn finish(self, as_json: bool) {
        if as_json {
            println!(
                "{}",
                json!({ "about": self.about, "measured": self.values })
            );
        }
    }

    pub fn add(
        &mut self,
        model: &Model,
        what: String,
        measured: Measured,
        spans: &[Span],
        as_json: bool,
    ) {
        let rows = rows(model.config(), &measured.calls, spans);
        let outside = total(model.config(), &measured.calls);
        let timeline: f64 = spans.iter().map(|span| span.seconds).sum();
        let t = measured.seconds;
        let extrapolated = self.extrapolate(&rows, timeline, t.median);
        let whole = total(self.whole, &measured.calls);
        let rate = |seconds: f64| measured.tokens as f64 / seconds;
        let bound = |cost: &Cost| self.copy.map(|copy| cost.bytes / copy);
        let linear = linear(&rows);
        let kernels = kernels(spans);
        if as_json {
            let sections: Vec<Value> = rows
                .iter()
                .map(|((kind, section), row)| {
                    json!({
                        "kind": kind.map(kind_name), "section": section.name(), "layers": row.layers, "seconds": row.seconds,
                        "bytes": row.cost.bytes, "linear_flops": row.cost.linear_flops, "attention_flops": row.cost.attention_flops,
                    })
                })
                .collect();
            let kernels: Vec<Value> = kernels
                .iter()
                .map(|(name, launches, seconds)| json!({ "kernel": name, "launches": launches, "seconds": seconds }))
                .collect();
            self.values.push(json!({
                "what": what, "tokens": measured.tokens,
                "seconds": [t.least, t.median, t.most], "tokens_per_s": rate(t.median),
                "timeline_seconds": timeline, "cache_bytes": measured.cache_bytes,
                "least_bytes": outside.bytes, "least_seconds": bound(&outside),
                "linear_tflops": linear.map(|(flops, seconds)| flops / seconds / 1e12),
                "whole_seconds": extrapolated, "whole_least_seconds": bound(&whole),
                "sections": sections, "kernels": kernels,
            }));
            return;
        }
        println!(
            "\n## {what}\n\n{:.1} tokens/s [{:.1} .. {:.1}], {:.3} ms; timeline of {} launches {:.3} ms; cache of {:.3} GB",
            rate(t.median),
            rate(t.most),
            rate(t.least),
            t.median * 1e3,
            spans.len(),
            timeline * 1e3,
            measured.cache_bytes as f64 / 1e9
        );
        if let Some(least) = bound(&outside) {
            println!(
                "at least {:.1} MB, {:.3} ms at the copy's speed: {:.1} % of that bound",
                outside.bytes / 1e6,
                least * 1e3,
                100.0 * least / t.median
            );
        }
        if let Some((flops, seconds)) = linear {
            println!(
                "linear layers {:.1} TFLOP/s, {:.1} % of the FP8 peak of {:.0}",
                flops / seconds / 1e12,
                100.0 * flops / seconds / FP8_PEAK,
                FP8_PEAK / 1e12
            );
        }
        if let Some(seconds) = extrapolated {
            let share = bound(&whole).map(|least| {
                format!(
                    "; at least {:.1} MB, {:.1} % of the bound",
                    whole.bytes / 1e6,
                    100.0 * least / seconds
                )
            });
            println!(
                "extrapolated to {} layers: {:.3} ms, {:.1} tokens/s{}",
                self.whole.layers.len(),
                seconds * 1e3,
                rate(seconds),
                share.unwrap_or_default()
            );
        }
        self.print_rows(&rows, timeline);
        println!("\n| kernel | launches | ms | share | µs each |\n| --- | --- | --- | --- | --- |");
        for (name, launches, seconds) in &kernels {
            println!(
                "| `{}` | {launches} | {:.3} | {:.1} % | {:.1} |",
                name.rsplit("::").next().unwrap_or(name),
                seconds * 1e3,
                100.0 * seconds / timeline,
                seconds * 1e6 / *launches as f64
            );
        }
    }

    fn print_rows(&self, rows: &BTreeMap<Key, Row>, timeline: f64) {
        println!(
            "\n| layers | section | ms | share | µs a layer | least MB a layer | GB/s | of the copy | TFLOP/s |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        );
        let mut sorted: Vec<_> = rows.iter().collect();
        // Kinds together, those that take longest first.
        let of_kind = |kind: Option<LayerKind>| -> f64 {
            let rows = rows.iter().filter(|((k, _), _)| *k == kind);
            rows.map(|(_, row)| row.seconds).sum()
        };
        sorted.sort_by(|((a, x), r), ((b, y), s)| {
            of_kind(*b)
                .total_cmp(&of_kind(*a))
                .then(s.seconds.total_cmp(&r.seconds))
                .then(x.cmp(y))
        });
        let mut before = None;
        for ((kind, section), row) in sorted {
            if before != Some(*kind) {
                let seconds = of_kind(*kind);
                println!(
                    "| **{} {}** | all | {:.3} | {:.1} % | {:.1} | | | | |",
                    row.layers,
                    kind.map_or("outside", kind_name),
                    seconds * 1e3,
                    100.0 * seconds / timeline,
                    seconds * 1e6 / row.layers as f64
                );
                before = Some(*kind);
            }
            let speed = row.cost.bytes / row.seconds;
            let flops = row.cost.linear_flops + row.cost.attention_flops;
            println!(
                "| | {} | {:.3} | {:.1} % | {:.1} | {:.2} | {:.0} | {} | {:.1} |",
                section.name(),
                row.seconds * 1e3,
                100.0 * row.seconds / timeline,
                row.seconds * 1e6 / row.layers as f64,
                row.cost.bytes / 1e6 / row.layers as f64,
                speed / 1e9,
                self.copy
                    .map_or("-".into(), |copy| format!("{:.0} %", 100.0 * speed / copy)),
                flops / row.seconds / 1e12
            );
        }
    }

    /// Seconds of the whole model: what was measured, and for each layer that is not there the mean of its kind on the timeline, as much
    /// shorter as the measured time is than the timeline. `None` if a kind is not among those measured.
    fn extrapolate(&self, rows: &BTreeMap<Key, Row>, timeline: f64, measured: f64) -> Option<f64> {
        let mut seconds = measured;
        for kind in &self.whole.layers {
            let mut mine = rows
                .iter()
                .filter(|((k, _), _)| *k == Some(*kind))
                .peekable();
            let layers = mine.peek()?.1.layers;
            let one = mine.map(|(_, row)| row.seconds).sum::<f64>() / layers as f64;
            seconds += one * measured / timeline;
        }
        for ((kind, _), row) in rows {
            if kind.is_some() {
                seconds -= row.seconds * measured / timeline;
            }
        }
        Some(seconds)
    }
}

/// Time and least cost of every section that ran.
fn rows(config: &Config, calls: &[Call], spans: &[Span]) -> BTreeMap<Key, Row> {
    let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
    for span in spans {
        let Some((layer, section)) = place_of(&span.section) else {
            continue;
        };
        let kind = layer.map(|layer| config.layers[layer]);
        rows.entry((kind, section)).or_default().seconds += span.seconds;
    }
    for ((kind, section), row) in &mut rows {
        row.layers = match kind {
            Some(kind) => config.layers.iter().filter(|k| *k == kind).count(),
            None => 1,
        };
        for call in calls {
            let one = cost(config, kind.unwrap_or(LayerKind::Window), *section, call);
            row.cost = plus(row.cost, one, row.layers as f64);
        }
    }
    rows
}

/// `L3 experts`, or a section outside of the layers.
fn place_of(section: &str) -> Option<(Option<usize>, Section)> {
    let layer = section
        .strip_prefix('L')
        .and_then(|rest| rest.split_once(' '))
        .and_then(|(number, name)| Some((number.parse().ok()?, name)));
    match layer {
        Some((number, name)) => Some((Some(number), Section::of_name(name)?)),
        None => Some((None, Section::of_name(section)?)),
    }
}

/// Least cost of the whole model's calls.
fn total(config: &Config, calls: &[Call]) -> Cost {
    let mut sum = Cost::default();
    for call in calls {
        for section in SECTIONS {
            if matches!(section, Section::Embedding | Section::Head) {
                sum = plus(sum, cost(config, LayerKind::Window, section, call), 1.0);
                continue;
            }
            for kind in &config.layers {
                sum = plus(sum, cost(config, *kind, section, call), 1.0);
            }
        }
    }
    sum
}

fn plus(a: Cost, b: Cost, times: f64) -> Cost {
    Cost {
        bytes: a.bytes + times * b.bytes,
        linear_flops: a.linear_flops + times * b.linear_flops,
        attention_flops: a.attention_flops + times * b.attention_flops,
    }
}

/// Operations and seconds of the sections that are linear layers, with all that stands around their products.
fn linear(rows: &BTreeMap<Key, Row>) -> Option<(f64, f64)> {
    let is_linear = |section: Section| {
        matches!(
            section,
            Section::Inputs
                | Section::Queries
                | Section::Output
                | Section::Router
                | Section::Experts
        )
    };
    let linear = rows.iter().filter(|((_, section), _)| is_linear(*section));
    let (flops, seconds) = linear.fold((0.0, 0.0), |(flops, seconds), (_, row)| {
        (flops + row.cost.linear_flops, seconds + row.seconds)
    });
    (seconds > 0.0).then_some((flops, seconds))
}

/// Name, launches and seconds, the longest first.
fn kernels(spans: &[Span]) -> Vec<(&str, usize, f64)> {
    let mut sums: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for span in spans {
        let sum = sums.entry(&span.kernel).or_default();
        *sum = (sum.0 + 1, sum.1 + span.seconds);
    }
    let mut kernels: Vec<_> = sums.into_iter().map(|(k, (n, s))| (k, n, s)).collect();
    kernels.sort_by(|a, b| b.2.total_cmp(&a.2));
    kernels
}

fn kind_name(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Window => "window",
        LayerKind::CompressedSparse { .. } => "compressed sparse",
        LayerKind::HeavilyCompressed { .. } => "heavily compressed",
    }
}

/// `2 window, 8 compressed sparse`, in the order in which they come first.
fn runs(kinds: &[&str]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for kind in kinds {
        match counts.iter_mut().find(|(name, _)| name == kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((kind, 1)),
        }
    }
    let words: Vec<String> = counts
        .iter()
        .map(|(name, n)| format!("{n} {name}"))
        .collect();
    words.join(", ")
}

/// Adds a measurement's launches, sections and layers: one process in the viewer, three rows.
pub fn trace_events(what: &str, spans: &[Span], events: &mut Vec<Value>) {
    let process = events.iter().filter(|event| event["ph"] == "M").count();
    events.push(
        json!({ "ph": "M", "name": "process_name", "pid": process, "args": { "name": what } }),
    );
    let mut event = |row: usize, name: &str, start: f64, end: f64| {
        events.push(json!({
            "ph": "X", "pid": process, "tid": row, "name": name, "ts": start * 1e6, "dur": (end - start) * 1e6,
        }));
    };
    for span in spans {
        let name = span.kernel.rsplit("::").next().unwrap_or(&span.kernel);
        event(2, name, span.start, span.start + span.seconds);
    }
    let layer = |section: &str| match section.split_once(' ') {
        Some((layer, _)) if place_of(section).is_some_and(|(l, _)| l.is_some()) => layer.to_owned(),
        _ => section.to_owned(),
    };
    for (row, name) in [
        (0, &layer as &dyn Fn(&str) -> String),
        (1, &str::to_owned as &dyn Fn(&str) -> String),
    ] {
        for run in spans.chunk_by(|a, b| name(&a.section) == name(&b.section)) {
            let (first, last) = (&run[0], &run[run.len() - 1]);
            event(
                row,
                &name(&first.section),
                first.start,
                last.start + last.seconds,
            );
        }
    }
}
