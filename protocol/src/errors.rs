//! Errors at an edge: one line of text for logs, events and answers.

/// An error with its causes, outermost first, in one line. Some libraries repeat their source in their own text: a cause
/// that the line has already is left out.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn causes_are_named_once() {
        let of = |text| chain(&Outer { text, source: io::Error::other("no room") });
        assert_eq!(of("the file was not written"), "the file was not written: no room");
        assert_eq!(of("not written: no room"), "not written: no room");
    }
}
