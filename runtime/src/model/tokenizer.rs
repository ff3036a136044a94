//! Text to token ids and back, by the `tokenizer.json` of a model's folder.

use std::path::Path;

use super::ModelError;

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

    /// # Errors
    /// [`ModelError::Input`]: an id that the tokenizer does not know.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        let text = self.0.decode(ids, true);
        text.map_err(|why| ModelError::Input(format!("the answer: {why}")))
    }
}
