//! A model's text, taken apart: reasoning, content, calls of tools.

use serde::Serialize;

use super::json::quoted;
use super::{BEGIN, DSML, END, THINK, THOUGHT, Thinking};
use crate::model::ModelError;

/// What a model answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Answer {
    pub reasoning_content: String,
    pub content: String,
    pub tool_calls: Vec<ToolCall>,
    /// Whether the text reached its end, and was not cut off.
    pub finished: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ToolCall {
    pub name: String,
    /// The text of a JSON object.
    pub arguments: String,
}

impl Answer {
    /// Takes the text behind a prompt apart; it may be cut off before or within its content, but not within calls of tools.
    ///
    /// # Errors
    /// [`ModelError::Input`]: markup that does not close, a name twice, text behind the end.
    pub fn parse(text: &str, thinking: Thinking) -> Result<Answer, ModelError> {
        let mut answer = Answer::default();
        let calls_start = format!("\n\n<{DSML}tool_calls");
        let mut rest = text;
        if thinking != Thinking::Off {
            let (reasoning, stop, behind) = until(rest, &[THOUGHT, &calls_start]);
            answer.reasoning_content = reasoning.into();
            match stop {
                Some(0) => rest = behind,
                Some(_) => return Err(wrong("calls of tools before the reasoning ends")),
                None => return Ok(answer),
            }
        }
        let (content, stop, behind) = until(rest, &[END, &calls_start]);
        answer.content = content.into();
        let behind = match stop {
            None => return Ok(answer),
            Some(0) => behind,
            Some(_) => {
                let behind = answer.take_calls(behind)?;
                behind.strip_prefix(END).unwrap_or(behind)
            }
        };
        if !behind.is_empty() {
            return Err(wrong(&format!("{behind:?} behind the end")));
        }
        for token in [BEGIN, END, THINK, THOUGHT, DSML] {
            if answer.content.contains(token) || answer.reasoning_content.contains(token) {
                return Err(wrong(&format!("`{token}` within text")));
            }
        }
        answer.finished = true;
        Ok(answer)
    }

    /// Reads from behind the start of `<｜DSML｜tool_calls`; gives what comes behind the closing tag.
    fn take_calls<'a>(&mut self, text: &'a str) -> Result<&'a str, ModelError> {
        let (invoke, end) = (format!("<{DSML}invoke"), format!("</{DSML}tool_calls>"));
        let (parameter, invoke_end) = (format!("<{DSML}parameter"), format!("</{DSML}invoke"));
        let parameter_end = format!("</{DSML}parameter");
        let mut rest = text;
        loop {
            let (between, stop, behind) = until(rest, &[&invoke, &end]);
            if between != ">\n" {
                return Err(wrong(&format!("{between:?} between calls of tools")));
            }
            rest = behind;
            match stop {
                None => return Err(wrong("calls of tools that do not end")),
                Some(1) => return Ok(rest),
                Some(_) => {}
            }
            let (head, mut stop, behind) = until(rest, &[&parameter, &invoke_end]);
            rest = behind;
            let name = (head.trim_start().strip_prefix("name=\""))
                .and_then(|head| head.strip_suffix("\">\n"))
                .ok_or_else(|| wrong(&format!("{head:?} instead of a tool's name")))?;
            let mut fields: Vec<(&str, String)> = Vec::new();
            while stop == Some(0) {
                let (body, closed, behind) = until(rest, &[&parameter_end]);
                let (key, value) = field(body).filter(|_| closed.is_some()).ok_or_else(|| {
                    wrong(&format!("{body:?} instead of a parameter of `{name}`"))
                })?;
                if fields.iter().any(|(other, _)| *other == key) {
                    return Err(wrong(&format!("`{name}` has the parameter `{key}` twice")));
                }
                fields.push((key, value));
                let (between, next, behind) = until(behind, &[&parameter, &invoke_end]);
                if between != ">\n" {
                    return Err(wrong(&format!("{between:?} behind the parameter `{key}`")));
                }
                (stop, rest) = (next, behind);
            }
            if stop.is_none() {
                return Err(wrong(&format!("the call of `{name}` does not end")));
            }
            let fields = fields.iter().map(|(k, v)| format!("{}: {v}", quoted(k)));
            self.tool_calls.push(ToolCall {
                name: name.into(),
                arguments: format!("{{{}}}", fields.collect::<Vec<_>>().join(", ")),
            });
        }
    }
}

/// ` name="key" string="true|false">value`: the key, and the value as JSON.
fn field(text: &str) -> Option<(&str, String)> {
    let (key, rest) = text.strip_prefix(" name=\"")?.split_once("\" string=\"")?;
    let (is_string, value) = rest.split_once("\">")?;
    match is_string {
        "true" => Some((key, quoted(value))),
        "false" => Some((key, value.into())),
        _ => None,
    }
}

/// What comes before the first of `stops`, which of them it is, and what comes behind it.
fn until<'a>(text: &'a str, stops: &[&str]) -> (&'a str, Option<usize>, &'a str) {
    let found = stops.iter().enumerate();
    let found = found.filter_map(|(which, stop)| Some((text.find(stop)?, which)));
    match found.min() {
        Some((at, which)) => (&text[..at], Some(which), &text[at + stops[which].len()..]),
        None => (text, None, ""),
    }
}

fn wrong(why: &str) -> ModelError {
    ModelError::Input(format!("the answer is not in V4's chat format: {why}"))
}
