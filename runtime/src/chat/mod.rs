//! DeepSeek-V4's chat format: a conversation as the text of a prompt, and a model's text as an answer.
//!
//! The format has no template of its own; the release describes it by a program (`encoding/encoding_dsv4.py`), whose output this module's
//! equals character for character, with these rules:
//! - `<｜begin▁of▁sentence｜>`, then the messages; `<｜User｜>` before a user's, `<｜Assistant｜>` before the model's, `<｜end▁of▁sentence｜>` behind it;
//! - a turn of the model begins with `</think>` where it does not reason aloud and with `<think>` where it does; of earlier turns the reasoning is left
//!   out unless there are tools;
//! - tools are described in the system's or a developer's message, calls are written in a markup of their own (`<｜DSML｜tool_calls>`), and what tools
//!   return becomes part of the user's message, in the order of the calls.
//!
//! Needs: messages in the form of the usual chat interfaces. Keeps: what the release's program refuses is refused here, by a sentence.

mod answer;
mod json;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use answer::{Answer, ToolCall};
pub use json::Json;

use crate::model::ModelError;

pub(super) const BEGIN: &str = "<｜begin▁of▁sentence｜>";
pub(super) const END: &str = "<｜end▁of▁sentence｜>";
const USER: &str = "<｜User｜>";
const ASSISTANT: &str = "<｜Assistant｜>";
const LATEST_REMINDER: &str = "<｜latest_reminder｜>";
pub(super) const THINK: &str = "<think>";
pub(super) const THOUGHT: &str = "</think>";
/// In front of the names of tags.
pub(super) const DSML: &str = "｜DSML｜";

/// The tokens that the format needs the tokenizer to know.
pub const TOKENS: [&str; 6] = [BEGIN, END, USER, ASSISTANT, THINK, THOUGHT];

/// Whether the model reasons before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    Off,
    On,
    /// With the sentences before the conversation that ask for the greatest effort.
    Max,
}

const GREATEST_EFFORT: &str = "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n\
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n\
Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";

/// What a model is asked: messages, and tools for all of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// Described in the first message if that is the system's, else in one before it.
    #[serde(default)]
    pub tools: Vec<Tool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    pub role: Role,
    #[serde(default)]
    pub content: Option<Content>,
    /// Of the assistant: what it thought.
    #[serde(default)]
    pub reasoning_content: Option<String>,
    /// Of the assistant.
    #[serde(default)]
    pub tool_calls: Vec<Call>,
    /// Of a tool: which call its content answers.
    #[serde(default)]
    pub tool_call_id: Option<String>,
    /// Of the system and of developers.
    #[serde(default)]
    pub tools: Vec<Tool>,
    /// Of the system and of developers: a schema.
    #[serde(default)]
    pub response_format: Option<Json>,
    /// Of a user: one of the short tasks that the model knows by a token.
    #[serde(default)]
    pub task: Option<Task>,
    /// Of the assistant: the message goes on.
    #[serde(default)]
    pub wo_eos: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
    LatestReminder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    Action,
    Query,
    Authority,
    Domain,
    Title,
    ReadUrl,
}

impl Task {
    fn token(self) -> &'static str {
        match self {
            Task::Action => "<｜action｜>",
            Task::Query => "<｜query｜>",
            Task::Authority => "<｜authority｜>",
            Task::Domain => "<｜domain｜>",
            Task::Title => "<｜title｜>",
            Task::ReadUrl => "<｜read_url｜>",
        }
    }
}

/// Text, or parts of which those of text count.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(Clone, Debug, Deserialize)]
pub struct ContentPart {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub text: String,
}

impl Content {
    fn text(&self) -> String {
        match self {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => {
                let texts = parts.iter().map(|part| match &part.kind[..] {
                    "text" => part.text.clone(),
                    kind => format!("[Unsupported {kind}]"),
                });
                texts.collect::<Vec<_>>().join("\n\n")
            }
        }
    }
}

/// `{"type": "function", "function": {"name": …, "description": …, "parameters": …}}`
#[derive(Clone, Debug, Deserialize)]
pub struct Tool {
    pub function: Json,
}

/// A call that an assistant's message made.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    #[serde(default)]
    pub id: String,
    pub function: CalledFunction,
}

#[derive(Clone, Debug, Deserialize)]
pub struct CalledFunction {
    pub name: String,
    /// The text of a JSON object.
    pub arguments: String,
}

impl Conversation {
    /// One question.
    pub fn of(question: &str) -> Conversation {
        Conversation {
            messages: vec![Message::new(Role::User, question)],
            tools: Vec::new(),
        }
    }

    /// A list of messages, or an object of `messages` and `tools`.
    ///
    /// # Errors
    /// [`ModelError::Input`]: not JSON, or not of this form.
    pub fn from_json(text: &str) -> Result<Conversation, ModelError> {
        let wrong = |why: serde_json::Error| ModelError::Input(format!("the messages: {why}"));
        match text.trim_start().starts_with('[') {
            true => Ok(Conversation {
                messages: serde_json::from_str(text).map_err(wrong)?,
                tools: Vec::new(),
            }),
            false => serde_json::from_str(text).map_err(wrong),
        }
    }

    /// The text of the prompt, up to where the model's next turn begins.
    ///
    /// # Errors
    /// [`ModelError::Input`]: no messages, or a message without the content that its role needs.
    pub fn prompt(&self, thinking: Thinking) -> Result<String, ModelError> {
        let mut messages = self.messages.clone();
        if !self.tools.is_empty() {
            if messages.first().is_none_or(|m| m.role != Role::System) {
                messages.insert(0, Message::new(Role::System, ""));
            }
            messages[0].tools.extend(self.tools.iter().cloned());
        }
        if messages.is_empty() {
            return Err(ModelError::Input("a conversation without messages".into()));
        }
        let has_tools = messages.iter().any(|m| !m.tools.is_empty());
        let mut turns = merged(messages);
        let drops = thinking != Thinking::Off && !has_tools;
        if drops {
            // Developers' messages before the last question are not repeated either.
            let last = last_question(&turns);
            let mut index = 0;
            turns.retain(|turn| {
                index += 1;
                turn.message.role != Role::Developer || Some(index - 1) >= last
            });
        }
        let last = last_question(&turns);
        let mut prompt = BEGIN.to_string();
        if thinking == Thinking::Max {
            prompt += GREATEST_EFFORT;
        }
        for (index, turn) in turns.iter().enumerate() {
            // Turns after the last question keep their reasoning.
            let is_current = last.is_none_or(|last| index > last);
            let after_task = index > 0 && turns[index - 1].message.task.is_some();
            let shows = thinking != Thinking::Off && !after_task && (!drops || is_current);
            turn.write(shows, &mut prompt)?;
            let next = turns.get(index + 1).map(|turn| turn.message.role);
            if !matches!(next, None | Some(Role::Assistant | Role::LatestReminder)) {
                continue;
            }
            let start = |thinks: bool| if thinks { THINK } else { THOUGHT };
            match (turn.message.task, turn.message.role) {
                (Some(Task::Action), _) => {
                    prompt += ASSISTANT;
                    prompt += start(thinking != Thinking::Off);
                    prompt += Task::Action.token();
                }
                (Some(task), _) => prompt += task.token(),
                (None, Role::User | Role::Developer) => {
                    prompt += ASSISTANT;
                    prompt += start(thinking != Thinking::Off && (!drops || Some(index) >= last));
                }
                _ => {}
            }
        }
        Ok(prompt)
    }
}

impl Message {
    pub fn new(role: Role, content: &str) -> Message {
        Message {
            role,
            content: Some(Content::Text(content.into())),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            tools: Vec::new(),
            response_format: None,
            task: None,
            wo_eos: false,
        }
    }

    fn text(&self) -> String {
        self.content.as_ref().map(Content::text).unwrap_or_default()
    }
}

/// A message; a user's with all that users and tools said one after another.
struct Turn {
    message: Message,
    /// Of a user.
    parts: Vec<Said>,
}

#[derive(Clone)]
enum Said {
    Text(String),
    Result { call: String, text: String },
}

/// Tools have no turns of their own: what they return belongs to the user's, in the order in which the assistant called them.
fn merged(messages: Vec<Message>) -> Vec<Turn> {
    let mut turns: Vec<Turn> = Vec::new();
    for mut message in messages {
        let part = match message.role {
            Role::User => Said::Text(message.text()),
            Role::Tool => Said::Result {
                call: message.tool_call_id.take().unwrap_or_default(),
                text: message.text(),
            },
            _ => {
                let parts = Vec::new();
                turns.push(Turn { message, parts });
                continue;
            }
        };
        match turns.last_mut() {
            // A task ends a user's message; what tools return does not.
            Some(Turn {
                message: last,
                parts,
            }) if last.role == Role::User
                && (last.task.is_none() || message.role == Role::Tool) =>
            {
                parts.push(part);
            }
            _ => {
                message.role = Role::User;
                let parts = vec![part];
                turns.push(Turn { message, parts });
            }
        }
    }
    let mut order: BTreeMap<String, usize> = BTreeMap::new();
    for turn in &mut turns {
        if !turn.message.tool_calls.is_empty() {
            let calls = turn.message.tool_calls.iter().enumerate();
            order = calls
                .map(|(place, call)| (call.id.clone(), place))
                .collect();
            // A call without a name cannot be asked for.
            order.remove("");
        }
        let place = |said: &Said| match said {
            Said::Text(_) => None,
            Said::Result { call, .. } => Some(order.get(call).copied().unwrap_or(0)),
        };
        // Results change places among themselves.
        let parts = turn.parts.clone();
        let is_result = |&at: &usize| place(&parts[at]).is_some();
        let places: Vec<usize> = (0..parts.len()).filter(is_result).collect();
        let mut sorted = places.clone();
        sorted.sort_by_key(|&at| place(&parts[at]));
        for (&to, &from) in places.iter().zip(&sorted) {
            turn.parts[to] = parts[from].clone();
        }
    }
    turns
}

/// The last turn that the model answers.
fn last_question(turns: &[Turn]) -> Option<usize> {
    let asks = |turn: &Turn| matches!(turn.message.role, Role::User | Role::Developer);
    turns.iter().rposition(asks)
}

impl Turn {
    /// `shows`: with the reasoning, if it is the model's.
    fn write(&self, shows: bool, prompt: &mut String) -> Result<(), ModelError> {
        let message = &self.message;
        let text = message.text();
        match message.role {
            Role::System => {
                *prompt += &text;
                message.write_instructions(prompt);
            }
            Role::Developer => {
                if text.is_empty() {
                    return Err(ModelError::Input(
                        "a developer's message without content".into(),
                    ));
                }
                *prompt += USER;
                *prompt += &text;
                message.write_instructions(prompt);
            }
            Role::User => {
                *prompt += USER;
                let parts = self.parts.iter().map(|said| match said {
                    Said::Text(text) => text.clone(),
                    Said::Result { text, .. } => format!("<tool_result>{text}</tool_result>"),
                });
                *prompt += &parts.collect::<Vec<_>>().join("\n\n");
            }
            Role::LatestReminder => {
                if message.content.is_none() {
                    return Err(ModelError::Input("a reminder without content".into()));
                }
                *prompt += LATEST_REMINDER;
                *prompt += &text;
            }
            Role::Assistant => {
                if shows {
                    *prompt += message.reasoning_content.as_deref().unwrap_or("");
                    *prompt += THOUGHT;
                }
                *prompt += &text;
                if !message.tool_calls.is_empty() {
                    let calls = message.tool_calls.iter().map(Call::markup);
                    let calls = calls.collect::<Vec<_>>().join("\n");
                    *prompt += &format!("\n\n<{DSML}tool_calls>\n{calls}\n</{DSML}tool_calls>");
                }
                if !message.wo_eos {
                    *prompt += END;
                }
            }
            Role::Tool => unreachable!("what tools return is part of a user's turn"),
        }
        Ok(())
    }
}

impl Message {
    /// Tools, and the form of the answer.
    fn write_instructions(&self, prompt: &mut String) {
        if !self.tools.is_empty() {
            let schemas = self.tools.iter().map(|tool| tool.function.to_string());
            *prompt += "\n\n";
            *prompt += &tools_text(&schemas.collect::<Vec<_>>().join("\n"));
        }
        if let Some(schema) = &self.response_format {
            *prompt += &format!(
                "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{schema}"
            );
        }
    }
}

impl Call {
    fn markup(&self) -> String {
        let CalledFunction { name, arguments } = &self.function;
        let arguments = match serde_json::from_str(arguments) {
            Ok(Json::Object(arguments)) => arguments,
            // What is no object is passed on whole.
            _ => vec![("arguments".into(), Json::String(arguments.clone()))],
        };
        let arguments = arguments.iter().map(|(key, value)| {
            let (is_string, value) = match value {
                Json::String(text) => (true, text.clone()),
                value => (false, value.to_string()),
            };
            format!(
                "<{DSML}parameter name=\"{key}\" string=\"{is_string}\">{value}</{DSML}parameter>"
            )
        });
        let arguments = arguments.collect::<Vec<_>>().join("\n");
        format!("<{DSML}invoke name=\"{name}\">\n{arguments}\n</{DSML}invoke>")
    }
}

fn tools_text(schemas: &str) -> String {
    format!(
        r#"## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<{DSML}tool_calls>" block like the following:

<{DSML}tool_calls>
<{DSML}invoke name="$TOOL_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$TOOL_NAME2">
...
</{DSML}invoke>
</{DSML}tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by {THINK}), you MUST output your complete reasoning inside {THINK}...{THOUGHT} BEFORE any tool calls or final response.

Otherwise, output directly after {THOUGHT} with tool calls or final response.

### Available Tool Schemas

{schemas}

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"#
    )
}

#[cfg(test)]
mod tests;
