//! Watching a forward pass: every named intermediate value, under the names of the golden files.

use tessera_device::{View, ViewMut};

use super::ModelError;

/// Gets each traced value as it is computed. Names: `L3.attn.q`, `mtp.ffn.in`, `head.norm`, `hidden.3`, …; the first axis of a view is
/// the call's tokens, but for a layer's entries (`comp.kv`, `idx.k`), which come as `[sequences, entries, width]`, and which
/// models with float32 activations only record.
pub trait Trace {
    /// # Errors
    /// Whatever the watcher meets; the forward pass stops with it.
    fn record(&mut self, name: &str, value: View) -> Result<(), ModelError>;

    /// May put another value where one was recorded, so that what follows is computed from it: for the comparison of single components.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    fn replace(&mut self, name: &str, value: ViewMut) -> Result<(), ModelError> {
        let _ = (name, value);
        Ok(())
    }
}

/// A trace or none, with the prefix of the part that is running.
pub(super) struct Tracer<'a> {
    trace: Option<&'a mut dyn Trace>,
    prefix: String,
}

impl<'a> Tracer<'a> {
    pub fn new(trace: Option<&'a mut dyn Trace>) -> Self {
        Tracer {
            trace,
            prefix: String::new(),
        }
    }

    pub fn is_on(&self) -> bool {
        self.trace.is_some()
    }

    /// Values that follow belong to `part`: `L3.`, `mtp.` or the empty one.
    pub fn enter(&mut self, part: impl FnOnce() -> String) {
        if self.is_on() {
            self.prefix = part();
        }
    }

    pub fn record(&mut self, name: &str, value: View) -> Result<(), ModelError> {
        match &mut self.trace {
            None => Ok(()),
            Some(trace) => trace.record(&format!("{}{name}", self.prefix), value),
        }
    }

    /// Records a value that may be replaced.
    pub fn watch<'v>(
        &mut self,
        name: &str,
        value: impl FnOnce() -> Result<ViewMut<'v>, ModelError>,
    ) -> Result<(), ModelError> {
        match &mut self.trace {
            None => Ok(()),
            Some(trace) => {
                let (name, value) = (format!("{}{name}", self.prefix), value()?);
                trace.record(&name, value.as_view())?;
                trace.replace(&name, value)
            }
        }
    }
}
