//! Server-sent events, as far as the event stream uses them.

/// A message of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Message {
    /// Its kind; empty is `message`.
    pub(crate) event: String,
    /// Its id, to resume after it.
    pub(crate) id: Option<String>,
    /// Its content.
    pub(crate) data: String,
}

/// Most bytes of one message; a longer one means that this is no event stream.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Cuts bytes into messages.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    message: Message,
}

impl Parser {
    /// Takes bytes as they come and gives the messages that they complete; `None` when this is no event stream.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Option<Vec<Message>> {
        let mut messages = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' => messages.extend(self.end_of_line()),
                b'\r' => {}
                byte => self.line.push(*byte),
            }
            if self.line.len() + self.message.data.len() > MESSAGE_BYTES_MAX {
                return None;
            }
        }
        Some(messages)
    }

    fn end_of_line(&mut self) -> Option<Message> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            return (!message.data.is_empty()).then_some(message);
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.message.event),
            "id" => self.message.id = Some(value.to_owned()),
            "data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_wherever_the_bytes_are() {
        let stream = b": alive\n\nid: 7\nevent: event\ndata: {\"a\":1}\n\ndata: x\r\ndata: y\r\n\r\n";
        for cut in 0..stream.len() {
            let mut parser = Parser::default();
            let mut messages = parser.take(&stream[..cut]).unwrap();
            messages.extend(parser.take(&stream[cut..]).unwrap());
            let first =
                Message { event: "event".to_owned(), id: Some("7".to_owned()), data: "{\"a\":1}".to_owned() };
            let second = Message { data: "x\ny".to_owned(), ..Message::default() };
            assert_eq!(messages, [first, second], "cut at {cut}");
        }
    }
}
