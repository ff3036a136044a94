//! Prompts and answers, against what the release's program writes and reads.

use super::{Answer, Conversation, Thinking};

fn prompt(json: &str, thinking: Thinking) -> String {
    Conversation::from_json(json)
        .unwrap()
        .prompt(thinking)
        .unwrap()
}

#[test]
fn a_question_ends_where_the_answer_begins() {
    let question = Conversation::of("Hi");
    let ask = |thinking| question.prompt(thinking).unwrap();
    let start = "<｜begin▁of▁sentence｜>";
    assert_eq!(
        ask(Thinking::Off),
        format!("{start}<｜User｜>Hi<｜Assistant｜></think>")
    );
    assert_eq!(
        ask(Thinking::On),
        format!("{start}<｜User｜>Hi<｜Assistant｜><think>")
    );
    let most = ask(Thinking::Max);
    assert!(most.starts_with(&format!("{start}Reasoning Effort: Absolute maximum")));
    assert!(most.ends_with("left unchecked.\n\n<｜User｜>Hi<｜Assistant｜><think>"));
}

const TURNS: &str = r#"[
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": "In verse."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2", "reasoning_content": "One and one."},
    {"role": "user", "content": "2+2?"}
]"#;

#[test]
fn earlier_turns_lose_their_reasoning() {
    assert_eq!(
        prompt(TURNS, Thinking::On),
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>1+1?<｜Assistant｜></think>2<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜><think>"
    );
    // Without reasoning, what a developer said stays.
    assert_eq!(
        prompt(TURNS, Thinking::Off),
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>In verse.<｜User｜>1+1?<｜Assistant｜></think>2<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜></think>"
    );
}

const TOOLS: &str = r#"{
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"z": 1, "a": [0.10, 1e-5, true, null, "é\n"]}}}],
    "messages": [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "reasoning_content": "Tools.", "content": "", "tool_calls": [
            {"id": "x", "type": "function", "function": {"name": "add", "arguments": "{\"b\": 1, \"a\": \"two\"}"}},
            {"id": "y", "type": "function", "function": {"name": "add", "arguments": "none"}}
        ]},
        {"role": "tool", "tool_call_id": "y", "content": "second"},
        {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "fi"}, {"type": "image"}]},
        {"role": "user", "content": "Well?"}
    ]
}"#;

#[test]
fn calls_and_results_of_tools() {
    let text = prompt(TOOLS, Thinking::On);
    let (instructions, rest) = text.split_once("<｜User｜>").unwrap();
    assert!(instructions.starts_with("<｜begin▁of▁sentence｜>\n\n## Tools\n\nYou have access"));
    assert!(
        instructions
            .contains("\n\n{\"name\": \"add\", \"parameters\": {\"z\": 1, \"a\": [0.1, 1e-05, true, null, \"é\\n\"]}}\n\nYou MUST")
    );
    assert_eq!(
        rest,
        "Add.<｜Assistant｜><think>Tools.</think>\n\n<｜DSML｜tool_calls>\n\
         <｜DSML｜invoke name=\"add\">\n\
         <｜DSML｜parameter name=\"b\" string=\"false\">1</｜DSML｜parameter>\n\
         <｜DSML｜parameter name=\"a\" string=\"true\">two</｜DSML｜parameter>\n\
         </｜DSML｜invoke>\n\
         <｜DSML｜invoke name=\"add\">\n\
         <｜DSML｜parameter name=\"arguments\" string=\"true\">none</｜DSML｜parameter>\n\
         </｜DSML｜invoke>\n\
         </｜DSML｜tool_calls><｜end▁of▁sentence｜>\
         <｜User｜><tool_result>fi\n\n[Unsupported image]</tool_result>\n\n<tool_result>second</tool_result>\n\nWell?<｜Assistant｜><think>"
    );
}

#[test]
fn tasks_and_reminders() {
    let text = r#"[
        {"role": "latest_reminder", "content": "2026-11-22"},
        {"role": "user", "content": "Where?", "task": "domain"}
    ]"#;
    assert_eq!(
        prompt(text, Thinking::Off),
        "<｜begin▁of▁sentence｜><｜latest_reminder｜>2026-11-22<｜User｜>Where?<｜domain｜>"
    );
    let text = r#"[
        {"role": "user", "content": "Do.", "task": "action"},
        {"role": "assistant", "content": "yes", "wo_eos": true}
    ]"#;
    assert_eq!(
        prompt(text, Thinking::On),
        "<｜begin▁of▁sentence｜><｜User｜>Do.<｜Assistant｜><think><｜action｜>yes"
    );
}

#[test]
fn messages_that_cannot_be_are_refused() {
    let refused = |json: &str| {
        Conversation::from_json(json)
            .and_then(|c| c.prompt(Thinking::Off))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(refused("[]"), "a conversation without messages");
    assert!(refused(r#"[{"role": "king", "content": "x"}]"#).contains("unknown variant `king`"));
    assert!(refused(r#"[{"role": "user", "contents": "x"}]"#).contains("unknown field `contents`"));
    assert_eq!(
        refused(r#"[{"role": "developer"}]"#),
        "a developer's message without content"
    );
    assert!(refused("[").starts_with("the messages: EOF"));
}

#[test]
fn answers_are_taken_apart() {
    let read = |text: &str, thinking| Answer::parse(text, thinking).unwrap();
    let answer = read("So.</think>Two<｜end▁of▁sentence｜>", Thinking::On);
    assert_eq!(
        (&answer.reasoning_content[..], &answer.content[..]),
        ("So.", "Two")
    );
    assert!(answer.finished);
    assert!(!read("So", Thinking::On).finished);
    assert!(!read("Tw", Thinking::Off).finished);
    // The calls of a prompt read back as what they were made from.
    let text = prompt(TOOLS, Thinking::On);
    let start = text.find("Tools.</think>").unwrap();
    let end = text.find("<｜end▁of▁sentence｜>").unwrap() + "<｜end▁of▁sentence｜>".len();
    let answer = read(&text[start..end], Thinking::On);
    assert_eq!(answer.tool_calls[0].name, "add");
    assert_eq!(answer.tool_calls[0].arguments, r#"{"b": 1, "a": "two"}"#);
    assert_eq!(answer.tool_calls[1].arguments, r#"{"arguments": "none"}"#);
    assert!(answer.finished);
    // Cut off anywhere, or with a letter missing, it is an error or another answer, and no panic.
    let text = &text[start..end];
    for (at, letter) in text.char_indices() {
        let _ = Answer::parse(&text[..at], Thinking::On);
        let without = [&text[..at], &text[at + letter.len_utf8()..]].concat();
        let _ = Answer::parse(&without, Thinking::On);
    }
    for (text, why) in [
        ("a<｜end▁of▁sentence｜>b", "\"b\" behind the end"),
        ("<think>a<｜end▁of▁sentence｜>", "`<think>` within text"),
        (
            "\n\n<｜DSML｜tool_calls>\n",
            "calls of tools that do not end",
        ),
    ] {
        let found = Answer::parse(text, Thinking::Off).unwrap_err().to_string();
        assert_eq!(
            found,
            format!("the answer is not in V4's chat format: {why}")
        );
    }
}
