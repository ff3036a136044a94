//! Text to token ids and back, by the `tokenizer.json` of a model's folder.
//!
//! A text's tokens begin with what the tokenizer puts before every text; a chat's prompt holds all its marks itself, and the tokenizer must know them.

use std::path::Path;

use super::ModelError;
use crate::chat;

pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// The tokenizer in `folder`; `None` if it has none.
    ///
    /// # Errors
    /// [`ModelError::Input`]: the file is not a tokenizer.
    pub fn open(folder: &Path) -> Result<Option<Tokenizer>, ModelError> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Ok(None);
        }
        match tokenizers::Tokenizer::from_file(&path) {
            Ok(tokenizer) => Ok(Some(Tokenizer(tokenizer))),
            Err(why) => Err(ModelError::Input(format!("{}: {why}", path.display()))),
        }
    }

    /// # Errors
    /// [`ModelError::Input`]: the tokenizer cannot take the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.0.encode(text, true);
        let encoding = encoding.map_err(|why| ModelError::Input(format!("the prompt: {why}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a prompt that [`chat::Conversation::prompt`] wrote.
    ///
    /// # Errors
    /// [`ModelError::Input`]: the tokenizer lacks a mark of the format, or cannot take the text.
    pub fn encode_chat(&self, prompt: &str) -> Result<Vec<u32>, ModelError> {
        let missing = chat::TOKENS
            .iter()
            .find(|mark| self.0.token_to_id(mark).is_none());
        if let Some(mark) = missing {
            return Err(ModelError::Input(format!(
                "tokenizer.json has no token `{mark}`, which V4's chat format needs; give the prompt as plain text"
            )));
        }
        let encoding = self.0.encode(prompt, false);
        let encoding = encoding.map_err(|why| ModelError::Input(format!("the prompt: {why}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids` without special tokens.
    ///
    /// # Errors
    /// [`ModelError::Input`]: an id that the tokenizer does not know.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.text(ids, true)
    }

    /// The text of `ids` with every mark of the chat's format, for [`chat::Answer::parse`].
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_chat(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.text(ids, false)
    }

    fn text(&self, ids: &[u32], skip_special: bool) -> Result<String, ModelError> {
        let text = self.0.decode(ids, skip_special);
        text.map_err(|why| ModelError::Input(format!("the answer: {why}")))
    }

    /// Turns ids into text one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream(self.0.decode_stream(true))
    }
}

/// Text as its tokens come.
pub struct TextStream<'a>(Decoding<'a>);

type Decoding<'a> = tokenizers::tokenizer::DecodeStream<
    'a,
    tokenizers::ModelWrapper,
    tokenizers::NormalizerWrapper,
    tokenizers::PreTokenizerWrapper,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

impl TextStream<'_> {
    /// What `id` adds to the text; nothing while a character is not complete.
    ///
    /// # Errors
    /// [`ModelError::Input`]: an id that the tokenizer does not know.
    pub fn push(&mut self, id: u32) -> Result<String, ModelError> {
        let text = self.0.step(id);
        let text = text.map_err(|why| ModelError::Input(format!("the answer: {why}")))?;
        Ok(text.unwrap_or_default())
    }
}
